"""The system calls that VFIO is used by, behind one protocol, so that a modelled kernel can take their place."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import Protocol


class Mapping(Protocol):
    """Device memory in this process."""

    address: int
    """Where it begins."""

    def close(self) -> None: ...


class System(Protocol):
    """What VFIO needs of the kernel. Every method raises ``OSError`` as the system call does."""

    def open(self, path: str) -> int:
        """Open for reading and writing."""

    def close(self, fd: int) -> None: ...

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        """A ``bytearray`` is passed by its address, and may be changed; a number is passed as it is."""

    def pread(self, fd: int, size: int, offset: int) -> bytes: ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...

    def mmap(self, fd: int, size: int, offset: int, *, writable: bool) -> Mapping: ...

    def exists(self, path: str) -> bool: ...

    def readlink(self, path: str) -> str: ...

    def listdir(self, path: str) -> list[str]: ...


class LinuxMapping:
    """A mapping by mmap(2). libc's own, for Python's gives a read-only mapping no address."""

    def __init__(self, fd: int, size: int, offset: int, *, writable: bool) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
        )  # fmt: skip
        self._libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = self._libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, offset)
        if address in (None, ctypes.c_void_p(-1).value):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = int(address)
        self._size = size

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._size:
            self._libc.munmap(self.address, self._size)
            self._size = 0


class LinuxSystem:
    """The kernel of this host."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        return fcntl.ioctl(fd, request, argument)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def mmap(self, fd: int, size: int, offset: int, *, writable: bool) -> LinuxMapping:
        return LinuxMapping(fd, size, offset, writable=writable)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)
