"""Reads ext2, ext3 and ext4.

Document: Linux, Documentation/filesystems/ext4 (super block, group descriptors, inodes, maps, extents, directories).

A file is found by its inode number: the group's descriptor tells where its inode table is, the inode where its blocks
are, either by a tree of extents or by direct, indirect, doubly and triply indirect blocks. Directories are lists of
names and inode numbers; the hash tree over a large one looks like unused entries to a reader of the list.
A journal that was not played back is not read: what it would change is days old on a disk that a guest shut down.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pyhyve.loader.disk.partitions import Extent
from pyhyve.loader.disk.tree import Kind, Node, TreeError

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_ROOT = 2

# Features that a reader has to know: file types in directories, a journal to be played back, extents, 64-bit block
# numbers, multiple-mount protection, flexible groups, extended attributes in inodes, checksum seeds, large directories.
_KNOWN = 0x0002 | 0x0004 | 0x0040 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | 0x2000 | 0x4000
_UNKNOWN = {0x0001: "compression", 0x0008: "an external journal", 0x0010: "meta block groups", 0x8000: "inline data"}
_UNKNOWN |= {0x10000: "encryption", 0x20000: "case folding"}
_64BIT = 0x0080

_INODE_EXTENTS = 0x80000
_EXTENT_MAGIC = 0xF30A
_EXTENT_DEPTH_MAX = 5
_UNWRITTEN = 1 << 15
_MAP_BLOCKS_MIN = 64
_FAST_LINK = 60
_LINK_MAX = 4096
_DIRECTORY_MAX = 64 << 20
_KINDS = {0x8: Kind.FILE, 0x4: Kind.DIRECTORY, 0xA: Kind.LINK}


@dataclass(frozen=True, slots=True)
class _Inode:
    number: int
    flags: int
    block: bytes
    """The 60 bytes that hold block numbers, extents, or a short link's target."""


class ExtTree:
    """The file system in ``extent``. Raises ``TreeError`` if there is none, or one that cannot be read."""

    kind = "ext"

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._budget = 0
        block = extent.read(_SUPERBLOCK, 1024)
        if struct.unpack_from("<H", block, 56)[0] != _MAGIC:
            raise TreeError("there is no ext file system")
        self._inodes, first, log_size = struct.unpack_from("<I16xII", block, 0)
        self._per_group = struct.unpack_from("<I", block, 40)[0]
        revision, inode_size, incompatible = struct.unpack_from("<I8xH6xI", block, 76)
        if log_size > 6 or not self._per_group:
            raise TreeError("the ext file system is damaged: its super block makes no sense")
        if incompatible & ~_KNOWN:
            names = [name for bit, name in _UNKNOWN.items() if incompatible & bit]
            raise TreeError(f"the ext file system has {names[0] if names else 'features'} that cannot be read here")
        self._block_size = 1024 << log_size
        self._inode_size = inode_size if revision else 128
        self._descriptor_size = struct.unpack_from("<H", block, 254)[0] if incompatible & _64BIT else 32
        if not 128 <= self._inode_size <= self._block_size or not 32 <= self._descriptor_size <= self._block_size:
            raise TreeError("the ext file system is damaged: its super block makes no sense")
        self._descriptors = (first + 1) * self._block_size
        self.root = self._node(_ROOT)
        if self.root.kind is not Kind.DIRECTORY:
            raise TreeError("the ext file system is damaged: its root is not a directory")

    def names(self, directory: Node) -> list[str]:
        return [name for name, _ in self._entries(directory) if name not in (".", "..")]

    def child(self, directory: Node, name: str) -> Node | None:
        for found, number in self._entries(directory):
            if found == name:
                return self._node(number)
        return None

    def read(self, file: Node) -> bytes:
        return self._content(_inode(file), file.size)

    def target(self, link: Node) -> str:
        inode = _inode(link)
        if link.size > _LINK_MAX:
            raise TreeError("the ext file system is damaged: a link is too long")
        fast = link.size < _FAST_LINK and not inode.flags & _INODE_EXTENTS
        return (inode.block[: link.size] if fast else self._content(inode, link.size)).decode(errors="replace")

    # -- inodes --

    def _node(self, number: int) -> Node:
        if not 0 < number <= self._inodes:
            raise TreeError(f"the ext file system is damaged: there is no inode {number}")
        group, index = divmod(number - 1, self._per_group)
        place = self._descriptors + group * self._descriptor_size
        descriptor = self._extent.read(place, self._descriptor_size)
        table = struct.unpack_from("<I", descriptor, 8)[0]
        if self._descriptor_size >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        raw = self._extent.read(table * self._block_size + index * self._inode_size, 128)
        mode, size_low, flags, size_high = struct.unpack_from("<H2xI24xI72xI", raw)
        kind = _KINDS.get(mode >> 12, Kind.OTHER)
        size = size_low | (size_high << 32 if kind is Kind.FILE else 0)
        return Node(kind, size, _Inode(number, flags, raw[40:100]))

    def _entries(self, directory: Node) -> Iterator[tuple[str, int]]:
        if directory.size > _DIRECTORY_MAX:
            raise TreeError("the ext file system is damaged: a directory is too large")
        data = self._content(_inode(directory), directory.size)
        for start in range(0, len(data), self._block_size):
            at, end = start, min(start + self._block_size, len(data))
            while at + 8 <= end:
                number, length, name_size = struct.unpack_from("<IHB", data, at)
                length = length or self._block_size  # 64 KiB does not fit into the field
                if length < 8 + name_size or at + length > end:
                    raise TreeError("the ext file system is damaged: a directory makes no sense")
                if number:
                    yield data[at + 8 : at + 8 + name_size].decode(errors="surrogateescape"), number
                at += length

    # -- contents --

    def _content(self, inode: _Inode, size: int) -> bytes:
        if size > self._extent.size:
            raise TreeError("the ext file system is damaged: a file is larger than the disk")
        wanted = -(-size // self._block_size)
        self._budget = wanted + _MAP_BLOCKS_MIN
        data = bytearray(wanted * self._block_size)  # holes read as zeros
        runs = self._extents(inode.block, _EXTENT_DEPTH_MAX) if inode.flags & _INODE_EXTENTS else self._mapped(inode)
        for logical, count, physical in runs:
            if logical >= wanted:
                continue
            count = min(count, wanted - logical)
            start = logical * self._block_size
            length = count * self._block_size
            data[start : start + length] = self._extent.read(physical * self._block_size, length)
        return bytes(data[:size])

    def _extents(self, node: bytes, depth_max: int) -> Iterator[tuple[int, int, int]]:
        """(first block of the file, blocks, first block of the disk) of each extent below a node of the tree."""
        magic, count, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth > depth_max or 12 + 12 * count > len(node):
            raise TreeError("the ext file system is damaged: an extent tree makes no sense")
        for index in range(count):
            if depth:
                low, high = struct.unpack_from("<4xIH", node, 12 + 12 * index)
                yield from self._extents(self._map_block(high << 32 | low), depth - 1)
                continue
            logical, length, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * index)
            if length <= _UNWRITTEN:
                yield logical, length, high << 32 | low

    def _mapped(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        """The same of an inode with direct and indirect blocks, in order; a run of blocks for each."""
        numbers = struct.unpack("<15I", inode.block)
        logical = 0
        for number in numbers[:12]:
            if number:
                yield logical, 1, number
            logical += 1
        for level, number in enumerate(numbers[12:], 1):
            if number:
                yield from self._indirect(number, level, logical)
            logical += (self._block_size // 4) ** level

    def _indirect(self, block: int, level: int, logical: int) -> Iterator[tuple[int, int, int]]:
        each = self._block_size // 4
        numbers = struct.unpack(f"<{each}I", self._map_block(block))
        step = each ** (level - 1)
        for number in numbers:
            if number and level == 1:
                yield logical, 1, number
            elif number:
                yield from self._indirect(number, level - 1, logical)
            logical += step

    def _map_block(self, number: int) -> bytes:
        """A block that tells where others are. No file needs more of them than it has blocks."""
        self._budget -= 1
        if self._budget < 0:
            raise TreeError("the ext file system is damaged: a file's map of blocks goes round in circles")
        return self._extent.read(number * self._block_size, self._block_size)


def _inode(node: Node) -> _Inode:
    assert isinstance(node.place, _Inode)
    return node.place
