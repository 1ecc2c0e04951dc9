"""The MP table, read as MP specification 1.4 describes."""

import struct

import pytest

from pyhyve import firmware
from pyhyve.errors import DeviceError
from pyhyve.firmware.platform import PciRoot, Platform
from tests.firmware.wiring import pci_interrupts

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


@pytest.fixture
def table(memory, platform):
    """The configuration table, found by its floating pointer."""
    return read(memory, platform)


def read(memory, platform):
    pointer = memory.read(firmware.build(memory, platform, acpi=False).mptable, 16)
    assert pointer[:4] == b"_MP_"
    assert sum(pointer) & 0xFF == 0
    address = struct.unpack_from("<I", pointer, 4)[0]
    table = memory.read(address, memory.read_uint(address + 4, 2))
    assert table[:4] == b"PCMP"
    assert sum(table) & 0xFF == 0
    return table


def entries(table):
    position = 44
    while position < len(table):
        size = SIZES[table[position]]
        yield table[position : position + size]
        position += size
    assert position == len(table)


def test_floating_pointer_is_where_guests_search(memory, platform):
    address = firmware.build(memory, platform, acpi=False).mptable
    assert address == 0xF0000


def test_header_counts_the_entries(table):
    assert struct.unpack_from("<H", table, 34)[0] == len(list(entries(table)))
    assert struct.unpack_from("<I", table, 36)[0] == 0xFEE00000


def test_entries_are_sorted_by_type(table):
    kinds = [entry[0] for entry in entries(table)]
    assert kinds == sorted(kinds)


def test_every_cpu_is_there_and_the_first_boots(table):
    assert [(entry[1], entry[3]) for entry in entries(table) if entry[0] == 0] == [(0, 3), (1, 1), (2, 1), (3, 1)]


def test_buses_keep_their_pci_numbers_and_isa_comes_after(memory):
    table = read(memory, Platform(pci_roots=(PciRoot(0, 0, ()), PciRoot(1, 255, ()))))
    assert [(e[1], e[2:8].decode()) for e in entries(table) if e[0] == 1] == [
        (0, "PCI   "),
        (1, "PCI   "),
        (2, "ISA   "),
    ]


def interrupts(table):
    return [struct.unpack("<BBHBBBB", entry) for entry in entries(table) if entry[0] == 3]


def test_isa_interrupts_go_to_their_own_input_but_for_timer_and_pic(table):
    isa = {pin: (kind, irq, flags) for _, kind, flags, bus, irq, _, pin in interrupts(table) if bus == 1}
    assert isa[2] == (0, 0, 0), "the timer at input 2"
    assert isa[0] == (3, 0, 0), "the PIC at input 0"
    assert isa[9] == (0, 9, 0x0F), "the SCI is level triggered, active low"
    assert isa[4] == (0, 4, 0)
    assert set(isa) == set(range(16))


def test_pci_interrupts_name_device_and_pin(table):
    pci = [(irq >> 2, irq & 3, pin, flags) for _, _, flags, bus, irq, _, pin in interrupts(table) if bus == 0]
    assert pci == [(3, 0, 16, 0x0F), (4, 0, 17, 0x0F), (4, 1, 18, 0x0F)]


def test_local_interrupts_are_the_pic_and_nmi(table):
    local = [(entry[1], entry[6], entry[7]) for entry in entries(table) if entry[0] == 4]
    assert local == [(3, 0xFF, 0), (1, 0xFF, 1)]


def test_sixteen_cpus_and_every_pin_of_a_bus_fit(memory):
    many = pci_interrupts((0, device, pin) for device in range(32) for pin in (1, 2, 3, 4))
    table = read(memory, Platform(cpus=16, pci_interrupts=many))
    assert len(interrupts(table)) == 16 + 128


def test_table_that_does_not_fit_is_refused(memory):
    many = pci_interrupts((bus, device, pin) for bus in range(8) for device in range(32) for pin in (1, 2, 3, 4))
    with pytest.raises(DeviceError, match="too many devices for the MP table"):
        firmware.build(memory, Platform(pci_interrupts=many), acpi=False)


def test_tables_that_are_not_wanted_are_not_built(memory, platform):
    addresses = firmware.build(memory, platform, acpi=False, mptable=False)
    assert (addresses.rsdp, addresses.mptable) == (0, 0)
    assert memory.read(0xF0000, 16) == bytes(16)
    assert memory.read(0xF2400, 16) == bytes(16)
