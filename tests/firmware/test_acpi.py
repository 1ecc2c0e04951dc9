"""ACPI tables as an operating system finds them, and as the reference compiler sees them."""

import re
import shutil
import struct
import subprocess

import pytest

from pyhyve import firmware
from pyhyve.firmware.acpi import aml, links
from pyhyve.firmware.platform import DEFAULT_WINDOWS, PciRoot, Platform, Window, WindowKind
from pyhyve.hw.chipset import hpet as hpet_chip
from pyhyve.hw.chipset import legacy_irq, pm, uart16550
from pyhyve.hw.pci import intx, lpc
from pyhyve.memory import GuestMemory
from tests.firmware.acpitools import find_tables
from tests.firmware.wiring import pci_interrupts

needs_iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (Debian: acpica-tools) is not installed")

CHECKSUMMED = ["RSDT", "XSDT", "FACP", "APIC", "HPET", "MCFG", "DSDT"]


@pytest.mark.parametrize("name", CHECKSUMMED)
def test_checksum_is_right(tables, name):
    assert sum(tables[name]) & 0xFF == 0
    assert tables[name][:4].decode() == name


def test_root_pointer_is_where_guests_search_and_has_both_checksums(memory, platform):
    address = firmware.build(memory, platform, acpi=True).rsdp
    assert 0xE0000 <= address < 0x100000
    assert address % 16 == 0
    pointer = memory.read(address, 36)
    assert pointer[:8] == b"RSD PTR "
    assert sum(pointer[:20]) & 0xFF == 0
    assert sum(pointer) & 0xFF == 0


def test_rsdt_and_xsdt_name_the_same_tables(tables):
    short = struct.unpack_from(f"<{(len(tables['RSDT']) - 36) // 4}I", tables["RSDT"], 36)
    long = struct.unpack_from(f"<{(len(tables['XSDT']) - 36) // 8}Q", tables["XSDT"], 36)
    assert short == long
    assert len(short) == 4


def test_tables_lie_in_the_reserved_area_below_one_megabyte(memory):
    many = pci_interrupts((0, device, pin) for device in range(32) for pin in (1, 2, 3, 4))
    platform = Platform(cpus=16, lpc=(31, 0), com=(1, 2, 3, 4), pci_interrupts=many)
    memory.write(0x100000, b"\xaa" * 64)
    tables = find_tables(memory, firmware.build(memory, platform, acpi=True).rsdp)
    assert memory.read(0x100000, 64) == b"\xaa" * 64
    assert all(sum(tables[name]) & 0xFF == 0 for name in CHECKSUMMED)


def entries(madt):
    position = 44
    while position < len(madt):
        kind, length = madt[position], madt[position + 1]
        yield kind, madt[position + 2 : position + length]
        position += length


def test_madt_lists_every_cpu_enabled_with_its_apic_id(tables):
    cpus = [struct.unpack("<BBI", body) for kind, body in entries(tables["APIC"]) if kind == 0]
    assert cpus == [(0, 0, 1), (1, 1, 1), (2, 2, 1), (3, 3, 1)]


def test_madt_wires_the_ioapic(tables):
    found = dict.fromkeys((1, 4))
    overrides = {}
    for kind, body in entries(tables["APIC"]):
        if kind == 2:
            bus, irq, gsi, flags = struct.unpack("<BBIH", body)
            overrides[irq] = (bus, gsi, flags)
        elif kind in found:
            found[kind] = body
    assert struct.unpack("<BBII", found[1]) == (0, 0, 0xFEC00000, 0)
    assert overrides == {0: (0, 2, 0), 9: (0, 9, 0x0F)}, "0x0F: active low, level triggered"
    assert struct.unpack("<BHB", found[4]) == (0xFF, 0x05, 1), "NMI on LINT1 of all"


def test_fadt_agrees_with_the_chips(tables):
    fadt = tables["FACP"]
    assert len(fadt) == 268
    assert struct.unpack_from("<H", fadt, 46)[0] == pm.SCI_IRQ
    assert struct.unpack_from("<I", fadt, 48)[0] == pm.SMI_PORT
    assert (fadt[52], fadt[53]) == (pm.ACPI_ENABLE, pm.ACPI_DISABLE)
    assert struct.unpack_from("<I", fadt, 56)[0] == pm.EVENT_PORT
    assert struct.unpack_from("<I", fadt, 64)[0] == pm.CONTROL_PORT
    assert struct.unpack_from("<I", fadt, 76)[0] == 0x408
    assert (fadt[88], fadt[89], fadt[91]) == (4, 2, 4)


def test_fadt_offers_reset_by_port_and_a_fixed_power_button(tables):
    fadt = tables["FACP"]
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags & 1 << 10, "the reset register is supported"
    assert not flags & 1 << 4, "the power button is fixed hardware"
    assert not flags & 1 << 20, "not hardware-reduced"
    assert struct.unpack_from("<BBBBQ", fadt, 116) == (1, 8, 0, 1, 0xCF9)
    assert fadt[128] == 6
    assert struct.unpack_from("<H", fadt, 109)[0] == 3, "legacy devices and an 8042"


def test_fadt_extended_addresses_repeat_the_old_ones(tables):
    fadt = tables["FACP"]
    for old, extended in ((56, 148), (64, 172), (76, 208)):
        space, _, _, _, address = struct.unpack_from("<BBBBQ", fadt, extended)
        assert space == 1
        assert address == struct.unpack_from("<I", fadt, old)[0]
    assert struct.unpack_from("<Q", fadt, 140)[0] == struct.unpack_from("<I", fadt, 40)[0]


def test_facs_is_aligned_to_64_bytes(memory, platform):
    tables = find_tables(memory, firmware.build(memory, platform, acpi=True).rsdp)
    assert struct.unpack_from("<I", tables["FACP"], 36)[0] % 64 == 0
    assert len(tables["FACS"]) == 64


def test_hpet_table_agrees_with_the_chip(tables):
    identifier, space, _, _, _, address = struct.unpack_from("<IBBBBQ", tables["HPET"], 36)
    assert identifier == hpet_chip.CAPABILITIES & 0xFFFFFFFF
    assert (space, address) == (0, hpet_chip.BASE)


def test_machine_without_hpet_has_no_table_of_it(memory):
    tables = find_tables(memory, firmware.build(memory, Platform(hpet=False), acpi=True).rsdp)
    assert "HPET" not in tables
    assert b"HPET" not in tables["DSDT"]


def test_mcfg_covers_256_buses(tables):
    assert struct.unpack_from("<QHBB", tables["MCFG"], 44) == (0xE0000000, 0, 0, 255)


def test_ports_and_routable_interrupts_agree_with_the_chips():
    from pyhyve.firmware import platform

    assert {f"com{number}": port for number, port in platform.COM_PORTS.items()} == uart16550.COM_PORTS
    assert frozenset(links.ROUTABLE) == legacy_irq.ROUTABLE
    assert platform.PIRQS == intx.PIRQS
    assert (*range(links.FIRST_REGISTERS, links.FIRST_REGISTERS + 4),) == lpc.PIRQ_OFFSETS[:4]
    assert (*range(links.MORE_REGISTERS, links.MORE_REGISTERS + 4),) == lpc.PIRQ_OFFSETS[4:]


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x10000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers_take_their_shortest_form(value, encoded):
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_that_aml_cannot_hold_is_refused(value):
    with pytest.raises(ValueError):
        aml.integer(value)


def test_identifiers_are_compressed():
    assert aml.eisa_id("PNP0A03").hex() == "0c41d00a03"


def test_names_are_padded_and_prefixed():
    assert aml.path("_S5") == b"_S5_"
    assert aml.path(r"\_SB.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.path("A.B.C") == b"\x2f\x03A___B___C___"
    with pytest.raises(ValueError):
        aml.path("TOOLONG")


@pytest.mark.parametrize("size", [0, 1, 0x3E, 0x3F, 0xFFC, 0xFFE, 0x1000, 0xFFFFB, 0xFFFFF])
def test_block_lengths_count_themselves(size):
    """Decode PkgLength as §20.2.4 says."""
    block = aml.scope("X", bytes(size))[1:]
    extra = block[0] >> 6
    length = block[0] & 0x3F if not extra else block[0] & 0xF | int.from_bytes(block[1 : 1 + extra], "little") << 4
    assert length == len(block)


# -- what iasl says --


def disassemble(folder, name, table):
    (folder / f"{name}.dat").write_bytes(table)
    done = subprocess.run(["iasl", "-d", f"{name}.dat"], cwd=folder, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert not re.search(r"error|warning|invalid|incorrect", output, re.IGNORECASE), output
    return (folder / f"{name}.dsl").read_text()


@needs_iasl
@pytest.mark.parametrize("name", [*CHECKSUMMED, "FACS"])
def test_iasl_reads_and_recompiles_each_table(tables, name, tmp_path):
    disassemble(tmp_path, name, tables[name])
    done = subprocess.run(
        ["iasl", "-p", "again", f"{name}.dsl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout


@needs_iasl
def test_iasl_finds_the_devices(tables, tmp_path):
    source = disassemble(tmp_path, "DSDT", tables["DSDT"])
    devices = re.findall(r"Device \((\w+)\)\s*\{\s*Name \((?:_HID, EisaId \(\"(\w+)\"\)|_ADR, (\w+))", source)
    assert devices == [
        ("PCI0", "PNP0A03", ""),
        ("ISA", "", "0x001F0000"),
        *((f"LNK{letter}", "PNP0C0F", "") for letter in "ABCDEFGH"),
        ("RTC", "PNP0B00", ""),
        ("TIMR", "PNP0100", ""),
        ("PIC", "PNP0000", ""),
        ("KBD", "PNP0303", ""),
        ("MOU", "PNP0F13", ""),
        ("COM1", "PNP0501", ""),
        ("COM3", "PNP0501", ""),
        ("HPET", "PNP0103", ""),
        ("MBRD", "PNP0C02", ""),
    ]
    assert re.search(r"Name \(_S5, Package \(0x04\)[^{]*\{\s*0x05,\s*0x05,", source)


@needs_iasl
def test_iasl_finds_the_interrupt_routing_of_both_modes(tables, tmp_path):
    source = disassemble(tmp_path, "DSDT", tables["DSDT"])

    def routes(name):
        package = source[source.index(f"Name ({name}, ") :]
        rows = re.findall(r"Package \(0x04\)\s*\{\s*(\w+),\s*(\w+),\s*([\w.\\]+),\s*(\w+)\s*\}", package)
        return rows[:3]

    assert routes("APRT") == [
        ("0x0003FFFF", "Zero", "Zero", "0x10"),
        ("0x0004FFFF", "Zero", "Zero", "0x11"),
        ("0x0004FFFF", "One", "Zero", "0x12"),
    ]
    assert [row[2:] for row in routes("PPRT")] == [(rf"\_SB.PCI0.ISA.LNK{letter}", "Zero") for letter in "ABC"]
    assert "Store (Arg0, PICM)" in source or "PICM = Arg0" in source


@needs_iasl
def test_without_a_bridge_the_routing_of_pic_mode_names_the_interrupts(memory, tmp_path):
    platform = Platform(pci_interrupts=pci_interrupts([(0, 3, 1), (0, 4, 1)]))
    source = disassemble(
        tmp_path, "DSDT", find_tables(memory, firmware.build(memory, platform, acpi=True).rsdp)["DSDT"]
    )
    routing = source[source.index("Name (PPRT, ") : source.index("Method (_PRT")]
    assert re.findall(r"Zero, \s*Zero, \s*(\w+)\s*\}", routing) == ["0x05", "0x06"]
    assert "LNKA" not in source


@pytest.mark.skipif(shutil.which("acpiexec") is None, reason="acpiexec (Debian: acpica-tools) is not installed")
def test_a_link_is_set_read_and_disabled_by_its_methods(tables, tmp_path):
    """ACPI's own interpreter runs the methods; it keeps the bridge's configuration space as plain memory."""
    (tmp_path / "DSDT.dat").write_bytes(tables["DSDT"])
    link, field, irq_11 = r"\_SB.PCI0.ISA.LNKB", r"\_SB.PCI0.ISA.PIRB", "(23 00 08 18 79 00)"
    look = [field, f"{link}._STA", f"{link}._CRS"]
    commands = [f"{link}._SRS {irq_11}", *look, f"{link}._DIS", *look]
    done = subprocess.run(
        ["acpiexec", "-di", "DSDT.dat"], cwd=tmp_path, capture_output=True, text=True, check=False,
        input="".join(f"execute {command}\n" for command in commands) + "quit\n",
    )  # fmt: skip
    results = re.findall(r"\[Integer\] = 0*(\w+)|0000: ((?:\w\w )+)", done.stdout)
    assert [number or data.strip() for number, data in results] == [
        "B", "B", "23 00 08 18 79 00", "80", "9", "23 00 00 18 79 00",
    ], done.stdout  # fmt: skip


@needs_iasl
def test_iasl_sees_the_windows_of_every_root_bus(tmp_path):
    memory = GuestMemory(64 << 20)
    roots = (
        PciRoot(0, 4, DEFAULT_WINDOWS),
        PciRoot(5, 255, (Window(WindowKind.MEMORY_32, 0xDF000000, 0xDFFFFFFF),)),
    )
    platform = Platform(pci_roots=roots, pci_interrupts=pci_interrupts([(5, 0, 1)]))
    source = disassemble(
        tmp_path, "DSDT", find_tables(memory, firmware.build(memory, platform, acpi=True).rsdp)["DSDT"]
    )
    memory.close()
    assert re.findall(r"Device \((PC\w+)\)", source) == ["PCI0", "PC05"]
    assert re.findall(r"Name \(_BBN, (\w+)\)", source) == ["Zero", "0x05"]
    assert "0x000000D000000000" in source
    assert source.count("Method (_PRT") == 1
