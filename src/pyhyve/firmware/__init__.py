"""What the guest reads at start: ACPI and SMBIOS tables, the MP table, the memory map.

``build`` writes the tables that are wanted into the 64 KiB below 1 MiB; the addresses go to the loader.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyhyve.firmware import acpi as acpi_tables
from pyhyve.firmware import mptable as mp_table
from pyhyve.firmware import smbios
from pyhyve.firmware.platform import Platform
from pyhyve.memory import GuestMemory

__all__ = ["Addresses", "Platform", "build", "files"]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the tables begin, guest-physical; 0 for one that was not built."""

    rsdp: int = 0
    mptable: int = 0
    smbios: int = 0


def files(memory: GuestMemory, platform: Platform, *, acpi: bool) -> dict[str, bytes]:
    """The same for a boot ROM that places tables itself: files of QEMU's firmware configuration, by name."""
    from pyhyve.firmware import qemu

    return qemu.files(memory, platform, with_acpi=acpi)


def build(memory: GuestMemory, platform: Platform, *, acpi: bool, mptable: bool = True) -> Addresses:
    """Write the tables that ``platform`` needs into ``memory``, in bhyve's order: MP table, SMBIOS, ACPI.

    Raises ``DeviceError`` for more devices than tables can hold, ``OutsideMemory`` where there is less than 1 MiB.
    """
    return Addresses(
        mptable=mp_table.build(memory, platform) if mptable else 0,
        smbios=smbios.build(memory, platform),
        rsdp=acpi_tables.build(memory, platform) if acpi else 0,
    )
