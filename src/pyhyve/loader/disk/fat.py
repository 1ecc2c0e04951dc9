"""Reads FAT12, FAT16 and FAT32 with long names.

Document: Microsoft, FAT: General Overview of On-Disk Format (fatgen103). A file is a chain of clusters, found in the
file allocation table from its first one on; the number of clusters says which of the three widths the table has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyhyve.loader.disk.partitions import Extent
from pyhyve.loader.disk.tree import Kind, Node, TreeError

_ENTRY = 32
_LONG_NAME = 0x0F
_VOLUME = 0x08
_DIRECTORY = 0x10
_DELETED = 0xE5
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_DIRECTORY_MAX = 2 << 20  # 65536 entries
_FAT12_CLUSTERS, _FAT16_CLUSTERS = 4085, 65525


class FatTree:
    """The file system in ``extent``. Raises ``TreeError`` if there is none. Names match in either case."""

    kind = "FAT"

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        boot = extent.read(0, 512)
        sector, per_cluster, reserved, tables, root_entries, total, _, table_sectors = struct.unpack_from(
            "<HBHBHHBH", boot, 11
        )
        total = total or struct.unpack_from("<I", boot, 32)[0]
        table_sectors = table_sectors or struct.unpack_from("<I", boot, 36)[0]
        powers = sector in (512, 1024, 2048, 4096) and per_cluster and not per_cluster & (per_cluster - 1)
        if boot[510:] != b"\x55\xaa" or not powers or not reserved or not tables or not table_sectors or not total:
            raise TreeError("there is no FAT file system")
        root_start = (reserved + tables * table_sectors) * sector
        root_size = root_entries * _ENTRY
        self._data = root_start + -(-root_size // sector) * sector
        self._cluster = sector * per_cluster
        clusters = (total * sector - self._data) // self._cluster
        if clusters < 1:
            raise TreeError("there is no FAT file system")
        self._bits = 12 if clusters < _FAT12_CLUSTERS else 16 if clusters < _FAT16_CLUSTERS else 32
        self._last = clusters + 1
        self._table = extent.read(reserved * sector, table_sectors * sector)
        if self._bits == 32:
            self.root = Node(Kind.DIRECTORY, 0, struct.unpack_from("<I", boot, 44)[0])
            self._root = b""
        else:
            self.root = Node(Kind.DIRECTORY, 0, 0)
            self._root = extent.read(root_start, root_size)

    def names(self, directory: Node) -> list[str]:
        return [name for name, _ in self._entries(directory)]

    def child(self, directory: Node, name: str) -> Node | None:
        for found, node in self._entries(directory):
            if found.casefold() == name.casefold():
                return node
        return None

    def read(self, file: Node) -> bytes:
        if file.size > self._extent.size:
            raise TreeError("the FAT file system is damaged: a file is larger than the disk")
        data = self._chain(_first(file), file.size) if file.size else b""
        if len(data) < file.size:
            raise TreeError("the FAT file system is damaged: a file's chain of clusters is too short")
        return data[: file.size]

    def target(self, link: Node) -> str:
        raise TreeError("a FAT file system has no links")

    def _chain(self, cluster: int, size: int) -> bytes:
        """The clusters from ``cluster`` on, until the chain's end or ``size`` bytes; neighbours are read together."""
        data = bytearray()
        while 2 <= cluster <= self._last and len(data) < size:
            first, count = cluster, 1
            while (cluster := self._next(cluster)) == first + count and len(data) + count * self._cluster < size:
                count += 1
            data += self._extent.read(self._data + (first - 2) * self._cluster, count * self._cluster)
        return bytes(data)

    def _next(self, cluster: int) -> int:
        at = cluster * self._bits // 8
        width = 4 if self._bits == 32 else 2
        if at + width > len(self._table):
            raise TreeError("the FAT file system is damaged: its table is too short")
        value = int.from_bytes(self._table[at : at + width], "little")
        if self._bits == 12:
            return value >> 4 if cluster & 1 else value & 0xFFF
        return value & 0x0FFFFFFF

    def _entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        data = self._root if directory is self.root and self._root else self._chain(_first(directory), _DIRECTORY_MAX)
        pieces: dict[int, bytes] = {}
        for at in range(0, len(data) - _ENTRY + 1, _ENTRY):
            entry = data[at : at + _ENTRY]
            attributes = entry[11]
            if not entry[0]:
                return
            if entry[0] == _DELETED:
                pieces = {}
            elif attributes & 0x3F == _LONG_NAME:
                pieces[entry[0] & 0x1F] = entry[1:11] + entry[14:26] + entry[28:32]
            else:
                name = _long_name(pieces) or _short_name(entry)
                pieces = {}
                if attributes & _VOLUME or name in (".", ".."):
                    continue
                high, low, size = struct.unpack_from("<H4xHI", entry, 20)
                first = low | (high << 16 if self._bits == 32 else 0)
                kind = Kind.DIRECTORY if attributes & _DIRECTORY else Kind.FILE
                yield name, Node(kind, size, first)


def _long_name(pieces: dict[int, bytes]) -> str:
    units = b"".join(pieces[index] for index in sorted(pieces))
    return units.decode("utf-16-le", errors="replace").split("\0", 1)[0]


def _short_name(entry: bytes) -> str:
    base = bytes([0xE5 if entry[0] == 0x05 else entry[0]]) + entry[1:8]
    name, extension = (part.decode("cp437").rstrip() for part in (base, entry[8:11]))
    name = name.lower() if entry[12] & _LOWER_BASE else name
    extension = extension.lower() if entry[12] & _LOWER_EXTENSION else extension
    return f"{name}.{extension}" if extension else name


def _first(node: Node) -> int:
    assert isinstance(node.place, int)
    return node.place
