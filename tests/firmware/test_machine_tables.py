"""The tables of an assembled machine tell what the machine is: its ports, its addresses, its interrupts, its CPUs."""

import re
import shutil
import struct
import subprocess

import pytest

from pyhyve import Config, Machine
from pyhyve.hw.pci.bus import PciAddress
from tests import kernels
from tests.conftest import find_backend
from tests.firmware.acpitools import find_tables

RSDP = 0xF2400
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D


@pytest.fixture(params=["kvm", "soft"])
def machine(request):
    """A machine with everything there is, and two slots that have interrupts."""
    config = Config.of(
        {
            "name": "tables",
            "memory.size": "16M",
            "vmm.backend": find_backend(request.param).name,
            "pci.0.0.0.device": "hostbridge",
            "pci.0.3.0.device": "hostbridge",
            "pci.0.3.0.legacy": "true",
            "pci.0.4.0.device": "hostbridge",
            "pci.0.4.0.legacy": "true",
            "pci.0.31.0.device": "lpc",
            "acpi_tables": True,
            "boot.kernel": kernels.build(kernels.SPIN),
            "lpc.com1.path": "tcp=127.0.0.1:0",
        }
    )
    with Machine(config) as machine:
        yield machine


@pytest.fixture
def source(machine, tmp_path):
    """The DSDT, disassembled."""
    if shutil.which("iasl") is None:
        pytest.skip("iasl (Debian: acpica-tools) is not installed")
    return disassembled(machine, tmp_path)


def disassembled(machine, tmp_path):
    (tmp_path / "DSDT.dat").write_bytes(find_tables(machine.memory, RSDP)["DSDT"])
    for command in (["iasl", "-d", "DSDT.dat"], ["iasl", "-p", "again", "DSDT.dsl"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout
    return (tmp_path / "DSDT.dsl").read_text()


def test_every_port_of_the_board_is_somebodys_resource(machine, source):
    ranges = re.findall(r"IO \(Decode16,\s*(\w+),[^\n]*\s*\w+,[^\n]*\s*\w+,[^\n]*\s*(\w+),", source)
    told = {port for first, count in ranges for port in range(int(first, 16), int(first, 16) + int(count, 16))}
    ports = {p for r in machine.pio.ranges() for p in range(r.port, r.port + r.count)}
    # a guest's own delay port, which Linux keeps for itself
    assert ports - told == {0x80}


def test_every_chip_in_memory_is_told_of(machine, source):
    tables = find_tables(machine.memory, RSDP)
    told = {int(base, 16) for base in re.findall(r"Memory32Fixed \(ReadWrite,\s*(\w+),", source)}
    told.add(struct.unpack_from("<I", tables["APIC"], 44 + 8 + 4)[0])  # behind the one processor
    assert {r.gpa for r in machine.mmio.ranges()} <= told


def test_interrupts_agree_with_configuration_space_in_both_modes(machine, source):
    links = dict(re.findall(r"0x000([34])FFFF,\s*Zero,\s*\\_SB\.PCI0\.ISA\.LNK(\w),", source))
    inputs = dict(re.findall(r"0x000([34])FFFF,\s*Zero,\s*Zero,\s*(\w+)\s*\}", source))
    lpc = machine.pci.functions[PciAddress(0, 31, 0)].config
    for slot in (3, 4):
        config = machine.pci.functions[PciAddress(0, slot, 0)].config
        pirq = ord(links[str(slot)]) - ord("A")
        assert config.get(INTERRUPT_PIN, 1) == 1
        assert config.get(INTERRUPT_LINE, 1) == lpc.get((0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)[pirq], 1)
        assert int(inputs[str(slot)], 16) == 16 + pirq


def test_the_mp_table_wires_the_same(machine):
    table = machine.memory.read_uint(0xF0004, 4)
    entries = machine.memory.read(table, machine.memory.read_uint(table + 4, 2))[44 + 20 :]  # behind the one processor
    rows = [entries[at : at + 8] for at in range(0, len(entries), 8)]
    wired = {(row[5] >> 2, row[5] & 3): row[7] for row in rows if row[0] == 3 and row[4] == 0}
    routes = machine.pci.routes()
    assert wired == {(route.address.device, route.pin - 1): route.gsi for route in routes}
    assert {route.address.device for route in routes} == {3, 4}


def test_each_bus_is_a_root_with_its_own_windows_and_routes(tmp_path):
    if shutil.which("iasl") is None:
        pytest.skip("iasl (Debian: acpica-tools) is not installed")
    slots = {"0.0.0": "hostbridge", "0.31.0": "lpc", **dict.fromkeys(("2.3.0", "2.3.1", "17.1.0"), "virtio-rnd")}
    config = Config.of(
        {
            "name": "roots",
            "memory.size": "16M",
            "vmm.backend": find_backend("soft").name,
            **{f"pci.{slot}.device": name for slot, name in slots.items()},
            "acpi_tables": True,
            "boot.kernel": kernels.build(kernels.SPIN),
        }
    )
    with Machine(config) as machine:
        text = disassembled(machine, tmp_path)
        roots = dict(re.findall(r"Device \((PC\w+)\)(.*?)(?=Device \(PC|Device \(HPET)", text, re.DOTALL))
        assert sorted(roots) == ["PC02", "PC11", "PCI0"]
        for name, bus in (("PCI0", 0), ("PC02", 2), ("PC11", 17)):
            windows = machine.pci.windows_of(bus)
            window = r"(WordIO|DWordMemory|QWordMemory) .*?// Granularity\s*(\w+), *// Range Minimum\s*(\w+),"
            producers = re.findall(window, roots[name], re.DOTALL)
            told = [(kind, int(first, 16), int(last, 16) + 1) for kind, first, last in producers]
            expected = list(zip(("WordIO", "DWordMemory", "QWordMemory"), windows.values(), strict=True))
            if bus == 0:
                assert told[0] == ("WordIO", 0, 0xCF8)
                assert told[1] == ("WordIO", 0xD00, expected[0][1][1])
                told[0:2] = [(expected[0][0], *expected[0][1])]
            assert told == [(kind, *window) for kind, window in expected]
        for name, slot in (("PC02", "0x0003FFFF"), ("PC11", "0x0001FFFF")):
            assert slot in roots[name]
        assert "_PRT" not in roots["PCI0"]
        mcfg = find_tables(machine.memory, RSDP)["MCFG"]
        assert struct.unpack_from("<QHBB", mcfg, 44) == (0xE0000000, 0, 0, 255)
