"""Guest-physical memory: one memfd or tmpfs file, mapped once, seen as regions of RAM at guest-physical addresses.

Low memory runs from 0 up to at most 3 GiB; what is left goes above 4 GiB, as bhyve lays it out. Everything that
takes a guest-physical address checks it here: an access outside RAM raises ``OutsideMemory``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyhyve.errors import MemoryError_

PAGE = 4096
LOW_LIMIT = 3 << 30
HIGH_BASE = 4 << 30
CORE_FILTER = "/proc/self/coredump_filter"
ANONYMOUS_SHARED, FILE_SHARED = 1 << 1, 1 << 3
"""Kinds of mappings that a core dump may hold (core(5))."""


class OutsideMemory(MemoryError_):
    """An address range that is not all RAM."""


@dataclass(frozen=True, slots=True)
class Region:
    """``size`` bytes of RAM at guest-physical ``gpa``, from ``offset`` in the memfd."""

    gpa: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


class GuestMemory:
    """The RAM of one machine. ``size`` is in bytes, a multiple of 4096.

    ``fd`` is an open file of that size whose contents become the memory; it is closed with it. Without one the memory
    is a new memfd, all zeros, in which ``rom`` bytes more, a multiple of 4096 too, lie behind the RAM and in no region:
    a boot ROM, which ``write_rom`` fills and the machine maps where it belongs.
    """

    def __init__(self, size: int, low_limit: int = LOW_LIMIT, *, fd: int | None = None, rom: int = 0) -> None:
        if size <= 0 or size % PAGE or rom % PAGE:
            if fd is not None:
                os.close(fd)
            raise MemoryError_(f"guest memory must be a positive multiple of {PAGE} bytes, not {size}")
        self.rom_offset = size
        """Where the ROM begins in the memfd."""
        low = min(size, low_limit)
        self.regions: tuple[Region, ...] = (Region(0, low, 0),)
        if size > low:
            self.regions += (Region(HIGH_BASE, size - low, low),)
        self.size = size = size + rom
        self.fd = os.memfd_create("pyhyve-guest", os.MFD_CLOEXEC) if fd is None else fd
        try:
            if fd is None:
                os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_NORESERVE", 0x4000))
        except (OSError, ValueError) as error:
            os.close(self.fd)
            raise MemoryError_(f"cannot get {size >> 20} MB of guest memory: {error}") from None
        self._view = memoryview(self._map)
        anchor = ctypes.c_char.from_buffer(self._map)
        self.host_base = ctypes.addressof(anchor)
        del anchor
        self.on_write: list[Callable[[int, int], None]] = []

    @property
    def low_size(self) -> int:
        """Bytes of RAM that start at address 0."""
        return self.regions[0].size

    @property
    def high_size(self) -> int:
        """Bytes of RAM that start at 4 GiB."""
        return self.regions[1].size if len(self.regions) > 1 else 0

    @property
    def ram_size(self) -> int:
        """Bytes of RAM in all; ``size`` counts the ROM too."""
        return self.low_size + self.high_size

    def offset(self, gpa: int, length: int = 1) -> int:
        """Where ``[gpa, gpa+length)`` lies in the memfd. Raises ``OutsideMemory``."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.end and length >= 0:
                return gpa - region.gpa + region.offset
        raise OutsideMemory(f"no guest memory at {gpa:#x}, {length} bytes")

    def contains(self, gpa: int, length: int = 1) -> bool:
        return any(r.gpa <= gpa and gpa + length <= r.end for r in self.regions)

    def host_address(self, gpa: int, length: int = 1) -> int:
        """The address of guest-physical ``gpa`` in this process."""
        return self.host_base + self.offset(gpa, length)

    def view(self, gpa: int, length: int) -> memoryview:
        """A writable window on RAM. Call ``written`` after changing it."""
        start = self.offset(gpa, length)
        return self._view[start : start + length]

    def read(self, gpa: int, length: int) -> bytes:
        start = self.offset(gpa, length)
        return bytes(self._view[start : start + length])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        length = len(data)
        start = self.offset(gpa, length)
        self._view[start : start + length] = data
        self.written(gpa, length)

    def written(self, gpa: int, length: int) -> None:
        """Tell whoever caches what is in memory (translated code) that it changed."""
        for callback in self.on_write:
            callback(gpa, length)

    def write_rom(self, data: bytes, at: int = 0) -> None:
        """Fill the ROM from its byte ``at`` on, before that is mapped."""
        start = self.rom_offset + at
        self._view[start : start + len(data)] = data

    def show_in_core_dumps(self, shown: bool) -> None:
        """Whether a core dump of this process holds guest memory (madvise(2), MADV_DONTDUMP; core(5)).

        Memory of a file with a name is dumped only by a process that asks for such mappings.
        """
        if not shown:
            self._map.madvise(mmap.MADV_DONTDUMP)
            return
        self._map.madvise(mmap.MADV_DODUMP)
        try:
            with open(CORE_FILTER, "r+", encoding="ascii") as file:
                kinds = int(file.read(), 16) | ANONYMOUS_SHARED | FILE_SHARED
                file.seek(0)
                file.write(f"{kinds:#x}")
        except OSError as error:
            raise MemoryError_(f"cannot have guest memory in core dumps: {CORE_FILTER}: {error.strerror}") from None

    def read_uint(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.read(gpa, size), "little")

    def write_uint(self, gpa: int, value: int, size: int) -> None:
        self.write(gpa, (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"))

    def unpack(self, gpa: int, layout: str) -> tuple[int, ...]:
        """``struct.unpack`` from guest memory; ``layout`` should start with ``<``."""
        return struct.unpack(layout, self.read(gpa, struct.calcsize(layout)))

    def pages(self) -> Iterator[int]:
        """The guest-physical address of every page of RAM."""
        for region in self.regions:
            yield from range(region.gpa, region.end, PAGE)

    def close(self) -> None:
        """Unmap and release. Safe to call twice; views handed out keep the mapping alive."""
        if self.fd < 0:
            return
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            pass
        os.close(self.fd)
        self.fd = -1
