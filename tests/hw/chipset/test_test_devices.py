"""The debug-exit port and the PC test device."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.debugexit import DebugExit
from pyhyve.hw.chipset.pctestdev import PcTestDevice
from tests.hw.fakes import Lines

MEMORY = 0xFF000000


class Machine:
    def __init__(self):
        self.pio, self.mmio, self.lines, self.ends = PioBus(), MmioBus(), Lines(), []
        self.device = PcTestDevice(self.lines.router, self.ends.append)
        self.device.attach(self.pio, self.mmio)


@pytest.fixture
def machine():
    return Machine()


@pytest.mark.parametrize(("size", "value", "status"), [(1, 0, 1), (1, 3, 7), (2, 0x10, 33), (4, 0x1FF, 255)])
def test_a_written_value_becomes_an_odd_status(machine, size, value, status):
    machine.pio.write(0xF4, size, value)
    assert machine.ends == [status]


def test_reading_the_exit_port_ends_nothing(machine):
    assert machine.pio.read(0xF4, 4) == 0
    assert machine.ends == []


def test_a_debug_exit_port_lies_where_it_is_put():
    pio, ends = PioBus(), []
    DebugExit(ends.append, 0x501, 2).attach(pio)
    assert pio.write(0x501, 2, 0x21)
    assert pio.write(0x502, 1, 2)
    assert not pio.write(0x503, 1, 2)
    assert ends == [0x43, 5]


def test_the_latch_keeps_bytes_words_and_doublewords(machine):
    pio = machine.pio
    pio.write(0xE0, 4, 0x11223344)
    pio.write(0xE1, 2, 0xAABB)
    pio.write(0xE3, 1, 0xFF)
    assert pio.read(0xE0, 4) == 0xFFAABB44
    assert (pio.read(0xE1, 1), pio.read(0xE2, 2)) == (0xBB, 0xFFAA)


@pytest.mark.parametrize("gsi", [0, 5, 15, 16, 23])
def test_an_interrupt_port_drives_its_line(machine, gsi):
    port = 0x2000 + gsi
    machine.pio.write(port, 1, 1)
    machine.pio.write(port, 1, 7)
    assert machine.lines.level(gsi)
    machine.pio.write(port, 1, 0)
    assert machine.lines.events == [(gsi, True), (gsi, False)]
    assert machine.pio.read(port, 1) == 0


def test_there_is_one_interrupt_port_for_each_input(machine):
    assert machine.pio.read(0x2018, 1) is None


def test_memory_keeps_what_is_written(machine):
    machine.mmio.write(MEMORY + 0xFFF8, 8, 0x1122334455667788)
    assert machine.mmio.read(MEMORY + 0xFFFC, 4) == 0x11223344
    assert machine.mmio.read(MEMORY, 8) == 0
    assert machine.mmio.read(MEMORY + 0x10000, 1) is None


def test_a_reset_clears_all_and_lets_go_of_the_lines(machine):
    machine.pio.write(0xE0, 4, 5)
    machine.mmio.write(MEMORY, 1, 5)
    machine.pio.write(0x2004, 1, 1)
    machine.device.reset()
    assert (machine.pio.read(0xE0, 4), machine.mmio.read(MEMORY, 1), machine.lines.level(4)) == (0, 0, False)


@given(st.lists(st.tuples(st.integers(0xE0, 0xE3), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1))))
def test_a_saved_state_is_taken_over(writes):
    one, other = Machine(), Machine()
    for port, size, value in writes:
        one.pio.write(port, size, value & ((1 << 8 * size) - 1))
    one.pio.write(0x2007, 1, 1)
    other.pio.write(0x2003, 1, 1)
    other.device.restore(one.device.save())
    assert other.pio.read(0xE0, 4) == one.pio.read(0xE0, 4)
    assert (other.lines.level(7), other.lines.level(3)) == (True, False)
    assert other.device.save() == one.device.save()


@pytest.mark.parametrize("change", [{"latch": -1}, {"latch": "x"}, {"memory": b"short"}, {"held": None}])
def test_a_damaged_state_changes_nothing(machine, change):
    machine.pio.write(0xE0, 4, 5)
    with pytest.raises(DeviceError):
        machine.device.restore({**machine.device.save(), **change})
    assert machine.pio.read(0xE0, 4) == 5


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0x1FFC, 0x201B), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1))
    ),
    st.lists(st.tuples(st.booleans(), st.integers(-8, 0x10008), st.integers(1, 8), st.integers(0, (1 << 64) - 1))),
)
def test_whatever_a_guest_does_each_answer_fits(ports, places):
    machine = Machine()
    accesses = [(machine.pio, *access) for access in ports]
    accesses += [(machine.mmio, write, MEMORY + offset, size, value) for write, offset, size, value in places]
    for bus, is_write, address, size, value in accesses:
        if is_write:
            bus.write(address, size, value & ((1 << 8 * size) - 1))
        else:
            answer = bus.read(address, size)
            assert answer is None or 0 <= answer < 1 << 8 * size
    machine.device.restore(machine.device.save())
    machine.device.reset()
    assert not any(machine.lines.level(gsi) for gsi in range(24))
