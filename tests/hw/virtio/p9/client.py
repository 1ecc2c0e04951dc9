"""A plain 9P2000.L client over the ring of a ``virtio-9p`` device, with numbers of its own."""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from pyhyve.hw.virtio.p9.device import Virtio9p
from pyhyve.hw.virtio.queue import Chain
from tests.hw.virtio.driver import KINDS, Driver, Kind, Rig

LERROR = 7
STATFS, LOPEN, LCREATE, SYMLINK, MKNOD, RENAME, READLINK, GETATTR, SETATTR = 8, 12, 14, 16, 18, 20, 22, 24, 26
XATTRWALK, XATTRCREATE, READDIR, FSYNC, LOCK, GETLOCK, LINK, MKDIR, RENAMEAT, UNLINKAT = (
    *(30, 32, 40, 50, 52, 54, 70, 72, 74, 76),
)
VERSION, AUTH, ATTACH, FLUSH, WALK, READ, WRITE, CLUNK, REMOVE = 100, 102, 104, 108, 110, 116, 118, 120, 122
NO_FID = 0xFFFFFFFF
MSIZE = 16384
ROOT = 1
"""The fid of the shared folder."""

_SIZES = {"b": "<B", "h": "<H", "d": "<I", "q": "<Q"}


def pack(form: str, *values: object) -> bytes:
    """Numbers of 1, 2, 4, 8 bytes (b, h, d, q) and strings (s)."""
    out = b""
    for letter, value in zip(form, values, strict=True):
        if letter == "s":
            text = os.fsencode(value) if isinstance(value, str | Path) else value
            assert isinstance(text, bytes)
            out += struct.pack("<H", len(text)) + text
        else:
            out += struct.pack(_SIZES[letter], value)
    return out


def unpack(form: str, data: bytes) -> list:
    """The opposite; all of ``data`` has to be used."""
    values: list = []
    for letter in form:
        if letter == "s":
            (length,) = struct.unpack_from("<H", data)
            values.append(data[2 : 2 + length])
            data = data[2 + length :]
        else:
            size = struct.calcsize(_SIZES[letter])
            values.append(struct.unpack(_SIZES[letter], data[:size])[0])
            data = data[size:]
    assert not data
    return values


class Refused(Exception):
    """The server's answer was an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


@dataclass
class Qid:
    type: int
    version: int
    path: int


class Client:
    """Mounts the folder and speaks for one user."""

    def __init__(
        self, folder: Path, kind: Kind = KINDS[3], *, attach: bool = True, uid: int = 0, **options: str
    ) -> None:
        self.rig = Rig("virtio-9p", {"sharename": "share", "path": str(folder), **options})
        assert isinstance(self.rig.device, Virtio9p)
        self.device = self.rig.device
        self.done = threading.Event()
        complete = self.device.complete

        def completed(chain: Chain, written: int) -> None:
            complete(chain, written)
            self.done.set()

        self.device.complete = completed  # type: ignore[method-assign]
        self.driver = Driver(self.rig, kind, 1)
        self.ring = self.driver.queues[0]
        self.tag = 0
        self.fid = ROOT
        if attach:
            self.start(uid)

    def start(self, uid: int = 0) -> None:
        """Agree on the version, and attach."""
        assert unpack("ds", self.call(VERSION, pack("ds", MSIZE, b"9P2000.L"))) == [MSIZE, b"9P2000.L"]
        self.call(ATTACH, pack("ddssd", ROOT, NO_FID, b"user", b"", uid))

    def close(self) -> None:
        self.rig.close()

    # -- messages --

    def submit(self, message: bytes, room: int = MSIZE, parts: int = 1) -> tuple[int, int]:
        """Hand over raw bytes; what the chain is known by, and where the answer will be."""
        driver, step = self.driver, max(1, -(-len(message) // parts))
        buffers = [
            (driver.buffer(len(piece), piece), len(piece), False)
            for piece in (message[at : at + step] for at in range(0, len(message), step))
        ]
        answer = driver.buffer(room) if room else 0
        head = 11 if parts > 1 else room
        if room:
            buffers += [(answer, min(head, room), True)]
            if room > head:
                buffers += [(answer + head, room - head, True)]
        return self.ring.add(buffers), answer

    def raw(self, message: bytes, room: int = MSIZE, parts: int = 1) -> bytes:
        """One message from start to end: all that was written."""
        ident, answer = self.submit(message, room, parts)
        self.ring.kick()
        used: dict[int, int] = {}

        def taken() -> bool:
            used.update((each.ident, each.written) for each in self.ring.take())
            return ident in used

        self.rig.loop.serve()
        while not taken():
            assert self.done.wait(20)
            self.done.clear()
        return self.rig.memory.read(answer, used[ident])

    def message(self, kind: int, body: bytes) -> bytes:
        self.tag = self.tag + 1 & 0x7FFF
        return struct.pack("<IBH", 7 + len(body), kind, self.tag) + body

    def call(self, kind: int, body: bytes, room: int = MSIZE, parts: int = 1) -> bytes:
        """The answer's body. Raises ``Refused``."""
        reply = self.raw(self.message(kind, body), room, parts)
        size, answered, tag = struct.unpack("<IBH", reply[:7])
        assert (size, tag) == (len(reply), self.tag)
        if answered == LERROR:
            raise Refused(*unpack("d", reply[7:]))
        assert answered == kind + 1
        return reply[7:]

    # -- what a client does --

    def walk(self, *names: bytes | str, start: int = ROOT, new: int | None = None) -> int:
        """A new fid below ``start``. Raises ``Refused`` with ENOENT if only part of the way is there."""
        if new is None:
            self.fid += 1
            new = self.fid
        qids = self.qids(*names, start=start, new=new)
        if len(qids) < len(names):
            raise Refused(2)
        return new

    def qids(self, *names: bytes | str, start: int = ROOT, new: int) -> list[Qid]:
        body = pack("ddh", start, new, len(names)) + b"".join(pack("s", name) for name in names)
        reply = self.call(WALK, body)
        (count,) = struct.unpack_from("<H", reply)
        assert len(reply) == 2 + 13 * count
        return [Qid(*struct.unpack_from("<BIQ", reply, 2 + 13 * i)) for i in range(count)]

    def open(self, *names: bytes | str, flags: int = os.O_RDONLY, start: int = ROOT) -> int:
        fid = self.walk(*names, start=start)
        self.call(LOPEN, pack("dd", fid, flags))
        return fid

    def create(
        self, name: bytes | str, flags: int = os.O_RDWR, mode: int = 0o644, folder: int = ROOT, gid: int = 0
    ) -> int:
        fid = self.walk(start=folder)
        self.call(LCREATE, pack("dsddd", fid, name, flags, mode, gid))
        return fid

    def read(self, fid: int, offset: int = 0, count: int = 8192, parts: int = 1) -> bytes:
        reply = self.call(READ, pack("dqd", fid, offset, count), parts=parts)
        assert struct.unpack_from("<I", reply)[0] == len(reply) - 4
        return reply[4:]

    def write(self, fid: int, data: bytes, offset: int = 0, parts: int = 1) -> int:
        return unpack("d", self.call(WRITE, pack("dqd", fid, offset, len(data)) + data, parts=parts))[0]

    def clunk(self, fid: int) -> None:
        assert self.call(CLUNK, pack("d", fid)) == b""

    def names(self, fid: int, count: int = 8192) -> dict[bytes, tuple[Qid, int]]:
        """All names in an open folder, with qid and type."""
        found, offset = {}, 0
        while True:
            reply = self.call(READDIR, pack("dqd", fid, offset, count))
            (size,) = struct.unpack_from("<I", reply)
            assert size == len(reply) - 4 <= count
            if not size:
                return found
            data = reply[4:]
            while data:
                kind, version, path, offset, type_, length = struct.unpack_from("<BIQQBH", data)
                name = data[24 : 24 + length]
                assert name not in found
                found[name] = (Qid(kind, version, path), type_)
                data = data[24 + length :]

    def getattr(self, fid: int) -> dict[str, int]:
        reply = self.call(GETATTR, pack("dq", fid, 0x7FF))
        names = (
            "valid type version path mode uid gid nlink rdev size blksize blocks atime atime_ns mtime mtime_ns ctime"
        )
        values = struct.unpack_from("<QBIQIIIQQQQQQQQQQ", reply)
        assert len(reply) == 8 + 13 + 12 + 15 * 8
        return dict(zip(names.split(), values, strict=True))

    def setattr(self, fid: int, valid: int, **values: int) -> None:
        fields = ("mode", "uid", "gid", "size", "atime", "atime_ns", "mtime", "mtime_ns")
        self.call(SETATTR, pack("dd" + "dddqqqqq", fid, valid, *(values.get(name, 0) for name in fields)))
