"""ELF kernels by their PVH entry."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.errors import LoaderError
from pyhyve.firmware import e820
from pyhyve.loader import elf, load
from pyhyve.memory import GuestMemory
from pyhyve.vmm.registers import Reg, SegmentName
from tests.loader import images

CODE = b"\xf4" * 100
START_INFO = "<IIIIQQQQII"


def vmlinux(**more):
    return images.elf(((0x1000000, CODE, 0x3000),), images.pvh_note(0x1000010), **more)


def start_info(memory, state):
    return memory.unpack(state.registers[Reg.RBX], START_INFO)


def test_segments_are_loaded_and_the_rest_of_them_is_zero(memory, write):
    memory.write(0x1000000, b"\xaa" * 0x3000)
    load(memory, write("k", vmlinux()), None, "")
    assert memory.read(0x1000000, 0x3000) == CODE.ljust(0x3000, b"\0")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("note_size", [4, 8])
def test_cpu_starts_at_the_note_in_32_bit_mode_without_paging(memory, write, bits, note_size):
    machine = 3 if bits == 32 else 62
    data = images.elf(((0x1000000, CODE, 0x1000),), images.pvh_note(0x1000010, note_size), bits=bits, machine=machine)
    state = load(memory, write("k", data), None, "")
    assert state.registers[Reg.RIP] == 0x1000010
    assert state.registers[Reg.CR0] & 0x80000001 == 1
    assert state.registers[Reg.CR4] == 0
    assert state.registers[Reg.EFER] == 0
    assert state.registers[Reg.RFLAGS] == 2
    code = state.segments[SegmentName.CS]
    assert (code.base, code.limit) == (0, 0xFFFFFFFF)
    assert code.access & 0x6000 == 0x4000, "a 32-bit segment"
    assert state.segments[SegmentName.TR].access & 0xF == 0xB


def test_start_info_tells_command_line_memory_and_root_pointer(memory, write):
    state = load(memory, write("k", vmlinux()), None, "quiet", acpi_rsdp=0xF2400)
    magic, version, flags, modules, module_list, cmdline, rsdp, memory_map, entries, _ = start_info(memory, state)
    assert (magic, version, flags) == (0x336EC578, 1, 0)
    assert (modules, module_list) == (0, 0)
    assert memory.read(cmdline, 6) == b"quiet\0"
    assert rsdp == 0xF2400
    ranges = [memory.unpack(memory_map + 24 * i, "<QQII") for i in range(entries)]
    assert ranges == [(item.start, item.size, item.type, 0) for item in e820.build(memory)]


def test_initrd_is_the_first_module(memory, write):
    content = bytes(range(256)) * 40
    state = load(memory, write("k", vmlinux()), write("i", content), "")
    _, _, _, modules, module_list, *_ = start_info(memory, state)
    assert modules == 1
    address, size, _, _ = memory.unpack(module_list, "<QQQQ")
    assert address % 4096 == 0
    assert memory.read(address, size) == content


def test_entry_note_is_found_among_others(memory, write):
    notes = images.note(b"GNU\0", 3, b"\1" * 20) + images.note(b"Xen\0", 6, b"linux\0") + images.pvh_note(0x1000020)
    data = images.elf(((0x1000000, CODE, 0x1000),), notes)
    assert load(memory, write("k", data), None, "").registers[Reg.RIP] == 0x1000020


def segment_at(address):
    return images.elf(((address, CODE, 0x1000),), images.pvh_note(address))


BAD = [
    (images.elf(), "neither a PVH entry"),
    (images.elf(notes=images.note(b"Xen\0", 18, b"123")), "neither a PVH entry"),
    (images.elf((), images.pvh_note(0)), "lies in none of its segments"),
    (images.elf(notes=images.pvh_note(0x2000000)), "lies in none of its segments"),
    (images.elf(machine=183), "is for AArch64, not for x86"),
    (images.elf(machine=999), "is for ELF machine 999"),
    (images.elf(machine=22, encoding=2), "not for x86"),
    (images.elf(kind=1), "not an executable"),
    (vmlinux()[:40], "truncated"),
    (vmlinux()[:100], "truncated"),
    (vmlinux()[:200], "truncated"),
    (b"\x7fELF\x07\x01" + bytes(100), "ELF class is 7"),
    (images.elf(((0x1000000, CODE, 10),), images.pvh_note(0x1000000)), "100 bytes in the file, 10 in memory"),
    (segment_at(0x6000), "which the loader itself uses"),
    (segment_at(0x40000000), "needs at least 1025 MB of guest memory, but there are 64 MB"),
    (segment_at((1 << 64) - 0x800), "needs at least"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_file_is_one_line_that_names_it(memory, write, data, message):
    path = write("vmlinux", data)
    with pytest.raises(LoaderError) as error:
        load(memory, path, None, "")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_command_line_longer_than_linux_takes_is_refused(memory, write):
    path = write("k", vmlinux())
    load(memory, path, None, "x" * 2047)
    with pytest.raises(LoaderError, match="at most 2047"):
        load(memory, path, None, "x" * 2048)


def test_initrd_that_does_not_fit_is_refused(memory, write):
    with pytest.raises(LoaderError, match="does not fit"):
        load(memory, write("k", vmlinux()), write("i", bytes(50 << 20)), "")


@given(st.binary(max_size=200))
def test_notes_of_any_content_come_to_an_end(data):
    header = elf.ProgramHeader(4, 0, 0, len(data), 4, memoryview(data))
    assert len(list(elf.notes(header))) <= len(data) // 12


@given(st.sampled_from([32, 64]), st.lists(st.tuples(st.integers(4, 400), st.integers(0, 255)), max_size=12))
def test_no_header_whatsoever_does_more_than_raise_loader_error(bits, changes):
    data = bytearray(vmlinux(bits=bits, machine=3 if bits == 32 else 62))
    for offset, value in changes:
        data[offset % len(data)] = value
    memory = GuestMemory(32 << 20)
    path = Path("k")
    try:
        elf.load(memory, path, elf.parse(bytes(data), "k"), None, "", e820.build(memory))
    except LoaderError as error:
        assert "\n" not in str(error)
    finally:
        memory.close()


def test_note_padding_follows_the_segment_alignment():
    data = images.note(b"abcde", 1, b"x" * 9, align=8) + images.note(b"Xen\0", 18, struct.pack("<I", 7), align=8)
    header = elf.ProgramHeader(4, 0, 0, len(data), 8, memoryview(data))
    assert list(elf.notes(header)) == [(b"abcde", 1, b"x" * 9), (b"Xen\0", 18, b"\7\0\0\0")]
