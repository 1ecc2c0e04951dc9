"""KVM's ioctl numbers, extensions and constants on x86, and one way to call them.

Source: the kernel's KVM API documentation (Documentation/virt/kvm/api.rst). A number is made as ``_IOC`` makes it:
direction, size of the argument, type 0xAE, sequence number.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from enum import IntEnum, IntFlag
from typing import Any

from pyhyve.errors import BackendError
from pyhyve.vmm.kvm import structs

API_VERSION = 12
_KVMIO = 0xAE
_INT_MAX = 0x7FFFFFFF


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _KVMIO << 8 | number


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _KVMIO << 8 | number


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _KVMIO << 8 | number


_size = ctypes.sizeof

# System ioctls, on /dev/kvm.
GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _iowr(0x05, _size(structs.CpuidHeader))

# VM ioctls.
CREATE_VCPU = _io(0x41)
SET_USER_MEMORY_REGION = _iow(0x46, _size(structs.MemoryRegion))
SET_TSS_ADDR = _io(0x47)
SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
CREATE_IRQCHIP = _io(0x60)
IRQ_LINE = _iow(0x61, _size(structs.IrqLevel))
GET_IRQCHIP = _iowr(0x62, structs.IRQCHIP_SIZE)
SET_IRQCHIP = _ior(0x63, structs.IRQCHIP_SIZE)
SET_GSI_ROUTING = _iow(0x6A, _size(structs.IrqRouting))
IRQFD = _iow(0x76, _size(structs.IrqFd))
CREATE_PIT2 = _iow(0x77, _size(structs.PitConfig))
IOEVENTFD = _iow(0x79, _size(structs.IoEventFd))
ENABLE_CAP = _iow(0xA3, _size(structs.EnableCap))
SIGNAL_MSI = _iow(0xA5, _size(structs.Msi))

# vCPU ioctls.
RUN = _io(0x80)
GET_REGS = _ior(0x81, _size(structs.Regs))
SET_REGS = _iow(0x82, _size(structs.Regs))
GET_SREGS = _ior(0x83, _size(structs.Sregs))
SET_SREGS = _iow(0x84, _size(structs.Sregs))
TRANSLATE = _iowr(0x85, _size(structs.Translation))
GET_MSRS = _iowr(0x88, structs.MSRS_HEADER)
SET_MSRS = _iow(0x89, structs.MSRS_HEADER)
GET_LAPIC = _ior(0x8E, structs.LAPIC_SIZE)
SET_LAPIC = _iow(0x8F, structs.LAPIC_SIZE)
SET_CPUID2 = _iow(0x90, _size(structs.CpuidHeader))
SET_GUEST_DEBUG = _iow(0x9B, _size(structs.GuestDebug))
GET_VCPU_EVENTS = _ior(0x9F, _size(structs.VcpuEvents))
SET_VCPU_EVENTS = _iow(0xA0, _size(structs.VcpuEvents))
GET_DEBUGREGS = _ior(0xA1, _size(structs.DebugRegs))
SET_DEBUGREGS = _iow(0xA2, _size(structs.DebugRegs))
GET_TSC_KHZ = _io(0xA3)
GET_XSAVE = _ior(0xA4, structs.XSAVE_SIZE)
SET_XSAVE = _iow(0xA5, structs.XSAVE_SIZE)
GET_XCRS = _ior(0xA6, _size(structs.Xcrs))
SET_XCRS = _iow(0xA7, _size(structs.Xcrs))
GET_STATS_FD = _io(0xCE)
GET_XSAVE2 = _ior(0xCF, structs.XSAVE_SIZE)


class Cap(IntEnum):
    """Extensions asked for with KVM_CHECK_EXTENSION (4.4)."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    MP_STATE = 14
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    IMMEDIATE_EXIT = 136
    X86_USER_SPACE_MSR = 188
    SET_GUEST_DEBUG2 = 195
    BINARY_STATS_FD = 203
    XSAVE2 = 208


class ExitReason(IntEnum):
    """``exit_reason`` of kvm_run (section 5)."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    X86_RDMSR = 29
    X86_WRMSR = 30


class InternalError(IntEnum):
    """``suberror`` of KVM_EXIT_INTERNAL_ERROR."""

    EMULATION = 1
    SIMULTANEOUS_EXCEPTIONS = 2
    EVENT_DELIVERY = 3
    UNEXPECTED_EXIT = 4


class SystemEvent(IntEnum):
    """``type`` of KVM_EXIT_SYSTEM_EVENT."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3


class IrqFdFlag(IntFlag):
    """``flags`` of KVM_IRQFD."""

    DEASSIGN = 1 << 0
    RESAMPLE = 1 << 1


class IoEventFlag(IntFlag):
    """``flags`` of KVM_IOEVENTFD."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    DEASSIGN = 1 << 2


class IrqChip(IntEnum):
    """``irqchip`` of a KVM_SET_GSI_ROUTING entry."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


MEM_READONLY = 1 << 1
PIT_SPEAKER_DUMMY = 1
IRQ_ROUTING_IRQCHIP = 1
IRQ_ROUTING_MSI = 2
GUESTDBG_ENABLE = 1 << 0
GUESTDBG_SINGLESTEP = 1 << 1
GUESTDBG_USE_HW_BP = 1 << 17
GUESTDBG_BLOCKIRQ = 1 << 20
MSR_EXIT_REASON_UNKNOWN = 1 << 1


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def call(fd: int, request: int, argument: int | ctypes.Structure | bytearray = 0, *, doing: str = "") -> int:
    """``ioctl`` on ``fd``; a structure is filled in where KVM answers in it.

    With ``doing`` (as in "create a vCPU") a failure raises ``BackendError`` that says so; without, ``OSError``.
    """
    try:
        if not isinstance(argument, int):
            buffer: Any = argument  # a ctypes structure is a writable buffer, though its type does not say so
            return int(fcntl.ioctl(fd, request, buffer, True))
        if argument <= _INT_MAX:
            return fcntl.ioctl(fd, request, argument)
        return _call_wide(fd, request, argument)
    except OSError as error:
        if not doing:
            raise
        raise BackendError(f"KVM cannot {doing}: {os.strerror(error.errno or 0)}") from None


def _call_wide(fd: int, request: int, argument: int) -> int:
    """``fcntl.ioctl`` passes an integer as C's int; an address above 2 GiB needs all of the register."""
    result = int(_libc.ioctl(fd, request, argument))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def extension(fd: int, cap: Cap) -> int:
    """The value of an extension, 0 where KVM lacks it."""
    try:
        return fcntl.ioctl(fd, CHECK_EXTENSION, int(cap))
    except OSError:
        return 0
