"""VFIO as the kernel spells it: requests, flags and structures of <linux/vfio.h>, for type 1 IOMMUs and PCI devices.

Every structure begins with its own size (``argsz``) and with flags. Answers that have no fixed length carry a chain of
capabilities behind the structure, each with an id and the offset of the next.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag

API_VERSION = 0
TYPE1V2_IOMMU = 3

_FIRST = ord(";") << 8 | 100  # _IO(';', 100 + n)


class Request(IntEnum):
    """The ioctls. Those of the IOMMU share numbers with those of devices: they go to another descriptor."""

    GET_API_VERSION = _FIRST + 0
    CHECK_EXTENSION = _FIRST + 1
    SET_IOMMU = _FIRST + 2
    GROUP_GET_STATUS = _FIRST + 3
    GROUP_SET_CONTAINER = _FIRST + 4
    GROUP_UNSET_CONTAINER = _FIRST + 5
    GROUP_GET_DEVICE_FD = _FIRST + 6
    DEVICE_GET_INFO = _FIRST + 7
    DEVICE_GET_REGION_INFO = _FIRST + 8
    DEVICE_GET_IRQ_INFO = _FIRST + 9
    DEVICE_SET_IRQS = _FIRST + 10
    DEVICE_RESET = _FIRST + 11
    IOMMU_MAP_DMA = _FIRST + 13
    IOMMU_UNMAP_DMA = _FIRST + 14


class RegionIndex(IntEnum):
    """Regions of a PCI device; 0 to 5 are its BARs."""

    ROM = 6
    CONFIG = 7


class IrqIndex(IntEnum):
    """Interrupts of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERROR = 3
    REQUEST = 4


class GroupFlag(IntFlag):
    VIABLE = 1 << 0
    CONTAINER_SET = 1 << 1


class DeviceFlag(IntFlag):
    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlag(IntFlag):
    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class IrqFlag(IntFlag):
    """What an interrupt can do (``vfio_irq_info``)."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class SetIrq(IntFlag):
    """What to do with interrupts (``vfio_irq_set``)."""

    DATA_NONE = 1 << 0
    DATA_EVENTFD = 1 << 2
    MASK = 1 << 3
    UNMASK = 1 << 4
    TRIGGER = 1 << 5


class DmaFlag(IntFlag):
    READ = 1 << 0
    WRITE = 1 << 1


SPARSE_MMAP = 1
"""The capability of a region that says which parts of it can be mapped."""


class GroupStatus(ctypes.Structure):
    _fields_ = (("argsz", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class DeviceInfo(ctypes.Structure):
    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("num_regions", ctypes.c_uint32),
        ("num_irqs", ctypes.c_uint32),
        ("cap_offset", ctypes.c_uint32),
    )


class RegionInfo(ctypes.Structure):
    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("cap_offset", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
    )


class IrqInfo(ctypes.Structure):
    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
    )


class IrqSet(ctypes.Structure):
    """The data, one ``int`` an interrupt, follows."""

    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("start", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
    )


class DmaMap(ctypes.Structure):
    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("vaddr", ctypes.c_uint64),
        ("iova", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class DmaUnmap(ctypes.Structure):
    _fields_ = (
        ("argsz", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("iova", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


_CAP_HEADER = struct.Struct("<HHI")  # id, version, offset of the next
_SPARSE_HEADER = struct.Struct("<II")  # areas, reserved
_AREA = struct.Struct("<QQ")  # offset, size


def capabilities(answer: bytes | bytearray, first: int) -> Iterator[tuple[int, int]]:
    """Id and offset of each capability in ``answer``. A chain that leaves it or turns back ends."""
    offset, last = first, 0
    while last < offset <= len(answer) - _CAP_HEADER.size:
        ident, _, following = _CAP_HEADER.unpack_from(answer, offset)
        yield ident, offset
        offset, last = following, offset


def sparse_areas(answer: bytes | bytearray, offset: int) -> list[tuple[int, int]]:
    """Offset and size of each part that can be mapped, from the capability at ``offset``."""
    at = offset + _CAP_HEADER.size
    if at + _SPARSE_HEADER.size > len(answer):
        return []
    count, _ = _SPARSE_HEADER.unpack_from(answer, at)
    at += _SPARSE_HEADER.size
    fitting = min(count, (len(answer) - at) // _AREA.size)
    return [_AREA.unpack_from(answer, at + n * _AREA.size) for n in range(fitting)]
