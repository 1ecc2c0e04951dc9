"""Linux bzImage by the 64-bit boot protocol, checked in guest memory as the kernel would find it."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.errors import LoaderError
from pyhyve.firmware import e820
from pyhyve.loader import linux, load
from pyhyve.memory import GuestMemory
from pyhyve.vmm.registers import Reg, SegmentName
from tests.loader import images

BODY = bytes(range(256)) * 64


def params(memory, offset, layout):
    values = memory.unpack(linux.BOOT_PARAMS + offset, layout)
    return values[0] if len(values) == 1 else values


def test_protected_mode_part_goes_to_its_preferred_address(memory, write):
    load(memory, write("k", images.bzimage(BODY)), None, "")
    assert memory.read(0x1000000, len(BODY)) == BODY


def test_kernel_that_cannot_move_goes_to_one_megabyte(memory, write):
    state = load(memory, write("k", images.bzimage(BODY, relocatable=0)), None, "")
    assert memory.read(0x100000, len(BODY)) == BODY
    assert state.registers[Reg.RIP] == 0x100200


def test_cpu_starts_in_64_bit_mode_at_the_64_bit_entry(memory, write):
    state = load(memory, write("k", images.bzimage(BODY)), None, "")
    registers = state.registers
    assert registers[Reg.RIP] == 0x1000200
    assert registers[Reg.RSI] == linux.BOOT_PARAMS
    assert registers[Reg.CR0] & 0x80000001 == 0x80000001
    assert registers[Reg.CR4] & 0x20
    assert registers[Reg.EFER] == 0x500
    assert registers[Reg.RFLAGS] == 2, "interrupts are off"
    code, data = state.segments[SegmentName.CS], state.segments[SegmentName.DS]
    assert code.selector == 0x10
    assert code.access & 0x2000, "a 64-bit segment"
    assert not code.access & 0x4000
    assert data.selector == 0x18
    assert {state.segments[name].selector for name in (SegmentName.ES, SegmentName.SS)} == {0x18}


def test_a_32_bit_kernel_starts_in_flat_protected_mode_at_its_begin(memory, write):
    state = load(memory, write("k", images.bzimage(BODY, xloadflags=0)), None, "")
    registers = state.registers
    assert registers[Reg.RIP] == 0x1000000
    assert registers[Reg.RSI] == linux.BOOT_PARAMS
    assert registers[Reg.CR0] & 0x80000001 == 1, "protected mode without paging"
    assert registers[Reg.EFER] == 0
    assert registers[Reg.RFLAGS] == 2, "interrupts are off"
    assert all(registers.get(name, 0) == 0 for name in (Reg.RBP, Reg.RDI, Reg.RBX)), "boot.rst, 32-bit boot protocol"
    code, data = state.segments[SegmentName.CS], state.segments[SegmentName.DS]
    assert (code.selector, data.selector) == (0x10, 0x18)
    assert code.access & 0x6000 == 0x4000, "a 32-bit segment"
    assert params(memory, 0x214, "<I") == 0x1000000


def test_gdt_agrees_with_the_segment_registers(memory, write):
    state = load(memory, write("k", images.bzimage(BODY)), None, "")
    table = state.tables["gdtr"]
    for name in (SegmentName.CS, SegmentName.DS, SegmentName.SS, SegmentName.TR):
        segment = state.segments[name]
        assert segment.selector + 8 <= table.limit + 1
        descriptor = memory.read_uint(table.base + segment.selector, 8)
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        if descriptor >> 55 & 1:
            limit = limit << 12 | 0xFFF
        assert limit == segment.limit
        assert descriptor >> 40 & 0xF0FF == segment.access


@pytest.mark.parametrize("address", [0, 0x1000, 0x1FFFFF, 0x200000, 0x3FFFFFFF, 0x40000000, 0xFEC00000, 0xFFFFFFFF])
def test_first_four_gibibytes_are_mapped_one_to_one(memory, write, address):
    state = load(memory, write("k", images.bzimage(BODY)), None, "")
    table = state.registers[Reg.CR3]
    for shift in (39, 30):
        entry = memory.read_uint(table + 8 * (address >> shift & 511), 8)
        assert entry & 3 == 3
        assert not entry & 0x80
        table = entry & ~0xFFF
    entry = memory.read_uint(table + 8 * (address >> 21 & 511), 8)
    assert entry & 0x83 == 0x83
    assert entry & ~0x1FFFFF | address & 0x1FFFFF == address


def test_setup_header_is_copied_and_completed(memory, write):
    image = images.bzimage(BODY)
    load(memory, write("k", image), None, "console=ttyS0", acpi_rsdp=0xF2400)
    assert memory.read(linux.BOOT_PARAMS + 0x202, 4) == b"HdrS"
    assert params(memory, 0x210, "<B") == 0xFF
    assert params(memory, 0x214, "<I") == 0x1000000
    assert params(memory, 0x1FA, "<H") == 0xFFFF
    assert params(memory, 0x70, "<Q") == 0xF2400
    assert params(memory, 0x1EF, "<B") == 0, "the sentinel says that boot_params were cleared"
    cmdline = params(memory, 0x228, "<I")
    assert memory.read(cmdline, 14) == b"console=ttyS0\0"


def test_memory_map_is_handed_over(write):
    memory = GuestMemory(4 << 30)
    load(memory, write("k", images.bzimage(BODY)), None, "", reserved=[(0xE0000000, 0x10000000)])
    count = params(memory, 0x1E8, "<B")
    entries = [params(memory, 0x2D0 + 20 * i, "<QQI") for i in range(count)]
    memory.close()
    assert entries == [
        (0, 0xA0000, 1),
        (0xF0000, 0x10000, 2),
        (0x100000, (3 << 30) - 0x100000, 1),
        (0xE0000000, 0x10000000, 2),
        (4 << 30, 1 << 30, 1),
    ]


def test_random_seed_is_handed_over_as_setup_data(memory, write):
    image = images.bzimage(BODY)
    path = write("k", image)
    linux.load(memory, path, image, None, "", e820.build(memory), seed=b"s" * 32)
    address = params(memory, 0x250, "<Q")
    assert memory.unpack(address, "<QII") == (0, 9, 32)
    assert memory.read(address + 16, 32) == b"s" * 32


def test_initrd_goes_to_the_top_of_memory_on_a_page(memory, write):
    initrd = os.urandom(10000)
    load(memory, write("k", images.bzimage(BODY)), write("i", initrd), "")
    address, size = params(memory, 0x218, "<II")
    assert size == len(initrd)
    assert address % 4096 == 0
    assert (64 << 20) - 4096 < address + size <= 64 << 20
    assert memory.read(address, size) == initrd


def test_initrd_stays_below_the_limit_of_the_kernel(memory, write):
    kernel = images.bzimage(BODY, initrd_addr_max=0x2FFFFFF)
    load(memory, write("k", kernel), write("i", b"x" * 5000), "")
    address, size = params(memory, 0x218, "<II")
    assert address + size <= 0x3000000
    assert address + size > 0x3000000 - 8192


def test_without_an_initrd_none_is_announced(memory, write):
    load(memory, write("k", images.bzimage(BODY)), None, "")
    assert params(memory, 0x218, "<II") == (0, 0)


def test_loading_tells_who_caches_memory(memory, write):
    seen = []
    memory.on_write.append(lambda gpa, length: seen.append((gpa, length)))
    load(memory, write("k", images.bzimage(BODY)), write("i", b"x" * 5000), "")
    assert (0x1000000, len(BODY)) in seen
    assert any(length == 5000 for _, length in seen)


BAD_HEADERS = [
    ({"version": 0x020B}, "too old: its boot protocol is 2.11"),
    ({"loadflags": 0}, "zImage"),
    ({"jump": 0x10}, "setup header ends at"),
    ({"jump": 0xFF}, "setup header ends at"),
    ({"alignment": 0x300000}, "damaged"),
    ({"alignment": 0x4000000}, "damaged"),
    ({"pref_address": 0, "alignment": 0}, "below 1 MB"),
    ({"syssize": 0x1000000}, "truncated"),
    ({"payload": (0, 0x100000)}, "truncated"),
    ({"payload": (0xFFFFFFFF, 0xFFFFFFFF)}, "truncated"),
    ({"body": b""}, "truncated"),
    ({"init_size": 0x7FFFFFFF}, "needs at least 2064 MB of guest memory, but there are 64 MB"),
    ({"pref_address": 1 << 63, "alignment": 0}, "needs at least"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_HEADERS, ids=lambda value: str(value)[:30])
def test_bad_header_is_one_line_that_names_the_file(memory, write, fields, message):
    path = write("kernel", images.bzimage(**fields))
    with pytest.raises(LoaderError) as error:
        load(memory, path, None, "")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_kernel_cut_short_is_truncated_at_any_length(memory, write):
    image = images.bzimage(BODY)
    for length in (0x206, 0x230, 0x267, 0x300, len(image) - len(BODY), len(image) - 1000, len(image) - 17):
        with pytest.raises(LoaderError, match="truncated"):
            load(memory, write("k", image[:length]), None, "")


def test_command_line_as_long_as_the_kernel_takes(memory, write):
    path = write("k", images.bzimage(BODY, cmdline_size=100))
    load(memory, path, None, "x" * 100)
    with pytest.raises(LoaderError, match="command line has 101 bytes, but this kernel takes at most 100"):
        load(memory, path, None, "x" * 101)


def test_command_line_with_a_zero_byte_is_refused(memory, write):
    with pytest.raises(LoaderError, match="zero byte"):
        load(memory, write("k", images.bzimage(BODY)), None, "a\0b")


def test_command_line_that_cannot_be_encoded_is_refused(memory, write):
    with pytest.raises(LoaderError, match="encoded"):
        load(memory, write("k", images.bzimage(BODY)), None, "\ud800")


def test_initrd_that_does_not_fit_is_refused(memory, write):
    kernel = write("k", images.bzimage(BODY))
    with pytest.raises(LoaderError, match=r"initrd .*i \(41 MB\) does not fit: guest memory has room for 40 MB"):
        load(memory, kernel, write("i", bytes((40 << 20) + 1)), "")


@given(
    st.lists(st.tuples(st.integers(0x1F1, 0x26F), st.integers(0, 255)), max_size=12),
    st.integers(0, 0x3000),
)
def test_no_header_whatsoever_does_more_than_raise_loader_error(changes, cut):
    image = bytearray(images.bzimage(BODY))
    for offset, value in changes:
        image[offset] = value
    memory = GuestMemory(32 << 20)
    try:
        linux.load(memory, Path("k"), bytes(image[: len(image) - cut]), None, "", e820.build(memory), seed=b"")
    except LoaderError as error:
        assert "\n" not in str(error)
    else:
        header = linux.parse_header(bytes(image[: len(image) - cut]), "k")
        address = header.pref_address if header.relocatable else 0x100000
        assert struct.unpack("<I", memory.read(linux.BOOT_PARAMS + 0x214, 4)) == (address,)
    finally:
        memory.close()
