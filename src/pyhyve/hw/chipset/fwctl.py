"""bhyve's own firmware interface (``-l fwcfg,bhyve``): how a boot ROM asks for the number of CPUs.

No document but bhyve's ``fwctl.c``. It lies at QEMU's ports 0x510 and 0x511 and speaks in messages of 32-bit words:

    write 16 bits of 0 to 0x510        start over; then four byte reads of 0x511 give the signature ``BHYV``
    write words to 0x510               a request: length in bytes, operation, transaction number, data
    read words from 0x511              the answer: length, operation, transaction number, error, data

A request's data is the name of a variable. ``GET`` answers its size in eight bytes and its value, ``GET_LEN`` the size.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Mapping
from enum import IntEnum

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, restore_fields, save_fields

OUT_PORT = 0x510
IN_PORT = 0x511
SIGNATURE = b"BHYV"
NAME_LIMIT = 80
"""Longest name of a variable, in bytes."""

_HEADER = 12
_WORD_ONES = 0xFFFFFFFF


class Op(IntEnum):
    """Operations that are answered; others give ENOENT."""

    GET = 3
    GET_LEN = 4


class Phase(IntEnum):
    """What comes next."""

    IDENT = 0
    REQUEST = 1
    ANSWER = 2


class FwCtl:
    """The interface. ``hw.ncpu`` is the only variable."""

    def __init__(self, cpus: int) -> None:
        self.lock = threading.RLock()
        self._variables = {b"hw.ncpu": struct.pack("<I", cpus)}
        self._phase = int(Phase.IDENT)
        self._identified = 0
        self._request = b""
        self._answer = b""

    def attach(self, pio: PioBus) -> None:
        """Answer at both ports."""
        handler = Callbacks(self._read, self._write)
        pio.register(OUT_PORT, 1, handler, "fwctl", self.lock, whole=True)
        pio.register(IN_PORT, 1, Callbacks(self._read, _ignore), "fwctl answers", self.lock, whole=True)

    def _read(self, offset: int, size: int) -> int:
        if size == 1 and self._phase == Phase.IDENT:
            byte = SIGNATURE[self._identified % len(SIGNATURE)]
            self._identified += 1
            if self._identified >= len(SIGNATURE):
                self._phase = int(Phase.REQUEST)
            return byte
        if size == 4 and self._phase == Phase.ANSWER:
            word, self._answer = self._answer[:4], self._answer[4:]
            if not self._answer:
                self._phase = int(Phase.REQUEST)
            return int.from_bytes(word, "little")
        return _WORD_ONES >> (32 - 8 * size)

    def _write(self, offset: int, size: int, value: int) -> None:
        if size == 2 and value == 0:
            self.reset()
        elif size == 4 and self._phase == Phase.REQUEST:
            self._request += value.to_bytes(4, "little")
            self._consider()

    def _consider(self) -> None:
        """Answer the request if it is complete. What is too long is answered before it is all there."""
        length = int.from_bytes(self._request[:4], "little")
        if len(self._request) < _HEADER:
            return
        if len(self._request) < min(length, _HEADER + NAME_LIMIT + 4):
            return
        _, operation, transaction = struct.unpack_from("<III", self._request)
        error, data = self._result(operation, self._request[_HEADER : max(length, _HEADER)])
        data += bytes(-len(data) % 4)
        self._answer = struct.pack("<IIII", _HEADER + 4 + len(data), operation, transaction, error) + data
        self._request = b""
        self._phase = int(Phase.ANSWER)

    def _result(self, operation: int, name: bytes) -> tuple[int, bytes]:
        if operation not in (Op.GET, Op.GET_LEN):
            return errno.ENOENT, b""
        if len(name) > NAME_LIMIT:
            return errno.E2BIG, b""
        value = self._variables.get(name.partition(b"\0")[0])
        if value is None:
            return errno.ENOENT, b""
        return 0, struct.pack("<Q", len(value)) + (value if operation == Op.GET else b"")

    def reset(self) -> None:
        """Wait for somebody to read the signature."""
        with self.lock:
            self._phase = int(Phase.IDENT)
            self._identified = 0
            self._request = self._answer = b""

    def save(self) -> State:
        """The conversation so far."""
        return save_fields(self, ("_phase", "_identified", "_request", "_answer"))

    def restore(self, state: Mapping[str, object]) -> None:
        """Take it over."""
        with self.lock:
            restore_fields(self, ("_phase", "_identified", "_request", "_answer"), state)


def _ignore(offset: int, size: int, value: int) -> None:
    """The port is for answers."""
