"""Block backends: the host's side of a disk, a raw image in a regular file or a block device.

``open_block(path, options)`` understands the options of bhyve's block devices (bhyve(8), "Block storage device
backends"): ``nocache``, ``direct`` (or ``sync``), ``ro``, ``nodelete``, ``sectorsize=logical[/physical]``.

A request is an offset, a list of buffers and ``done``, which is called with 0 or an errno in a thread of the backend's
pool. The buffers are views of guest memory: preadv(2) and pwritev(2) move the data between them and the file without a
copy here, with the interpreter's lock released. Requests run side by side and end in any order. What the host cannot
do (a full disk, a file that has become shorter, a bad sector) is the errno of that one request.

``nocache`` opens the file with O_DIRECT. The kernel knows what its direct I/O can take (alignment of addresses, offset
and length): what it refuses goes through the cache by a second descriptor, which the kernel keeps coherent with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from pyhyve.backends.pool import Done, WorkerPool
from pyhyve.config import FALSE, TRUE
from pyhyve.errors import DeviceError

OPTIONS = frozenset({"path", "nocache", "direct", "sync", "ro", "nodelete", "sectorsize", "bootindex"})
"""The names of a block device's options. ``bootindex`` is for a boot ROM; ``open_block`` does not look at it."""

SECTOR = 512
IOV_MAX = os.sysconf("SC_IOV_MAX")
_LARGEST_PHYSICAL = 64 << 10
_ZEROES = memoryview(bytes(1 << 20))

# Linux, include/uapi/linux/fs.h
_BLKROGET = 0x125E
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_BLKPBSZGET = 0x127B
_BLKZEROOUT = 0x127F
_BLKGETSIZE64 = 0x80081272

# Linux, include/uapi/linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class SectorSize(NamedTuple):
    """Bytes in a sector: the unit of addressing, and the unit that the medium writes at once."""

    logical: int
    physical: int


class BlockBackend(Protocol):
    """A disk on the host. Offsets and lengths are in bytes. ``done`` is never called in the caller's thread."""

    size: int
    """Bytes, a multiple of the logical sector."""
    sector: SectorSize
    read_only: bool
    can_discard: bool
    """Whether ``discard`` gives space back."""

    def readv(self, offset: int, buffers: Sequence[memoryview], done: Done) -> None:
        """Fill the buffers, which are writable, from ``offset``."""

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Fill the buffers at once if the host has the data in memory; False if not, and then they hold anything.

        For small reads: it saves them the way through another thread.
        """

    def writev(self, offset: int, buffers: Sequence[memoryview], done: Done) -> None:
        """Write the buffers at ``offset``. EROFS on a read-only disk."""

    def flush(self, done: Done) -> None:
        """Put every write that is done onto the host's disk."""

    def discard(self, offset: int, length: int, done: Done) -> None:
        """The guest no longer needs a range; what it reads there next is zeroes or the old data."""

    def write_zeroes(self, offset: int, length: int, done: Done, *, unmap: bool = False) -> None:
        """Make a range read as zeroes, with ``unmap`` by giving its space back if that can be."""

    def drain(self) -> None:
        """Wait until every request is done. Not from a ``done``."""

    def close(self) -> None:
        """Finish every request and give the file back. Idempotent. Not from a ``done``."""


def open_block(path: str, options: Mapping[str, str]) -> BlockBackend:
    """Open the image or device ``path``.

    Raises ``DeviceError`` with one line if it cannot be a disk, or another machine has it.
    """
    return FileBlock(path, options)


def is_set(options: Mapping[str, str], name: str) -> bool:
    """Whether a switch is on: ``name`` alone or ``name=true``. Raises ``DeviceError`` for something else."""
    value = options.get(name, "false").lower()
    if value not in TRUE | FALSE:
        raise DeviceError(f"{name}={options[name]}: it is on or off, true or false")
    return value in TRUE


def parse_sector_size(text: str) -> SectorSize:
    """``logical`` or ``logical/physical``: powers of two from 512, the physical one not smaller."""
    logical, slash, physical = text.partition("/")
    parts = (logical, physical if slash else logical)
    if all(part.isascii() and part.isdigit() for part in parts):
        sector = SectorSize(*(int(part) for part in parts))
        # ATA and virtio can say a physical sector of up to 2**15 logical ones.
        ordered = SECTOR <= sector.logical <= sector.physical <= _LARGEST_PHYSICAL
        if ordered and _power_of_two(sector.logical) and _power_of_two(sector.physical):
            return sector
    raise DeviceError(
        f"sectorsize={text}: it is logical[/physical], powers of two from {SECTOR} to {_LARGEST_PHYSICAL},"
        " the physical one not smaller"
    )


class FileBlock:
    """A raw image in a regular file, or a block device of the host."""

    def __init__(self, path: str, options: Mapping[str, str]) -> None:
        self.path = path
        self.read_only = is_set(options, "ro")
        nocache = is_set(options, "nocache")
        synchronous = os.O_SYNC if is_set(options, "direct") or is_set(options, "sync") else 0
        may_discard = not is_set(options, "nodelete")
        wanted = parse_sector_size(options["sectorsize"]) if "sectorsize" in options else None
        self._is_device = _check_kind(path)
        self._fd = -1
        self._direct = -1
        try:
            self._fd = self._open(path, synchronous)
            self._lock_file()
            self._measure(wanted)
            if nocache:
                self._direct = self._open_direct(synchronous)
            self.can_discard = may_discard and not self.read_only and self._probe_discard()
        except BaseException:
            self._close_files()
            raise
        self._may_peek = not nocache
        self._pool = WorkerPool("block")

    # -- opening --

    def _open(self, path: str, flags: int) -> int:
        flags |= os.O_CLOEXEC
        try:
            if not self.read_only:
                try:
                    fd = os.open(path, os.O_RDWR | flags)
                    if not self._is_device or not _ioctl_int(fd, _BLKROGET):
                        return fd
                    os.close(fd)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
                        raise
                # As bhyve: what cannot be written is a read-only disk.
                fd = os.open(path, os.O_RDONLY | flags)
                self.read_only = True
                import logging

                logging.getLogger(__name__).warning("disk %s cannot be written: the guest sees a read-only disk", path)
                return fd
            return os.open(path, os.O_RDONLY | flags)
        except OSError as error:
            raise DeviceError(f"cannot open disk {path}: {error.strerror}") from None

    def _open_direct(self, flags: int) -> int:
        flags |= os.O_CLOEXEC | os.O_DIRECT | (os.O_RDONLY if self.read_only else os.O_RDWR)
        try:
            return os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as error:
            reason = "its file system has no direct I/O" if error.errno == errno.EINVAL else error.strerror
            raise DeviceError(f"disk {self.path} cannot be used with nocache: {reason}") from None

    def _lock_file(self) -> None:
        """One machine writes an image, or several read it. A file system without locks goes without."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            use = "written by" if self.read_only else "in use by"
            raise DeviceError(f"disk {self.path} is {use} another machine or another device of this one") from None
        except OSError:
            pass

    def _measure(self, wanted: SectorSize | None) -> None:
        status = os.fstat(self._fd)
        if self._is_device:
            self.size = _ioctl_int(self._fd, _BLKGETSIZE64, "<Q")
            own = SectorSize(_ioctl_int(self._fd, _BLKSSZGET), _ioctl_int(self._fd, _BLKPBSZGET))
            if wanted is not None and wanted.logical % own.logical:
                raise DeviceError(f"disk {self.path}: sectors of {wanted.logical} bytes on a device with {own.logical}")
        else:
            self.size = status.st_size
            block = status.st_blksize
            own = SectorSize(SECTOR, block if _power_of_two(block) and SECTOR <= block <= _LARGEST_PHYSICAL else SECTOR)
        self.sector = wanted or own
        if not self.size:
            raise DeviceError(f"disk {self.path} is empty; give it a size first: truncate -s 2G {self.path}")
        rest = self.size % self.sector.logical
        if rest:
            unit = self.sector.logical
            raise DeviceError(f"disk {self.path} has {self.size} bytes, no multiple of its {unit}-byte sectors")

    def _probe_discard(self) -> bool:
        if self._is_device:
            device = os.fstat(self._fd).st_rdev
            base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
            for queue in (f"{base}/queue", f"{base}/../queue"):  # a partition shares its disk's
                with contextlib.suppress(OSError, ValueError), open(f"{queue}/discard_max_bytes") as file:
                    return int(file.read()) > 0
            return False
        # Behind the end there is nothing to lose, and a file system that cannot do it says so there too.
        return self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, -(-self.size // 4096) * 4096, 4096) == 0

    # -- requests --

    def readv(self, offset: int, buffers: Sequence[memoryview], done: Done) -> None:
        """See ``BlockBackend``."""
        self._pool.submit(partial(self._transfer, os.preadv, offset, buffers), done)

    def read_cached(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """See ``BlockBackend``."""
        length = sum(map(len, buffers))
        if not self._may_peek or len(buffers) > IOV_MAX or not self._inside(offset, length):
            return False
        try:
            return os.preadv(self._fd, buffers, offset, os.RWF_NOWAIT) == length
        except BlockingIOError:
            return False
        except OSError:
            self._may_peek = False  # a file system that has no such reads
            return False

    def writev(self, offset: int, buffers: Sequence[memoryview], done: Done) -> None:
        """See ``BlockBackend``."""
        self._pool.submit(partial(self._write, offset, buffers), done)

    def flush(self, done: Done) -> None:
        """See ``BlockBackend``."""
        self._pool.submit(self._sync, done)

    def discard(self, offset: int, length: int, done: Done) -> None:
        """See ``BlockBackend``."""
        self._pool.submit(partial(self._discard, offset, length), done)

    def write_zeroes(self, offset: int, length: int, done: Done, *, unmap: bool = False) -> None:
        """See ``BlockBackend``."""
        self._pool.submit(partial(self._zero, offset, length, unmap and self.can_discard), done)

    def drain(self) -> None:
        """See ``BlockBackend``."""
        self._pool.drain()

    def close(self) -> None:
        """See ``BlockBackend``."""
        self._pool.close()
        self._close_files()

    # -- in the pool --

    def _transfer(
        self, call: Callable[[int, Sequence[memoryview], int], int], offset: int, buffers: Sequence[memoryview]
    ) -> int:
        """Move everything; 0 or an errno."""
        left = sum(map(len, buffers))
        if not self._inside(offset, left):
            return errno.EINVAL
        todo: Sequence[memoryview] = buffers
        fd = self._fd if self._direct < 0 else self._direct
        while left:
            try:
                moved = call(fd, todo if len(todo) <= IOV_MAX else todo[:IOV_MAX], offset)
            except OSError as error:
                if error.errno == errno.EINVAL and fd != self._fd:
                    fd = self._fd
                    continue
                return error.errno or errno.EIO
            if not moved:
                return errno.EIO  # the file ends here by now
            left -= moved
            offset += moved
            if left:
                todo = _behind(todo, moved)
        return 0

    def _write(self, offset: int, buffers: Sequence[memoryview]) -> int:
        # pwritev would make a file that was cut grow again, with a hole where data was.
        return self._refuse_change() or self._transfer(os.pwritev, offset, buffers)

    def _sync(self) -> int:
        if not self.read_only:
            os.fdatasync(self._fd)
        return 0

    def _discard(self, offset: int, length: int) -> int:
        if not self._inside(offset, length):
            return errno.EINVAL
        if not self.can_discard:
            return errno.EOPNOTSUPP
        if not length:
            return 0
        return self._refuse_change() or self._give_back(offset, length)

    def _zero(self, offset: int, length: int, unmap: bool) -> int:
        if not self._inside(offset, length):
            return errno.EINVAL
        refused = self._refuse_change()
        if refused or not length:
            return refused
        if self._is_device:
            fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))
            return 0
        if unmap and not self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length):
            return 0
        if not self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, length):
            return 0
        for start in range(offset, offset + length, len(_ZEROES)):
            result = self._transfer(os.pwritev, start, [_ZEROES[: offset + length - start]])
            if result:
                return result
        return 0

    def _give_back(self, offset: int, length: int) -> int:
        if self._is_device:
            fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("=QQ", offset, length))
            return 0
        return self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> int:
        """fallocate(2): 0 or an errno."""
        if _libc.fallocate64(self._fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
            return 0
        return ctypes.get_errno()

    def _inside(self, offset: int, length: int) -> bool:
        return offset >= 0 and length >= 0 and offset + length <= self.size

    def _refuse_change(self) -> int:
        """Why nothing may be written: 0, or an errno."""
        if self.read_only:
            return errno.EROFS
        if not self._is_device and os.fstat(self._fd).st_size < self.size:
            return errno.EIO
        return 0

    def _close_files(self) -> None:
        for fd in (self._direct, self._fd):
            if fd >= 0:
                os.close(fd)
        self._direct = self._fd = -1


def _check_kind(path: str) -> bool:
    """True for a block device, False for a regular file. Raises ``DeviceError`` for anything else."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file's name"
        raise DeviceError(f"cannot open disk {path}: {reason}") from None
    if stat.S_ISDIR(mode):
        raise DeviceError(f"disk {path} is a directory; a disk is an image file or a block device")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise DeviceError(f"disk {path} is neither an image file nor a block device")
    return stat.S_ISBLK(mode)


def _behind(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """The buffers without their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _ioctl_int(fd: int, request: int, layout: str = "<I") -> int:
    data = bytearray(struct.calcsize(layout))
    fcntl.ioctl(fd, request, data)
    value: int = struct.unpack(layout, data)[0]
    return value
