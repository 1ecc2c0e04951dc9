"""The state in which a loader hands the boot CPU to the guest, and the descriptors it needs.

Two kinds of start exist here: 64-bit mode on identity-mapped page tables (Linux) and flat 32-bit protected mode without
paging (PVH, multiboot). Each has a GDT in guest memory that agrees with the segment registers, so that the guest may
reload a selector before it has a table of its own.

Documents: Linux, Documentation/arch/x86/boot.rst; Intel SDM Vol. 3A §3.4.5 (descriptors), §4.5 (4-level paging).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag

from pyhyve.memory import PAGE, GuestMemory
from pyhyve.vmm.api import VirtualCpu
from pyhyve.vmm.registers import Access, Reg, Segment, SegmentName, Table


class Cr0(IntFlag):
    PE = 1 << 0
    ET = 1 << 4
    NE = 1 << 5
    PG = 1 << 31


CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
RFLAGS_FIXED = 1 << 1

# Segment types (SDM Vol. 3A §3.4.5.1, §3.5)
_TYPE_CODE = 0xB
_TYPE_DATA = 0x3
_TYPE_TSS_BUSY = 0xB

CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
TSS_SELECTOR = 0x20

# Low memory that the loaders use. Kernels load at 1 MiB and above; the guest copies what it wants to keep.
GDT = 0x6000
PAGE_TABLES = 0x9000

_LARGE_PAGE = 2 << 20
_PAGE_PRESENT_WRITABLE = 0x3
_PAGE_LARGE = 1 << 7
_MAPPED_GIB = 4


@dataclass(frozen=True, slots=True)
class EntryState:
    """Registers of the boot CPU when it starts. What is not named keeps its reset value.

    ``rsdp_pointer`` is the guest-physical address of the 8 bytes that tell the guest where ACPI's root pointer is, 0 if
    its boot protocol has none: a machine whose tables are made after the guest was loaded fills them in.
    """

    registers: Mapping[Reg, int]
    segments: Mapping[SegmentName, Segment]
    tables: Mapping[str, Table] = field(default_factory=dict)
    rsdp_pointer: int = 0

    def apply(self, vcpu: VirtualCpu) -> None:
        """Put the state into ``vcpu``.

        Control registers go first: a 64-bit code segment is valid only where long mode is on already.
        """
        vcpu.set_registers(self.registers)
        for name, table in self.tables.items():
            vcpu.set_table(name, table)
        for segment, value in self.segments.items():
            vcpu.set_segment(segment, value)


def long_mode(memory: GuestMemory, rip: int, registers: Mapping[Reg, int]) -> EntryState:
    """Start at ``rip`` in 64-bit mode with the first 4 GiB mapped one to one and interrupts off."""
    _write_page_tables(memory)
    return _state(
        memory,
        _flat(CODE_SELECTOR, _TYPE_CODE, Access.LONG),
        {
            Reg.CR0: Cr0.PE | Cr0.ET | Cr0.NE | Cr0.PG,
            Reg.CR3: PAGE_TABLES,
            Reg.CR4: CR4_PAE,
            Reg.EFER: EFER_LME | EFER_LMA,
            Reg.RIP: rip,
            **registers,
        },
    )


def protected_mode(memory: GuestMemory, eip: int, registers: Mapping[Reg, int]) -> EntryState:
    """Start at ``eip`` in 32-bit protected mode with flat segments, no paging and interrupts off."""
    return _state(
        memory,
        _flat(CODE_SELECTOR, _TYPE_CODE, Access.DB),
        {Reg.CR0: Cr0.PE | Cr0.ET, Reg.CR3: 0, Reg.CR4: 0, Reg.EFER: 0, Reg.RIP: eip, **registers},
    )


def _state(memory: GuestMemory, code: Segment, registers: Mapping[Reg, int]) -> EntryState:
    data = _flat(DATA_SELECTOR, _TYPE_DATA, Access.DB)
    # VM entry demands a task register that holds a busy TSS; nothing reads the TSS itself
    task = Segment(TSS_SELECTOR, 0, 0x67, int(_TYPE_TSS_BUSY | Access.PRESENT))
    # the TSS descriptor takes two slots in 64-bit mode; its upper half is zero
    gdt = struct.pack("<6Q", 0, 0, _descriptor(code), _descriptor(data), _descriptor(task), 0)
    memory.write(GDT, gdt)
    return EntryState(
        registers={Reg.RFLAGS: RFLAGS_FIXED, **{name: int(value) for name, value in registers.items()}},
        segments={
            SegmentName.CS: code,
            SegmentName.DS: data,
            SegmentName.ES: data,
            SegmentName.SS: data,
            SegmentName.FS: data,
            SegmentName.GS: data,
            SegmentName.LDTR: Segment(0, 0, 0, int(Access.UNUSABLE)),
            SegmentName.TR: task,
        },
        tables={"gdtr": Table(GDT, len(gdt) - 1), "idtr": Table(0, 0)},
    )


def _flat(selector: int, kind: int, size: Access) -> Segment:
    """A code or data segment over all 4 GiB. ``size`` tells 32-bit (``DB``) from 64-bit code (``LONG``)."""
    return Segment(selector, 0, 0xFFFFFFFF, int(kind | Access.S | Access.PRESENT | Access.GRANULARITY | size))


def _descriptor(segment: Segment) -> int:
    """The 8-byte descriptor of ``segment`` (SDM Vol. 3A §3.4.5)."""
    access = segment.access
    limit = segment.limit >> 12 if access & Access.GRANULARITY else segment.limit
    return (
        limit & 0xFFFF
        | (segment.base & 0xFFFFFF) << 16
        | (access & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (access >> 12 & 0xF) << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def _write_page_tables(memory: GuestMemory) -> None:
    """Map the first 4 GiB one to one with 2 MiB pages: one PML4, one page-directory-pointer table, four directories."""
    pointers = PAGE_TABLES + PAGE
    directories = pointers + PAGE
    memory.write(PAGE_TABLES, (pointers | _PAGE_PRESENT_WRITABLE).to_bytes(8, "little").ljust(PAGE, b"\0"))
    directory_entries = [(directories + i * PAGE) | _PAGE_PRESENT_WRITABLE for i in range(_MAPPED_GIB)]
    memory.write(pointers, struct.pack(f"<{_MAPPED_GIB}Q", *directory_entries).ljust(PAGE, b"\0"))
    large_pages = range(0, _MAPPED_GIB << 30, _LARGE_PAGE)
    entries = [page | _PAGE_PRESENT_WRITABLE | _PAGE_LARGE for page in large_pages]
    memory.write(directories, struct.pack(f"<{len(entries)}Q", *entries))
