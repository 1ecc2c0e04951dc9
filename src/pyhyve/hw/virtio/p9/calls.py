"""System calls of Linux that Python has no words for, on files that are held open by O_PATH.

Such a descriptor names one file for good, whatever happens to its name. Calls that want a path get it as
``/proc/self/fd/N``, which the kernel follows to that file itself and no further, also where it is a symbolic link.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

NOW, OMIT = 0x3FFFFFFF, 0x3FFFFFFE
"""For nanoseconds of a time: the host's clock, and unchanged (utimensat(2))."""
_AT_FDCWD = -100
_LARGEST_TIME = (1 << 63) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_dirent = struct.Struct("<QqHB")  # number, offset of the next, length, type; then the name and a zero


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def place(fd: int) -> str:
    """A path that leads to the file of a descriptor."""
    return f"/proc/self/fd/{fd}"


def set_times(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set both times, each (seconds, nanoseconds). Raises ``OSError``."""
    times = (_Timespec * 2)(*(_Timespec(min(s, _LARGEST_TIME), min(ns, _LARGEST_TIME)) for s, ns in (atime, mtime)))
    if _libc.utimensat(_AT_FDCWD, place(fd).encode(), times, 0):
        _raise()


class Entry(NamedTuple):
    """A name in a directory."""

    name: bytes
    inode: int
    type: int
    """As ``d_type`` of readdir(3): a file's format bits, moved right by 12; 0 where the file system does not say."""
    following: int
    """The directory offset of the entry behind it."""


def read_directory(fd: int, offset: int, size: int) -> Iterator[Entry]:
    """Entries from a directory's ``offset`` on, about ``size`` bytes of them, none at the end. Raises ``OSError``.

    Moves the descriptor's position: one caller at a time.
    """
    os.lseek(fd, offset, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(size)
    got = _libc.getdents64(fd, buffer, size)
    if got < 0:
        _raise()
    data, at = buffer.raw, 0
    while at < got:
        inode, following, length, kind = _dirent.unpack_from(data, at)
        yield Entry(data[at + _dirent.size : data.index(0, at + _dirent.size)], inode, kind, following)
        at += length


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
