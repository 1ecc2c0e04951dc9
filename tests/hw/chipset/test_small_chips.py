"""The chips with a handful of registers: PM, PM timer, reset, POST, i8042."""

from __future__ import annotations

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.i8042 import I8042
from pyhyve.hw.chipset.pm import Event, Pm
from pyhyve.hw.chipset.pmtmr import FREQUENCY, PmTimer
from pyhyve.hw.chipset.post import Post
from pyhyve.hw.chipset.reset import Reset
from pyhyve.vmm.exits import SuspendReason
from tests.hw.fakes import FakeClock, Lines

SCI = 9


class Rig:
    def __init__(self) -> None:
        self.power: list[SuspendReason] = []
        self.lines = Lines()
        self.clock = FakeClock()
        self.pio = PioBus()
        self.pm = Pm(self.power.append, self.lines.router.line(SCI, "sci"))
        self.timer = PmTimer(self.clock)
        self.reset = Reset(self.power.append)
        self.post = Post()
        self.i8042 = I8042(self.power.append, self.lines.router.line(1, "kbd"), self.lines.router.line(12, "mouse"))
        for chip in (self.pm, self.timer, self.reset, self.post, self.i8042):
            chip.attach(self.pio)

    def get(self, port: int, size: int = 1) -> int:
        value = self.pio.read(port, size)
        assert value is not None
        return value

    def put(self, port: int, value: int, size: int = 1) -> None:
        assert self.pio.write(port, size, value)

    def command(self, value: int, *data: int) -> None:
        self.put(0x64, value)
        for byte in data:
            self.put(0x60, byte)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- PM --


def test_acpi_mode_is_switched_through_the_smi_port(rig: Rig) -> None:
    assert rig.get(0x404, 2) & 1 == 0
    rig.put(0xB2, 0xA0)
    assert rig.get(0x404, 2) & 1 == 1
    rig.put(0x404, 0, 2)
    assert rig.get(0x404, 2) & 1 == 1
    rig.put(0xB2, 0xA1)
    assert rig.get(0x404, 2) & 1 == 0


def test_power_button_raises_the_sci_until_its_status_is_cleared(rig: Rig) -> None:
    rig.put(0xB2, 0xA0)
    rig.put(0x402, Event.POWER_BUTTON, 2)
    assert rig.pm.power_button()
    assert rig.lines.level(SCI)
    assert rig.get(0x400, 2) == Event.POWER_BUTTON
    rig.put(0x400, Event.SLEEP_BUTTON, 2)
    assert rig.lines.level(SCI)
    rig.put(0x400, Event.POWER_BUTTON, 2)
    assert rig.get(0x400, 2) == 0
    assert not rig.lines.level(SCI)


def test_power_button_says_that_nobody_listens(rig: Rig) -> None:
    assert not rig.pm.power_button()
    rig.put(0xB2, 0xA0)
    assert not rig.pm.power_button()
    assert not rig.lines.level(SCI)
    rig.put(0x402, Event.POWER_BUTTON, 2)
    assert rig.lines.level(SCI)


def test_sleep_button(rig: Rig) -> None:
    rig.put(0xB2, 0xA0)
    rig.put(0x400, Event.SLEEP_BUTTON << 16, 4)
    assert rig.pm.sleep_button()
    assert rig.get(0x401) == Event.SLEEP_BUTTON >> 8


def test_status_and_enable_by_bytes(rig: Rig) -> None:
    rig.pm.power_button()
    rig.put(0x403, 0x03)
    assert rig.get(0x400, 4) == 0x0300_0100
    rig.put(0x401, 0x01)
    assert rig.get(0x400, 4) == 0x0300_0000
    rig.put(0x402, 0xFFFF, 2)
    assert rig.get(0x402, 2) == 0x0721


def test_s5_powers_off_and_other_sleep_types_do_not(rig: Rig) -> None:
    rig.put(0x404, 1 << 10 | 1 << 13, 2)
    assert rig.power == []
    rig.put(0x404, 5 << 10, 2)
    assert rig.power == []
    rig.put(0x404, 5 << 10 | 1 << 13, 2)
    assert rig.power == [SuspendReason.POWER_OFF]
    assert rig.get(0x404, 2) == 5 << 10


def test_s5_by_bytes(rig: Rig) -> None:
    rig.put(0x405, (5 << 10 | 1 << 13) >> 8)
    assert rig.power == [SuspendReason.POWER_OFF]


# -- PM timer --


def test_pm_timer_runs_at_its_frequency_and_wraps(rig: Rig) -> None:
    start = rig.get(0x408, 4)
    rig.clock.advance(1_000_000_000)
    assert rig.get(0x408, 4) - start == FREQUENCY
    rig.put(0x408, 0, 4)
    rig.clock.advance(1_000_000_000 * (2**32 // FREQUENCY))
    assert rig.get(0x408, 4) == (2**32 // FREQUENCY + 1) * FREQUENCY % 2**32
    assert rig.get(0x40A, 2) == rig.get(0x408, 4) >> 16


# -- reset --


@pytest.mark.parametrize(("port", "value", "resets"), [(0xCF9, 6, 1), (0xCF9, 2, 0), (0x92, 1, 1), (0x92, 2, 0)])
def test_reset_ports(rig: Rig, port: int, value: int, resets: int) -> None:
    rig.put(port, value)
    assert rig.power == [SuspendReason.RESET] * resets
    assert rig.get(port) == 2


# -- POST --


def test_post_port_keeps_the_code(rig: Rig) -> None:
    rig.put(0x84, 0x1234, 2)
    assert rig.post.code == 0x34
    rig.put(0x80, 0x56)
    assert rig.post.code == 0x56
    assert rig.get(0x80) == 0xFF


# -- i8042 --


def test_self_test_and_interface_test(rig: Rig) -> None:
    rig.command(0xAA)
    assert rig.get(0x64) & 0x05 == 0x05
    assert rig.get(0x60) == 0x55
    assert not rig.get(0x64) & 1
    rig.command(0xAB)
    assert rig.get(0x60) == 0x00


def test_keylock_is_open(rig: Rig) -> None:
    assert rig.get(0x64) & 0x10


def test_command_byte(rig: Rig) -> None:
    rig.command(0x60, 0x74)
    rig.command(0x20)
    assert rig.get(0x60) == 0x74
    rig.command(0xAE)
    rig.command(0x20)
    assert rig.get(0x60) == 0x64
    rig.command(0xAD)
    rig.command(0x20)
    assert rig.get(0x60) == 0x74


@pytest.mark.parametrize(("value", "resets"), [(0xFE, 1), (0xF0, 1), (0xFF, 0)])
def test_pulsing_output_line_0_resets(rig: Rig, value: int, resets: int) -> None:
    rig.command(value)
    assert rig.power == [SuspendReason.RESET] * resets


def test_output_port(rig: Rig) -> None:
    rig.command(0xD0)
    assert rig.get(0x60) & 0x03 == 0x03
    rig.command(0xD1, 0xDF)
    assert rig.power == []
    rig.command(0xD1, 0xDE)
    assert rig.power == [SuspendReason.RESET]


def test_queue_is_bounded(rig: Rig) -> None:
    for _ in range(1000):
        rig.command(0xAA)
    for _ in range(100):
        rig.get(0x60)
    assert not rig.get(0x64) & 1


# -- state --


def test_states_make_the_round_trip(rig: Rig) -> None:
    rig.put(0xB2, 0xA0)
    rig.put(0x402, Event.POWER_BUTTON, 2)
    rig.pm.power_button()
    rig.put(0x80, 0x42)
    rig.put(0xCF9, 2)
    rig.command(0x60, 0x45)
    rig.command(0xAA)
    rig.clock.advance(123_456_789)
    other = Rig()
    for name in ("pm", "timer", "reset", "post", "i8042"):
        chip = getattr(other, name)
        chip.restore(getattr(rig, name).save())
        assert chip.save() == getattr(rig, name).save()
    assert other.lines.level(SCI)
    assert other.get(0x60) == 0x55
    for name in ("pm", "timer", "reset", "post", "i8042"):
        getattr(other, name).reset()
    assert not other.lines.level(SCI)


@pytest.mark.parametrize("state", [{}, {"version": 2}, {"version": 1}, {"version": 1, "_status": "x"}])
def test_foreign_state_is_refused(rig: Rig, state: dict[str, object]) -> None:
    with pytest.raises(DeviceError):
        rig.pm.restore(state)
