"""What is in files and folders: open, create, read, write, list, lock."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from functools import partial

from pyhyve.hw.virtio.p9 import locks, wire
from pyhyve.hw.virtio.p9.calls import place, read_directory
from pyhyve.hw.virtio.p9.fids import Fid
from pyhyve.hw.virtio.p9.files import LONGEST_NAME, OpenFile
from pyhyve.hw.virtio.p9.locks import Lock
from pyhyve.hw.virtio.p9.session import SessionBase, allowed_mode, check_folder, check_unopened, opened

DIRECTORY_PART = 64 << 10
"""Bytes of a directory that are read at a time."""
LARGEST_OFFSET = (1 << 63) - 1
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_DT = {stat.S_IFDIR >> 12: wire.QidType.DIRECTORY, stat.S_IFLNK >> 12: wire.QidType.SYMLINK}

Buffers = Sequence[memoryview]


class Content(SessionBase):
    """The requests of this page."""

    def lopen(self, number: int, flags: int) -> bytes:
        """Open a file or a folder."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self.check_writable()
        with self.fids.using(number) as fid:
            check_unopened(fid)
            file = self.share.open(fid.node, flags)
            self.fids.change(number, fid, Fid(self.share.take(fid.node), fid.uid, file))
            return self.qid_of(fid.node) + wire.encode("d", 0)

    def lcreate(self, number: int, name: bytes, flags: int, mode: int, gid: int) -> bytes:
        """Make a file in a folder; the fid is the open file from then on."""
        self.check_writable()
        mode = allowed_mode(mode, 0)
        with self.fids.using(number) as fid:
            check_unopened(fid)
            check_folder(fid.node)
            fd, made = self.share.create(fid.node, name, flags, mode)
            file = OpenFile(fd, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
            try:
                if made:
                    self.share.give(fd, mode, fid.uid, gid)
                # by the descriptor: the name may be somebody else's already
                node = self.share.adopt(fid.node, name, self.share.open_fd(place(fd), os.O_PATH | os.O_CLOEXEC))
            except OSError:
                self.share.close_file(file)
                raise
            qid = self.qid_of(node)
            self.share.unpin(node)
            self.fids.change(number, fid, Fid(node, fid.uid, file))
            return qid + wire.encode("d", 0)

    def read(self, number: int, offset: int, count: int, room: Buffers) -> int:
        """From a file or an attribute, straight into the guest's memory; how much."""
        with self.fids.using(number) as fid:
            room = _first(room, min(count, self.largest - wire.READ_HEADER))
            if fid.attribute is not None:
                if fid.attribute.name:
                    raise OSError(errno.EBADF, "an attribute that is written")
                return _fill(room, memoryview(fid.attribute.value)[offset:])
            file = opened(fid)
            length = sum(map(len, room))
            if not length:
                return 0
            check_range(offset, length)
            return os.preadv(file.fd, room[:_IOV_MAX], offset)

    def write(self, number: int, offset: int, count: int, data: Buffers) -> bytes:
        """To a file or an attribute, straight from the guest's memory."""
        if count > self.largest - wire.WRITE_HEADER or count > sum(map(len, data)):
            raise OSError(errno.EINVAL, "a write of more than the message holds")
        data = _first(data, count)
        with self.fids.using(number) as fid:
            value = fid.attribute
            if value is not None:
                if not value.name or offset + count > len(value.value):
                    raise OSError(errno.EINVAL, "not in the attribute")
                value.value[offset : offset + count] = b"".join(data)
                value.written += count
                return wire.encode("d", count)
            file = opened(fid)
            if not count:
                return wire.encode("d", 0)
            check_range(offset, count)
            return wire.encode("d", os.pwritev(file.fd, data[:_IOV_MAX], offset))

    def readdir(self, number: int, offset: int, count: int) -> bytes:
        """The names in a folder from an offset on, as many as fit."""
        room = min(count, self.largest - wire.READ_HEADER)
        parts: list[bytes] = []
        with self.fids.using(number) as fid:
            file = opened(fid)
            check_folder(fid.node)
            if offset > LARGEST_OFFSET:
                raise OSError(errno.EINVAL, "no such offset")
            left = room
            full = False
            with file.position:
                for entry in read_directory(file.fd, offset, max(1024, min(room, DIRECTORY_PART))):
                    inode, kind = entry.inode, entry.type
                    if fid.node is self.share.root and entry.name == b"..":
                        inode = fid.node.identity[1]  # what is outside is nobody's business
                    if not kind:
                        with contextlib.suppress(OSError):
                            status = os.stat(entry.name, dir_fd=fid.node.fd, follow_symlinks=False)
                            kind = stat.S_IFMT(status.st_mode) >> 12
                    size = wire.ENTRY.size + len(entry.name)
                    full = size > left
                    if full:
                        break
                    left -= size
                    path = self.share.qid_path(fid.node.identity[0], inode)
                    following = entry.following & (1 << 64) - 1
                    header = wire.ENTRY.pack(_DT.get(kind, 0), 0, path, following, kind, len(entry.name))
                    parts.append(header + entry.name)
            if full and not parts:
                raise OSError(errno.EINVAL, "no room for a name")
        body = b"".join(parts)
        return wire.encode("d", len(body)) + body

    def fsync(self, number: int, only_data: int) -> bytes:
        """What was written is on the host's disk."""
        with self.fids.using(number) as fid:
            file = opened(fid)
            if not self.share.read_only:
                (os.fdatasync if only_data else os.fsync)(file.fd)
        return b""

    def lock(self, number: int, kind: int, flags: int, start: int, length: int, process: int, client: bytes) -> bytes:
        """Lock or unlock a range, without waiting."""
        with self.fids.using(number) as fid:
            opened(fid)
            wanted = _lock(kind, start, length, process, client)
            result = self.locks.set(fid.node.identity, partial(self.open_to_lock, fid.node), wanted)
        return wire.encode("b", result)

    def getlock(self, number: int, kind: int, start: int, length: int, process: int, client: bytes) -> bytes:
        """Whether somebody else has a range, and who."""
        with self.fids.using(number) as fid:
            opened(fid)
            wanted = _lock(kind, start, length, process, client)
            other = self.locks.get(fid.node.identity, partial(self.open_to_lock, fid.node), wanted)
        if other is None:
            return wire.encode("bqqds", locks.Type.UNLOCK, start, length, process, client)
        span = 0 if other.end == locks.END else other.end - other.start
        return wire.encode("bqqds", other.type, other.start, span, other.owner[1] & 0xFFFFFFFF, other.owner[0])


def check_range(offset: int, length: int) -> None:
    """Raise ``OSError`` for what no file can hold."""
    if offset + length > LARGEST_OFFSET:
        raise OSError(errno.EFBIG, "behind the largest offset")


def _first(buffers: Buffers, count: int) -> list[memoryview]:
    """The first ``count`` bytes, or all."""
    parts = []
    for buffer in buffers:
        if not count:
            break
        parts.append(buffer[:count])
        count -= len(parts[-1])
    return parts


def _fill(room: Buffers, data: memoryview) -> int:
    """Copy as much as there is room for; how much."""
    at = 0
    for buffer in room:
        part = data[at : at + len(buffer)]
        buffer[: len(part)] = part
        at += len(part)
    return at


def _lock(kind: int, start: int, length: int, process: int, client: bytes) -> Lock:
    end = locks.END if not length else start + length
    if kind > locks.Type.UNLOCK or start >= locks.END or end > locks.END or len(client) > LONGEST_NAME:
        raise OSError(errno.EINVAL, "not a lock")
    return Lock((client, process), kind, start, end)
