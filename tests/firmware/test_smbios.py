"""SMBIOS structures, read as DSP0134 describes."""

import shutil
import struct
import subprocess
import uuid
from dataclasses import replace

import pytest

from pyhyve import firmware
from pyhyve.errors import DeviceError
from pyhyve.firmware.platform import SMBIOS_STRINGS, Platform, derived_uuid
from pyhyve.memory import GuestMemory


def read(memory, platform):
    """Structures in order: (type, handle, body, strings)."""
    address = firmware.build(memory, platform, acpi=False).smbios
    assert address % 16 == 0
    entry = memory.read(address, 0x1F)
    assert entry[:4] == b"_SM_"
    assert entry[0x10:0x15] == b"_DMI_"
    assert sum(entry) & 0xFF == 0
    assert sum(entry[0x10:]) & 0xFF == 0
    longest, length, start, count = struct.unpack_from("<H", entry, 8) + struct.unpack_from("<HIH", entry, 0x16)
    data = memory.read(start, length)
    structures = []
    position = 0
    while position < length:
        kind, size, handle = struct.unpack_from("<BBH", data, position)
        end = data.index(b"\0\0", position + size)
        strings = [text.decode() for text in data[position + size : end].split(b"\0") if text]
        structures.append((kind, handle, data[position : position + size], strings))
        assert end + 2 - position <= longest
        position = end + 2
    assert len(structures) == count
    return structures


def test_expected_structures_are_there(memory, platform):
    kinds = [kind for kind, *_ in read(memory, platform)]
    assert kinds == [0, 1, 2, 3, 4, 4, 4, 4, 16, 17, 19, 32, 127]


def test_handles_are_unique_and_references_hold(memory, platform):
    structures = read(memory, platform)
    handles = {handle: kind for kind, handle, *_ in structures}
    assert len(handles) == len(structures)
    for kind, _, body, _ in structures:
        if kind == 2:
            assert handles[struct.unpack_from("<H", body, 11)[0]] == 3
        if kind == 17:
            assert handles[struct.unpack_from("<H", body, 4)[0]] == 16
        if kind == 19:
            assert handles[struct.unpack_from("<H", body, 12)[0]] == 16


def test_strings_that_name_the_hypervisor_are_bhyves(memory, platform):
    strings = {kind: texts for kind, _, _, texts in read(memory, platform)}
    assert strings[0][0] == "BHYVE"
    assert strings[1][1] == "BHYVE"


def test_every_string_can_be_set_by_its_variable(memory):
    wanted = {name: f"the {name}" for name in SMBIOS_STRINGS}
    found = {kind: texts for kind, _, _, texts in read(memory, Platform(strings=wanted))}
    for kind, node in enumerate(("bios", "system", "board", "chassis")):
        assert sorted(found[kind]) == sorted(text for name, text in wanted.items() if name.startswith(f"{node}."))


def test_an_empty_string_does_not_end_the_set(memory):
    strings = {**SMBIOS_STRINGS, "system.version": ""}
    assert next(texts for kind, _, _, texts in read(memory, Platform(strings=strings)) if kind == 1) == [
        "FreeBSD", "BHYVE", " ", "None", "None", "Virtual Machine",
    ]  # fmt: skip


def test_strings_that_do_not_fit_are_refused(memory):
    with pytest.raises(DeviceError, match="SMBIOS strings are too long"):
        firmware.build(memory, Platform(strings={**SMBIOS_STRINGS, "system.sku": "x" * 6000}), acpi=False)


def test_processors_tell_their_cores_and_threads(memory):
    structures = read(memory, Platform(cpus=16, sockets=2, threads_per_core=2))
    processors = [body for kind, _, body, _ in structures if kind == 4]
    assert [(body[35], body[36], body[37]) for body in processors] == [(4, 4, 8)] * 2


def test_uuid_is_the_one_asked_for(memory):
    wanted = uuid.UUID("12345678-1234-5678-1234-567812345678")
    body = next(body for kind, _, body, _ in read(memory, Platform(uuid=wanted)) if kind == 1)
    assert uuid.UUID(bytes_le=body[8:24]) == wanted


def test_uuid_not_asked_for_depends_on_the_name_alone(memory):
    body = next(body for kind, _, body, _ in read(memory, Platform(name="alpha")) if kind == 1)
    assert uuid.UUID(bytes_le=body[8:24]) == derived_uuid("alpha") != derived_uuid("beta")


@pytest.mark.parametrize("size", [256 << 20, 5 << 30, 40 << 30])
def test_memory_size_is_told_also_when_it_is_large(size):
    memory = GuestMemory(size)
    structures = read(memory, Platform())
    device = next(body for kind, _, body, _ in structures if kind == 17)
    megabytes, extended = struct.unpack_from("<H", device, 12)[0], struct.unpack_from("<I", device, 28)[0]
    assert (extended if megabytes == 0x7FFF else megabytes) == size >> 20
    mapped = [struct.unpack_from("<II", body, 4) for kind, _, body, _ in structures if kind == 19]
    assert [start << 10 for start, _ in mapped] == [region.gpa for region in memory.regions]
    assert sum(last + 1 - first for first, last in mapped) << 10 == size
    memory.close()


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="dmidecode is not installed")
def test_dmidecode_reads_it_without_complaint(memory, platform, tmp_path):
    platform = replace(platform, strings={**SMBIOS_STRINGS, "chassis.asset_tag": "shelf 7", "board.location": "left"})
    address = firmware.build(memory, platform, acpi=False).smbios
    entry = bytearray(memory.read(address, 32))
    length, start = struct.unpack_from("<HI", entry, 0x16)
    # a dump has its structures at 32
    struct.pack_into("<I", entry, 0x18, 32)
    entry[0x15] = 0
    entry[0x15] = -sum(entry[0x10:0x1F]) & 0xFF
    entry[4] = 0
    entry[4] = -sum(entry[:0x1F]) & 0xFF
    dump = tmp_path / "dump"
    dump.write_bytes(entry + memory.read(start, length))
    done = subprocess.run(["dmidecode", "--from-dump", dump], capture_output=True, text=True, check=True)
    for line in ("Family: Virtual Machine", "Asset Tag: shelf 7", "Location In Chassis: left"):
        assert line in done.stdout
    assert f"UUID: {platform.effective_uuid}" in done.stdout
    for complaint in ("BAD INDEX", "OUT OF SPEC", "TRUNCATED", "Wrong"):
        assert complaint not in done.stdout
