"""SMBIOS tables: what ``dmidecode`` shows, and how a guest learns that it runs on bhyve.

Document: DMTF DSP0134, System Management BIOS reference specification 2.8, §5.2 (entry point), §7 (structures).

The entry point lies at 0xF1000, where bhyve has it, the structures right behind. The strings are bhyve's variables
(bhyve_config(5): ``bios.*``, ``system.*``, ``board.*``, ``chassis.*``) with bhyve's defaults, so that guests which look
for them (systemd's virtualization detection does) find what they know.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pyhyve.errors import DeviceError
from pyhyve.firmware.acpi.table import checksum
from pyhyve.firmware.platform import Platform
from pyhyve.memory import GuestMemory

BASE = 0xF1000
LIMIT = 0xF2400

_ENTRY_SIZE = 0x1F
_TABLE = BASE + 0x20
_MAJOR, _MINOR = 2, 8
_BCD_REVISION = 0x28

_BIOS_RELEASE = (14, 0)
_BIOS_STRINGS = ("bios.vendor", "bios.version", "bios.release_date")
_SYSTEM_STRINGS = (
    "system.manufacturer",
    "system.product_name",
    "system.version",
    "system.serial_number",
    "system.sku",
    "system.family_name",
)
_BOARD_STRINGS = (
    "board.manufacturer",
    "board.product_name",
    "board.version",
    "board.serial_number",
    "board.asset_tag",
    "board.location",
)
_CHASSIS_STRINGS = (
    "chassis.manufacturer",
    "chassis.version",
    "chassis.serial_number",
    "chassis.asset_tag",
    "chassis.sku",
)
_FIRST_HANDLE = 0x100
_NO_HANDLE = 0xFFFE
_UNKNOWN = 2
_KILOBYTES_32_BIT_LIMIT = 0x80000000
_MEMORY_SIZE_EXTENDED = 0x7FFF


class Type(IntEnum):
    """Structure types (§7, table 3)."""

    BIOS = 0
    SYSTEM = 1
    BASEBOARD = 2
    CHASSIS = 3
    PROCESSOR = 4
    MEMORY_ARRAY = 16
    MEMORY_DEVICE = 17
    MEMORY_ARRAY_ADDRESS = 19
    BOOT = 32
    END = 127


@dataclass(frozen=True, slots=True)
class _Structure:
    """``body`` is what follows the four header bytes; string numbers in it count from 1."""

    type: Type
    body: bytes
    strings: tuple[str, ...] = ()


def build(memory: GuestMemory, platform: Platform) -> int:
    """Write entry point and structures; returns the entry point's address."""
    entry, table = arrange(memory, platform, _TABLE)
    if _TABLE + len(table) > LIMIT:
        raise DeviceError("the SMBIOS strings are too long, or there are too many processors, for 5 KiB of tables")
    memory.write(BASE, entry)
    memory.write(_TABLE, table)
    return BASE


def arrange(memory: GuestMemory, platform: Platform, address: int) -> tuple[bytes, bytes]:
    """The entry point for structures at ``address``, and the structures."""
    blobs = [
        struct.pack("<BBH", item.type, 4 + len(item.body), _FIRST_HANDLE + index) + item.body + _strings(item.strings)
        for index, item in enumerate(_structures(memory, platform))
    ]
    table = b"".join(blobs)
    # the intermediate anchor has a checksum of its own, over the second half
    legacy = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(table), address, len(blobs), _BCD_REVISION))
    legacy[5] = checksum(legacy)
    longest = max(map(len, blobs))
    entry = bytearray(struct.pack("<4sBBBBHB5x", b"_SM_", 0, _ENTRY_SIZE, _MAJOR, _MINOR, longest, 0) + legacy)
    entry[4] = checksum(entry)
    return bytes(entry), table


def _strings(strings: tuple[str, ...]) -> bytes:
    """The string set of a structure; an empty one is two zero bytes (§6.1.3). A string in it cannot be empty."""
    return b"".join((text or " ").encode("ascii", "replace") + b"\0" for text in strings).ljust(1, b"\0") + b"\0"


def _structures(memory: GuestMemory, platform: Platform) -> Iterator[_Structure]:
    text = platform.strings.__getitem__
    yield _bios(platform)
    # manufacturer, product, version, serial, UUID, woken by the power switch, SKU, family
    yield _Structure(
        Type.SYSTEM,
        struct.pack("<4B16sBBB", 1, 2, 3, 4, platform.effective_uuid.bytes_le, 6, 5, 6),
        tuple(map(text, _SYSTEM_STRINGS)),
    )
    # manufacturer, product, version, serial, asset, hosting board, location, chassis, motherboard, no contained objects
    chassis_handle = _FIRST_HANDLE + 3
    yield _Structure(
        Type.BASEBOARD,
        struct.pack("<7BHBB", 1, 2, 3, 4, 5, 0x01, 6, chassis_handle, 0x0A, 0),
        tuple(map(text, _BOARD_STRINGS)),
    )
    # manufacturer, type other, version, serial, asset, three states safe, security none, OEM, height, cords, contained,
    # SKU
    yield _Structure(
        Type.CHASSIS,
        struct.pack("<9BIBBBBB", 1, 1, 2, 3, 4, 3, 3, 3, 3, 0, 0, 0, 0, 0, 5),
        tuple(map(text, _CHASSIS_STRINGS)),
    )
    sockets = platform.sockets or platform.cpus
    for socket in range(sockets):
        yield _processor(platform, socket, sockets)
    array_handle = _FIRST_HANDLE + 4 + sockets
    yield _memory_array(memory)
    yield _memory_device(memory, array_handle)
    for region in memory.regions:
        yield _mapped_address(region.gpa, region.size, array_handle)
    yield _Structure(Type.BOOT, bytes(7))
    yield _Structure(Type.END, b"")


def _bios(platform: Platform) -> _Structure:
    # vendor, version, start segment, date, ROM size (64 KiB), characteristics, BIOS release, EC release (none)
    characteristics = 1 << 7  # PCI is supported
    extension = (1 << 0, 1 << 4)  # ACPI is supported; the table describes a virtual machine
    body = struct.pack("<BBHBBQ6B", 1, 2, 0xF000, 3, 0, characteristics, *extension, *_BIOS_RELEASE, 0xFF, 0xFF)
    return _Structure(Type.BIOS, body, tuple(map(platform.strings.__getitem__, _BIOS_STRINGS)))


def _processor(platform: Platform, socket: int, sockets: int) -> _Structure:
    threads = max(1, platform.cpus // sockets)
    cores = max(1, threads // platform.threads_per_core)
    body = struct.pack(
        "<BBBBQBBHHHBBHHHBBBBBBHH",
        1,  # socket designation
        3,  # central processor
        1,  # family: other
        2,  # manufacturer
        0,  # processor id
        3,  # version
        0,  # voltage unknown
        0,  # external clock
        0,  # maximum and current speed in MHz, unknown
        0,
        0x41,  # populated, enabled
        1,  # upgrade: other
        0xFFFF,  # no cache structures
        0xFFFF,
        0xFFFF,
        4,  # serial
        4,  # asset tag
        4,  # part number
        cores,
        cores,
        threads,
        1 << 2,  # 64-bit capable
        1,  # family 2: other
    )
    return _Structure(Type.PROCESSOR, body, (f"CPU #{socket}", " ", " ", "None"))


def _memory_array(memory: GuestMemory) -> _Structure:
    kilobytes = memory.ram_size >> 10
    large = kilobytes >= _KILOBYTES_32_BIT_LIMIT
    # on the board, system memory, no error correction
    body = struct.pack(
        "<BBBIHHQ",
        0x03,
        0x03,
        0x03,
        _KILOBYTES_32_BIT_LIMIT if large else kilobytes,
        _NO_HANDLE,
        1,
        memory.ram_size if large else 0,
    )
    return _Structure(Type.MEMORY_ARRAY, body)


def _memory_device(memory: GuestMemory, array_handle: int) -> _Structure:
    megabytes = memory.ram_size >> 20
    large = megabytes >= _MEMORY_SIZE_EXTENDED
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBIH",
        array_handle,
        _NO_HANDLE,
        64,  # total and data width in bits
        64,
        _MEMORY_SIZE_EXTENDED if large else megabytes,
        _UNKNOWN,  # form factor
        0,  # no set
        1,  # device locator
        0,  # bank locator
        _UNKNOWN,  # memory type
        1 << 2,  # detail unknown
        0,  # speed
        2,  # manufacturer
        2,  # serial
        2,  # asset tag
        2,  # part number
        0,  # rank unknown
        megabytes if large else 0,
        0,  # configured speed
    )
    return _Structure(Type.MEMORY_DEVICE, body, ("DIMM 0", "None"))


def _mapped_address(start: int, size: int, array_handle: int) -> _Structure:
    """Addresses in kilobytes; with all ones in the first two fields the 64-bit ones count (§7.20)."""
    last = start + size - 1
    large = last >> 10 >= 0xFFFFFFFF
    body = struct.pack(
        "<IIHBQQ",
        0xFFFFFFFF if large else start >> 10,
        0xFFFFFFFF if large else last >> 10,
        array_handle,
        1,
        start if large else 0,
        last if large else 0,
    )
    return _Structure(Type.MEMORY_ARRAY_ADDRESS, body)
