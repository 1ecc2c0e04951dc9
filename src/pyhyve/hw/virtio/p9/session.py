"""A session: what one client has, from the version that was agreed on to the next one, or a reset.

The requests on fids themselves are here; ``content``, ``attributes`` and ``names`` have the others, ``server`` puts
them together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial

from pyhyve.errors import DeviceError
from pyhyve.hw.virtio.p9 import wire
from pyhyve.hw.virtio.p9.calls import place
from pyhyve.hw.virtio.p9.fids import Attribute, Fid, FidTable
from pyhyve.hw.virtio.p9.files import Node, OpenFile, Share
from pyhyve.hw.virtio.p9.locks import Locks
from pyhyve.lifecycle import State, saved_dict, saved_int, saved_list


class SessionBase:
    """The fids, and the size of messages agreed on."""

    def __init__(self, share: Share, largest: int) -> None:
        self.share = share
        self.locks = Locks(share.close_fd)
        self.fids = FidTable(share)
        self.largest = largest

    def close(self) -> None:
        """The client is gone. What requests that are not done yet use stays open until they are."""
        self.fids.close()
        self.locks.close()

    def auth(self, afid: int, user: bytes, tree: bytes, uid: int) -> bytes:
        """Nobody has to say who he is."""
        raise OSError(errno.EOPNOTSUPP, "no authentication")

    def attach(self, number: int, afid: int, user: bytes, tree: bytes, uid: int) -> bytes:
        """A fid for the folder. There is one tree, whatever it is called."""
        if afid != wire.NO_FID:
            raise OSError(errno.EINVAL, "no authentication")
        root = self.share.root
        self.fids.add(number, Fid(self.share.take(root), uid))
        return self.qid_of(root)

    def walk(self, number: int, new: int, names: tuple[bytes, ...]) -> bytes:
        """A fid for what lies below another, by up to 16 names; or how far they lead, if not to the end."""
        share, qids = self.share, []
        with self.fids.using(number) as fid:
            if fid.attribute is not None:
                raise OSError(errno.EBADF, "an attribute")
            node = share.take_pinned(fid.node)
            try:
                for name in names:
                    if node.type != stat.S_IFDIR:
                        raise OSError(errno.ENOTDIR, "not a folder")
                    before, node = node, share.walk(node, name)
                    share.drop(before)
                    qids.append(self.qid_of(node))
            except OSError:
                share.drop(node)
                if not qids:
                    raise
            else:
                share.unpin(node)
                after = Fid(node, fid.uid)
                if new == number:
                    self.fids.change(number, fid, after)
                else:
                    self.fids.add(new, after)
        return wire.encode("h", len(qids)) + b"".join(qids)

    def clunk(self, number: int) -> bytes:
        """The fid goes, and an attribute that was to be set is set."""
        fid = self.fids.remove(number)
        try:
            value = fid.attribute
            if value is not None and value.name:
                self.share.pin(fid.node)
                try:
                    self._set_attribute(fid.node, value)
                finally:
                    self.share.unpin(fid.node)
        finally:
            self.fids.let_go(fid)
        return b""

    def _set_attribute(self, node: Node, value: Attribute) -> None:
        if value.written != len(value.value):
            raise OSError(errno.EINVAL, "the value is not complete")
        if value.value:
            os.setxattr(place(node.fd), value.name, value.value, value.flags)
        else:
            os.removexattr(place(node.fd), value.name)

    # -- for the other requests --

    def qid_of(self, node: Node) -> bytes:
        """The qid of a node."""
        return self.share.qid(os.fstat(node.fd))

    def open_to_lock(self, node: Node) -> int:
        """A descriptor that can hold locks on a file: to write too, if that may be. Raises ``OSError``."""
        if not self.share.read_only:
            with contextlib.suppress(PermissionError, IsADirectoryError):
                return self.share.open(node, os.O_RDWR).fd
        return self.share.open(node, os.O_RDONLY).fd

    def check_writable(self) -> None:
        """Raise ``OSError`` if nothing may be changed."""
        if self.share.read_only:
            raise OSError(errno.EROFS, "the share is read-only")

    # -- lifecycle --

    def save_fids(self) -> list[object]:
        """Of every fid that has a name: number, user, names from the root on, how it is open or what attribute it is.

        The first of several fids of a file has the file's locks.
        """
        saved: list[object] = []
        told = set()
        for number, fid in self.fids.items():
            names: list[object] = []
            node: Node | None = fid.node
            while node is not None and node.is_attached:
                names.insert(0, node.name)
                node = node.parent
            if node is self.share.root:
                identity = fid.node.identity
                saved.append({
                    "number": number, "uid": fid.uid, "names": names,
                    "flags": -1 if fid.file is None else fid.file.flags & ~os.O_TRUNC,
                    "attribute": None if fid.attribute is None else fid.attribute.save(),
                    "locks": [] if identity in told else self.locks.save(identity),
                })  # fmt: skip
                told.add(identity)
        return saved

    def restore_fid(self, saved: State) -> None:
        """Walk to what a fid was, and open and lock it as it was.

        Raises ``OSError``, and ``DeviceError`` if somebody else has a lock that the guest believes to have.
        """
        node = self.share.take_pinned(self.share.root)
        names = saved.get("names")
        for name in names if isinstance(names, list) else []:
            before = node
            try:
                node = self.share.walk(before, bytes(name))
            finally:
                self.share.drop(before)
        fid, flags = Fid(node, saved_int(saved, "uid")), saved_int(saved, "flags")
        if saved.get("attribute") is not None:
            fid.attribute = Attribute.restored(saved_dict(saved["attribute"], "attribute"))
        try:
            if flags >= 0:
                fid.file = self.share.open(node, flags & ~os.O_TRUNC)
            self.locks.restore(node.identity, partial(self.open_to_lock, node), saved_list(saved, "locks"))
        except (OSError, DeviceError):
            self.fids.let_go(fid)
            raise
        finally:
            self.share.unpin(node)
        self.fids.add(saved_int(saved, "number"), fid)


def opened(fid: Fid) -> OpenFile:
    """What a fid has open. Raises ``OSError`` (EBADF)."""
    if fid.file is None:
        raise OSError(errno.EBADF, "not open")
    return fid.file


def check_unopened(fid: Fid) -> None:
    """Raise ``OSError`` (EBADF) for a fid that is open, or an attribute."""
    if fid.file is not None or fid.attribute is not None:
        raise OSError(errno.EBADF, "open already")


def check_folder(node: Node) -> None:
    """Raise ``OSError`` for what is no folder."""
    if node.type != stat.S_IFDIR:
        raise OSError(errno.ENOTDIR, "not a folder")


def allowed_mode(mode: int, before: int) -> int:
    """``mode`` for a file that has ``before``. Raises ``OSError`` for a program that would run as somebody else."""
    mode &= 0o7777
    if mode & ~before & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(before):
        raise OSError(errno.EPERM, "set-user-ID")
    return mode
