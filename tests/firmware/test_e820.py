"""The memory map."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.firmware import e820
from pyhyve.firmware.e820 import E820Type
from pyhyve.memory import GuestMemory

PAGE = 4096


def ram(entries):
    return [(entry.start, entry.size) for entry in entries if entry.type is E820Type.RAM]


def test_small_machine_has_ram_around_the_legacy_hole():
    memory = GuestMemory(64 << 20)
    entries = e820.build(memory)
    memory.close()
    assert ram(entries) == [(0, 0xA0000), (0x100000, 63 << 20)]
    assert [(e.start, e.size) for e in entries if e.type is E820Type.RESERVED] == [
        (0xF0000, 0x10000),
        (0xE0000000, 0x10000000),
    ]


def test_memory_above_three_gibibytes_goes_above_four():
    memory = GuestMemory(5 << 30)
    assert ram(e820.build(memory))[-2:] == [(0x100000, (3 << 30) - 0x100000), (4 << 30, 2 << 30)]
    memory.close()


@pytest.mark.parametrize("reserved", [[(0x200000, 0x1000)], [(0x200000, 0x800), (0x200800, 0x800)]])
def test_reserved_range_is_cut_out_of_ram(reserved):
    memory = GuestMemory(4 << 20)
    assert ram(e820.build(memory, reserved)) == [(0, 0xA0000), (0x100000, 0x100000), (0x201000, 0x1FF000)]
    memory.close()


@settings(deadline=None)
@given(
    st.integers(1, 2048).map(lambda pages: pages * PAGE),
    st.lists(st.tuples(st.integers(0, 3 << 20), st.integers(0, 1 << 20)), max_size=6),
)
def test_ram_never_overlaps_what_is_reserved(size, reserved):
    memory = GuestMemory(size)
    entries = e820.build(memory, reserved)
    memory.close()
    pieces = ram(entries)
    assert all(length > 0 for _, length in pieces)
    assert [start for start, _ in pieces] == sorted(start for start, _ in pieces)
    holes = [*reserved, (0xA0000, 0x60000)]
    for start, length in pieces:
        assert start + length <= size
        assert all(start + length <= hole or hole + count <= start or not count for hole, count in holes)
    # every byte is in RAM or in a hole
    covered = set()
    for start, length in [*pieces, *holes]:
        covered.update(range(start // 512, -(-(start + length) // 512)))
    assert covered >= set(range(size // 512))
