"""Reads kernels and initial RAM disks from the host, with the errors that a user can act on."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyhyve.errors import LoaderError
from pyhyve.memory import PAGE, GuestMemory

ROM_LIMIT = 16 << 20
"""Largest boot ROM: bhyve keeps this much free below 4 GiB."""


def read_kernel(path: Path, memory: GuestMemory) -> bytes:
    """All of the kernel file. One that is larger than guest memory is refused before it is read."""
    with _open(path, "kernel") as (file, size):
        if size > memory.size:
            raise LoaderError(f"kernel {path} ({_mb(size)}) is larger than guest memory ({_mb(memory.size)})")
        return file.read()


def read_rom(path: Path) -> bytes:
    """All of a boot ROM: whole pages, at most ``ROM_LIMIT`` bytes."""
    with _open(path, "boot ROM") as (file, size):
        if size > ROM_LIMIT or size % PAGE:
            raise LoaderError(f"boot ROM {path} has {size} bytes: it must be whole pages, {_mb(ROM_LIMIT)} at most")
        return file.read()


def map_variables(path: Path, room: int) -> mmap.mmap:
    """The file of a boot ROM's variables, mapped so that what is written stays, and locked against other machines.

    It has whole pages, ``room`` bytes at most. Raises ``LoaderError``.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= room or status.st_size % PAGE:
                raise LoaderError(
                    f"boot variables {path} have {status.st_size} bytes: they must be whole pages of a file, "
                    f"and ROM and variables {_mb(ROM_LIMIT)} at most"
                )
            # the lock belongs to the open file, which the mapping's own descriptor keeps
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return mmap.mmap(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        raise LoaderError(f"boot variables {path} are in use by another machine") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LoaderError(f"cannot open boot variables {path}: {reason}") from None


def initrd_size(path: Path) -> int:
    """The size in bytes of the initrd, after the checks that it is there and not empty."""
    with _open(path, "initrd") as (_, size):
        return size


def read_initrd(path: Path, memory: GuestMemory, gpa: int, size: int) -> None:
    """Read ``size`` bytes of the initrd straight into guest memory at ``gpa``."""
    with _open(path, "initrd") as (file, _):
        view = memory.view(gpa, size)
        done = 0
        while done < size:
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise LoaderError(f"initrd {path} shrank while it was being read")
            done += count
        memory.written(gpa, size)


def encode_cmdline(cmdline: str, limit: int) -> bytes:
    """The command line with its terminating zero. ``limit`` is the most bytes it may have without it."""
    try:
        encoded = os.fsencode(cmdline)
    except UnicodeEncodeError:
        raise LoaderError("the kernel command line contains characters that cannot be encoded") from None
    if b"\0" in encoded:
        raise LoaderError("the kernel command line contains a zero byte")
    if len(encoded) > limit:
        raise LoaderError(f"the kernel command line has {len(encoded)} bytes, but this kernel takes at most {limit}")
    return encoded + b"\0"


def not_enough_memory(path: Path, needed: int, memory: GuestMemory) -> LoaderError:
    """The error for a guest that needs RAM up to address ``needed``."""
    there = _mb(memory.low_size, up=False)
    return LoaderError(f"kernel {path} needs at least {_mb(needed)} of guest memory, but there are {there}")


def initrd_too_large(path: Path, size: int, room: int) -> LoaderError:
    free = _mb(max(room, 0), up=False)
    return LoaderError(f"initrd {path} ({_mb(size)}) does not fit: guest memory has room for {free}")


def _mb(size: int, *, up: bool = True) -> str:
    return f"{-(-size // (1 << 20)) if up else size >> 20} MB"


@contextmanager
def _open(path: Path, what: str) -> Iterator[tuple[BinaryIO, int]]:
    try:
        # a FIFO without a writer would block in open
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise LoaderError(f"{what} {path} is not a regular file")
            if not status.st_size:
                raise LoaderError(f"{what} {path} is empty")
            yield file, status.st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LoaderError(f"cannot read {what} {path}: {reason}") from None
