"""The flash memory of a boot ROM's variables, as firmware drives it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.bus.mmio import MmioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.flash import READS_BEFORE_SHOWN, Flash

BASE = 0xFFE00000
SIZE = 3 * 4096
READ_ARRAY, READ_STATUS, CLEAR_STATUS, READ_ID = 0xFF, 0x70, 0x50, 0x90


class Copy:
    """What the guest reads without exits, None where it does not."""

    shown = None

    def show(self, contents):
        assert self.shown is None
        self.shown = contents

    def hide(self):
        assert self.shown is not None
        self.shown = None


class Chip:
    def __init__(self):
        self.contents = bytearray(range(256)) * (SIZE // 256)
        self.copy = Copy()
        self.device = Flash(self.contents, self.copy)
        self.bus = MmioBus()
        self.device.attach(self.bus, BASE)

    def read(self, offset, size=1):
        return self.bus.read(BASE + offset, size)

    def write(self, offset, *values, size=1):
        for value in values:
            assert self.bus.write(BASE + offset, size, value)


@pytest.fixture
def chip():
    return Chip()


def test_it_reads_as_memory(chip):
    assert (chip.read(5), chip.read(0xFE, 4), chip.read(SIZE - 1)) == (5, 0x0100FFFE, 0xFF)
    assert chip.read(SIZE) is None


@pytest.mark.parametrize("command", [0x10, 0x40])
def test_a_byte_is_programmed_and_the_status_says_ready(chip, command):
    chip.write(9, command, 0xA5)
    assert chip.read(9) == 0x80
    assert chip.contents[9] == 0xA5
    chip.write(0, READ_ARRAY)
    assert chip.read(9) == 0xA5


def test_several_bytes_at_once(chip):
    chip.write(4, 0x40)
    chip.write(4, 0x11223344, size=4)
    chip.write(0, READ_ARRAY)
    assert chip.read(4, 4) == 0x11223344


def test_a_command_byte_can_be_programmed_too(chip):
    chip.write(3, 0x40, READ_STATUS, READ_ARRAY)
    assert chip.read(3) == READ_STATUS


def test_erasing_a_block_makes_it_all_ones(chip):
    before = bytes(chip.contents)
    chip.write(4096 + 17, 0x20, 0xD0)
    assert chip.read(0) == 0x80
    assert bytes(chip.contents) == before[:4096] + b"\xff" * 4096 + before[8192:]


def test_an_erase_that_is_not_confirmed_erases_nothing(chip):
    before = bytes(chip.contents)
    chip.write(0, 0x20, READ_ARRAY)
    assert bytes(chip.contents) == before


def test_edk2_takes_it_for_a_flash_memory(chip):
    """It clears the status and asks for it: RAM would give back the command, a flash memory gives 0."""
    chip.write(1, CLEAR_STATUS)
    assert chip.read(1) == 1
    chip.write(1, READ_STATUS)
    assert chip.read(1) == 0
    chip.write(1, READ_ARRAY)
    assert chip.read(1) == 1


def test_it_tells_who_it_is(chip):
    chip.write(0, READ_ID)
    assert (chip.read(0), chip.read(1)) == (0x89, 0x17)
    chip.write(0, READ_ARRAY)
    assert chip.read(1) == 1


def test_a_reset_goes_back_to_the_array(chip):
    chip.write(2, 0x40)
    chip.device.reset()
    assert chip.read(2) == 2
    chip.write(2, READ_STATUS)
    assert chip.contents[2] == 2


def test_a_program_in_progress_is_saved_and_restored(chip):
    chip.write(2, 0x40)
    other = Chip()
    other.device.restore(chip.device.save())
    other.write(2, 0x99)
    assert other.contents[2] == 0x99
    with pytest.raises(DeviceError):
        other.device.restore({"version": 1, "_reading": "array"})


def test_an_array_that_is_read_again_and_again_is_shown_until_something_is_written(chip):
    for n in range(READS_BEFORE_SHOWN):
        assert chip.copy.shown is None
        assert chip.read(n) == n & 0xFF
    assert chip.copy.shown == bytes(chip.contents)
    chip.write(7, 0x40)
    assert chip.copy.shown is None
    chip.write(7, 0xAA)
    for _ in range(READS_BEFORE_SHOWN):
        assert chip.read(7) == 0x80  # the status
    assert chip.copy.shown is None
    chip.write(0, READ_ARRAY)
    for _ in range(READS_BEFORE_SHOWN):
        assert chip.read(7) == 0xAA
    assert chip.copy.shown == bytes(chip.contents)


def test_who_programs_and_reads_in_turn_is_not_shown_the_array(chip):
    for n in range(2 * READS_BEFORE_SHOWN):
        chip.write(n, 0x40, 1, READ_ARRAY)
        assert chip.read(n) == 1
    assert chip.copy.shown is None


def test_a_restored_state_takes_the_array_away(chip):
    before = Chip()
    before.write(0, READ_STATUS)
    for _ in range(READS_BEFORE_SHOWN):
        chip.read(0)
    chip.device.restore(before.device.save())
    assert chip.copy.shown is None
    assert chip.read(0) == 0x80


@given(st.lists(st.tuples(st.booleans(), st.integers(-8, SIZE), st.integers(1, 8), st.integers(0, (1 << 64) - 1))))
def test_whatever_a_guest_does_the_contents_keep_their_size(accesses):
    chip = Chip()
    for is_write, offset, size, value in accesses:
        if is_write:
            chip.bus.write(BASE + offset, size, value & ((1 << 8 * size) - 1))
        else:
            answer = chip.read(offset, size)
            assert answer is None or 0 <= answer < 1 << 8 * size
        assert chip.copy.shown in (None, chip.contents)
    assert len(chip.contents) == SIZE
