"""An I/O port that ends the machine with a status of the guest's choice, for test programs (``-l debug-exit``).

The interface is that of QEMU's ``isa-debug-exit``, which bhyve's ``pc-testdev`` has too: writing ``v`` ends the process
with status ``(v << 1) | 1``, of which the host keeps eight bits. The status is odd, so it never looks like a reset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version

PORT = 0xF4
SIZE = 4


class DebugExit:
    """``size`` ports (1, 2 or 4) from ``port``. ``end`` is told the status."""

    def __init__(self, end: Callable[[int], None], port: int = PORT, size: int = SIZE) -> None:
        self._end = end
        self.port = port
        self.size = size

    def attach(self, pio: PioBus) -> None:
        """Answer at the ports. Raises ``ValueError`` if they are taken."""
        pio.register(self.port, self.size, self, "debug-exit", width=self.size)

    def read(self, offset: int, size: int) -> int:
        """Nothing is there to read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine."""
        self._end((value << 1 | 1) & 0xFF)

    def reset(self) -> None:
        """There is no state."""

    def save(self) -> State:
        """There is no state."""
        return {"version": 1}

    def restore(self, state: Mapping[str, object]) -> None:
        """There is no state."""
        check_version(self, state)
