"""What QEMU's firmware is told by files of the firmware configuration device: memory, ACPI tables and SMBIOS.

Documents: QEMU, "Firmware Configuration (fw_cfg) Device" (docs/specs/fw_cfg) and the comments on
``BiosLinkerLoaderEntry`` in its ``hw/acpi/bios-linker-loader.c``; the other side is SeaBIOS's ``romfile_loader.h`` and
OVMF's ``AcpiPlatformDxe``.

SeaBIOS and OVMF place ACPI's tables themselves. ``etc/acpi/tables`` holds them with pointers that count from the file's
begin, ``etc/acpi/rsdp`` the root pointer; ``etc/table-loader`` is the script by which the firmware adds the addresses
that it has chosen, and makes checksums again. bhyve gives its guests the same files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

from pyhyve.firmware import acpi, smbios
from pyhyve.firmware.acpi.table import CHECKSUM_OFFSET, HEADER_SIZE
from pyhyve.firmware.e820 import E820Type
from pyhyve.firmware.platform import Platform
from pyhyve.memory import GuestMemory

TABLES = "etc/acpi/tables"
ROOT = "etc/acpi/rsdp"
SCRIPT = "etc/table-loader"
MEMORY_MAP = "etc/e820"
SMBIOS_ENTRY = "etc/smbios/smbios-anchor"
SMBIOS_TABLES = "etc/smbios/smbios-tables"

_NAME = 56
_COMMAND = 128
_ALIGN = 64
# offsets of pointers: (offset, size)
_FADT_POINTERS = ((36, 4), (40, 4), (140, 8))  # FIRMWARE_CTRL, DSDT, X_DSDT
_ROOT_POINTERS = ((16, 4), (24, 8))
_ROOT_CHECKSUMS = ((8, 20), (32, 36))  # of the first version, of all


class Command(IntEnum):
    """What the firmware is to do."""

    ALLOCATE = 1
    ADD_POINTER = 2
    ADD_CHECKSUM = 3


class Zone(IntEnum):
    """Where a file goes."""

    HIGH = 1
    BIOS_SEGMENT = 2


def files(memory: GuestMemory, platform: Platform, *, with_acpi: bool) -> dict[str, bytes]:
    """The files by name."""
    ram = (struct.pack("<QQI", region.gpa, region.size, E820Type.RAM) for region in memory.regions)
    entry, structures = smbios.arrange(memory, platform, 0)
    found = {MEMORY_MAP: b"".join(ram), SMBIOS_ENTRY: entry, SMBIOS_TABLES: structures}
    return {**found, **_acpi_files(platform)} if with_acpi else found


def _acpi_files(platform: Platform) -> dict[str, bytes]:
    # from _ALIGN on: a pointer that is 0 would be none
    arranged = acpi.arrange(platform, _ALIGN)
    end = max(address + len(data) for address, data in arranged.tables)
    blob = bytearray(end)
    script = [_allocate(ROOT, Zone.BIOS_SEGMENT), _allocate(TABLES, Zone.HIGH)]
    for address, data in arranged.tables:
        blob[address : address + len(data)] = data
        pointers = list(_pointers(data))
        script += [_add_pointer(TABLES, TABLES, address + offset, size) for offset, size in pointers]
        if pointers:
            blob[address + CHECKSUM_OFFSET] = 0
            script.append(_add_checksum(TABLES, address + CHECKSUM_OFFSET, address, len(data)))
    root = bytearray(arranged.root)
    script += [_add_pointer(ROOT, TABLES, offset, size) for offset, size in _ROOT_POINTERS]
    for offset, length in _ROOT_CHECKSUMS:
        root[offset] = 0
        script.append(_add_checksum(ROOT, offset, 0, length))
    return {TABLES: bytes(blob), ROOT: bytes(root), SCRIPT: b"".join(script)}


def _pointers(table: bytes) -> Iterator[tuple[int, int]]:
    """Offset and size of the pointers to other tables."""
    signature = table[:4]
    if signature == b"FACP":
        yield from _FADT_POINTERS
    elif signature in (b"RSDT", b"XSDT"):
        size = 4 if signature == b"RSDT" else 8
        yield from ((offset, size) for offset in range(HEADER_SIZE, len(table), size))


def _allocate(file: str, zone: Zone) -> bytes:
    return struct.pack(f"<I{_NAME}sIB", Command.ALLOCATE, file.encode(), _ALIGN, zone).ljust(_COMMAND, b"\0")


def _add_pointer(file: str, to: str, offset: int, size: int) -> bytes:
    """Add the address of file ``to`` to the pointer at ``offset`` of ``file``."""
    layout = f"<I{_NAME}s{_NAME}sIB"
    return struct.pack(layout, Command.ADD_POINTER, file.encode(), to.encode(), offset, size).ljust(_COMMAND, b"\0")


def _add_checksum(file: str, offset: int, start: int, length: int) -> bytes:
    """Make the sum of ``length`` bytes from ``start`` zero by the byte at ``offset``."""
    fields = struct.pack(f"<I{_NAME}sIII", Command.ADD_CHECKSUM, file.encode(), offset, start, length)
    return fields.ljust(_COMMAND, b"\0")
