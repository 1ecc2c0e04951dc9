from __future__ import annotations

import calendar

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.hw.chipset.rtc import A, B, C, Cell, Rtc
from tests.hw.fakes import FakeClock, Lines

SECOND = 1_000_000_000
START = calendar.timegm((2024, 2, 28, 23, 59, 50))  # a Wednesday before a leap day


class Rig:
    def __init__(self, low: int = 512 << 20, high: int = 0, **options: bool) -> None:
        self.clock = FakeClock()
        self.origin = self.clock.now
        self.lines = Lines()
        self.rtc = Rtc(self.clock, self.lines.router.line(8, "rtc"), low, high, wall=self.wall, **options)
        self.pio = PioBus()
        self.rtc.attach(self.pio)

    def wall(self) -> float:
        return START + (self.clock.now - self.origin) / SECOND

    def get(self, cell: int) -> int:
        self.pio.write(0x70, 1, cell)
        value = self.pio.read(0x71, 1)
        assert value is not None
        return value

    def put(self, cell: int, value: int) -> None:
        self.pio.write(0x70, 1, cell)
        self.pio.write(0x71, 1, value)

    def time(self) -> tuple[int, ...]:
        cells = (Cell.CENTURY, Cell.YEAR, Cell.MONTH, Cell.DAY, Cell.HOURS, Cell.MINUTES, Cell.SECONDS)
        return tuple(self.get(cell) for cell in cells)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_time_is_the_hosts_in_bcd(rig: Rig) -> None:
    assert rig.time() == (0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x50)
    assert rig.get(Cell.WEEKDAY) == 4
    rig.clock.advance(11 * SECOND)
    assert rig.time() == (0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x01)


def test_binary_and_12_hour_modes(rig: Rig) -> None:
    rig.put(Cell.B, B.BINARY)
    assert (rig.get(Cell.HOURS), rig.get(Cell.SECONDS)) == (0x80 | 11, 50)
    rig.put(Cell.B, 0)
    assert rig.get(Cell.HOURS) == 0x91
    rig.clock.advance(10 * SECOND)
    assert rig.get(Cell.HOURS) == 0x12


def test_localtime(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "XYZ-3")
    time.tzset()
    try:
        assert Rig(use_localtime=True).get(Cell.HOURS) == 0x02
    finally:
        monkeypatch.undo()
        time.tzset()


def test_guest_sets_the_clock(rig: Rig) -> None:
    rig.put(Cell.B, B.SET | B.HOURS_24)
    for cell, value in ((Cell.CENTURY, 0x19), (Cell.YEAR, 0x99), (Cell.MONTH, 0x12), (Cell.DAY, 0x31)):
        rig.put(cell, value)
    for cell, value in ((Cell.HOURS, 0x23), (Cell.MINUTES, 0x59), (Cell.SECONDS, 0x59)):
        rig.put(cell, value)
    rig.clock.advance(5 * SECOND)
    assert rig.get(Cell.SECONDS) == 0x59
    rig.put(Cell.B, B.HOURS_24)
    assert rig.time() == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59)
    rig.clock.advance(SECOND)
    assert rig.time() == (0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00)


def test_update_in_progress_shows_before_the_second_changes(rig: Rig) -> None:
    assert not rig.get(Cell.A) & A.UIP
    rig.clock.advance(SECOND - 200_000)
    assert rig.get(Cell.A) & A.UIP
    rig.clock.advance(200_000)
    assert not rig.get(Cell.A) & A.UIP


def test_update_ended_interrupt_every_second(rig: Rig) -> None:
    rig.put(Cell.B, B.HOURS_24 | B.UIE)
    rig.clock.advance(SECOND)
    assert rig.lines.level(8)
    rig.clock.advance(SECOND)
    assert rig.lines.edges(8) == 1
    assert rig.get(Cell.C) & ~C.PF == C.IRQF | C.UF
    assert not rig.lines.level(8)
    assert rig.get(Cell.C) == 0
    rig.clock.advance(SECOND)
    assert rig.lines.edges(8) == 2


def test_periodic_interrupt_at_1024_hz(rig: Rig) -> None:
    rig.put(Cell.A, 0x26)
    rig.put(Cell.B, B.HOURS_24 | B.PIE)
    count = 0
    for _ in range(2000):
        rig.clock.advance(500_000)
        if rig.lines.level(8):
            count += 1
            assert rig.get(Cell.C) & C.PF
    assert count == pytest.approx(1024, abs=1)


def test_flags_are_set_although_nothing_is_enabled(rig: Rig) -> None:
    rig.clock.advance(SECOND)
    assert rig.get(Cell.C) == C.PF | C.UF
    assert rig.lines.events == []


@pytest.mark.parametrize(
    ("hours", "minutes", "seconds", "after"),
    [
        (0x23, 0x59, 0x55, 5),
        (0x00, 0x00, 0x00, 10),
        (0x23, 0x59, 0x49, 86_399),
        (0xFF, 0xFF, 0x00, 10),
        (0xFF, 0xFF, 0xFF, 1),
        (0xC0, 0x30, 0x05, 1815),
        (0x07, 0xFF, 0xFF, 7 * 3600 + 10),
    ],
)
def test_alarm(rig: Rig, hours: int, minutes: int, seconds: int, after: int) -> None:
    rig.put(Cell.HOURS_ALARM, hours)
    rig.put(Cell.MINUTES_ALARM, minutes)
    rig.put(Cell.SECONDS_ALARM, seconds)
    rig.put(Cell.B, B.HOURS_24 | B.AIE)
    rig.clock.advance(after * SECOND - 1)
    assert not rig.lines.level(8)
    rig.clock.advance(1)
    assert rig.lines.level(8)
    assert rig.get(Cell.C) & (C.IRQF | C.AF) == C.IRQF | C.AF


def test_alarm_that_never_matches(rig: Rig) -> None:
    rig.put(Cell.HOURS_ALARM, 0x99)
    rig.put(Cell.B, B.HOURS_24 | B.AIE)
    rig.clock.advance(2 * 86_400 * SECOND)
    assert not rig.lines.level(8)


def test_memory_sizes() -> None:
    rig = Rig(low=3 << 30, high=5 << 30)
    assert rig.get(0x15) | rig.get(0x16) << 8 == 640
    assert rig.get(0x17) | rig.get(0x18) << 8 == 0xFFFF
    assert rig.get(0x30) | rig.get(0x31) << 8 == 0xFFFF
    assert rig.get(0x34) | rig.get(0x35) << 8 == ((3 << 30) - (16 << 20)) >> 16
    assert rig.get(0x5B) | rig.get(0x5C) << 8 | rig.get(0x5D) << 16 == (5 << 30) >> 16


def test_memory_sizes_of_a_small_machine() -> None:
    rig = Rig(low=8 << 20)
    assert rig.get(0x30) | rig.get(0x31) << 8 == 7 * 1024
    assert rig.get(0x34) | rig.get(0x35) << 8 == 0


def test_battery_is_good_and_status_is_read_only(rig: Rig) -> None:
    rig.put(Cell.D, 0)
    assert rig.get(Cell.D) == 0x80


def test_nmi_mask_bit(rig: Rig) -> None:
    rig.put(0x80 | 0x40, 0x5A)
    assert rig.rtc.nmi_masked
    assert rig.get(0x40) == 0x5A
    assert not rig.rtc.nmi_masked


def test_legacy_replacement_keeps_flags_but_no_interrupt(rig: Rig) -> None:
    rig.rtc.set_legacy_replacement(True)
    rig.put(Cell.B, B.HOURS_24 | B.UIE)
    rig.clock.advance(SECOND)
    assert not rig.lines.level(8)
    assert rig.get(Cell.C) & C.UF


def test_save_and_restore(rig: Rig) -> None:
    rig.put(Cell.YEAR, 0x30)
    rig.put(0x40, 0x77)
    rig.put(Cell.B, B.HOURS_24 | B.UIE)
    other = Rig()
    other.rtc.restore(rig.rtc.save())
    assert other.time() == rig.time()
    assert other.get(0x40) == 0x77
    other.clock.advance(SECOND)
    assert other.lines.level(8)
    other.rtc.reset()
    assert not other.lines.level(8)
    assert other.get(Cell.YEAR) == 0x30
