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
    if queue in (2, 4) or pick.random() < 0.2:
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
    """A 9P message, its fields of the right kind, mostly on fids and names that there are."""
    kind, form = pick.choice(_MESSAGES)
    values: list[object] = []
    for letter in form:
        if letter == "s":
            values.append(_name(pick))
        elif letter == "f":
            values.append(pick.randrange(FIDS) if pick.random() < 0.95 else pick.getrandbits(32))
        elif letter == "d":
            values.append(pick.choice((0, 1, 2, 0o100, 0x200, 0o644, 0o100666, 4096, pick.getrandbits(32))))
        else:
            bits = {"b": 8, "h": 16, "q": 64}[letter]
            values.append(pick.choice((0, 1, 2, 100, pick.getrandbits(bits))) & (1 << bits) - 1)
    body = p9.pack(form.replace("f", "d"), *values)
    if kind == p9.VERSION:
        body = p9.pack("ds", pick.choice((8192, 1 << 20, 5)), pick.choice((b"9P2000.L", b"9P2000")))
    elif kind == p9.ATTACH:
        body = p9.pack("ddssd", pick.randrange(FIDS), p9.NO_FID, b"", b"", 0)
    elif kind == p9.WALK:
        body = _walk(pick, pick.randrange(FIDS), pick.randrange(FIDS))
    elif kind == p9.WRITE:
        data = pick.randbytes(pick.choice((0, 5, 100, 4096)))
        length = len(data) if pick.random() < 0.9 else pick.getrandbits(32)
        body = p9.pack("dqd", pick.randrange(FIDS), pick.choice((0, 1, 5, pick.getrandbits(64))), length) + data
    elif kind in (p9.XATTRCREATE, p9.XATTRWALK):
        name = pick.choice((b"user.a", b"user.b", b"", b"security.capability", _name(pick)))
        fids = p9.pack("dd", pick.randrange(FIDS), pick.randrange(FIDS))
        body = fids + p9.pack("s", name) if kind == p9.XATTRWALK else fids[:4] + p9.pack(
            "sqd", name, pick.choice((0, 5, 100, 1 << 20)), pick.randrange(4)
        )  # fmt: skip
    return _message(pick, kind, body)


def _name(pick: random.Random) -> bytes:
    real = (b"file", b"folder", b"link", b"pipe", b"new", b"moved")
    return pick.choice(real if pick.random() < 0.8 else (b"..", b".", b"", b"a/b", b"x" * 300, pick.randbytes(4)))


def _walk(pick: random.Random, fid: int, new: int) -> bytes:
    names = [_name(pick) for _ in range(pick.choice((0, 0, 1, 1, 1, 2, 3)))]
    return struct.pack("<IIH", fid, new, len(names)) + b"".join(p9.pack("s", name) for name in names)


def _message(pick: random.Random, kind: int, body: bytes) -> bytes:
    size = 7 + len(body) if pick.random() < 0.97 else pick.getrandbits(32)
    return struct.pack("<IBH", size, kind, pick.choice((0, 1, 2, pick.getrandbits(16)))) + body


def mount(pick: random.Random) -> list[bytes]:
    """How a 9P client begins: some fids, open and not."""
    start = [(p9.VERSION, p9.pack("ds", 8192, b"9P2000.L")), (p9.ATTACH, p9.pack("ddssd", 0, p9.NO_FID, b"", b"", 0))]
    start += [(p9.WALK, _walk(pick, 0, fid)) for fid in range(1, FIDS)]
    start += [(p9.LOPEN, p9.pack("dd", fid, pick.choice((0, 1, 2, 0x200)))) for fid in range(1, FIDS, 2)]
    return [struct.pack("<IBH", 7 + len(body), kind, 1) + body for kind, body in start]


FIDS = 8
"""So many numbers are used."""
_MESSAGES = [
    (p9.STATFS, "f"), (p9.LOPEN, "fd"), (p9.LCREATE, "fsddd"), (p9.SYMLINK, "fssd"), (p9.MKNOD, "fsdddd"),
    (p9.RENAME, "ffs"), (p9.READLINK, "f"), (p9.GETATTR, "fq"), (p9.SETATTR, "fddddqqqqq"), (p9.XATTRWALK, ""),
    (p9.XATTRCREATE, ""), (p9.READDIR, "fqd"), (p9.FSYNC, "fd"), (p9.LOCK, "fbdqqds"), (p9.GETLOCK, "fbqqds"),
    (p9.LINK, "ffs"), (p9.MKDIR, "fsdd"), (p9.RENAMEAT, "fsfs"), (p9.UNLINKAT, "fsd"), (p9.AUTH, "dssd"),
    (p9.ATTACH, ""), (p9.FLUSH, "h"), (p9.WALK, ""), (p9.WALK, ""), (p9.WALK, ""), (p9.READ, "fqd"), (p9.WRITE, ""),
    (p9.CLUNK, "f"), (p9.REMOVE, "f"), (255, "dd"),
]  # fmt: skip

MAKERS: dict[str, Make] = {
    "virtio-blk": block,
    "virtio-net": net,
    "virtio-console": console,
    "virtio-9p": share,
    "virtio-rnd": lambda pick, queue: b"",
}

BEGINNINGS: dict[str, Callable[[random.Random], list[bytes]]] = {"virtio-9p": mount}
"""What a driver sends first, one after the other."""
