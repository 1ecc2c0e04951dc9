from __future__ import annotations

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.hw.chipset.elcr import Elcr
from pyhyve.hw.chipset.pic import Pic


class Rig:
    def __init__(self) -> None:
        self.intr: list[bool] = []
        self.pic = Pic(self.intr.append)
        self.pio = PioBus()
        self.pic.attach(self.pio)
        self.elcr = Elcr(self.pic.set_elcr)
        self.elcr.attach(self.pio)
        self.initialize()

    def initialize(self, icw4: int = 0x01) -> None:
        for port, base, wiring in ((0x20, 0x30, 0x04), (0xA0, 0x38, 0x02)):
            self.out(port, 0x11)
            self.out(port + 1, base)
            self.out(port + 1, wiring)
            self.out(port + 1, icw4)
            self.out(port + 1, 0x00)

    def out(self, port: int, value: int) -> None:
        assert self.pio.write(port, 1, value)

    def in_(self, port: int) -> int:
        value = self.pio.read(port, 1)
        assert value is not None
        return value

    def register(self, port: int, ocw3: int) -> int:
        self.out(port, ocw3)
        return self.in_(port)


IRR, ISR = 0x0A, 0x0B


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("irq", [0, 1, 7, 8, 12, 15])
def test_vector_of_each_interrupt(rig: Rig, irq: int) -> None:
    rig.pic.set_irq(irq, True)
    assert rig.pic.intr
    assert rig.pic.acknowledge() == 0x30 + irq
    assert not rig.pic.intr


def test_edge_is_served_once_while_the_line_stays_high(rig: Rig) -> None:
    rig.pic.set_irq(1, True)
    rig.pic.acknowledge()
    rig.out(0x20, 0x20)
    assert not rig.pic.intr
    rig.pic.set_irq(1, False)
    rig.pic.set_irq(1, True)
    assert rig.pic.intr


def test_pulse_is_remembered(rig: Rig) -> None:
    rig.pic.set_irq(0, True)
    rig.pic.set_irq(0, False)
    assert rig.pic.acknowledge() == 0x30


@pytest.mark.parametrize(
    ("irq", "port", "command"), [(5, 0x20, 0x20), (5, 0x20, 0x65), (10, 0xA0, 0x20), (10, 0xA0, 0x62)]
)
def test_the_end_of_an_interrupt_is_told(rig: Rig, irq: int, port: int, command: int) -> None:
    ended: list[int] = []
    rig.pic.on_end = ended.append
    rig.pic.set_irq(irq, True)
    rig.out(port, command)
    assert ended == []  # none is in service yet
    rig.pic.acknowledge()
    rig.out(port, command)
    assert ended == [irq]


def test_level_is_served_again_after_eoi_while_the_line_is_high(rig: Rig) -> None:
    rig.out(0x4D0, 0x20)
    rig.pic.set_irq(5, True)
    assert rig.pic.acknowledge() == 0x35
    assert not rig.pic.intr
    rig.out(0x20, 0x20)
    assert rig.pic.intr
    rig.pic.set_irq(5, False)
    assert not rig.pic.intr


def test_elcr_keeps_system_interrupts_edge_triggered(rig: Rig) -> None:
    rig.out(0x4D0, 0xFF)
    rig.out(0x4D1, 0xFF)
    assert (rig.in_(0x4D0), rig.in_(0x4D1)) == (0xF8, 0xDE)


def test_elcr_reset_keeps_what_firmware_set(rig: Rig) -> None:
    rig.elcr.set_level(9)
    rig.out(0x4D0, 0x20)
    rig.elcr.reset()
    assert (rig.in_(0x4D0), rig.in_(0x4D1)) == (0x00, 0x02)


def test_masked_interrupt_waits(rig: Rig) -> None:
    rig.out(0x21, 0x02)
    rig.pic.set_irq(1, True)
    assert not rig.pic.intr
    assert rig.in_(0x21) == 0x02
    assert rig.register(0x20, IRR) == 0x02
    rig.out(0x21, 0x00)
    assert rig.pic.intr


def test_higher_priority_interrupts_lower_but_not_the_other_way(rig: Rig) -> None:
    rig.pic.set_irq(4, True)
    assert rig.pic.acknowledge() == 0x34
    rig.pic.set_irq(6, True)
    assert not rig.pic.intr
    rig.pic.set_irq(3, True)
    assert rig.pic.acknowledge() == 0x33
    assert rig.register(0x20, ISR) == 0x18
    rig.out(0x20, 0x20)
    assert rig.register(0x20, ISR) == 0x10
    rig.out(0x20, 0x64)
    assert rig.register(0x20, ISR) == 0
    assert rig.pic.acknowledge() == 0x36


def test_slave_stays_in_service_on_both_chips_until_both_eois(rig: Rig) -> None:
    rig.pic.set_irq(10, True)
    assert rig.pic.acknowledge() == 0x3A
    assert (rig.register(0x20, ISR), rig.register(0xA0, ISR)) == (0x04, 0x04)
    rig.out(0xA0, 0x20)
    rig.out(0x20, 0x20)
    assert (rig.register(0x20, ISR), rig.register(0xA0, ISR)) == (0, 0)


def test_spurious_vector_when_the_request_has_gone(rig: Rig) -> None:
    rig.out(0x4D0, 0x20)
    rig.pic.set_irq(5, True)
    rig.pic.set_irq(5, False)
    assert rig.pic.acknowledge() == 0x37
    assert rig.register(0x20, ISR) == 0


def test_automatic_eoi(rig: Rig) -> None:
    rig.initialize(icw4=0x03)
    rig.pic.set_irq(4, True)
    assert rig.pic.acknowledge() == 0x34
    assert rig.register(0x20, ISR) == 0
    rig.pic.set_irq(6, True)
    assert rig.pic.acknowledge() == 0x36


def test_rotation_makes_the_served_input_the_lowest(rig: Rig) -> None:
    rig.pic.set_irq(0, True)
    rig.pic.acknowledge()
    rig.out(0x20, 0xA0)
    rig.pic.set_irq(0, False)
    rig.pic.set_irq(0, True)
    rig.pic.set_irq(7, True)
    assert rig.pic.acknowledge() == 0x37


def test_set_priority(rig: Rig) -> None:
    rig.out(0x20, 0xC4)
    rig.pic.set_irq(3, True)
    rig.pic.set_irq(5, True)
    assert rig.pic.acknowledge() == 0x35


def test_special_mask_lets_lower_priorities_in(rig: Rig) -> None:
    rig.pic.set_irq(3, True)
    rig.pic.acknowledge()
    rig.pic.set_irq(6, True)
    assert not rig.pic.intr
    rig.out(0x20, 0x68)
    rig.out(0x21, 0x08)
    assert rig.pic.acknowledge() == 0x36


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself(rig: Rig) -> None:
    rig.pic.set_irq(12, True)
    rig.pic.acknowledge()
    rig.pic.set_irq(9, True)
    assert not rig.pic.intr
    rig.initialize(icw4=0x11)
    rig.pic.set_irq(13, True)
    assert rig.pic.acknowledge() == 0x3D
    rig.pic.set_irq(11, True)
    assert rig.pic.acknowledge() == 0x3B


def test_poll_acknowledges(rig: Rig) -> None:
    rig.out(0x20, 0x0C)
    assert rig.in_(0x20) == 0
    rig.pic.set_irq(6, True)
    rig.out(0x20, 0x0C)
    assert rig.in_(0x20) == 0x86
    assert not rig.pic.intr
    assert rig.register(0x20, ISR) == 0x40


def test_initialization_clears_mask_and_requests(rig: Rig) -> None:
    rig.out(0x21, 0xFF)
    rig.pic.set_irq(1, True)
    rig.out(0x20, 0x11)
    assert rig.in_(0x21) == 0
    assert rig.register(0x20, IRR) == 0


def test_output_is_told_only_when_it_changes(rig: Rig) -> None:
    rig.pic.set_irq(1, True)
    rig.pic.set_irq(3, True)
    rig.pic.acknowledge()
    assert rig.intr == [True, False]


def test_save_and_restore(rig: Rig) -> None:
    rig.out(0xA1, 0xF0)
    rig.pic.set_irq(3, True)
    rig.pic.acknowledge()
    rig.pic.set_irq(1, True)
    other = Rig()
    other.pic.restore(rig.pic.save())
    assert other.pic.intr
    assert other.in_(0xA1) == 0xF0
    assert other.pic.acknowledge() == 0x31
    rig.pic.acknowledge()
    assert other.pic.save() == rig.pic.save()
    rig.pic.reset()
    assert not rig.pic.intr
