"""The files of QEMU's firmware configuration, put in place as its firmware does it."""

import struct

import pytest

from pyhyve import firmware
from pyhyve.firmware import qemu
from pyhyve.memory import GuestMemory
from tests.firmware.acpitools import find_tables

HIGH, LOW = 0x300000, 0xF5000


@pytest.fixture
def files(memory, platform):
    return firmware.files(memory, platform, acpi=True)


def run_script(files):
    """What SeaBIOS and OVMF do with ``etc/table-loader``: the files at their addresses, by name."""
    script = files[qemu.SCRIPT]
    assert len(script) % 128 == 0
    where, data = {}, {}
    for start in range(0, len(script), 128):
        entry = script[start : start + 128]
        command, name = struct.unpack_from("<I56s", entry)
        file = name.rstrip(b"\0").decode()
        if command == qemu.Command.ALLOCATE:
            align, zone = struct.unpack_from("<IB", entry, 60)
            assert HIGH % align == LOW % align == 0
            where[file] = HIGH if zone == qemu.Zone.HIGH else LOW
            data[file] = bytearray(files[file])
        elif command == qemu.Command.ADD_POINTER:
            to, offset, size = struct.unpack_from("<56sIB", entry, 60)
            value = int.from_bytes(data[file][offset : offset + size], "little")
            assert 0 < value < len(files[qemu.TABLES]), "a pointer counts from the file's begin, and is one"
            value += where[to.rstrip(b"\0").decode()]
            data[file][offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert command == qemu.Command.ADD_CHECKSUM
            offset, first, length = struct.unpack_from("<III", entry, 60)
            assert data[file][offset] == 0, "OVMF adds up what is there"
            data[file][offset] = -sum(data[file][first : first + length]) & 0xFF
    return {where[name]: bytes(content) for name, content in data.items()}


def test_the_script_makes_sound_tables_wherever_they_go(files):
    memory = GuestMemory(4 << 20)
    try:
        for address, content in run_script(files).items():
            memory.write(address, content)
        pointer = memory.read(LOW, 36)
        assert pointer[:8] == b"RSD PTR "
        assert sum(pointer[:20]) & 0xFF == sum(pointer) & 0xFF == 0
        tables = find_tables(memory, LOW)
        assert {"RSDT", "XSDT", "FACP", "APIC", "DSDT"} <= set(tables)
        assert all(sum(table) & 0xFF == 0 for name, table in tables.items() if name != "FACS")
    finally:
        memory.close()


def test_without_acpi_there_is_none(memory, platform):
    assert set(firmware.files(memory, platform, acpi=False)) == {
        qemu.MEMORY_MAP, qemu.SMBIOS_ENTRY, qemu.SMBIOS_TABLES
    }  # fmt: skip


def test_the_memory_map_holds_all_ram(files, memory):
    entries = struct.iter_unpack("<QQI", files[qemu.MEMORY_MAP])
    assert [tuple(entry) for entry in entries] == [(region.gpa, region.size, 1) for region in memory.regions]


def test_the_smbios_anchor_tells_the_tables_size(files):
    anchor = files[qemu.SMBIOS_ENTRY]
    assert anchor[:4] == b"_SM_"
    assert struct.unpack_from("<H", anchor, 0x16)[0] == len(files[qemu.SMBIOS_TABLES])
