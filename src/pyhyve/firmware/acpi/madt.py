"""MADT: the local APICs, the I/O APIC, and which ISA interrupts do not go to the input of their number.

Document: ACPI specification 6.4, §5.2.12.

Two overrides: the PIT's IRQ 0 arrives at input 2, because the PIC's output takes input 0; the SCI is level triggered
and active low, like the PCI interrupts that it may share its line with. Lines here are logical, active or not, and the
I/O APIC ignores polarity.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from pyhyve.firmware.acpi.table import table
from pyhyve.firmware.platform import Platform

PIT_IRQ = 0
PIT_GSI = 2
ALL_PROCESSORS = 0xFF
NMI_LINT = 1

_REVISION = 3
_PCAT_COMPAT = 1 << 0  # there is a PIC, too
_ENABLED = 1 << 0
_ISA_BUS = 0


class _Entry(IntEnum):
    LOCAL_APIC = 0
    IOAPIC = 1
    INTERRUPT_OVERRIDE = 2
    LOCAL_APIC_NMI = 4


class Inti(IntFlag):
    """MPS INTI flags (table 5.50): polarity and trigger mode."""

    ACTIVE_HIGH = 1
    ACTIVE_LOW = 3
    EDGE = 1 << 2
    LEVEL = 3 << 2


def madt(platform: Platform) -> bytes:
    """The table for the platform's processors and its I/O APIC."""
    entries = [_entry(_Entry.LOCAL_APIC, "<BBI", cpu, cpu, _ENABLED) for cpu in range(platform.cpus)]
    entries.append(_entry(_Entry.IOAPIC, "<BBII", platform.ioapic_id, 0, platform.ioapic_address, 0))
    entries.append(_entry(_Entry.INTERRUPT_OVERRIDE, "<BBIH", _ISA_BUS, PIT_IRQ, PIT_GSI, 0))
    sci = platform.sci_irq
    entries.append(_entry(_Entry.INTERRUPT_OVERRIDE, "<BBIH", _ISA_BUS, sci, sci, Inti.ACTIVE_LOW | Inti.LEVEL))
    entries.append(_entry(_Entry.LOCAL_APIC_NMI, "<BHB", ALL_PROCESSORS, Inti.ACTIVE_HIGH | Inti.EDGE, NMI_LINT))
    return table(b"APIC", _REVISION, struct.pack("<II", platform.lapic_address, _PCAT_COMPAT) + b"".join(entries))


def _entry(kind: _Entry, layout: str, *values: int) -> bytes:
    body = struct.pack(layout, *values)
    return bytes([kind, 2 + len(body)]) + body
