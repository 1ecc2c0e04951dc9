"""Fids: the numbers by which a client calls what it has walked to, opened or looks attributes up in.

Several requests may use one fid at a time, and one may take it away under the others. A request therefore uses what
the fid is at its beginning (``using``), and that stays open until the request is done.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pyhyve.hw.virtio.p9.files import Node, OpenFile, Share
from pyhyve.lifecycle import State, saved_bytes, saved_int

MOST_FIDS = 1 << 18
MOST_ATTRIBUTE_BYTES = 4 << 20
"""Values of extended attributes that are held for all fids together."""


@dataclass(slots=True, eq=False)
class Attribute:
    """The value of an extended attribute, on its way to or from the guest."""

    value: bytearray
    name: bytes = b""
    """What it is set as when the fid goes; empty for one that is read."""
    flags: int = 0
    written: int = 0

    def save(self) -> State:
        """All of it."""
        return {"value": bytes(self.value), "name": self.name, "flags": self.flags, "written": self.written}

    @classmethod
    def restored(cls, state: Mapping[str, object]) -> Self:
        """What ``save`` gave. Raises ``DeviceError`` for anything else."""
        value, name = saved_bytes(state, "value"), saved_bytes(state, "name")
        return cls(bytearray(value), name, saved_int(state, "flags"), saved_int(state, "written"))


@dataclass(slots=True, eq=False)
class Fid:
    """What a number stands for: a file, open or not, or an attribute of one. Made on behalf of the user ``uid``."""

    node: Node
    uid: int
    file: OpenFile | None = None
    attribute: Attribute | None = None


class FidTable:
    """The fids of one session."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._lock = threading.Lock()
        self._fids: dict[int, Fid] = {}
        self._attribute_bytes = 0
        self._closed = False

    @contextlib.contextmanager
    def using(self, number: int) -> Iterator[Fid]:
        """A copy of a fid, all in it kept open meanwhile. Raises ``OSError`` (EBADF)."""
        share = self._share
        with self._lock:
            fid = self._get(number)
            node, file = share.take(fid.node), fid.file
            copy = Fid(node, fid.uid, file, fid.attribute)
            if file is not None:
                share.take_file(file)
        try:
            share.pin(node, file)
            try:
                yield copy
            finally:
                share.unpin(node)
        finally:
            self.let_go(copy)

    def _get(self, number: int) -> Fid:
        try:
            return self._fids[number]
        except KeyError:
            raise OSError(errno.EBADF, "no such fid") from None

    def add(self, number: int, fid: Fid) -> None:
        """Give a number to ``fid``, which takes over its users. Raises ``OSError`` and lets go of them if that cannot
        be."""
        with self._lock:
            size = len(fid.attribute.value) if fid.attribute else 0
            if self._closed or number in self._fids:
                reason = errno.EBADF
            elif len(self._fids) >= MOST_FIDS:
                reason = errno.EMFILE
            elif self._attribute_bytes + size > MOST_ATTRIBUTE_BYTES:
                reason = errno.ENOSPC
            else:
                self._fids[number] = fid
                self._attribute_bytes += size
                return
        self.let_go(fid)
        raise OSError(reason, "no fid to be had")

    def change(self, number: int, before: Fid, after: Fid) -> None:
        """The fid that was ``before`` is ``after`` now. Raises ``OSError`` and lets go of ``after`` if it was neither.

        Users of ``after`` are taken over, those of what it replaces are let go.
        """
        with self._lock:
            now = self._fids.get(number)
            size = len(after.attribute.value) if after.attribute else 0
            usable = (
                now is not None
                and now.node is before.node
                and now.file is before.file
                and now.attribute is before.attribute is None
                and self._attribute_bytes + size <= MOST_ATTRIBUTE_BYTES
            )
            if usable:
                self._fids[number] = after
                self._attribute_bytes += size
        if not usable or now is None:
            self.let_go(after)
            raise OSError(errno.EBADF, "the fid has changed meanwhile")
        self.let_go(now)

    def remove(self, number: int) -> Fid:
        """Take a number away; the caller lets go of what it was. Raises ``OSError`` (EBADF)."""
        with self._lock:
            fid = self._get(number)
            del self._fids[number]
            if fid.attribute is not None:
                self._attribute_bytes -= len(fid.attribute.value)
            return fid

    def let_go(self, fid: Fid) -> None:
        """Nobody has this fid any more."""
        self._share.release(fid.node)
        if fid.file is not None:
            self._share.close_file(fid.file)

    def items(self) -> list[tuple[int, Fid]]:
        """All of them."""
        with self._lock:
            return list(self._fids.items())

    def close(self) -> None:
        """The session is over."""
        with self._lock:
            fids, self._fids = self._fids, {}
            self._closed = True
        for fid in fids.values():
            self.let_go(fid)
