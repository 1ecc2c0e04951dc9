from __future__ import annotations

import pytest

from pyhyve.bus.mmio import MmioBus
from pyhyve.hw.chipset.hpet import BASE, CAPABILITIES, PERIOD_FS, Hpet
from tests.hw.fakes import FakeClock, Lines

LEVEL, ENABLE, PERIODIC, SET_VALUE, MODE_32 = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 8
TICKS_PER_SECOND = 10**15 // PERIOD_FS


class Rig:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.lines = Lines()
        self.legacy: list[bool] = []
        self.hpet = Hpet(self.clock, self.lines.router, self.legacy.append)
        self.mmio = MmioBus()
        self.hpet.attach(self.mmio)

    def get(self, offset: int, size: int = 8) -> int:
        value = self.mmio.read(BASE + offset, size)
        assert value is not None
        return value

    def put(self, offset: int, value: int, size: int = 8) -> None:
        self.mmio.write(BASE + offset, size, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_capabilities(rig: Rig) -> None:
    assert rig.get(0) == CAPABILITIES
    assert rig.get(4, 4) == PERIOD_FS
    assert rig.get(0, 4) >> 8 & 0x1F == 2
    assert rig.get(0x100, 4) & 0x30 == 0x30
    assert rig.get(0x104, 4) == 0x00F00000


def test_counter_runs_at_its_period_only_while_enabled(rig: Rig) -> None:
    rig.clock.advance(1000)
    assert rig.get(0xF0) == 0
    rig.put(0x10, 1)
    rig.clock.advance(10**9)
    assert rig.get(0xF0) == TICKS_PER_SECOND
    rig.put(0x10, 0)
    rig.clock.advance(10**9)
    assert rig.get(0xF0) == TICKS_PER_SECOND


def test_counter_is_set_by_halves_while_halted(rig: Rig) -> None:
    rig.put(0xF0, 0xFFFFFFF0, 4)
    rig.put(0xF4, 0x1, 4)
    assert rig.get(0xF0) == 0x1FFFFFFF0
    rig.put(0x10, 1)
    rig.put(0xF0, 0)
    rig.clock.advance(3200)
    assert (rig.get(0xF4, 4), rig.get(0xF0, 4)) == (2, 0x10)


def test_one_shot_in_legacy_replacement_is_interrupt_0(rig: Rig) -> None:
    rig.put(0x10, 3)
    assert rig.legacy == [True]
    rig.put(0x100, ENABLE | MODE_32, 4)
    rig.put(0x108, rig.get(0xF0, 4) + 1000, 4)
    rig.clock.advance(99_900)
    assert rig.lines.events == []
    rig.clock.advance(100)
    assert rig.lines.events == [(0, True), (0, False)]
    rig.clock.advance(10**9)
    assert rig.lines.edges(0) == 1
    rig.put(0x10, 1)
    assert rig.legacy == [True, False]


def test_timer_1_in_legacy_replacement_is_interrupt_8(rig: Rig) -> None:
    rig.put(0x10, 3)
    rig.put(0x120, ENABLE, 4)
    rig.put(0x128, 10)
    rig.clock.advance(1000)
    assert rig.lines.edges(8) == 1


def test_periodic_timer_as_linux_programs_it(rig: Rig) -> None:
    """hpet_set_periodic(): the first write with SET_VALUE is the comparator, the second the period."""
    rig.put(0x10, 3)
    rig.put(0x100, ENABLE | PERIODIC | SET_VALUE | MODE_32, 4)
    rig.put(0x108, rig.get(0xF0, 4) + 40_000, 4)
    rig.put(0x108, 40_000, 4)
    rig.clock.advance(10**9)
    assert rig.lines.edges(0) == TICKS_PER_SECOND // 40_000
    assert rig.get(0x108, 4) == rig.get(0xF0, 4) + 40_000


def test_late_periodic_callback_catches_up_without_a_burst(rig: Rig) -> None:
    rig.put(0x10, 3)
    rig.put(0x100, ENABLE | PERIODIC | SET_VALUE, 4)
    rig.put(0x108, 10_000)
    timer = next(t for t in rig.clock.timers if t.deadline)
    rig.clock.now += 5_500_000
    timer.callback()
    assert rig.lines.edges(0) == 1
    assert rig.get(0x108) == 60_000
    rig.clock.advance(500_000)
    assert rig.lines.edges(0) == 2


def test_level_interrupt_holds_its_line_until_status_is_cleared(rig: Rig) -> None:
    rig.put(0x140, ENABLE | LEVEL | 20 << 9, 4)
    rig.put(0x148, 100)
    rig.put(0x10, 1)
    rig.clock.advance(10_000)
    assert rig.lines.level(20)
    assert rig.get(0x20) == 4
    rig.put(0x20, 1)
    assert rig.lines.level(20)
    rig.put(0x20, 4)
    assert not rig.lines.level(20)
    assert rig.get(0x20) == 0


def test_route_that_is_not_offered_interrupts_nowhere(rig: Rig) -> None:
    rig.put(0x100, ENABLE | 3 << 9, 4)
    rig.put(0x108, 100)
    rig.put(0x10, 1)
    rig.clock.advance(10_000)
    assert rig.lines.events == []


def test_disabled_timer_is_silent(rig: Rig) -> None:
    rig.put(0x10, 3)
    rig.put(0x108, 100)
    rig.clock.advance(10_000)
    assert rig.lines.events == []


def test_32_bit_comparator_wraps(rig: Rig) -> None:
    rig.put(0xF0, 0xFFFFFF00)
    rig.put(0x100, ENABLE | MODE_32, 4)
    rig.put(0x10, 3)
    rig.put(0x108, 0x100, 4)
    rig.clock.advance(0x200 * 100 - 100)
    assert rig.lines.edges(0) == 0
    rig.clock.advance(100)
    assert rig.lines.edges(0) == 1


def test_save_and_restore(rig: Rig) -> None:
    rig.put(0x10, 3)
    rig.put(0x100, ENABLE, 4)
    rig.put(0x108, 10_000)
    rig.clock.advance(500_000)
    other = Rig()
    other.clock.advance(777_777)
    other.hpet.restore(rig.hpet.save())
    assert other.get(0xF0) == 5_000
    assert other.legacy == [True]
    other.clock.advance(500_100)
    assert other.lines.edges(0) == 1
    other.hpet.reset()
    assert other.get(0x10) == 0
    assert other.legacy == [True, False]
