"""A flash memory for the variables of a boot ROM (``-l bootrom,FILE,VARS``): what a guest writes stays in the file.

Document: Intel 28F160C18 data sheet, table 5 (commands), as far as EDK2's flash driver uses them. The chip reads as
memory until a byte is written to it, which is a command; a program or erase command then makes reads give the status
until the guest goes back to the array. Programming sets any byte, erased or not, and never fails. Cleared, the status
is 0, by which EDK2 knows a flash memory, although the data sheet's stays ready.

``contents`` is the mapped file, so a programmed byte is in the file at once. Accesses exit. But firmware reads its
variables over and over; so after some reads in a row a copy of the array is shown to the guest as read-only memory,
until the next byte is written.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from enum import IntEnum
from typing import Protocol

from pyhyve.bus.mmio import MmioBus
from pyhyve.lifecycle import State, restore_fields, save_fields

READY = 0x80
BLOCK = 4096
MANUFACTURER, DEVICE = 0x89, 0x17
READS_BEFORE_SHOWN = 1000
"""To show the array and to hide it again costs as much as so many exits: some milliseconds, in which no vCPU runs."""

_STATE = ("_reading", "_pending", "_status")


class Command(IntEnum):
    """Bytes that mean something to the chip."""

    PROGRAM = 0x10
    ERASE = 0x20
    PROGRAM_2 = 0x40
    CLEAR_STATUS = 0x50
    READ_STATUS = 0x70
    READ_ID = 0x90
    CONFIRM = 0xD0
    READ_ARRAY = 0xFF


class Contents(Protocol):
    """A ``bytearray``, or a mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> bytes | bytearray: ...

    def __setitem__(self, index: slice, value: bytes, /) -> None: ...


class Copy(Protocol):
    """Where the guest can read the array without exits; a write to it exits all the same."""

    def show(self, contents: bytes, /) -> None: ...

    def hide(self) -> None: ...


class Flash:
    """The chip around ``contents``."""

    def __init__(self, contents: Contents, copy: Copy) -> None:
        self.lock = threading.RLock()
        self._contents = contents
        self._copy = copy
        self._reads = 0  # of the array, in a row; from READS_BEFORE_SHOWN on it is shown
        self._reading = int(Command.READ_ARRAY)
        self._pending = 0  # the first half of a command of two
        self._status = READY

    def attach(self, mmio: MmioBus, gpa: int) -> None:
        """Answer from ``gpa`` on. Raises ``ValueError`` if some address is taken."""
        mmio.register(gpa, len(self._contents), self, "boot variables", self.lock)

    def read(self, offset: int, size: int) -> int:
        """The array, the status, or who the chip is, as the last command says."""
        if self._reading == Command.READ_ARRAY:
            self._reads += 1
            if self._reads == READS_BEFORE_SHOWN:
                self._copy.show(bytes(self._contents[:]))
            return int.from_bytes(self._contents[offset : offset + size], "little")
        if self._reading == Command.READ_ID:
            answers = (MANUFACTURER, DEVICE, 0, 0)
            return int.from_bytes((answers[(offset + i) % 4] for i in range(size)), "little")
        return int.from_bytes(bytes((self._status & 0xFF,)) * size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A command, or the second half of one."""
        self._hide()
        pending, self._pending = self._pending, 0
        if pending in (Command.PROGRAM, Command.PROGRAM_2):
            self._contents[offset : offset + size] = value.to_bytes(size, "little")
            self._status = READY
            return
        command = value & 0xFF
        if pending == Command.ERASE:
            if command == Command.CONFIRM:
                start = offset - offset % BLOCK
                end = min(start + BLOCK, len(self._contents))
                self._contents[start:end] = b"\xff" * (end - start)
                self._status = READY
            return
        if command in (Command.PROGRAM, Command.PROGRAM_2, Command.ERASE):
            self._pending = command
            self._reading = int(Command.READ_STATUS)
        elif command in (Command.READ_ARRAY, Command.READ_ID, Command.READ_STATUS):
            self._reading = command
        else:
            if command == Command.CLEAR_STATUS:
                self._status = 0
            self._reading = int(Command.READ_ARRAY)

    def _hide(self) -> None:
        reads, self._reads = self._reads, 0
        if reads >= READS_BEFORE_SHOWN:
            self._copy.hide()

    def reset(self) -> None:
        """Reads give the array; what was written stays."""
        with self.lock:
            self._reading, self._pending, self._status = int(Command.READ_ARRAY), 0, READY

    def save(self) -> State:
        """What the chip expects next. The contents are the file's."""
        return save_fields(self, _STATE)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take that over."""
        with self.lock:
            self._hide()
            restore_fields(self, _STATE, state)
