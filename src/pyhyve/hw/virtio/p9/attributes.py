"""What is said of files: statfs, getattr, setattr, extended attributes."""

from __future__ import annotations

import errno
import os
import stat

from pyhyve.hw.virtio.p9 import wire
from pyhyve.hw.virtio.p9.calls import NOW, OMIT, place, set_times
from pyhyve.hw.virtio.p9.content import check_range
from pyhyve.hw.virtio.p9.fids import Attribute, Fid
from pyhyve.hw.virtio.p9.files import LONGEST_NAME
from pyhyve.hw.virtio.p9.session import SessionBase, allowed_mode, check_unopened
from pyhyve.hw.virtio.p9.wire import Attribute as Set

LONGEST_VALUE = 65536
"""Of an extended attribute (xattr(7))."""
MAGIC = 0x01021997
"""What statfs says this is: 9p."""
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


class Attributes(SessionBase):
    """The requests of this page."""

    def statfs(self, number: int) -> bytes:
        """The host's file system."""
        with self.fids.using(number) as fid:
            s = os.statvfs(fid.node.fd)
        return wire.encode(
            "ddqqqqqqd", MAGIC, s.f_bsize & 0xFFFFFFFF, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree,
            s.f_fsid & (1 << 64) - 1, min(s.f_namemax, LONGEST_NAME),
        )  # fmt: skip

    def getattr(self, number: int, mask: int) -> bytes:
        """All that stat(2) tells, whatever is asked for."""
        with self.fids.using(number) as fid:
            s = os.fstat(fid.node.fd)
        return wire.encode("q", wire.GETATTR_BASIC) + self.share.qid(s) + wire.encode(
            "ddd" + "q" * 15, s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_rdev, s.st_size, s.st_blksize,
            s.st_blocks, *_time(s.st_atime_ns), *_time(s.st_mtime_ns), *_time(s.st_ctime_ns), 0, 0, 0, 0,
        )  # fmt: skip

    def setattr(
        self, number: int, valid: int, mode: int, uid: int, gid: int, size: int,
        atime: int, atime_ns: int, mtime: int, mtime_ns: int,
    ) -> bytes:  # fmt: skip
        """Change owner, mode, size and times."""
        self.check_writable()
        with self.fids.using(number) as fid:
            fd = fid.node.fd
            path = place(fd)
            if valid & (Set.UID | Set.GID):
                owner = uid if valid & Set.UID and uid != 0xFFFFFFFF else -1
                os.chown(path, owner, gid if valid & Set.GID and gid != 0xFFFFFFFF else -1)
            if valid & Set.MODE:
                os.chmod(path, allowed_mode(mode, os.fstat(fd).st_mode))
            if valid & Set.SIZE:
                check_range(0, size)
                if fid.file is not None and fid.file.flags & os.O_ACCMODE != os.O_RDONLY:
                    os.ftruncate(fid.file.fd, size)
                elif fid.node.type == stat.S_IFREG:
                    os.truncate(path, size)
                else:
                    raise OSError(errno.EISDIR if fid.node.type == stat.S_IFDIR else errno.EINVAL, "not a file")
            if valid & (Set.ATIME | Set.MTIME):
                given = ((valid & Set.ATIME, valid & Set.ATIME_SET, atime, atime_ns),
                         (valid & Set.MTIME, valid & Set.MTIME_SET, mtime, mtime_ns))  # fmt: skip
                set_times(fd, *((s, ns) if exact else (0, NOW if wanted else OMIT) for wanted, exact, s, ns in given))
        return b""

    def xattrwalk(self, number: int, new: int, name: bytes) -> bytes:
        """A fid to read an extended attribute from, or the list of their names."""
        with self.fids.using(number) as fid:
            path = place(fid.node.fd)
            if name:
                value = os.getxattr(path, _attribute_name(name))
            else:
                names = (os.fsencode(each) for each in os.listxattr(path))
                value = b"".join(each + b"\0" for each in names if _may_reach(each))
            attribute = Attribute(bytearray(value))
            self.fids.add(new, Fid(self.share.take(fid.node), fid.uid, attribute=attribute))
        return wire.encode("q", len(value))

    def xattrcreate(self, number: int, name: bytes, size: int, flags: int) -> bytes:
        """From now on the fid is the value of an attribute, to be written; it is set at the clunk."""
        self.check_writable()
        if size > LONGEST_VALUE:
            raise OSError(errno.E2BIG, "a value too long")
        with self.fids.using(number) as fid:
            check_unopened(fid)
            value = Attribute(bytearray(size), _attribute_name(name), flags & (os.XATTR_CREATE | os.XATTR_REPLACE))
            self.fids.change(number, fid, Fid(self.share.take(fid.node), fid.uid, attribute=value))
        return b""


def _attribute_name(name: bytes) -> bytes:
    if not _may_reach(name) or len(name) > LONGEST_NAME or b"\0" in name:
        raise OSError(errno.EOPNOTSUPP, "no such attribute")
    return name


def _may_reach(name: bytes) -> bool:
    """Users' own attributes and access control lists; not what gives a program of the host more rights."""
    return name.startswith(b"user.") or name in _ACLS


def _time(nanoseconds: int) -> tuple[int, int]:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return seconds & (1 << 64) - 1, rest
