"""ACPI tables: what a guest that asks the firmware learns about the machine.

Document: ACPI specification 6.4, §5.2. One module a table; ``build`` lays them out from 0xF2400, where bhyve puts them,
in the area below 1 MiB that guests search for the root pointer.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyhyve.errors import DeviceError
from pyhyve.firmware.acpi import dsdt, fadt, hpet, madt, mcfg, root, srat
from pyhyve.firmware.platform import Platform
from pyhyve.memory import GuestMemory

BASE = 0xF2400
LIMIT = 0x100000
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Arranged:
    """Tables at their addresses, and a root pointer to them that may lie anywhere below 1 MiB."""

    tables: tuple[tuple[int, bytes], ...]
    root: bytes


def build(memory: GuestMemory, platform: Platform) -> int:
    """Write all tables; returns the address of the root pointer."""
    arranged = arrange(platform, BASE + _round_up(root.RSDP_SIZE))
    for address, data in ((BASE, arranged.root), *arranged.tables):
        memory.write(address, data)
    return BASE


def arrange(platform: Platform, base: int) -> Arranged:
    """All tables, one behind the other from ``base`` on."""
    placed: list[tuple[int, bytes]] = []
    free = base

    def place(data: bytes) -> int:
        nonlocal free
        address = free
        free = address + _round_up(len(data))
        if free > LIMIT:
            raise DeviceError("there are too many devices for the ACPI tables")
        placed.append((address, data))
        return address

    facs_address = place(fadt.facs())
    dsdt_address = place(dsdt.dsdt(platform))
    tables = [fadt.fadt(platform, facs_address, dsdt_address), madt.madt(platform)]
    if platform.hpet:
        tables.append(hpet.hpet(platform))
    tables.append(mcfg.mcfg(platform))
    if platform.domains:
        tables.append(srat.srat(platform))
    addresses = [place(table) for table in tables]
    rsdt_address = place(root.rsdt(addresses))
    xsdt_address = place(root.xsdt(addresses))
    return Arranged(tuple(placed), root.rsdp(rsdt_address, xsdt_address))


def _round_up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
