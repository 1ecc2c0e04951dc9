"""What the firmware tables tell about a machine: the one description that ACPI, MP table and SMBIOS are built from.

The machine fills it in from what it assembled. Defaults are those of a machine with a host bridge and an LPC bridge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from uuid import NAMESPACE_DNS, UUID, uuid3

ISA_IRQS = 16
IOAPIC_PINS = 24

COM_PORTS: dict[int, tuple[int, int]] = {1: (0x3F8, 4), 2: (0x2F8, 3), 3: (0x3E8, 4), 4: (0x2E8, 3)}
"""I/O port and ISA interrupt of COM1 to COM4."""

PIRQS = 8


class WindowKind(Enum):
    IO = "io"
    MEMORY_32 = "memory32"
    MEMORY_64 = "memory64"


@dataclass(frozen=True, slots=True)
class Window:
    """Addresses ``first`` to ``last`` (included) that a PCI root bus passes on to its devices."""

    kind: WindowKind
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PciRoot:
    """A root bus: its number, the last bus number behind it, and its windows, which no other root shares."""

    bus: int
    last_bus: int
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True, order=True)
class PciInterrupt:
    """Where pin ``pin`` (1 is INTA) of a device ends.

    ``pirq`` (0-7) is the board's interrupt link, ``gsi`` its I/O APIC input, ``irq`` the ISA interrupt in PIC mode as
    firmware has routed the link.
    """

    bus: int
    device: int
    pin: int
    pirq: int
    gsi: int
    irq: int


def root_windows(
    ports: tuple[int, int] = (0x2000, 0x10000),
    memory_32: tuple[int, int] = (0xC0000000, 0xE0000000),
    memory_64: tuple[int, int] = (0xD000000000, 0xF000000000),
    *,
    board: bool = True,
) -> tuple[Window, ...]:
    """What a root bus passes on: first addresses and ends. With ``board``, the ports of the board's devices too."""
    found = [
        Window(kind, first, end - 1)
        for kind, (first, end) in (
            (WindowKind.IO, ports), (WindowKind.MEMORY_32, memory_32), (WindowKind.MEMORY_64, memory_64),
        )
        if first < end
    ]  # fmt: skip
    if board:
        # the gap is the PCI configuration ports' own
        found[0:1] = [Window(WindowKind.IO, 0x0000, 0x0CF7), Window(WindowKind.IO, 0x0D00, ports[1] - 1)]
    return tuple(found)


DEFAULT_WINDOWS = root_windows()


SMBIOS_STRINGS: Mapping[str, str] = {
    "bios.vendor": "BHYVE",
    "bios.version": "14.0",
    "bios.release_date": "10/17/2021",
    "system.manufacturer": "FreeBSD",
    "system.product_name": "BHYVE",
    "system.version": "1.0",
    "system.serial_number": "None",
    "system.sku": "None",
    "system.family_name": "Virtual Machine",
    "board.manufacturer": "FreeBSD",
    "board.product_name": "BHYVE",
    "board.version": "1.0",
    "board.serial_number": "None",
    "board.asset_tag": "None",
    "board.location": "None",
    "chassis.manufacturer": "FreeBSD",
    "chassis.version": "1.0",
    "chassis.serial_number": "None",
    "chassis.asset_tag": "None",
    "chassis.sku": "None",
}
"""What SMBIOS calls the machine, by bhyve's variables (bhyve_config(5)), with their defaults."""


def derived_uuid(name: str) -> UUID:
    """The UUID of a virtual machine that was not given one: the same for the same name."""
    return uuid3(NAMESPACE_DNS, f"{name}.pyhyve")


@dataclass(frozen=True, slots=True)
class Domain:
    """A NUMA domain: its number, its vCPUs, and its memory as (guest-physical start, size in bytes) pairs."""

    ident: int
    cpus: frozenset[int]
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine as its firmware describes it. Addresses are guest-physical."""

    name: str = "vm"
    cpus: int = 1
    """vCPUs; CPU *i* has local APIC id *i*."""
    sockets: int | None = None
    """Processor packages; by default each vCPU is one."""
    threads_per_core: int = 1
    uuid: UUID | None = None
    strings: Mapping[str, str] = field(default_factory=lambda: SMBIOS_STRINGS)
    """Every name of ``SMBIOS_STRINGS``."""

    pci_roots: tuple[PciRoot, ...] = (PciRoot(0, 255, DEFAULT_WINDOWS),)
    pci_interrupts: tuple[PciInterrupt, ...] = ()
    ecam_base: int = 0xE0000000
    ecam_buses: int = 256

    lpc: tuple[int, int] | None = None
    """Device and function of the LPC bridge on bus 0; without one the ISA devices are named below the root itself."""
    com: tuple[int, ...] = ()
    """Serial ports that exist: 1 to 4."""
    keyboard_controller: bool = True
    hpet: bool = True

    lapic_address: int = 0xFEE00000
    ioapic_address: int = 0xFEC00000
    ioapic_id: int = 0
    hpet_address: int = 0xFED00000
    hpet_capabilities: int = 0x8086A201
    """The low half of the HPET's capabilities register."""

    sci_irq: int = 9
    pm_event_port: int = 0x400
    pm_control_port: int = 0x404
    pm_timer_port: int = 0x408
    smi_port: int = 0xB2
    acpi_enable: int = 0xA0
    acpi_disable: int = 0xA1
    reset_port: int = 0xCF9
    reset_value: int = 6
    soft_off_type: int = 5
    """SLP_TYP that means soft-off."""
    domains: tuple[Domain, ...] = ()
    """NUMA domains; none means that the machine has no such thing."""
    fwcfg_ports: tuple[int, int] | None = None
    """First port and count of QEMU's firmware configuration device, if there is one."""
    rtc_century: int = 0x32
    """CMOS address of the century."""

    board_ports: tuple[tuple[int, int], ...] = field(
        default=((0x61, 1), (0x84, 1), (0x92, 1), (0xB2, 2), (0x400, 8), (0x408, 4), (0x488, 1), (0x4D0, 2))
    )
    """First port and count of what the board itself answers, so that a guest gives them to nobody else."""

    @property
    def effective_uuid(self) -> UUID:
        return self.uuid or derived_uuid(self.name)
