"""The CPUID table that guests see: what is announced, what is hidden, and how the topology reads."""

from __future__ import annotations

import struct

import pytest

from pyhyve.errors import ConfigError
from pyhyve.vmm.api import CpuidEntry
from pyhyve.vmm.cpuid import Topology, shape, vendor, with_apic_id

INTEL = struct.unpack("<3I", b"GenuineIntel")
AMD = struct.unpack("<3I", b"AuthenticAMD")
ALL = 0xFFFFFFFF


def host(name: tuple[int, ...]) -> list[CpuidEntry]:
    """A CPU of that vendor that has every feature."""
    first, third, second = name[0], name[2], name[1]
    return [
        CpuidEntry(0, None, 0x20, first, third, second),
        CpuidEntry(1, None, 0x000A06F1, 0x07400800, ALL, ALL),
        CpuidEntry(4, 0, 0xFC004121, 0x02C0003F, 63, 0),
        CpuidEntry(4, 1, 0xFC1FC163, 0x02C0003F, 1023, 0),
        CpuidEntry(4, 2, 0, 0, 0, 0),
        CpuidEntry(5, None, 64, 64, 3, 0x20),
        CpuidEntry(6, None, ALL, 2, 9, 0),
        CpuidEntry(7, 0, 1, ALL, ALL, ALL),
        CpuidEntry(0xA, None, 0x08300805, 0, 0xF, 0x8604),
        CpuidEntry(0xD, 0, 0x602FF, 0x240, 0x2B00, 0),
        CpuidEntry(0xD, 1, 0xF, 0x240, 0, 0),
        CpuidEntry(0xD, 2, 256, 576, 0, 0),
        CpuidEntry(0xD, 7, 1024, 1664, 0, 0),
        CpuidEntry(0xD, 18, 8192, 2816, 6, 0),
        CpuidEntry(0x14, 0, 1, 0xFF, 7, 0),
        CpuidEntry(0x40000000, None, 0x40000001, 0, 0, 0),
        CpuidEntry(0x80000000, None, 0x80000021, first, third, second),
        CpuidEntry(0x80000001, None, 0, 0, ALL, ALL),
        CpuidEntry(0x80000007, None, ALL, ALL, ALL, ALL),
        CpuidEntry(0x80000008, None, 0x3030, 0, 0x701F, ALL),
        CpuidEntry(0x8000000A, None, 1, 8, 0, ALL),
        CpuidEntry(0x8000001D, 3, 0x3C163, 0x3C0003F, 0x7FFF, 1),
        CpuidEntry(0x8000001E, None, 7, 0x103, 0x100, 0),
    ]


def leaf(table: list[CpuidEntry], number: int, subleaf: int = 0) -> CpuidEntry:
    found = [entry for entry in table if entry.leaf == number and (entry.subleaf or 0) == subleaf]
    assert len(found) == 1, f"leaf {number:#x} is there {len(found)} times"
    return found[0]


def test_the_hypervisor_introduces_itself_as_bhyve() -> None:
    table = shape(host(INTEL))
    signature = leaf(table, 0x40000000)
    assert struct.pack("<3I", signature.ebx, signature.ecx, signature.edx) == b"bhyve bhyve "
    assert signature.eax == 0x40000000
    assert leaf(table, 1).ecx >> 31 == 1


def test_the_vendor_is_the_hosts() -> None:
    assert vendor(shape(host(INTEL))) == "GenuineIntel"
    assert vendor(shape(host(AMD))) == "AuthenticAMD"
    assert vendor([]) == ""


@pytest.mark.parametrize(
    ("bit", "what"),
    [(3, "MONITOR"), (5, "VMX"), (6, "SMX"), (7, "EIST"), (8, "TM2"), (15, "PDCM"), (18, "DCA"), (27, "OSXSAVE")],
)
def test_leaf_1_hides_what_the_machine_has_not(bit: int, what: str) -> None:
    assert not leaf(shape(host(INTEL)), 1).ecx >> bit & 1, what


@pytest.mark.parametrize(("bit", "what"), [(21, "DS"), (22, "ACPI"), (28, "HTT"), (29, "TM"), (31, "PBE")])
def test_leaf_1_hides_thermal_and_debug_store(bit: int, what: str) -> None:
    assert not leaf(shape(host(INTEL)), 1).edx >> bit & 1, what


def test_features_of_the_instruction_set_stay() -> None:
    table = shape(host(INTEL))
    for bit in (0, 9, 12, 19, 20, 23, 25, 26, 28, 30):  # SSE3 ... RDRAND
        assert leaf(table, 1).ecx >> bit & 1
    for bit in (0, 3, 5, 8, 10, 16):  # FSGSBASE, BMI1, AVX2, BMI2, INVPCID, AVX-512F
        assert leaf(table, 7).ebx >> bit & 1


def test_enclaves_trace_and_tiles_are_hidden() -> None:
    entry = leaf(shape(host(INTEL)), 7)
    assert not entry.ebx & (1 << 2 | 1 << 25)
    assert not entry.edx & (1 << 22 | 1 << 24 | 1 << 25)


def test_x2apic_can_be_taken_away() -> None:
    assert leaf(shape(host(INTEL)), 1).ecx >> 21 & 1
    assert not leaf(shape(host(INTEL), x2apic=False), 1).ecx >> 21 & 1


def test_power_leaves_keep_the_steady_timers_only() -> None:
    table = shape(host(INTEL))
    assert leaf(table, 6) == CpuidEntry(6, None, 1 << 2, 0, 0, 0)
    assert leaf(table, 0x80000007) == CpuidEntry(0x80000007, None, 0, 0, 0, 1 << 8)


@pytest.mark.parametrize("gone", [5, 0xA, 0x14, 0x8000000A])
def test_leaves_of_things_that_are_not_there_are_gone(gone: int) -> None:
    assert gone not in {entry.leaf for entry in shape(host(AMD))}


def test_the_limits_name_the_highest_leaf() -> None:
    table = shape(host(AMD))
    assert leaf(table, 0).eax == max(entry.leaf for entry in table if entry.leaf < 0x40000000)
    assert leaf(table, 0x80000000).eax == 0x8000001E


def test_xsave_room_shrinks_with_the_components() -> None:
    table = shape(host(INTEL))
    assert leaf(table, 0xD) == CpuidEntry(0xD, 0, 0x2E7, 0x240, 1664 + 1024, 0)
    assert {entry.subleaf for entry in table if entry.leaf == 0xD} == {0, 1, 2, 7}


def test_no_xsave_leaf_without_xsave() -> None:
    plain = [entry if entry.leaf != 1 else CpuidEntry(1, None, 0, 0, 0, 0) for entry in host(INTEL)]
    assert 0xD not in {entry.leaf for entry in shape(plain)}


def test_one_cpu_is_alone() -> None:
    table = shape(host(INTEL))
    assert leaf(table, 1).ebx == 1 << 16 | 0x0800
    assert leaf(table, 0xB, 0) == CpuidEntry(0xB, 0, 0, 1, 1 << 8, 0)
    assert leaf(table, 0xB, 1) == CpuidEntry(0xB, 1, 0, 1, 2 << 8 | 1, 0)


def test_topology_reaches_every_leaf_that_tells_it() -> None:
    table = shape(host(AMD), Topology(sockets=2, cores=4, threads=2))
    assert leaf(table, 1).ebx >> 16 & 0xFF == 8
    assert leaf(table, 1).edx >> 28 & 1
    assert leaf(table, 4, 0).eax >> 26 == 3  # cores in the socket, minus one
    assert leaf(table, 4, 0).eax >> 14 & 0xFFF == 1  # threads that share level 1, minus one
    assert leaf(table, 4, 1).eax >> 14 & 0xFFF == 7  # threads that share level 3
    assert (leaf(table, 0xB, 0).eax, leaf(table, 0xB, 0).ebx) == (1, 2)
    assert (leaf(table, 0xB, 1).eax, leaf(table, 0xB, 1).ebx) == (3, 8)
    assert leaf(table, 0x80000001).ecx >> 1 & 1
    assert leaf(table, 0x80000008).ecx == 3 << 12 | 7
    assert leaf(table, 0x8000001D, 3).eax >> 14 & 0xFFF == 7
    assert leaf(table, 0x8000001E).ebx >> 8 == 1


def test_each_vcpu_is_told_its_apic_id() -> None:
    table = with_apic_id(shape(host(AMD), Topology(sockets=2, cores=4, threads=2)), 13)
    assert leaf(table, 1).ebx >> 24 == 13
    assert [leaf(table, 0xB, level).edx for level in range(3)] == [13, 13, 13]
    assert leaf(table, 0x8000001E).eax == 13
    assert leaf(table, 0x8000001E).ebx & 0xFF == 2  # thread 13 is the second one of core 2 in socket 1


def test_a_topology_counts_its_cpus_and_refuses_nothing_of_a_kind() -> None:
    assert Topology(2, 3, 2).cpus == 12
    with pytest.raises(ConfigError):
        Topology(1, 0, 1)


def test_registers_stay_32_bits_wide() -> None:
    for entry in with_apic_id(shape(host(AMD), Topology(2, 64, 2)), 200):
        for value in (entry.eax, entry.ebx, entry.ecx, entry.edx):
            assert 0 <= value <= ALL, hex(entry.leaf)
