"""Multiboot kernels."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.errors import LoaderError
from pyhyve.firmware import e820
from pyhyve.loader import load, multiboot
from pyhyve.memory import GuestMemory
from pyhyve.vmm.registers import Reg, SegmentName
from tests.loader import images

INFO = "<7I4III"


def kernel(flags=0, **more):
    content = images.multiboot_header(flags) + b"\xf4" * 100
    more = {"bits": 32, "machine": 3, "entry": 0x100010, **more}
    return images.elf(((0x100000, content, 0x2000),), **more)


def info(memory, state):
    return memory.unpack(state.registers[Reg.RBX], INFO)


@pytest.mark.parametrize(("bits", "machine"), [(32, 3), (64, 62)])
def test_cpu_starts_in_32_bit_mode_with_the_magic_number(memory, write, bits, machine):
    state = load(memory, write("k", kernel(bits=bits, machine=machine)), None, "")
    assert state.registers[Reg.RAX] == 0x2BADB002
    assert state.registers[Reg.RIP] == 0x100010
    assert state.registers[Reg.CR0] & 0x80000001 == 1
    assert state.registers[Reg.RFLAGS] == 2
    code = state.segments[SegmentName.CS]
    assert (code.base, code.limit, code.access & 0x6000) == (0, 0xFFFFFFFF, 0x4000)


def test_entry_is_virtual_and_becomes_physical(memory, write):
    data = kernel(virtual_offset=0xC0000000, entry=0xC0100010)
    assert load(memory, write("k", data), None, "").registers[Reg.RIP] == 0x100010


def test_information_tells_memory_and_command_line(memory, write):
    state = load(memory, write("k", kernel()), None, "one two")
    flags, lower, upper, _, cmdline, modules, _, *_, map_length, map_address = info(memory, state)
    assert flags == 1 | 4 | 0x40 | 0x200
    assert (lower, upper) == (640, (64 << 10) - 1024)
    assert memory.read(cmdline, 8) == b"one two\0"
    assert modules == 0
    entries = []
    position = map_address
    while position < map_address + map_length:
        size, start, length, kind = memory.unpack(position, "<IQQI")
        entries.append((start, length, kind))
        position += size + 4
    assert entries == [(item.start, item.size, item.type) for item in e820.build(memory)]


def test_initrd_is_a_module_behind_the_kernel(memory, write):
    content = b"module" * 1000
    state = load(memory, write("k", kernel()), write("i", content), "")
    flags, _, _, _, _, modules, module_list, *_ = info(memory, state)
    assert flags & 8
    assert modules == 1
    start, end, text, _ = memory.unpack(module_list, "<4I")
    assert start == 0x102000
    assert memory.read(start, end - start) == content
    assert memory.read(text, 1) == b"\0"


def test_file_with_addresses_in_its_header_need_not_be_elf(memory, write):
    code = b"\xf4" * 50
    addresses = (0x200010, 0x200000, 0, 0x203000, 0x200030)
    data = b"#" * 16 + images.multiboot_header(0x10000, addresses) + code
    state = load(memory, write("k", data), None, "")
    assert state.registers[Reg.RIP] == 0x200030
    assert memory.read(0x200000, len(data)) == data
    assert memory.read(0x200000 + len(data), 100) == bytes(100)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (kernel(flags=8), "demands multiboot features 0x8"),
        (kernel(entry=0x300000), "entry 0x300000 lies in none of its segments"),
        (images.multiboot_header(0x10000, (0x1000, 0x200000, 0, 0, 0)), "load address 0x200000"),
        (images.multiboot_header(0x10000, (0x200100, 0x200000, 0, 0, 0)), "load address 0x200000"),
        (images.multiboot_header(0x10000, (0x200000, 0x200000, 0x300000, 0, 0)), "truncated"),
        (images.multiboot_header(0x10000, (0x200000, 0x200000, 0x100000, 0, 0)), "truncated"),
        (images.multiboot_header(0x10000, (0x7000, 0x7000, 0, 0, 0x7000)), "which the loader itself uses"),
        (images.multiboot_header(0x10000, (0x200000, 0x200000, 0, 0xFFFFFFFF, 0x200000)), "needs at least"),
    ],
)
def test_bad_file_is_one_line_that_names_it(memory, write, data, message):
    path = write("kernel", data)
    with pytest.raises(LoaderError) as error:
        load(memory, path, None, "")
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_header_is_searched_in_the_first_8_kibibytes_on_4_bytes():
    header = images.multiboot_header()
    assert multiboot.find_header(bytes(8180) + header).offset == 8180
    assert multiboot.find_header(bytes(8184) + header) is None
    assert multiboot.find_header(bytes(2) + header) is None
    assert multiboot.find_header(header[:11]) is None
    assert multiboot.find_header(header[:8] + bytes(4)) is None, "the checksum is wrong"


def test_initrd_that_does_not_fit_is_refused(memory, write):
    with pytest.raises(LoaderError, match="does not fit"):
        load(memory, write("k", kernel()), write("i", bytes(63 << 20)), "")


@given(
    st.integers(0, 0x1FFFF),
    st.tuples(*[st.integers(0, 0xFFFFFFFF) | st.integers(0x100000, 0x110000)] * 5),
    st.binary(max_size=64),
)
def test_no_header_whatsoever_does_more_than_raise_loader_error(flags, addresses, tail):
    data = images.multiboot_header(flags, addresses) + tail
    memory = GuestMemory(2 << 20)
    try:
        header = multiboot.find_header(data)
        multiboot.load(memory, Path("k"), data, header, None, "", e820.build(memory))
    except LoaderError as error:
        assert "\n" not in str(error)
    finally:
        memory.close()
