"""Writes cpio archives in the "new ASCII" format, the one that Linux unpacks as an initramfs.

Document: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Entries go out in the order in which they
are added: a header of thirteen 8-digit hexadecimal fields, the name, the data, each padded to four bytes; a last entry
named ``TRAILER!!!`` ends the archive. Owner is root and time is 0, so that equal input gives an equal archive; device
nodes need no privilege, because they are only headers.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class CpioWriter:
    """A cpio archive being written to ``out``. Directories that a path needs are added by themselves."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory (once; adding it again does nothing)."""
        path = path.strip("/")
        if not path or path in self._directories:
            return
        self._parents(path)
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | mode, links=2)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        path = path.strip("/")
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link that points to ``target``."""
        path = path.strip("/")
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def char_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        path = path.strip("/")
        self._parents(path)
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> None:
        """Write the trailer and pad to 512 bytes. Nothing may be added afterwards."""
        self._inode = -1
        self._entry(_TRAILER, 0)
        self._out.write(bytes(-self._out.tell() % 512))

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _entry(
        self, name: str, mode: int, data: bytes = b"", *, links: int = 1, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
        self._out.write(header + bytes(-len(header) % 4))
        self._out.write(data)
        self._out.write(bytes(-len(data) % 4))
