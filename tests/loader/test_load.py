"""Picking the loader by content, and the files that are no kernels."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhyve.errors import LoaderError, PyhyveError
from pyhyve.loader import load
from pyhyve.memory import GuestMemory
from pyhyve.vmm.registers import Reg, SegmentName
from tests.loader import images

FOREIGN = [
    (b"hello, I am a text file\n" * 10, "is not a kernel"),
    (bytes(4096), "is not a kernel"),
    (b"MZ\x00\x91".ljust(0x38, b"\0") + b"ARM\x64" + bytes(100), "is an arm64 kernel"),
    (b"MZ".ljust(0x38, b"\0") + b"RSC\x05" + bytes(100), "is a RISC-V kernel"),
    (b"MZ" + bytes(500), "is an EFI program"),
    (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip"),
    (b"(\xb5/\xfd" + bytes(100), "compressed with zstd"),
    (b"\x7fELF", "truncated"),
    (b"M", "is not a kernel"),
]


@pytest.mark.parametrize(("data", "message"), FOREIGN, ids=[message for _, message in FOREIGN])
def test_foreign_file_is_told_for_what_it_is(memory, write, data, message):
    path = write("kernel", data)
    with pytest.raises(LoaderError) as error:
        load(memory, path, None, "")
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("what", ["kernel", "initrd"])
def test_missing_empty_and_irregular_files_are_told_apart(memory, write, tmp_path, what):
    good = write("good", images.bzimage())

    def message(path):
        with pytest.raises(LoaderError) as error:
            load(memory, *((path, None) if what == "kernel" else (good, path)), "")
        assert str(path) in str(error.value)
        return str(error.value)

    os.mkfifo(tmp_path / "fifo")
    assert "No such file" in message(tmp_path / "nothing")
    assert f"{what} {tmp_path}/empty is empty" == message(write("empty", b""))
    assert "Is a directory" in message(tmp_path)
    assert "not a regular file" in message(tmp_path / "fifo")
    assert "not a regular file" in message("/dev/zero")


def test_path_with_a_zero_byte_is_refused(memory):
    with pytest.raises(LoaderError, match="cannot read kernel"):
        load(memory, "a\0b", None, "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_is_told(memory, write):
    path = write("k", images.bzimage())
    path.chmod(0)
    with pytest.raises(LoaderError, match="Permission denied"):
        load(memory, path, None, "")


def test_kernel_larger_than_guest_memory_is_refused_unread(memory, write):
    path = write("huge", b"")
    os.truncate(path, 1 << 40)
    with pytest.raises(LoaderError, match="larger than guest memory"):
        load(memory, path, None, "")


def test_guest_of_a_few_pages_is_told_that_it_needs_more(write):
    memory = GuestMemory(64 << 10)
    for data in (images.bzimage(), images.elf(notes=images.pvh_note(0x1000000))):
        with pytest.raises(LoaderError, match="guest memory"):
            load(memory, write("k", data), None, "")
    memory.close()


def test_elf_with_both_headers_starts_by_pvh(memory, write):
    content = images.multiboot_header() + b"\xf4" * 100
    data = images.elf(((0x1000000, content, 0x1000),), images.pvh_note(0x1000010))
    assert Reg.RAX not in load(memory, write("k", data), None, "").registers


class RecordingCpu:
    """Keeps the order of calls."""

    def __init__(self):
        self.calls = []

    def set_registers(self, values):
        self.calls.append(("registers", dict(values)))

    def set_table(self, name, value):
        self.calls.append(("table", name))

    def set_segment(self, name, value):
        self.calls.append(("segment", name))


def test_state_is_applied_with_the_mode_before_the_segments(memory, write):
    state = load(memory, write("k", images.bzimage()), None, "")
    cpu = RecordingCpu()
    state.apply(cpu)
    kinds = [kind for kind, _ in cpu.calls]
    assert kinds == ["registers", "table", "table", *["segment"] * 8]
    assert cpu.calls[0][1][Reg.EFER] == 0x500
    assert {name for kind, name in cpu.calls if kind == "segment"} == set(SegmentName)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=2000))
def test_no_file_whatsoever_does_more_than_raise_an_error(write, data):
    memory = GuestMemory(2 << 20)
    try:
        load(memory, write("k", data), None, "")
    except PyhyveError as error:
        assert "\n" not in str(error)
    finally:
        memory.close()


@pytest.mark.parametrize("kind", ["bzImage", "PVH"])
def test_a_root_pointer_that_is_filled_in_later_is_the_same(kind, memory, write):
    data = images.bzimage() if kind == "bzImage" else images.elf(notes=images.pvh_note(0x1000000))
    path = write("kernel", data)
    entry = load(memory, path, None, "", acpi_rsdp=0xF2400)
    assert memory.read_uint(entry.rsdp_pointer, 8) == 0xF2400
    entry = load(memory, path, None, "")
    assert memory.read_uint(entry.rsdp_pointer, 8) == 0
