r"""DSDT: the devices that cannot be found by asking them, and how PCI interrupts are wired.

Document: ACPI specification 6.4, §6.1 (identification), §6.2.13 (_PRT), §7.4.2 (_Sx), §5.8.1 (_PIC); device
identifiers: ACPI specification §5.6.7 and the Plug and Play vendor and device identifier list.

The name space::

    \PICM, \_PIC      the interrupt mode that the guest chose: 0 PIC, 1 I/O APIC
    \_S5              soft-off
    \_SB.PCI0         the root bus (more roots are PCxx, xx the bus): bus range, windows, interrupt routing
    \_SB.PCI0.ISA     the LPC bridge: interrupt links, RTC, timer, PIC, serial ports, keyboard controller
    \_SB.HPET
    \_SB.FWCF         QEMU's firmware configuration device
    \_SB.MBRD         what belongs to the board: ECAM, power-management ports
"""

from __future__ import annotations

from collections.abc import Sequence

from pyhyve.firmware.acpi import aml, links
from pyhyve.firmware.acpi.table import table
from pyhyve.firmware.platform import COM_PORTS, PciInterrupt, PciRoot, Platform, Window, WindowKind

_REVISION = 2
_PIC_MODE = "PICM"
_BRIDGE = "ISA"
_CONFIG_PORTS = (0xCF8, 8)
_ANY_FUNCTION = 0xFFFF
_HPET_SIZE = 0x400
_ECAM_BUS_SIZE = 1 << 20
_PRESENT_NOT_SHOWN = 0x0B  # present, decodes, works, but is nothing for a user to see (§6.3.7)


def dsdt(platform: Platform) -> bytes:
    """The table for the platform's devices."""
    off = aml.integer(platform.soft_off_type)
    return table(
        b"DSDT",
        _REVISION,
        b"".join(
            (
                aml.name(_PIC_MODE, aml.integer(0)),
                aml.method("_PIC", 1, aml.store(aml.argument(0), aml.path(_PIC_MODE))),
                aml.name("_S5", aml.package(off, off, aml.integer(0), aml.integer(0))),
                aml.scope(
                    r"\_SB",
                    *(_root(platform, root) for root in platform.pci_roots),
                    _hpet(platform) if platform.hpet else b"",
                    _fwcfg(*platform.fwcfg_ports) if platform.fwcfg_ports else b"",
                    _board(platform),
                ),
            )
        ),
    )


def _root(platform: Platform, root: PciRoot) -> bytes:
    interrupts = [interrupt for interrupt in platform.pci_interrupts if interrupt.bus == root.bus]
    name = "PCI0" if root.bus == 0 else f"PC{root.bus:02X}"
    own_ports = [aml.io(*_CONFIG_PORTS)] if root.bus == 0 else []
    terms = [
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(root.bus)),
        aml.name("_BBN", aml.integer(root.bus)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.word_window(aml.Space.BUS, root.bus, root.last_bus), *own_ports, *map(_window, root.windows)
            ),
        ),
    ]
    if interrupts:
        terms += _routing(interrupts, linked=platform.lpc is not None)
    if root.bus == 0:
        terms.append(_isa(platform))
    return aml.device(name, *terms)


def _window(window: Window) -> bytes:
    if window.kind is WindowKind.IO:
        return aml.word_window(aml.Space.IO, window.first, window.last)
    if window.kind is WindowKind.MEMORY_32:
        return aml.dword_memory(window.first, window.last)
    return aml.qword_memory(window.first, window.last)


def _routing(interrupts: Sequence[PciInterrupt], *, linked: bool) -> list[bytes]:
    """``_PRT``: the table for the mode that ``_PIC`` told. Level triggered, active low is what PCI means by default.

    In PIC mode the LPC bridge's links say which interrupt it is; without a bridge there is nothing to be changed.
    """
    gsis = aml.package(*(_route(interrupt, aml.integer(0), interrupt.gsi) for interrupt in interrupts))
    irqs = aml.package(*(_pic_route(interrupt, linked) for interrupt in interrupts))
    return [
        aml.name("APRT", gsis),
        aml.name("PPRT", irqs),
        aml.method(
            "_PRT",
            0,
            aml.if_(aml.path(_PIC_MODE), aml.return_(aml.path("APRT"))),
            aml.else_(aml.return_(aml.path("PPRT"))),
        ),
    ]


def _pic_route(interrupt: PciInterrupt, linked: bool) -> bytes:
    if linked:
        return _route(interrupt, aml.path(rf"\_SB.PCI0.{_BRIDGE}.{links.link(interrupt.pirq)}"), 0)
    return _route(interrupt, aml.integer(0), interrupt.irq)


def _route(interrupt: PciInterrupt, source: bytes, index: int) -> bytes:
    where = interrupt.device << 16 | _ANY_FUNCTION
    return aml.package(aml.integer(where), aml.integer(interrupt.pin - 1), source, aml.integer(index))


def _isa(platform: Platform) -> bytes:
    devices = [
        _device("RTC", "PNP0B00", aml.io(0x70, 2), aml.irq(8)),
        _device("TIMR", "PNP0100", aml.io(0x40, 4), aml.irq(0)),
        _device("PIC", "PNP0000", aml.io(0x20, 2), aml.io(0xA0, 2), aml.irq(2)),
    ]
    if platform.keyboard_controller:
        devices.append(_device("KBD", "PNP0303", aml.io(0x60, 1), aml.io(0x64, 1), aml.irq(1)))
        devices.append(_device("MOU", "PNP0F13", aml.irq(12)))
    for number in platform.com:
        port, interrupt = COM_PORTS[number]
        devices.append(_device(f"COM{number}", "PNP0501", aml.io(port, 8), aml.irq(interrupt), unit=number))
    if platform.lpc is None:
        return b"".join(devices)
    slot, function = platform.lpc
    return aml.device(_BRIDGE, aml.name("_ADR", aml.integer(slot << 16 | function)), links.links(), *devices)


def _hpet(platform: Platform) -> bytes:
    return _device("HPET", "PNP0103", aml.memory32_fixed(platform.hpet_address, _HPET_SIZE), unit=0)


def _fwcfg(first: int, count: int) -> bytes:
    return aml.device(
        "FWCF",
        aml.name("_HID", aml.string("QEMU0002")),
        aml.name("_STA", aml.integer(_PRESENT_NOT_SHOWN)),
        aml.name("_CRS", aml.resources(aml.io(first, count))),
    )


def _board(platform: Platform) -> bytes:
    ports = (aml.io(first, count) for first, count in platform.board_ports)
    ecam = aml.memory32_fixed(platform.ecam_base, platform.ecam_buses * _ECAM_BUS_SIZE)
    return _device("MBRD", "PNP0C02", *ports, ecam, unit=0)


def _device(name: str, hid: str, *descriptors: bytes, unit: int | None = None) -> bytes:
    terms = [aml.name("_HID", aml.eisa_id(hid))]
    if unit is not None:
        terms.append(aml.name("_UID", aml.integer(unit)))
    terms.append(aml.name("_CRS", aml.resources(*descriptors)))
    return aml.device(name, *terms)
