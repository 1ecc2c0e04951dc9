"""The names in folders: make, link, rename, remove.

Each works on one name in the folder of a fid, never on a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from pyhyve.hw.virtio.p9 import wire
from pyhyve.hw.virtio.p9.calls import place
from pyhyve.hw.virtio.p9.files import LONGEST_TARGET, Node, check_name
from pyhyve.hw.virtio.p9.session import SessionBase, allowed_mode, check_folder

_REMOVE_FOLDER = 0x200


class Names(SessionBase):
    """The requests of this page."""

    def symlink(self, number: int, name: bytes, target: bytes, gid: int) -> bytes:
        """Make a symbolic link. The guest's kernel follows it, in the guest's own file system."""
        if not target or len(target) > LONGEST_TARGET or b"\0" in target:
            raise OSError(errno.EINVAL, "not a target")
        return self._make(number, name, None, gid, lambda folder: os.symlink(target, name, dir_fd=folder))

    def mknod(self, number: int, name: bytes, mode: int, major: int, minor: int, gid: int) -> bytes:
        """Make an empty file, a FIFO or a socket; a device is not the guest's to make on the host."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise OSError(errno.EPERM, "a device")
        mode = allowed_mode(mode, 0)
        return self._make(number, name, mode, gid, lambda folder: os.mknod(name, kind | mode, dir_fd=folder))

    def mkdir(self, number: int, name: bytes, mode: int, gid: int) -> bytes:
        """Make a folder."""
        mode &= 0o7777
        return self._make(number, name, mode, gid, lambda folder: os.mkdir(name, mode & 0o1777, dir_fd=folder))

    def _make(self, number: int, name: bytes, mode: int | None, gid: int, make: Callable[[int], None]) -> bytes:
        self.check_writable()
        check_name(name)
        with self.fids.using(number) as fid:
            check_folder(fid.node)
            make(fid.node.fd)
            node = self.share.walk(fid.node, name)
            try:
                status = os.fstat(node.fd)
                self.share.give(node.fd, stat.S_IMODE(status.st_mode) if mode is None else mode, fid.uid, gid)
                return self.qid_of(node)
            finally:
                self.share.drop(node)

    def link(self, folder: int, number: int, name: bytes) -> bytes:
        """One name more for a file."""
        self.check_writable()
        check_name(name)
        with self.fids.using(folder) as into, self.fids.using(number) as fid:
            os.link(place(fid.node.fd), name, dst_dir_fd=into.node.fd, follow_symlinks=True)
        return b""

    def readlink(self, number: int) -> bytes:
        """Where a symbolic link points."""
        with self.fids.using(number) as fid:
            if fid.node.type != stat.S_IFLNK:
                raise OSError(errno.EINVAL, "not a symbolic link")
            return wire.encode("s", os.readlink(b"", dir_fd=fid.node.fd))

    def renameat(self, old: int, old_name: bytes, new: int, new_name: bytes) -> bytes:
        """Another name, or another folder, or both."""
        self.check_writable()
        with self.fids.using(old) as source, self.fids.using(new) as target:
            self._rename(source.node, old_name, target.node, new_name)
        return b""

    def rename(self, number: int, folder: int, name: bytes) -> bytes:
        """The same, for what a fid stands for."""
        self.check_writable()
        with (
            self.fids.using(number) as fid,
            self.fids.using(folder) as target,
            self.share.place_of(fid.node) as (source, old_name),
        ):
            self._rename(source, old_name, target.node, name)
        return b""

    def _rename(self, source: Node, old_name: bytes, target: Node, new_name: bytes) -> None:
        check_name(old_name)
        check_name(new_name)
        with self.share.keeping((source, old_name), (target, new_name)):
            os.rename(old_name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
            self.share.renamed(source, old_name, target, new_name)

    def unlinkat(self, folder: int, name: bytes, flags: int) -> bytes:
        """Take a name away: a file's, or with the flag an empty folder's."""
        self.check_writable()
        if flags & ~_REMOVE_FOLDER:
            raise OSError(errno.EINVAL, "unknown flags")
        with self.fids.using(folder) as fid:
            self._unlink(fid.node, check_name(name), folder=bool(flags))
        return b""

    def remove(self, number: int) -> bytes:
        """Take away the name of what a fid stands for, and the fid in any case."""
        fid = self.fids.remove(number)
        try:
            self.check_writable()
            with self.share.place_of(fid.node) as (folder, name):
                self._unlink(folder, name, folder=fid.node.type == stat.S_IFDIR)
        finally:
            self.fids.let_go(fid)
        return b""

    def _unlink(self, parent: Node, name: bytes, *, folder: bool) -> None:
        with self.share.keeping((parent, name)):
            (os.rmdir if folder else os.unlink)(name, dir_fd=parent.fd)
            self.share.removed(parent, name)
