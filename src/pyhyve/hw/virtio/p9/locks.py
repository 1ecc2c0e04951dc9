"""Record locks: a guest's programs lock parts of files against each other and against programs of the host.

The guest's kernel settles what its own programs want of each other. Towards the host a machine is one owner: for each
file with locks there is one open file description with the host's "open file description" locks (fcntl(2),
F_OFD_SETLK) on all ranges that somebody in the guest has. Who has which is kept here, as a range is free only when
the last one has given it back.

Nothing waits: a lock that somebody else has is "blocked", and the guest asks again.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from pyhyve.errors import DeviceError
from pyhyve.lifecycle import State, saved_bytes, saved_dict, saved_int

MOST_LOCKS = 4096
END = (1 << 63) - 1
_flock = struct.Struct("<hhxxxxqqixxxx")  # type, whence, start, length, process
_TYPES = {fcntl.F_RDLCK: 0, fcntl.F_WRLCK: 1, fcntl.F_UNLCK: 2}
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37

Identity = tuple[int, int, int]
Owner = tuple[bytes, int]
"""The client's name and the process in it."""


class Type(IntEnum):
    READ = 0
    WRITE = 1
    UNLOCK = 2


class Result(IntEnum):
    SUCCESS = 0
    BLOCKED = 1


@dataclass(frozen=True, slots=True)
class Lock:
    """One owner's lock on ``[start, end)``."""

    owner: Owner
    type: int
    start: int
    end: int

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end

    def save(self) -> State:
        """All of it."""
        client, process = self.owner
        return {"client": client, "process": process, "type": self.type, "start": self.start, "end": self.end}

    @classmethod
    def restored(cls, state: Mapping[str, object]) -> Self:
        """What ``save`` gave. Raises ``DeviceError`` for anything else."""
        kind, start, end = (saved_int(state, name) for name in ("type", "start", "end"))
        return cls((saved_bytes(state, "client"), saved_int(state, "process")), kind, start, end)


class _File:
    """The locks on one file, and the descriptor that holds them towards the host."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.locks: list[Lock] = []


class Locks:
    """All locks of a share. ``close`` gives a descriptor back."""

    def __init__(self, close: Callable[[int], None]) -> None:
        self._close = close
        self._files: dict[Identity, _File] = {}
        self._mutex = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """The guest is gone: nobody has a lock, nor gets one."""
        with self._mutex:
            self._closed = True
            for file in self._files.values():
                self._close(file.fd)
            self._files.clear()

    def set(self, identity: Identity, open_file: Callable[[], int], lock: Lock) -> Result:
        """Lock or unlock a range; ``open_file`` opens the file if it has no locks yet. Raises ``OSError``."""
        with self._mutex:
            file = self._files.get(identity)
            if file is None:
                if lock.type == Type.UNLOCK:
                    return Result.SUCCESS
                if self._closed:
                    raise OSError(errno.ENOLCK, "the session is over")
                file = self._files[identity] = _File(open_file())
            try:
                return self._set(file, lock)
            finally:
                if not file.locks:
                    del self._files[identity]
                    self._close(file.fd)

    def _set(self, file: _File, lock: Lock) -> Result:
        if _conflict(file.locks, lock) is not None:
            return Result.BLOCKED
        after = []
        for other in file.locks:
            if other.owner != lock.owner or not other.overlaps(lock.start, lock.end):
                after.append(other)
                continue
            if other.start < lock.start:
                after.append(Lock(other.owner, other.type, other.start, lock.start))
            if other.end > lock.end:
                after.append(Lock(other.owner, other.type, lock.end, other.end))
        if lock.type != Type.UNLOCK:
            after.append(lock)
        if len(after) > MOST_LOCKS:
            raise OSError(errno.ENOLCK, "too many locks")
        edges = {lock.start, lock.end}
        edges |= {edge for other in file.locks for edge in (other.start, other.end) if lock.start < edge < lock.end}
        done: list[tuple[int, int, int]] = []
        for start, end in zip(sorted(edges), sorted(edges)[1:], strict=False):
            old, new = _strength(file.locks, start, end), _strength(after, start, end)
            if old == new:
                continue
            try:
                _lock_host(file.fd, new, start, end)
            except OSError as error:
                for a, b, strength in done:
                    _lock_host(file.fd, strength, a, b)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return Result.BLOCKED
                raise
            done.append((start, end, old))
        file.locks = after
        return Result.SUCCESS

    def get(self, identity: Identity, open_file: Callable[[], int], lock: Lock) -> Lock | None:
        """The lock that is in the way of ``lock``, if there is one. Raises ``OSError``."""
        with self._mutex:
            file = self._files.get(identity)
            other = _conflict(file.locks, lock) if file is not None else None
            if other is not None:
                return other
            fd = file.fd if file is not None else open_file()
            try:
                asked = _flock.pack(fcntl.F_WRLCK if lock.type == Type.WRITE else fcntl.F_RDLCK, 0,
                                    lock.start, _length(lock.start, lock.end), 0)  # fmt: skip
                kind, _, start, length, process = _flock.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, asked))
            finally:
                if file is None:
                    self._close(fd)
            if _TYPES[kind] == Type.UNLOCK:
                return None
            return Lock((b"", max(process, 0)), _TYPES[kind], start, start + length if length else END)

    def save(self, identity: Identity) -> list[object]:
        """Who has locked what of a file."""
        with self._mutex:
            file = self._files.get(identity)
            return [] if file is None else [lock.save() for lock in file.locks]

    def restore(self, identity: Identity, open_file: Callable[[], int], saved: list[object]) -> None:
        """Take saved locks again. Raises ``DeviceError`` if somebody else has one of them now."""
        for its in saved:
            if self.set(identity, open_file, Lock.restored(saved_dict(its, "lock"))) == Result.BLOCKED:
                raise DeviceError("virtio-9p: a file that the guest has locked is locked by somebody else now")


def _conflict(locks: list[Lock], wanted: Lock) -> Lock | None:
    for other in locks:
        if (
            other.owner != wanted.owner
            and other.overlaps(wanted.start, wanted.end)
            and Type.WRITE in (other.type, wanted.type)
            and wanted.type != Type.UNLOCK
        ):
            return other
    return None


def _strength(locks: list[Lock], start: int, end: int) -> int:
    types = {lock.type for lock in locks if lock.overlaps(start, end)}
    return fcntl.F_WRLCK if Type.WRITE in types else fcntl.F_RDLCK if types else fcntl.F_UNLCK


def _lock_host(fd: int, kind: int, start: int, end: int) -> None:
    fcntl.fcntl(fd, _F_OFD_SETLK, _flock.pack(kind, 0, start, _length(start, end), 0))


def _length(start: int, end: int) -> int:
    return 0 if end == END else end - start
