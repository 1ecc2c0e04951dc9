"""The structures that KVM's ioctls exchange with user space on x86.

Source: the kernel's "The Definitive KVM API Documentation" (Documentation/virt/kvm/api.rst); each class names its
section. Sizes are part of the ABI: the ioctl numbers in ``ioctls`` are computed from them.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64


class MemoryRegion(ctypes.Structure):
    """4.35 KVM_SET_USER_MEMORY_REGION. A ``memory_size`` of 0 deletes the slot."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class IrqLevel(ctypes.Structure):
    """4.25 KVM_IRQ_LINE."""

    _fields_ = (("irq", c_uint32), ("level", c_uint32))


class PitConfig(ctypes.Structure):
    """4.71 KVM_CREATE_PIT2."""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class IoEventFd(ctypes.Structure):
    """4.59 KVM_IOEVENTFD."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


class Msi(ctypes.Structure):
    """4.70 KVM_SIGNAL_MSI."""

    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    )


class EnableCap(ctypes.Structure):
    """4.37 KVM_ENABLE_CAP."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))


class IrqFd(ctypes.Structure):
    """4.75 KVM_IRQFD."""

    _fields_ = (
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    )


class MsiRoutingEntry(ctypes.Structure):
    """4.52 KVM_SET_GSI_ROUTING, one entry of type KVM_IRQ_ROUTING_MSI."""

    _fields_ = (
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("rest", c_uint32 * 5),
    )


class IrqRoutingEntry(ctypes.Structure):
    """4.52 KVM_SET_GSI_ROUTING, one entry of type KVM_IRQ_ROUTING_IRQCHIP (the union is 32 bytes)."""

    _fields_ = (
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("irqchip", c_uint32),
        ("pin", c_uint32),
        ("rest", c_uint32 * 6),
    )


IRQCHIP_SIZE = 520
"""4.26 KVM_GET_IRQCHIP: the chip's number, padding, and 512 bytes of its state."""
IRQCHIP_PIC_ELCR = 8 + 14
"""Offset of the ELCR byte of a PIC, the fifteenth of ``kvm_pic_state``."""


class IrqRouting(ctypes.Structure):
    """4.52 KVM_SET_GSI_ROUTING: the header; the entries follow it."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32))


class Regs(ctypes.Structure):
    """4.11 KVM_GET_REGS."""

    _fields_ = (
        *((name, c_uint64) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")),
        *((f"r{number}", c_uint64) for number in range(8, 16)),
        ("rip", c_uint64),
        ("rflags", c_uint64),
    )


class KvmSegment(ctypes.Structure):
    """A segment register in KVM_GET_SREGS."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class KvmTable(ctypes.Structure):
    """GDTR or IDTR in KVM_GET_SREGS."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class Sregs(ctypes.Structure):
    """4.13 KVM_GET_SREGS."""

    _fields_ = (
        *((name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", KvmTable),
        ("idt", KvmTable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class Translation(ctypes.Structure):
    """4.15 KVM_TRANSLATE."""

    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )


class OneMsr(ctypes.Structure):
    """4.18 KVM_GET_MSRS with one entry."""

    _fields_ = (
        ("nmsrs", c_uint32),
        ("pad", c_uint32),
        ("index", c_uint32),
        ("reserved", c_uint32),
        ("data", c_uint64),
    )


MSRS_HEADER = 8
"""Size of ``struct kvm_msrs`` without entries, which is what the ioctl number encodes."""


class CpuidEntry2(ctypes.Structure):
    """4.20 KVM_SET_CPUID2, one entry."""

    _fields_ = (
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    )


class CpuidHeader(ctypes.Structure):
    """4.20 KVM_SET_CPUID2: the header; the entries follow it."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


CPUID_SIGNIFICANT_INDEX = 1 << 0


class VcpuEvents(ctypes.Structure):
    """4.31 KVM_GET_VCPU_EVENTS."""

    _fields_ = (
        ("exception_injected", c_uint8),
        ("exception_nr", c_uint8),
        ("exception_has_error_code", c_uint8),
        ("exception_pending", c_uint8),
        ("exception_error_code", c_uint32),
        ("interrupt", c_uint8 * 4),
        ("nmi", c_uint8 * 4),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", c_uint8 * 4),
        ("triple_fault_pending", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


class DebugRegs(ctypes.Structure):
    """4.33 KVM_GET_DEBUGREGS."""

    _fields_ = (
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    )


class GuestDebug(ctypes.Structure):
    """4.87 KVM_SET_GUEST_DEBUG."""

    _fields_ = (("control", c_uint32), ("pad", c_uint32), ("debugreg", c_uint64 * 8))


class Xcr(ctypes.Structure):
    """One extended control register in KVM_GET_XCRS."""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))


class Xcrs(ctypes.Structure):
    """4.44 KVM_GET_XCRS."""

    _fields_ = (("nr_xcrs", c_uint32), ("flags", c_uint32), ("xcrs", Xcr * 16), ("padding", c_uint64 * 16))


XSAVE_SIZE = 4096
"""4.42 KVM_GET_XSAVE: the size before dynamically enabled features (KVM_CAP_XSAVE2 tells the real one)."""

LAPIC_SIZE = 1024
"""4.57 KVM_GET_LAPIC."""

# 5 The kvm_run structure: the fixed part, then a union from RUN_UNION whose meaning exit_reason tells.
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = struct.Struct("=8xI")
RUN_UNION = 32
RUN_IO = struct.Struct("=BBHIQ")  # direction, size, port, count, data offset from the start of kvm_run
RUN_IO_OUT = 1
RUN_MMIO = struct.Struct("=QQIB")  # address, data, length, is_write
RUN_MMIO_DATA = RUN_UNION + 8
RUN_DEBUG = struct.Struct("=I4xQQQ")  # exception, pc, dr6, dr7
RUN_FAIL_ENTRY = struct.Struct("=QI")  # hardware reason, host CPU
RUN_INTERNAL = struct.Struct("=II16Q")  # suberror, number of data words, data
RUN_SYSTEM_EVENT = struct.Struct("=I")
RUN_MSR = struct.Struct("=B7xIIQ")  # error, reason, index, data
RUN_MSR_ERROR = RUN_UNION
RUN_MSR_DATA = RUN_UNION + 16
RUN_HARDWARE = struct.Struct("=Q")
