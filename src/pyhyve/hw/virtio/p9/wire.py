"""The messages of 9P2000.L: what they are called, what is in them, how they lie in bytes.

Document: the 9P2000.L protocol as the diod server's protocol.md and Plan 9's manual, section 5, write it down.

Every message is ``size[4] type[1] tag[2]`` and a body, little-endian throughout. A body's form is a string of letters,
one a field: ``b h d q`` are numbers of 1, 2, 4 and 8 bytes, ``s`` is a string (its length in 2 bytes, then so many
bytes), ``w`` a list of strings (their number in 2 bytes). Everything in a message is the guest's word: ``decode``
checks that fields lie inside it and that nothing is behind them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

HEADER = struct.Struct("<IBH")
QID = struct.Struct("<BIQ")
ENTRY = struct.Struct("<BIQQBH")
"""An entry of a directory: the qid, the offset of the next, a type as in ``struct dirent``, the name's length."""
READ_HEADER = HEADER.size + 4
"""What stands before the data of a read's answer."""
WRITE_HEADER = HEADER.size + 16
"""What stands before the data of a write."""
ERROR_SIZE = HEADER.size + 4

LARGEST_MESSAGE = 512 << 10
SMALLEST_MESSAGE = 4096
"""The sizes of messages that can be agreed on."""

VERSION = b"9P2000.L"
NO_FID = 0xFFFFFFFF
MAX_WALK = 16
"""Names in one walk (Plan 9, walk(5))."""


class Kind(IntEnum):
    """Requests. The answer to one has the next number."""

    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


RLERROR = 7

FORMS: dict[int, str] = {
    Kind.STATFS: "d",  # fid
    Kind.LOPEN: "dd",  # fid, flags
    Kind.LCREATE: "dsddd",  # fid, name, flags, mode, gid
    Kind.SYMLINK: "dssd",  # fid, name, target, gid
    Kind.MKNOD: "dsdddd",  # fid, name, mode, major, minor, gid
    Kind.RENAME: "dds",  # fid, folder's fid, name
    Kind.READLINK: "d",  # fid
    Kind.GETATTR: "dq",  # fid, mask
    Kind.SETATTR: "dddddqqqqq",  # fid, valid, mode, uid, gid, size, atime, its ns, mtime, its ns
    Kind.XATTRWALK: "dds",  # fid, new fid, name
    Kind.XATTRCREATE: "dsqd",  # fid, name, size, flags
    Kind.READDIR: "dqd",  # fid, offset, count
    Kind.FSYNC: "dd",  # fid, only data
    Kind.LOCK: "dbdqqds",  # fid, type, flags, start, length, process, client
    Kind.GETLOCK: "dbqqds",  # fid, type, start, length, process, client
    Kind.LINK: "dds",  # folder's fid, fid, name
    Kind.MKDIR: "dsdd",  # fid, name, mode, gid
    Kind.RENAMEAT: "dsds",  # old folder's fid, name, new folder's fid, name
    Kind.UNLINKAT: "dsd",  # folder's fid, name, flags
    Kind.VERSION: "ds",  # msize, version
    Kind.AUTH: "dssd",  # afid, user's name, tree, uid
    Kind.ATTACH: "ddssd",  # fid, afid, user's name, tree, uid
    Kind.FLUSH: "h",  # old tag
    Kind.WALK: "ddw",  # fid, new fid, names
    Kind.READ: "dqd",  # fid, offset, count
    Kind.WRITE: "dqd",  # fid, offset, count; the data behind it is not decoded
    Kind.CLUNK: "d",  # fid
    Kind.REMOVE: "d",  # fid
}


class QidType(IntFlag):
    DIRECTORY = 0x80
    SYMLINK = 0x02


class Attribute(IntFlag):
    """What a setattr sets."""

    MODE = 0x001
    UID = 0x002
    GID = 0x004
    SIZE = 0x008
    ATIME = 0x010
    MTIME = 0x020
    CTIME = 0x040
    ATIME_SET = 0x080
    MTIME_SET = 0x100


GETATTR_BASIC = 0x7FF
"""Everything that stat(2) tells; no time of birth, no generation."""

_NUMBERS = {letter: struct.Struct("<" + code) for letter, code in zip("bhdq", "BHIQ", strict=True)}


class ProtocolError(Exception):
    """A message that is none."""


Value = int | bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A message from the guest, its body not yet decoded."""

    kind: int
    tag: int
    body: bytes


def decode(form: str, body: bytes) -> list[Any]:
    """The fields of a body. Raises ``ProtocolError`` if it has not just these."""
    values: list[Any] = []
    at = 0
    for letter in form:
        if letter == "w":
            count, at = _number(_NUMBERS["h"], body, at)
            if count > MAX_WALK:
                raise ProtocolError(f"a walk of {count} names")
            names = []
            for _ in range(count):
                name, at = _string(body, at)
                names.append(name)
            values.append(tuple(names))
        elif letter == "s":
            text, at = _string(body, at)
            values.append(text)
        else:
            number, at = _number(_NUMBERS[letter], body, at)
            values.append(number)
    if at != len(body):
        raise ProtocolError(f"{len(body) - at} bytes behind the end of a message")
    return values


def _number(number: struct.Struct, body: bytes, at: int) -> tuple[int, int]:
    end = at + number.size
    if end > len(body):
        raise ProtocolError("a message that ends in the middle of a number")
    return number.unpack_from(body, at)[0], end


def _string(body: bytes, at: int) -> tuple[bytes, int]:
    length, at = _number(_NUMBERS["h"], body, at)
    end = at + length
    if end > len(body):
        raise ProtocolError("a message that ends in the middle of a string")
    return body[at:end], end


def encode(form: str, *values: Value) -> bytes:
    """A body of numbers and strings."""
    parts = []
    for letter, value in zip(form, values, strict=True):
        if isinstance(value, int):
            parts.append(_NUMBERS[letter].pack(value))
        else:
            parts.append(_NUMBERS["h"].pack(len(value)) + value)
    return b"".join(parts)


def message(kind: int, tag: int, body: bytes = b"") -> bytes:
    """A whole message."""
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def error(tag: int, number: int) -> bytes:
    """The answer to a request that failed, with Linux's errno."""
    return message(RLERROR, tag, encode("d", number))
