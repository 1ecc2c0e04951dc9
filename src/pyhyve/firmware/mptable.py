"""The MP table: processors, buses and interrupt wiring for guests that do not read ACPI.

Document: Intel MultiProcessor Specification 1.4, §4 (tables), §D.3 (I/O APIC and PIT wiring).

The floating pointer lies at 0xF0000, where bhyve has it, the configuration table right behind. ISA interrupt *n* goes
to I/O APIC input *n*, except that the PIT's IRQ 0 goes to input 2 and the PIC's output to input 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag

from pyhyve.errors import DeviceError
from pyhyve.firmware.acpi.table import checksum
from pyhyve.firmware.platform import ISA_IRQS, PciInterrupt, Platform
from pyhyve.memory import GuestMemory

BASE = 0xF0000
LIMIT = 0xF1000

_POINTER_SIZE = 16
_HEADER_SIZE = 44
_SPEC_1_4 = 4
_OEM_ID = b"BHyVe   "
_PRODUCT_ID = b"Hypervisor  "

_LAPIC_VERSION = 0x14
_IOAPIC_VERSION = 0x11
_CPU_SIGNATURE = 0xF00  # family 15
_CPU_FEATURES = 0x201  # FPU and APIC
_IOAPIC_ENABLED = 1
_ALL_APICS = 0xFF
_PIC_IRQ = 0
_PIC_INPUT = 0
_PIT_INPUT = 2
_CASCADE_IRQ = 2


class _Entry(IntEnum):
    PROCESSOR = 0
    BUS = 1
    IOAPIC = 2
    IO_INTERRUPT = 3
    LOCAL_INTERRUPT = 4


class _Cpu(IntFlag):
    ENABLED = 1 << 0
    BOOT = 1 << 1


class _Kind(IntEnum):
    INT = 0
    NMI = 1
    EXTINT = 3


class _Flags(IntFlag):
    """Polarity and trigger mode; zero means that of the bus."""

    ACTIVE_LOW = 3
    LEVEL = 3 << 2


def build(memory: GuestMemory, platform: Platform) -> int:
    """Write the table; returns the address of its floating pointer. Raises ``DeviceError`` if it does not fit."""
    entries = list(_entries(platform))
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        _HEADER_SIZE + len(body),
        _SPEC_1_4,
        0,
        _OEM_ID,
        _PRODUCT_ID,
        0,
        0,
        len(entries),
        platform.lapic_address,
        0,
        0,
        0,
    )
    table = bytearray(header + body)
    table[7] = checksum(table)
    pointer = bytearray(struct.pack("<4sIBBB5B", b"_MP_", BASE + _POINTER_SIZE, 1, _SPEC_1_4, 0, 0, 0, 0, 0, 0))
    pointer[10] = checksum(pointer)
    if len(pointer) + len(table) > LIMIT - BASE:
        raise DeviceError("there are too many devices for the MP table")
    memory.write(BASE, pointer + table)
    return BASE


def _entries(platform: Platform) -> Iterator[bytes]:
    """All entries, sorted by type as §4.3 demands."""
    for cpu in range(platform.cpus):
        flags = _Cpu.ENABLED | (_Cpu.BOOT if cpu == 0 else 0)
        yield struct.pack("<BBBBIIQ", _Entry.PROCESSOR, cpu, _LAPIC_VERSION, flags, _CPU_SIGNATURE, _CPU_FEATURES, 0)
    buses = sorted({root.bus for root in platform.pci_roots} | {route.bus for route in platform.pci_interrupts})
    for bus in buses:
        yield struct.pack("<BB6s", _Entry.BUS, bus, b"PCI   ")
    # PCI buses keep their numbers; ISA takes the first number that is free
    isa = next(number for number in range(256) if number not in buses)
    yield struct.pack("<BB6s", _Entry.BUS, isa, b"ISA   ")
    yield struct.pack(
        "<BBBBI", _Entry.IOAPIC, platform.ioapic_id, _IOAPIC_VERSION, _IOAPIC_ENABLED, platform.ioapic_address
    )
    yield from _isa_interrupts(platform, isa)
    for route in platform.pci_interrupts:
        yield _pci_interrupt(platform, route)
    yield _interrupt(_Entry.LOCAL_INTERRUPT, _Kind.EXTINT, 0, isa, _PIC_IRQ, _ALL_APICS, 0)
    yield _interrupt(_Entry.LOCAL_INTERRUPT, _Kind.NMI, 0, isa, _PIC_IRQ, _ALL_APICS, 1)


def _isa_interrupts(platform: Platform, bus: int) -> Iterator[bytes]:
    taken_by_pci = {route.irq for route in platform.pci_interrupts}
    for irq in range(ISA_IRQS):
        kind, flags, pin = _Kind.INT, _Flags(0), irq
        if irq == 0:
            pin = _PIT_INPUT
        elif irq == _CASCADE_IRQ:
            kind, irq, pin = _Kind.EXTINT, _PIC_IRQ, _PIC_INPUT
        elif irq == platform.sci_irq or irq in taken_by_pci:
            flags = _Flags.ACTIVE_LOW | _Flags.LEVEL
        yield _interrupt(_Entry.IO_INTERRUPT, kind, flags, bus, irq, platform.ioapic_id, pin)


def _pci_interrupt(platform: Platform, route: PciInterrupt) -> bytes:
    # the source of a PCI interrupt is device << 2 | pin, INTA being 0 (§D.3)
    source = route.device << 2 | route.pin - 1
    flags = _Flags.ACTIVE_LOW | _Flags.LEVEL
    return _interrupt(_Entry.IO_INTERRUPT, _Kind.INT, flags, route.bus, source, platform.ioapic_id, route.gsi)


def _interrupt(entry: _Entry, kind: _Kind, flags: int, bus: int, irq: int, apic: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", entry, kind, flags, bus, irq, apic, pin)
