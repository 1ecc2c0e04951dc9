"""Where on a disk a file system may begin: the whole of it, or a partition of an MBR or GPT.

Documents: UEFI specification 2.10, §5.2 (MBR) and §5.3 (GPT). Logical partitions are a chain of further MBRs inside an
extended one.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pyhyve.loader.disk.tree import TreeError

_SECTOR = 512
_SECTORS = (512, 4096)
_EXTENDED = (0x05, 0x0F, 0x85)
_GPT_ENTRIES_MAX = 1024
_LOGICAL_MAX = 128
# The first bytes of images that are not the disk itself.
_FORMATS = {b"QFI\xfb": "qcow2", b"KDMV": "VMDK", b"vhdxfile": "VHDX", b"conectix": "VHD"}


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes of an open file or block device; reads past its end are an error."""

    fd: int
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``. Raises ``TreeError`` where the disk ends before."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise TreeError(f"it wants {size} bytes at {offset}, but has {self.size}")
        try:
            data = os.pread(self.fd, size, self.start + offset)
        except OSError as error:
            raise TreeError(f"it cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise TreeError(f"it ends at byte {offset + len(data)}")
        return data

    def part(self, start: int, size: int) -> Extent:
        """A part of this extent, cut off at its end."""
        start = min(start, self.size)
        return Extent(self.fd, self.start + start, min(size, self.size - start))


def open_disk(path: str) -> Extent:
    """The disk image or block device at ``path``, which the caller closes. Raises ``TreeError``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise TreeError(f"cannot open disk {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise TreeError(f"disk {path} is neither a file nor a block device")
        disk = Extent(fd, 0, os.lseek(fd, 0, os.SEEK_END))
        head = disk.read(0, min(disk.size, 8))
        for magic, name in _FORMATS.items():
            if head.startswith(magic):
                raise TreeError(f"disk {path} is a {name} image; a raw one is needed (qemu-img convert -O raw)")
    except BaseException:
        os.close(fd)
        raise
    return disk


def partitions(disk: Extent) -> Iterator[tuple[str, Extent]]:
    """What may hold a file system, with a name for messages: the disk itself first, then its partitions in order."""
    yield "the whole disk", disk
    if disk.size < 2 * _SECTOR:
        return
    found = list(_gpt(disk)) or list(_mbr(disk))
    for number, extent in found:
        yield f"partition {number}", extent


def _gpt(disk: Extent) -> Iterator[tuple[int, Extent]]:
    for sector in _SECTORS:
        if disk.size < 2 * sector:
            return
        header = disk.read(sector, 92)
        if not header.startswith(b"EFI PART"):
            continue
        table, count, size = struct.unpack_from("<QII", header, 72)
        if size < 128:
            return
        for index in range(min(count, _GPT_ENTRIES_MAX)):
            offset = table * sector + index * size
            if offset + 48 > disk.size:
                return
            entry = disk.read(offset, 48)
            first, last = struct.unpack_from("<QQ", entry, 32)
            if any(entry[:16]) and first <= last:
                yield index + 1, disk.part(first * sector, (last - first + 1) * sector)
        return


def _mbr(disk: Extent) -> Iterator[tuple[int, Extent]]:
    extended = 0
    for index, (kind, first, count) in enumerate(_mbr_entries(disk, 0)):
        if kind in _EXTENDED:
            extended = extended or first
        elif kind and count:
            yield index + 1, disk.part(first * _SECTOR, count * _SECTOR)
    here = extended
    for number in range(5, 5 + _LOGICAL_MAX):
        if not here:
            return
        (kind, first, count), (link, step, _), *_ = [*_mbr_entries(disk, here), (0, 0, 0), (0, 0, 0)]
        if kind and count:
            yield number, disk.part((here + first) * _SECTOR, count * _SECTOR)
        here = extended + step if link in _EXTENDED and step else 0


def _mbr_entries(disk: Extent, sector: int) -> list[tuple[int, int, int]]:
    """Type, first sector and number of sectors of the four entries; none without a signature."""
    if (sector + 1) * _SECTOR > disk.size:
        return []
    data = disk.read(sector * _SECTOR, _SECTOR)
    if data[510:] != b"\x55\xaa":
        return []
    return [struct.unpack_from("<4xBxxxII", data, 446 + 16 * index) for index in range(4)]
