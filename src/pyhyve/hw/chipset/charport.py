"""The character ports of early bhyve: one I/O port that carries a byte each way.

No document but bhyve itself (``consport.c``, ``dbgport.c``). A 16-bit read gives a signature, by which a guest finds
the port. A 32-bit write sends the low byte; a 32-bit read gives the next byte received, or all ones if there is none.
``bvmcons`` and ``dbgport`` are such ports.

A guest's byte goes to the character backend in the vCPU's thread. Bytes from the backend arrive in the loop's thread
and wait until the guest polls; a backlog stops the backend from reading.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from pyhyve.bus.pio import PioBus
from pyhyve.hw.chipset.uart16550 import BACKLOG_HIGH, BACKLOG_LOW, CharDevice
from pyhyve.lifecycle import State, check_version, saved_list

NO_CHARACTER = 0xFFFFFFFF


class CharPort:
    """Base of the character ports, in front of ``backend``. Subclasses say where they are and who."""

    NAME = ""
    PORT = 0
    SIGNATURE = 0

    def __init__(self, backend: CharDevice) -> None:
        self.lock = threading.RLock()
        self._backend = backend
        self._input: deque[int] = deque()
        self._paused = False

    def attach(self, pio: PioBus) -> None:
        """Answer at the port, to accesses of any size."""
        pio.register(self.PORT, 1, self, self.NAME, self.lock, whole=True)

    def start(self) -> None:
        """Take input from now on."""
        self._backend.start(self._received)

    def read(self, offset: int, size: int) -> int:
        """The signature, the next character, or all ones for a byte read, with which guests look for ISA devices."""
        if size == 2:
            return self.SIGNATURE
        return self._next() if size == 4 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Send a character; only 32-bit writes do."""
        if size == 4:
            self._send(bytes((value & 0xFF,)))

    def _send(self, data: bytes) -> None:
        self._backend.write(data)

    def _next(self) -> int:
        character = self._input.popleft() if self._input else NO_CHARACTER
        if self._paused and len(self._input) <= BACKLOG_LOW:
            self._paused = False
            self._backend.resume()
        return character

    def _received(self, data: bytes) -> None:
        with self.lock:
            self._input += data
            if not self._paused and len(self._input) >= BACKLOG_HIGH:
                self._paused = True
                self._backend.pause()

    def reset(self) -> None:
        """What a user has typed is kept: a reset of the machine is not one of the terminal."""

    def save(self) -> State:
        """The characters that wait for the guest."""
        with self.lock:
            return {"version": 1, "_input": list(self._input)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take them over, in front of what has come in since."""
        check_version(self, state)
        waiting = [c for c in saved_list(state, "_input") if isinstance(c, int) and 0 <= c <= 0xFF]
        with self.lock:
            self._input.extendleft(reversed(waiting))
