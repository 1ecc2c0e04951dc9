"""One command on its way: what the driver put in memory for a slot, checked, and its data in guest memory.

Document: AHCI 1.3, §4.2.2 and §4.2.3 (command header, command table, physical region descriptors).

Every address is the guest's: whatever is not RAM raises ``BadAddress``, a table that describes less than the command
moves raises ``TableTooShort``. Neighbouring regions are joined, so that a transfer has as few buffers as it can.
"""

from __future__ import annotations

import struct

from pyhyve.hw.storage.ahci.fis import TaskFile
from pyhyve.hw.storage.ahci.registers import (
    HEADER_SIZE,
    PRD_BYTES,
    PRD_INTERRUPT,
    PRD_SIZE,
    TABLE_ATAPI,
    TABLE_FIS_SIZE,
    TABLE_PRDT,
    Header,
)
from pyhyve.memory import GuestMemory, OutsideMemory

_PRD = struct.Struct("<QII")
_PRDS_AT_ONCE = 64
_HEADER = struct.Struct("<IIQ")
_FIS_LENGTH = int(Header.FIS_LENGTH)


class BadAddress(Exception):
    """The driver pointed outside memory: a fatal host bus error."""


class TableTooShort(Exception):
    """The device has more data than the regions take: an overflow."""


class BadFis(Exception):
    """What stands in the command table is no host-to-device register FIS."""


class Request:
    """A command slot's contents, read once when the command is issued."""

    __slots__ = (
        "_header_gpa",
        "_memory",
        "_regions",
        "_table",
        "_table_length",
        "flags",
        "moved",
        "notify",
        "queued",
        "slot",
        "tf",
    )

    def __init__(self, memory: GuestMemory, list_gpa: int, slot: int) -> None:
        self._memory = memory
        self.slot = slot
        self._header_gpa = list_gpa + HEADER_SIZE * slot
        self._regions: list[tuple[int, int]] = []
        self.moved = 0
        """Bytes of data transferred, for the header's PRDBC."""
        self.notify = False
        """Whether a region that was used asks for an interrupt of its own."""
        self.queued = False
        """Whether others may overtake it (NCQ)."""
        try:
            first, _, table = _HEADER.unpack(memory.read(self._header_gpa, _HEADER.size))
            self.flags = first & 0xFFFF
            self._table_length = first >> 16
            self._table = table & ~0x7F
            fis = memory.read(self._table, TABLE_FIS_SIZE)
        except OutsideMemory:
            raise BadAddress from None
        tf = TaskFile.parse(fis)
        if tf is None or self.flags & _FIS_LENGTH < 5:
            raise BadFis
        self.tf = tf

    def packet(self) -> bytes:
        """The ATAPI command of the table, 16 bytes."""
        try:
            return self._memory.read(self._table + TABLE_ATAPI, 16)
        except OutsideMemory:
            raise BadAddress from None

    def regions(self, length: int) -> list[tuple[int, int]]:
        """The first ``length`` bytes of the data as ``(gpa, length)``, fewer if the table has fewer; not checked."""
        found: list[tuple[int, int]] = []
        start = end = 0
        for first in range(0, self._table_length, _PRDS_AT_ONCE):
            count = min(_PRDS_AT_ONCE, self._table_length - first)
            try:
                table = self._memory.read(self._table + TABLE_PRDT + PRD_SIZE * first, PRD_SIZE * count)
            except OutsideMemory:
                raise BadAddress from None
            for gpa, _, last in _PRD.iter_unpack(table):
                if not length:
                    break
                count = min((last & PRD_BYTES | 1) + 1, length)
                self.notify |= last & PRD_INTERRUPT != 0
                length -= count
                gpa &= ~1
                if gpa == end:
                    end += count
                    continue
                if end > start:
                    found.append((start, end - start))
                start, end = gpa, gpa + count
            if not length:
                break
        if end > start:
            found.append((start, end - start))
        return found

    def buffers(self, length: int) -> list[memoryview]:
        """Views of guest memory for exactly ``length`` bytes."""
        self._regions = regions = self.regions(length)
        view, found, buffers = self._memory.view, 0, []
        try:
            for gpa, count in regions:
                found += count
                buffers.append(view(gpa, count))
        except OutsideMemory:
            raise BadAddress from None
        if found < length:
            raise TableTooShort
        return buffers

    def received(self) -> None:
        """The buffers were filled: whoever caches memory hears of it."""
        for gpa, count in self._regions:
            self._memory.written(gpa, count)
            self.moved += count

    def sent(self) -> None:
        """The buffers were read."""
        self.moved += sum(count for _, count in self._regions)

    def put(self, data: bytes) -> int:
        """Copy data to the regions; returns how much found room."""
        at = 0
        for gpa, count in self.regions(len(data)):
            try:
                self._memory.write(gpa, data[at : at + count])
            except OutsideMemory:
                raise BadAddress from None
            at += count
        self.moved += at
        return at

    def take(self, length: int) -> bytes:
        """Copy exactly ``length`` bytes out of the regions."""
        data = b"".join(bytes(view) for view in self.buffers(length))
        self.sent()
        return data

    def write_count(self) -> None:
        """Put the bytes transferred into the header, where the driver looks (PRDBC)."""
        try:
            self._memory.write_uint(self._header_gpa + 4, self.moved, 4)
        except OutsideMemory:
            raise BadAddress from None
