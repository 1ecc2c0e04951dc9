"""NUMA domains as an operating system finds them, and how a configuration's are read."""

import shutil
import struct
import subprocess

import pytest

from pyhyve import firmware
from pyhyve.config import Config
from pyhyve.errors import ConfigError, UsageError
from pyhyve.firmware.platform import Domain, Platform
from pyhyve.memory import Region
from pyhyve.settings import read_domains, read_memory_size
from tests.firmware.acpitools import find_tables

GB = 1 << 30
REGIONS = (Region(0, 3 * GB, 0), Region(4 * GB, GB, 3 * GB))


def srat(memory, *domains, cpus=4):
    platform = Platform(cpus=cpus, domains=domains)
    return find_tables(memory, firmware.build(memory, platform, acpi=True).rsdp).get("SRAT")


def entries(table):
    position = 48
    while position < len(table):
        kind, length = table[position], table[position + 1]
        yield kind, table[position : position + length]
        position += length


def test_a_machine_without_domains_has_no_table(memory):
    assert srat(memory) is None


def test_each_processor_and_piece_of_memory_has_an_entry(memory):
    domains = Domain(0, frozenset({0, 2}), ((0, GB),)), Domain(300, frozenset({1, 3}), ((GB, 2 * GB), (4 * GB, GB)))
    table = srat(memory, *domains)
    assert sum(table) & 0xFF == 0
    cpus, ranges = [], []
    for kind, body in entries(table):
        if kind == 0:
            _, length, low, apic, flags, _, high, _ = struct.unpack("<BBBBIB3sI", body)
            cpus.append((apic, low | int.from_bytes(high, "little") << 8, flags, length))
        else:
            assert kind == 1
            _, length, domain, _, start, size, _, flags, _ = struct.unpack("<BBIHQQIIQ", body)
            ranges.append((domain, start, size, flags, length))
    assert cpus == [(0, 0, 1, 16), (2, 0, 1, 16), (1, 300, 1, 16), (3, 300, 1, 16)]
    assert ranges == [(0, 0, GB, 1, 40), (300, GB, 2 * GB, 1, 40), (300, 4 * GB, GB, 1, 40)]


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (Debian: acpica-tools) is not installed")
def test_the_reference_compiler_reads_the_table(memory, tmp_path):
    path = tmp_path / "srat.dat"
    path.write_bytes(srat(memory, Domain(1, frozenset({0}), ((0, GB),))))
    done = subprocess.run(["iasl", "-d", str(path)], capture_output=True, text=True, timeout=60, check=False)
    text = path.with_suffix(".dsl").read_text()
    assert done.returncode == 0
    assert text.count("Processor Local APIC/SAPIC Affinity") == text.count("Memory Affinity") == 1


def config(**domains):
    return Config.of({"acpi_tables": True, **{name.replace("_", "."): value for name, value in domains.items()}})


def domains_of(cpus=4, **domains):
    read = config(**{f"domains_{name}": value for name, value in domains.items()})
    return read_domains(read, cpus, REGIONS)


def test_memory_is_given_to_domains_in_order_and_around_the_hole():
    first, second = domains_of(**{"0_size": "1G", "0_cpus": "0-1", "7_size": "3G", "7_cpus": "2,3"})
    assert first == Domain(0, frozenset({0, 1}), ((0, GB),))
    assert second == Domain(7, frozenset({2, 3}), ((GB, 2 * GB), (4 * GB, GB)))


def test_without_sizes_memory_is_shared_out_equally():
    found = domains_of(**{"0_cpus": "0", "1_cpus": "1-3"})
    assert [d.ranges for d in found] == [((0, 2 * GB),), ((2 * GB, GB), (4 * GB, GB))]


def test_sizes_of_all_domains_together_are_the_memory_size():
    sizes = {"domains_0_size": "64M", "domains_1_size": "32M"}
    assert read_memory_size(config(memory_size="16M", **sizes)) == 96 << 20
    assert read_memory_size(config(memory_size="16M", domains_0_size="64M", domains_1_cpus="1")) == 16 << 20


@pytest.mark.parametrize(
    ("domains", "line"),
    [
        ({"0_cpus": "0-4"}, "vCPU 4 does not exist, there are 4"),
        ({"0_cpus": "0-3", "1_cpus": "3"}, "domains.1.cpus: vCPU 3 is in domain 0 too"),
        ({"0_cpus": "0,1,3"}, "vCPU 2 is in no memory domain"),
        ({"0_cpus": "all"}, "domains.0.cpus: 'all' is not a list of CPUs"),
        ({"x_cpus": "0-3"}, "domains.x: a memory domain is a number"),
        ({"0_size": "4G"}, "domains.0.cpus is not set"),
        ({"0_size": "5G", "0_cpus": "0-3"}, "memory domains have 5120 MB, but the machine has 4096 MB"),
    ],
)
def test_domains_that_make_no_sense_are_one_line(domains, line):
    with pytest.raises(ConfigError, match=line):
        domains_of(**domains)


def test_a_domains_bad_size_is_named():
    with pytest.raises(UsageError, match=r"invalid domains\.0\.size 'lots'"):
        read_memory_size(config(domains_0_size="lots", domains_0_cpus="0"))


def test_without_acpi_a_guest_could_not_learn_of_domains():
    with pytest.raises(ConfigError, match="add -A"):
        read_domains(Config.of({"domains.0.cpus": "0"}), 1, REGIONS)
