"""The registers in gdb's order and layout, on a CPU that keeps what it is given."""

import struct
import xml.etree.ElementTree as ElementTree

import pytest

from pyhyve.debug.gdb.registers import CannotWrite, RegisterFile
from pyhyve.vmm.registers import GENERAL, Access, Reg, Segment
from tests.debug.gdb.fakes import SimpleCpu


@pytest.fixture
def cpu():
    return SimpleCpu(0)


AVX = {2: 576}
AMD = {2: 576, 5: 832, 6: 896, 7: 1408}
INTEL = {2: 576, 5: 1088, 6: 1152, 7: 1664}


@pytest.fixture
def file():
    return RegisterFile(AVX)


def value(file, cpu, name):
    return int.from_bytes(file.read(cpu, file.numbers[name]), "little")


def put(file, cpu, name, number):
    register = file.registers[file.numbers[name]]
    file.write(cpu, file.numbers[name], number.to_bytes(register.bits // 8, "little"))


def test_the_description_lists_what_a_g_packet_holds(file, cpu):
    root = ElementTree.fromstring(file.description())
    sizes = [int(reg.get("bitsize")) for reg in root.iter("reg")]
    assert len(file.read_all(cpu)) == sum(sizes) // 8
    assert [reg.get("name") for reg in root.iter("reg")] == list(file.numbers)
    assert root.find("architecture").text == "i386:x86-64"
    names = [feature.get("name") for feature in root.iter("feature")]
    assert names[:4] == [f"org.gnu.gdb.i386.{part}" for part in ("core", "sse", "avx", "segments")]


def test_gdbs_numbers_are_those_of_its_own_layout(file):
    wanted = {"rax": 0, "rbx": 1, "rcx": 2, "rdx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7, "r15": 15, "rip": 16,
              "eflags": 17, "cs": 18, "gs": 23, "st0": 24, "fctrl": 32, "fop": 39, "xmm0": 40, "mxcsr": 56}  # fmt: skip
    assert {name: file.numbers[name] for name in wanted} == wanted


def test_general_registers_are_where_they_belong(file, cpu):
    cpu.registers.update({reg: 0x1000 + number for number, reg in enumerate(GENERAL)})
    assert [value(file, cpu, reg.value) for reg in GENERAL] == list(range(0x1000, 0x1010))
    put(file, cpu, "rbx", 1 << 63)
    assert cpu.registers[Reg.RBX] == 1 << 63
    put(file, cpu, "eflags", 0x202)
    assert cpu.registers[Reg.RFLAGS] == 0x202


def test_control_registers(file, cpu):
    put(file, cpu, "cr3", 0x1234000)
    assert cpu.registers[Reg.CR3] == 0x1234000 == value(file, cpu, "cr3")


def test_vector_registers_in_use(file, cpu):
    cpu.area[512] = 7
    cpu.area[160 + 16 : 160 + 32] = bytes(range(16))
    cpu.area[576 + 16 : 576 + 32] = bytes(range(16, 32))
    cpu.area[32 : 32 + 10] = bytes(range(10))
    cpu.area[24:28] = struct.pack("<I", 0x1FA0)
    assert file.read(cpu, file.numbers["xmm1"]) == bytes(range(16))
    assert file.read(cpu, file.numbers["ymm1h"]) == bytes(range(16, 32))
    assert file.read(cpu, file.numbers["st0"]) == bytes(range(10))
    assert value(file, cpu, "mxcsr") == 0x1FA0


def test_what_is_in_its_initial_state_reads_as_such(file, cpu):
    cpu.area[:] = b"\xaa" * 832
    cpu.area[512:576] = bytes(64)
    assert value(file, cpu, "fctrl") == 0x37F
    assert value(file, cpu, "ftag") == 0xFFFF
    assert value(file, cpu, "xmm3") == value(file, cpu, "ymm3h") == value(file, cpu, "st3") == 0


@pytest.mark.parametrize(("name", "component", "offset"), [("st2", 1, 64), ("xmm2", 2, 192), ("ymm2h", 4, 608)])
def test_writing_a_vector_register_takes_its_state_out_of_the_initial_one(file, cpu, name, component, offset):
    put(file, cpu, name, 0x123456789A)
    assert cpu.area[512] == component
    assert int.from_bytes(cpu.area[offset : offset + 10], "little") == 0x123456789A
    assert value(file, cpu, name) == 0x123456789A


def test_the_tag_word_has_two_bits_a_register(file, cpu):
    one, zero, nan = (0x3FFF << 64) | (1 << 63), 0, (0x7FFF << 64) | (3 << 62)
    cpu.area[512] = 1
    cpu.area[2:4] = struct.pack("<H", 5 << 11)  # TOP is 5: st0 is physical register 5
    cpu.area[4] = 0b11100000
    for number, number_value in enumerate((one, zero, nan)):
        cpu.area[32 + 16 * number : 42 + 16 * number] = number_value.to_bytes(10, "little")
    assert value(file, cpu, "ftag") == 0b10_01_00_11_11_11_11_11
    put(file, cpu, "ftag", 0xFFFC)
    assert cpu.area[4] == 1


def test_selectors_can_be_set_in_real_mode_only(file, cpu):
    with pytest.raises(CannotWrite):
        put(file, cpu, "cs", 0x10)
    put(file, cpu, "cs", 0x08)  # what it is already
    cpu.registers[Reg.CR0] = 0x10
    put(file, cpu, "ds", 0x1234)
    assert (cpu.segment.selector, cpu.segment.base) == (0x1234, 0x12340)


def test_a_segments_base(file, cpu):
    put(file, cpu, "gs_base", 0xFFFF888000000000)
    assert cpu.segment == Segment(0x08, 0xFFFF888000000000, 0xFFFFFFFF, cpu.segment.access)
    with pytest.raises(CannotWrite):
        put(file, cpu, "fs_base", 1 << 60)


def test_writing_all_changes_only_what_differs(file, cpu):
    data = bytearray(file.read_all(cpu))
    data[8] = 0x55  # rbx; cs stays as it is, which could not be written
    file.write_all(cpu, bytes(data))
    assert cpu.registers[Reg.RBX] == 0x55
    assert cpu.registers.keys() == {Reg.RIP, Reg.RFLAGS, Reg.CR0, Reg.RBX}


def test_a_value_of_another_size_is_refused(file, cpu):
    with pytest.raises(CannotWrite):
        file.write(cpu, 0, bytes(4))


@pytest.mark.parametrize("components", [{}, {5: 832, 6: 896, 7: 1408}])
def test_without_avx_there_are_no_ymm_registers(cpu, components):
    cpu.area = cpu.area[:576]
    numbers = RegisterFile(components).numbers
    assert not {"ymm0h", "zmm0h", "k0", "xmm16"} & numbers.keys()


@pytest.mark.parametrize("components", [AMD, INTEL])
def test_avx_512_lies_where_cpuid_says(cpu, components):
    opmask, high, upper = (components[number] for number in (5, 6, 7))
    cpu.area = bytearray(range(256)) * 11
    cpu.area[512:576] = bytes([0xE7]) + bytes(63)
    file = RegisterFile(components)
    for name, at, size in (
        ("k0", opmask, 8), ("k7", opmask + 56, 8), ("zmm0h", high, 32), ("zmm15h", high + 480, 32),
        ("xmm16", upper, 16), ("ymm16h", upper + 16, 16), ("zmm16h", upper + 32, 32), ("zmm31h", upper + 992, 32),
    ):  # fmt: skip
        assert file.read(cpu, file.numbers[name]) == bytes(cpu.area[at : at + size]), name
    cpu.area[512] = 7
    assert value(file, cpu, "k7") == value(file, cpu, "zmm3h") == value(file, cpu, "zmm31h") == 0
    put(file, cpu, "zmm20h", 1 << 255 | 7)
    assert cpu.area[512] == 0x87
    assert cpu.area[upper + 4 * 64 + 32] == 7
    assert value(file, cpu, "zmm20h") == 1 << 255 | 7
    put(file, cpu, "k1", 5)
    assert (cpu.area[512], value(file, cpu, "k1"), value(file, cpu, "k2")) == (0xA7, 5, 0)


def test_the_avx_512_feature_is_complete():
    root = ElementTree.fromstring(RegisterFile(AMD).description())
    features = {feature.get("name"): feature for feature in root.iter("feature")}
    registers = {reg.get("name"): int(reg.get("bitsize")) for reg in features["org.gnu.gdb.i386.avx512"].iter("reg")}
    wanted = {f"k{n}": 64 for n in range(8)} | {f"zmm{n}h": 256 for n in range(32)}
    assert registers == wanted | {name: 128 for n in range(16, 32) for name in (f"xmm{n}", f"ymm{n}h")}
    assert "org.gnu.gdb.i386.avx512" not in RegisterFile(AVX).description()


def test_a_16_bit_guest_has_the_same_layout(file, cpu):
    cpu.segment = Segment(0xF000, 0xF0000, 0xFFFF, int(Access.PRESENT | Access.S) | 0xB)
    cpu.registers = {Reg.RIP: 0xFFF0, Reg.CR0: 0x10}
    assert value(file, cpu, "rip") == 0xFFF0
    assert len(file.read_all(cpu)) == sum(register.bits // 8 for register in file.registers)
