"""Sockets, cores and threads: every place that tells a guest of them tells the same.

A guest finds its place by its APIC id, which is the vCPU's index, and the shifts of CPUID's leaves (SDM Vol. 3A §9.9.4,
AMD APM Vol. 3 §E.4); which CPUs there are it learns from MADT and MP table, what packages there are from SMBIOS.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve import Config, Machine, firmware
from pyhyve.errors import ConfigError
from pyhyve.firmware.platform import Platform
from pyhyve.memory import GuestMemory
from pyhyve.settings import read_topology
from pyhyve.vmm.api import MAX_CPUS, CpuidEntry
from pyhyve.vmm.cpuid import Topology, shape, with_apic_id
from tests import kernels
from tests.conftest import find_backend
from tests.firmware.acpitools import find_tables
from tests.vmm.test_cpuid import AMD, INTEL, host, leaf

COUNTS = [1, 2, 4, 8, 16]
TOPOLOGIES = [
    Topology(sockets, cores, threads)
    for sockets in COUNTS
    for cores in COUNTS
    for threads in COUNTS
    if sockets * cores * threads <= MAX_CPUS
]
"""Powers of two, where an APIC id splits into bits without gaps."""

Place = tuple[int, int, int]


def expected(topology: Topology, apic_id: int) -> Place:
    """Socket, core and thread of a vCPU: threads are counted first, then cores, then sockets."""
    core, thread = divmod(apic_id, topology.threads)
    return (*divmod(core, topology.cores), thread)


def bits(count: int) -> int:
    return (count - 1).bit_length()


def by_shifts(apic_id: int, thread_shift: int, socket_shift: int) -> Place:
    core = (apic_id & (1 << socket_shift) - 1) >> thread_shift
    return apic_id >> socket_shift, core, apic_id & (1 << thread_shift) - 1


def by_level_leaf(table: list[CpuidEntry], number: int) -> Place:
    threads, cores = leaf(table, number, 0), leaf(table, number, 1)
    assert (threads.ecx >> 8 & 0xFF, cores.ecx >> 8 & 0xFF) == (1, 2), "level types: SMT, core"
    assert leaf(table, number, 2).ecx >> 8 == 0, "the list ends"
    return by_shifts(threads.edx, threads.eax & 0x1F, cores.eax & 0x1F)


def by_leaves_1_and_4(table: list[CpuidEntry]) -> Place:
    first = leaf(table, 1)
    in_package = first.ebx >> 16 & 0xFF if first.edx >> 28 & 1 else 1
    cores = (leaf(table, 4, 0).eax >> 26) + 1
    return by_shifts(first.ebx >> 24, bits(in_package // cores), bits(in_package))


def by_amds_leaves(table: list[CpuidEntry]) -> Place:
    sizes, unit = leaf(table, 0x80000008).ecx, leaf(table, 0x8000001E)
    threads = (unit.ebx >> 8 & 0xFF) + 1
    place = by_shifts(unit.eax, bits(threads), sizes >> 12 & 0xF)
    assert unit.ebx & 0xFF == place[1], "the core's number in 0x8000001E"
    return place


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: f"{t.sockets}.{t.cores}.{t.threads}")
def test_every_leaf_gives_a_cpu_the_same_place(topology: Topology) -> None:
    intel, amd = shape(host(INTEL), topology), shape(host(AMD), topology)
    for apic_id in range(topology.cpus):
        place = expected(topology, apic_id)
        table = with_apic_id(intel, apic_id)
        assert by_level_leaf(table, 0xB) == place
        assert by_level_leaf(table, 0x1F) == place
        assert by_leaves_1_and_4(table) == place
        table = with_apic_id(amd, apic_id)
        assert by_level_leaf(table, 0xB) == place
        assert by_amds_leaves(table) == place


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: f"{t.sockets}.{t.cores}.{t.threads}")
def test_caches_are_shared_by_the_core_and_by_the_socket(topology: Topology) -> None:
    table = shape(host(INTEL), topology)
    assert (leaf(table, 4, 0).eax >> 14 & 0xFFF) + 1 == topology.threads
    assert (leaf(table, 4, 1).eax >> 14 & 0xFFF) + 1 == topology.per_socket


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, MAX_CPUS)] * 3).filter(lambda t: t[0] * t[1] * t[2] <= MAX_CPUS))
def test_with_any_numbers_apic_ids_are_told_apart_and_counts_agree(counts: tuple[int, int, int]) -> None:
    topology = Topology(*counts)
    for vendor, leaves in ((INTEL, (0xB, 0x1F)), (AMD, (0xB,))):
        table = shape(host(vendor), topology)
        for number in leaves:
            assert leaf(table, number, 0).ebx == topology.threads
            assert leaf(table, number, 1).ebx == topology.per_socket
            places = {by_level_leaf(with_apic_id(table, apic_id), number) for apic_id in range(topology.cpus)}
            assert len(places) == topology.cpus


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, MAX_CPUS)] * 3).filter(lambda t: t[0] * t[1] * t[2] <= MAX_CPUS))
def test_tables_list_the_same_cpus(counts: tuple[int, int, int]) -> None:
    topology = Topology(*counts)
    platform = Platform(cpus=topology.cpus, sockets=topology.sockets, threads_per_core=topology.threads)
    memory = GuestMemory(16 << 20)
    addresses = firmware.build(memory, platform, acpi=True)
    everyone = list(range(topology.cpus))
    assert in_madt(find_tables(memory, addresses.rsdp)["APIC"]) == everyone
    assert in_mp_table(memory, addresses.mptable) == everyone
    packages = processors(memory, addresses.smbios)
    assert packages == [(topology.cores, topology.per_socket)] * topology.sockets
    memory.close()


def in_madt(table: bytes) -> list[int]:
    """APIC ids of the enabled processors; processor *i* has id *i*."""
    found, at = [], 44
    while at < len(table):
        if table[at] == 0:
            assert table[at + 2] == table[at + 3]
            assert struct.unpack_from("<I", table, at + 4)[0] == 1
            found.append(table[at + 3])
        at += table[at + 1]
    return found


def in_mp_table(memory: GuestMemory, pointer: int) -> list[int]:
    address = memory.read_uint(pointer + 4, 4)
    found = []
    for number in range(memory.read_uint(address + 34, 2)):
        entry = memory.read(address + 44 + 20 * number, 20)
        if entry[0] != 0:
            break
        assert entry[3] == (3 if number == 0 else 1), "enabled, the first one boots"
        found.append(entry[1])
    return found


def processors(memory: GuestMemory, entry_point: int) -> list[tuple[int, int]]:
    """Cores and threads of each processor structure."""
    length, start = struct.unpack("<HI", memory.read(entry_point + 0x16, 6))
    data, at, found = memory.read(start, length), 0, []
    while at < length:
        if data[at] == 4:
            found.append((data[at + 0x23], data[at + 0x25]))
        at = data.index(b"\0\0", at + data[at + 1]) + 2
    return found


@pytest.mark.parametrize(
    ("variables", "topology"),
    [
        ({}, (1, 1, 1)),
        ({"cpus": "4"}, (4, 1, 1)),
        ({"cpus": "8", "cores": "2", "threads": "2"}, (2, 2, 2)),
        ({"cpus": "6", "sockets": "1", "cores": "3", "threads": "2"}, (1, 3, 2)),
    ],
)
def test_variables_name_the_topology(variables: dict[str, str], topology: Place) -> None:
    assert read_topology(Config.of({"name": "vm", **variables})) == Topology(*topology)


def test_a_product_that_is_not_the_number_of_cpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 sockets \\* 2 cores \\* 1 threads is not 5"):
        read_topology(Config.of({"name": "vm", "cpus": "5", "sockets": "2", "cores": "2"}))


@pytest.mark.parametrize("backend", ["kvm", "soft"])
def test_a_guest_is_told_its_topology(backend: str) -> None:
    """CPUID as the guest executes it, on the boot CPU of two sockets of two cores of two threads."""
    hypervisor = find_backend(backend)
    if hypervisor.probe().max_cpus < 8:
        pytest.skip(f"backend {backend}: fewer than 8 vCPUs")
    variables = {"cpus": "8", "cores": "2", "threads": "2", "memory.size": "16M", "vmm.backend": backend}
    with Machine(Config.of({"name": "vm", "boot.kernel": kernels.build(TOPOLOGY), **variables})) as machine:
        machine.start()
        assert machine.wait() == 1
        threads, cores, per_package = machine.memory.unpack(0x90000, "<3I")
    assert (threads & 0x1F, cores & 0x1F, per_package >> 16 & 0xFF) == (1, 2, 4)


TOPOLOGY = """
    mov $0xb, %eax
    xor %ecx, %ecx
    cpuid
    mov %eax, 0x90000
    mov $0xb, %eax
    mov $1, %ecx
    cpuid
    mov %eax, 0x90004
    mov $1, %eax
    cpuid
    mov %ebx, 0x90008
    power_off
"""
