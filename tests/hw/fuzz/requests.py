"""Requests that a virtio device understands, at least in part: a fuzzer's way past the first check."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests.hw.virtio.p9 import client as p9

Make = Callable[[random.Random, int], bytes]


def block(pick: random.Random, queue: int) -> bytes:
    """A header, and data or ranges."""
    kind = pick.choice((0, 0, 1, 1, 4, 8, 11, 13, pick.getrandbits(32)))
    header = struct.pack("<IIQ", kind, 0, pick.choice((0, 1, 2047, 2048, pick.getrandbits(12), pick.getrandbits(64))))
    if kind in (11, 13):
        ranges = pick.choice((1, 1, 2, 17))
        return header + b"".join(
            struct.pack("<QII", pick.getrandbits(12), pick.choice((0, 8, pick.getrandbits(32))), pick.choice((0, 1, 9)))
            for _ in range(ranges)
        )
    return header + (pick.randbytes(512 * pick.randrange(9)) if kind == 1 else b"")


def net(pick: random.Random, queue: int) -> bytes:
    """A packet with a header, or a control command."""
    if queue == 2 or pick.random() < 0.2:
        return bytes((pick.randrange(7), pick.randrange(3))) + pick.choice((
            pick.randbytes(pick.randrange(20)),
            struct.pack("<I", pick.choice((0, 1, pick.getrandbits(32)))) + pick.randbytes(12) + bytes(4),
            struct.pack("<Q", pick.getrandbits(pick.choice((8, 24, 64)))),
        ))  # fmt: skip
    header = struct.pack(
        "<BBHHHHH", pick.choice((0, 1, 2, pick.getrandbits(8))), pick.choice((0, 1, 3, 4, 0x81, pick.getrandbits(8))),
        *(pick.choice((0, 14, 54, 66, 1448, pick.getrandbits(16))) for _ in range(5)),
    )  # fmt: skip
    kind = pick.choice((b"\x08\0\x45", b"\x86\xdd\x60", b"\x81\0\0\5\x08\0"))
    return header + pick.randbytes(12) + kind + pick.randbytes(pick.choice((0, 20, 60, 1500, 9000)))


def console(pick: random.Random, queue: int) -> bytes:
    """A control message, or data."""
    if queue == 3:
        return struct.pack("<IHH", pick.choice((0, 1, 2, pick.getrandbits(32))), pick.randrange(9), pick.randrange(3))
    return pick.randbytes(pick.randrange(2000))


def share(pick: random.Random, queue: int) -> bytes:
    """A 9P message, its fields of the right kind."""
    kind, form = pick.choice(_MESSAGES)
    names = (b"file", b"folder", b"link", b"pipe", b"new", b"..", b".", b"", b"a/b", b"x" * 300, pick.randbytes(4))
    values: list[object] = []
    for letter in form:
        if letter == "s":
            values.append(pick.choice(names))
        elif letter == "d":
            values.append(pick.choice((0, 1, 2, 3, 4, 0o644, 0o100666, 4096, pick.getrandbits(32))))
        else:
            bits = {"b": 8, "h": 16, "q": 64}[letter]
            values.append(pick.choice((0, 1, 2, 100, pick.getrandbits(bits))) & (1 << bits) - 1)
    body = p9.pack(form, *values)
    if kind == p9.VERSION:
        body = p9.pack("ds", pick.choice((8192, 1 << 20, 5)), pick.choice((b"9P2000.L", b"9P2000.L", b"9P2000")))
    elif kind == p9.ATTACH:
        body = p9.pack("ddssd", pick.randrange(3), p9.NO_FID, b"", b"", 0)
    elif kind == p9.WALK:
        walked = [pick.choice(names) for _ in range(pick.randrange(4))]
        body = struct.pack("<IIH", pick.randrange(4), pick.randrange(6), len(walked))
        body += b"".join(p9.pack("s", name) for name in walked)
    elif kind == p9.WRITE:
        body += pick.randbytes(pick.choice((0, 5, 100, 4096)))
    size = 7 + len(body) if pick.random() < 0.95 else pick.getrandbits(32)
    return struct.pack("<IBH", size, kind, pick.choice((0, 1, 2, pick.getrandbits(16)))) + body


_MESSAGES = [
    (p9.STATFS, "d"), (p9.LOPEN, "dd"), (p9.LCREATE, "dsddd"), (p9.SYMLINK, "dssd"), (p9.MKNOD, "dsdddd"),
    (p9.RENAME, "dds"), (p9.READLINK, "d"), (p9.GETATTR, "dq"), (p9.SETATTR, "dddddqqqqq"), (p9.XATTRWALK, "dds"),
    (p9.XATTRCREATE, "dsqd"), (p9.READDIR, "dqd"), (p9.FSYNC, "dd"), (p9.LOCK, "dbdqqds"), (p9.GETLOCK, "dbqqds"),
    (p9.LINK, "dds"), (p9.MKDIR, "dsdd"), (p9.RENAMEAT, "dsds"), (p9.UNLINKAT, "dsd"), (p9.VERSION, "ds"),
    (p9.AUTH, "dssd"), (p9.ATTACH, "ddssd"), (p9.ATTACH, "ddssd"), (p9.FLUSH, "h"), (p9.WALK, "dd"), (p9.WALK, "dd"),
    (p9.WALK, "dd"), (p9.READ, "dqd"), (p9.WRITE, "dqd"), (p9.CLUNK, "d"), (p9.REMOVE, "d"), (255, "dd"),
]  # fmt: skip

MAKERS: dict[str, Make] = {
    "virtio-blk": block,
    "virtio-net": net,
    "virtio-console": console,
    "virtio-9p": share,
    "virtio-rnd": lambda pick, queue: b"",
}
