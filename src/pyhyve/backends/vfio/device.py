"""One PCI device, opened through VFIO: its regions and its interrupts.

Source: <linux/vfio.h>. Registers and configuration space are read and written at places of the device's descriptor,
with one access of the given size each; interrupts are eventfds. Mappings are for who can give them to a guest's CPU.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pyhyve.backends.vfio import uapi
from pyhyve.backends.vfio.system import Mapping, System
from pyhyve.backends.vfio.uapi import DeviceFlag, IrqFlag, RegionFlag, RegionIndex, Request, SetIrq
from pyhyve.errors import DeviceError

_Answer = TypeVar("_Answer", uapi.DeviceInfo, uapi.IrqInfo)

PAGE = 4096
_LARGEST_ANSWER = 1 << 16
NO_EVENT = -1
"""In place of an eventfd: this interrupt goes nowhere."""


@dataclass(frozen=True, slots=True)
class Region:
    """A BAR, the ROM or configuration space: ``size`` bytes from ``offset`` of the descriptor; none if 0."""

    index: int
    size: int
    offset: int
    flags: RegionFlag
    areas: tuple[tuple[int, int], ...]
    """Offset and size of what of it can be mapped, in whole pages."""


@dataclass(frozen=True, slots=True)
class Interrupts:
    """One kind of interrupt: how many there are, and what can be done with them."""

    count: int
    flags: IrqFlag


class VfioDevice:
    """An opened device. ``fd`` belongs to it. Raises ``DeviceError`` if it is no PCI device."""

    def __init__(self, system: System, fd: int, name: str) -> None:
        self._system = system
        self.fd = fd
        self.name = name
        try:
            info = self._ask(Request.DEVICE_GET_INFO, uapi.DeviceInfo())
            if not info.flags & DeviceFlag.PCI:
                raise DeviceError(f"passthru: {name} is no PCI device")
            self.can_reset = bool(info.flags & DeviceFlag.RESET)
            self.regions = [self._region(index, info.num_regions) for index in range(RegionIndex.CONFIG + 1)]
            self.interrupts = [self._interrupts(index, info.num_irqs) for index in uapi.IrqIndex]
        except OSError as error:
            raise DeviceError(f"passthru: VFIO does not describe {name}: {error.strerror}") from None
        self._config = self.regions[RegionIndex.CONFIG].offset

    # -- registers --

    def read_config(self, offset: int, size: int) -> int:
        """Configuration bytes as VFIO shows them. Raises ``OSError``."""
        return int.from_bytes(self._system.pread(self.fd, size, self._config + offset), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write configuration bytes, as far as VFIO lets them through. Raises ``OSError``."""
        self._system.pwrite(self.fd, value.to_bytes(size, "little"), self._config + offset)

    def read(self, region: Region, offset: int, size: int) -> int:
        """Read a register. Raises ``OSError``, for one where memory decoding is off."""
        data = self._system.pread(self.fd, size, region.offset + offset)
        if len(data) != size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return int.from_bytes(data, "little")

    def write(self, region: Region, offset: int, size: int, value: int) -> None:
        """Write a register. Raises ``OSError``."""
        self._system.pwrite(self.fd, value.to_bytes(size, "little"), region.offset + offset)

    def map(self, region: Region, offset: int, size: int) -> Mapping:
        """Map part of an area of ``region``. Raises ``OSError``."""
        writable = bool(region.flags & RegionFlag.WRITE)
        return self._system.mmap(self.fd, size, region.offset + offset, writable=writable)

    def reset(self) -> None:
        """Reset the function, where it can be. Raises ``OSError``."""
        if self.can_reset:
            self._system.ioctl(self.fd, Request.DEVICE_RESET)

    # -- interrupts --

    def connect(self, index: int, events: Sequence[int], start: int = 0) -> None:
        """Have interrupts from ``start`` signal eventfds; ``NO_EVENT`` leaves one out. Enables the kind.

        Raises ``OSError``; ENOSPC if the host has not so many.
        """
        data = struct.pack(f"<{len(events)}i", *events)
        if self._set_irqs(SetIrq.DATA_EVENTFD | SetIrq.TRIGGER, index, start, len(events), data):
            raise OSError(errno.ENOSPC, "the host has fewer interrupts to give")

    def disconnect(self, index: int) -> None:
        """Disable a kind of interrupt. Raises ``OSError``."""
        self._set_irqs(SetIrq.DATA_NONE | SetIrq.TRIGGER, index, 0, 0)

    def unmask(self, index: int) -> None:
        """Let the first interrupt of a kind that masks itself come again. Raises ``OSError``."""
        self._set_irqs(SetIrq.DATA_NONE | SetIrq.UNMASK, index, 0, 1)

    def close(self) -> None:
        """Give the device back; the kernel resets it. Idempotent."""
        if self.fd >= 0:
            self._system.close(self.fd)
            self.fd = -1

    # -- inside --

    def _set_irqs(self, flags: int, index: int, start: int, count: int, data: bytes = b"") -> int:
        size = ctypes.sizeof(uapi.IrqSet) + len(data)
        request = uapi.IrqSet(argsz=size, flags=int(flags), index=index, start=start, count=count)
        return self._system.ioctl(self.fd, Request.DEVICE_SET_IRQS, bytearray(request) + data)

    def _region(self, index: int, count: int) -> Region:
        if index >= count:
            return Region(index, 0, 0, RegionFlag(0), ())
        try:
            answer = self._ask_region(index)
        except OSError as error:
            if error.errno == errno.EINVAL:  # not there on this device
                return Region(index, 0, 0, RegionFlag(0), ())
            raise
        info = uapi.RegionInfo.from_buffer_copy(answer)
        flags = RegionFlag(info.flags)
        areas: list[tuple[int, int]] = []
        if flags & RegionFlag.MMAP:
            areas = [(0, info.size)]
            if flags & RegionFlag.CAPS:
                for ident, offset in uapi.capabilities(answer, info.cap_offset):
                    if ident == uapi.SPARSE_MMAP:
                        areas = uapi.sparse_areas(answer, offset)
        return Region(index, info.size, info.offset, flags, tuple(_whole_pages(areas, info.size)))

    def _ask_region(self, index: int) -> bytearray:
        size = ctypes.sizeof(uapi.RegionInfo)
        while True:
            answer = bytearray(uapi.RegionInfo(argsz=size, index=index)).ljust(size, b"\0")
            self._system.ioctl(self.fd, Request.DEVICE_GET_REGION_INFO, answer)
            wanted = uapi.RegionInfo.from_buffer_copy(answer).argsz
            if wanted <= size or wanted > _LARGEST_ANSWER:  # the capabilities are there
                return answer
            size = wanted

    def _interrupts(self, index: int, count: int) -> Interrupts:
        if index < count:
            try:
                info = self._ask(Request.DEVICE_GET_IRQ_INFO, uapi.IrqInfo(index=index))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return Interrupts(info.count, IrqFlag(info.flags))
        return Interrupts(0, IrqFlag(0))

    def _ask(self, request: int, structure: _Answer) -> _Answer:
        structure.argsz = ctypes.sizeof(structure)
        buffer = bytearray(structure)
        self._system.ioctl(self.fd, request, buffer)
        return type(structure).from_buffer_copy(buffer)


def _whole_pages(areas: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """What of ``areas`` is whole pages inside ``limit`` bytes."""
    found = []
    for offset, size in areas:
        first = -(-offset // PAGE) * PAGE
        last = min(offset + size, limit) // PAGE * PAGE
        if first < last:
            found.append((first, last - first))
    return found
