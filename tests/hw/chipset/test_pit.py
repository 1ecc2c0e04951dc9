from __future__ import annotations

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.hw.chipset.pit import FREQUENCY, Pit
from tests.hw.fakes import FakeClock, Lines

SECOND = 1_000_000_000


class Rig:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.lines = Lines()
        self.pit = Pit(self.clock, self.lines.router.line(0, "pit"))
        self.pio = PioBus()
        self.pit.attach(self.pio)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            assert self.pio.write(port, 1, value)

    def in_(self, port: int) -> int:
        value = self.pio.read(port, 1)
        assert value is not None
        return value

    def count(self, channel: int) -> int:
        """Latch and read a two-byte count."""
        self.out(0x43, channel << 6)
        return self.in_(0x40 + channel) | self.in_(0x40 + channel) << 8

    def ticks(self, count: float) -> None:
        """Let so many input clocks pass."""
        self.clock.advance(round(count * SECOND / FREQUENCY))

    @property
    def edges(self) -> int:
        return self.lines.edges(0)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_rate_generator_interrupts_at_its_frequency(rig: Rig) -> None:
    rig.out(0x43, 0x34)
    rig.out(0x40, 11932 & 0xFF, 11932 >> 8)
    rig.clock.advance(SECOND)
    assert rig.edges == FREQUENCY // 11932


def test_square_wave_interrupts_at_its_frequency_and_counts_by_two(rig: Rig) -> None:
    rig.out(0x43, 0x36)
    rig.out(0x40, 0, 0)
    rig.ticks(100.5)
    assert rig.count(0) == 0x10000 - 200
    rig.clock.advance(SECOND)
    assert rig.edges == 18


def test_one_shot_of_mode_0_interrupts_once(rig: Rig) -> None:
    rig.out(0x43, 0x30)
    rig.out(0x40, 0xE8, 0x03)
    rig.ticks(999)
    assert rig.edges == 0
    rig.ticks(2)
    assert rig.edges == 1
    rig.clock.advance(SECOND)
    assert rig.edges == 1
    rig.out(0x40, 0xE8, 0x03)
    rig.ticks(1001)
    assert rig.edges == 2


def test_new_mode_stops_the_interrupts(rig: Rig) -> None:
    rig.out(0x43, 0x34)
    rig.out(0x40, 0, 1)
    rig.out(0x43, 0x30)
    rig.clock.advance(SECOND)
    assert rig.edges == 0


def test_software_strobe_interrupts_after_the_count(rig: Rig) -> None:
    rig.out(0x43, 0x38)
    rig.out(0x40, 100, 0)
    rig.ticks(100.5)
    assert rig.edges == 0
    rig.ticks(1)
    assert rig.edges == 1


def test_fast_periodic_timer_does_not_occupy_the_loop(rig: Rig) -> None:
    rig.out(0x43, 0x14)
    rig.out(0x40, 2)
    rig.clock.advance(10_000_000)
    assert rig.edges <= 101


def test_late_callback_skips_to_the_next_period(rig: Rig) -> None:
    rig.out(0x43, 0x34)
    rig.out(0x40, 0xE8, 0x03)
    timer = next(t for t in rig.clock.timers if t.deadline)
    rig.clock.now += round(5.5 * 1000 * SECOND / FREQUENCY)
    timer.callback()
    assert rig.edges == 1
    rig.ticks(0.6 * 1000)
    assert rig.edges == 2


def test_latched_count_is_held_until_read(rig: Rig) -> None:
    rig.out(0x43, 0x34)
    rig.out(0x40, 0xFF, 0xFF)
    rig.ticks(10.5)
    rig.out(0x43, 0x00)
    rig.ticks(1000)
    rig.out(0x43, 0x00)
    assert rig.in_(0x40) | rig.in_(0x40) << 8 == 0xFFFF - 10
    assert rig.count(0) == 0xFFFF - 1010


@pytest.mark.parametrize(("access", "expected"), [(0x10, [0x34, 0x34]), (0x20, [0x12, 0x12]), (0x30, [0x34, 0x12])])
def test_access_modes(rig: Rig, access: int, expected: list[int]) -> None:
    rig.out(0x43, 0x80 | access | 0x00)
    writes = {0x10: (0x34,), 0x20: (0x12,), 0x30: (0x34, 0x12)}[access]
    rig.out(0x42, *writes)
    assert [rig.in_(0x42), rig.in_(0x42)] == expected


def test_read_back_latches_status_then_count(rig: Rig) -> None:
    rig.out(0x43, 0xB0)
    rig.out(0x43, 0xE8)
    assert rig.in_(0x42) == 0x40 | 0x30
    rig.out(0x61, 0x01)
    rig.out(0x42, 0x10, 0x00)
    rig.ticks(5.5)
    rig.out(0x43, 0xC8)
    assert rig.in_(0x42) == 0x30
    assert rig.in_(0x42) | rig.in_(0x42) << 8 == 11
    rig.ticks(20)
    rig.out(0x43, 0xE8)
    assert rig.in_(0x42) == 0x80 | 0x30


def test_bcd_counting(rig: Rig) -> None:
    rig.out(0x61, 0x01)
    rig.out(0x43, 0xB1)
    rig.out(0x42, 0x00, 0x10)
    rig.ticks(1.5)
    assert rig.count(2) == 0x0999
    rig.ticks(1000)
    assert rig.count(2) == 0x9999


def test_gate_pauses_channel_2(rig: Rig) -> None:
    rig.out(0x61, 0x01)
    rig.out(0x43, 0xB0)
    rig.out(0x42, 0xE8, 0x03)
    rig.ticks(100.5)
    rig.out(0x61, 0x00)
    rig.ticks(500)
    assert rig.count(2) == 900
    rig.out(0x61, 0x01)
    rig.ticks(100)
    assert rig.count(2) == 800


def test_gate_triggers_hardware_one_shot(rig: Rig) -> None:
    rig.out(0x43, 0xB2)
    rig.out(0x42, 0xE8, 0x03)
    assert rig.in_(0x61) & 0x20
    rig.out(0x61, 0x01)
    assert not rig.in_(0x61) & 0x20
    rig.ticks(1001)
    assert rig.in_(0x61) & 0x20


def test_linux_calibration_by_port_61_measures_the_interval(rig: Rig) -> None:
    """pit_calibrate_tsc(): the gate opens, the count for 50 ms is loaded, OUT2 is polled."""
    latch = FREQUENCY // 20
    rig.out(0x61, rig.in_(0x61) & ~0x02 | 0x01)
    rig.out(0x43, 0xB0)
    rig.out(0x42, latch & 0xFF, latch >> 8)
    start = rig.clock.now
    while not rig.in_(0x61) & 0x20:
        rig.clock.advance(7_000)
    assert rig.clock.now - start == pytest.approx(50_000_000, abs=8_000)


def test_linux_quick_calibration_sees_the_high_byte_go_down_evenly(rig: Rig) -> None:
    """quick_pit_calibrate(): reads low and high byte in turn, without a latch."""
    rig.out(0x61, rig.in_(0x61) & ~0x02 | 0x01)
    rig.out(0x43, 0xB0)
    rig.out(0x42, 0xFF, 0xFF)
    seen: dict[int, int] = {}
    for _ in range(3000):
        rig.in_(0x42)
        seen.setdefault(rig.in_(0x42), rig.clock.now)
        rig.clock.advance(3_000)
    first, last = max(seen), min(seen)
    elapsed = seen[last] - seen[first]
    assert elapsed == pytest.approx((first - last) * 256 * SECOND / FREQUENCY, abs=3_500)


def test_refresh_bit_toggles(rig: Rig) -> None:
    values = set()
    for _ in range(4):
        values.add(rig.in_(0x61) & 0x10)
        rig.clock.advance(15_085)
    assert values == {0, 0x10}


def test_legacy_replacement_disconnects_the_interrupt(rig: Rig) -> None:
    rig.out(0x43, 0x34)
    rig.out(0x40, 0, 0x10)
    rig.pit.set_legacy_replacement(True)
    rig.clock.advance(SECOND)
    assert rig.edges == 0
    rig.pit.set_legacy_replacement(False)
    rig.clock.advance(SECOND)
    assert rig.edges > 0


def test_save_and_restore_goes_on_counting(rig: Rig) -> None:
    rig.out(0x43, 0x34)
    rig.out(0x40, 0, 0x10)
    rig.ticks(100.5)
    other = Rig()
    other.clock.advance(12_345_678)
    other.pit.restore(rig.pit.save())
    assert other.count(0) == rig.count(0) == 0x1000 - 100
    other.ticks(0x1000)
    assert other.edges == 1
    rig.out(0x43, 0x30)
    rig.out(0x40, 1, 0)
    rig.ticks(2)
    third = Rig()
    third.pit.restore(rig.pit.save())
    assert third.lines.level(0)
    other.pit.reset()
    other.clock.advance(SECOND)
    assert other.edges == 1


def test_a_calibration_count_is_handed_to_the_backend_and_taken_back_with_its_flip_flop():
    """Counter 2 in mode 0 is nothing but a clock; an odd number of reads answered there moves the flip-flop."""
    offers = []
    clock, lines = FakeClock(), Lines()

    def clock_port(port, offer):
        offers.append((port, offer))
        return 1 if offer is None and len(offers) > 4 else 0

    pit = Pit(clock, lines.router.line(0, "pit"), clock_port)
    pio = PioBus()
    pit.attach(pio)
    pio.write(0x61, 1, 1)
    pio.write(0x43, 1, 0xB0)
    pio.write(0x42, 1, 0xFF)
    assert all(offer is None for _, offer in offers)
    pio.write(0x42, 1, 0xFF)
    port, offer = offers[-1]
    assert port == 0x42
    assert (offer.hz, offer.bits, offer.base, offer.step, offer.halves, offer.high_next) == (
        1_193_182, 16, 0xFFFF, -1, True, False,
    )  # fmt: skip
    pio.write(0x61, 1, 1)
    assert offers[-1][1].high_next
