from __future__ import annotations

import pytest

from pyhyve.bus.mmio import MmioBus
from pyhyve.hw.chipset.ioapic import BASE, Entry, Ioapic
from pyhyve.hw.chipset.irqchip import wire
from pyhyve.hw.chipset.pic import Pic


class Rig:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.ioapic = Ioapic(lambda address, data: self.sent.append((address, data)))
        self.mmio = MmioBus()
        self.ioapic.attach(self.mmio)

    def get(self, index: int) -> int:
        self.mmio.write(BASE, 4, index)
        value = self.mmio.read(BASE + 0x10, 4)
        assert value is not None
        return value

    def put(self, index: int, value: int) -> None:
        self.mmio.write(BASE, 4, index)
        self.mmio.write(BASE + 0x10, 4, value)

    def program(self, pin: int, low: int, destination: int = 0) -> None:
        self.put(0x11 + 2 * pin, destination << 24)
        self.put(0x10 + 2 * pin, low)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_version_says_24_entries(rig: Rig) -> None:
    assert rig.get(1) == 0x00170011


def test_id_register(rig: Rig) -> None:
    rig.put(0, 0xFFFFFFFF)
    assert rig.get(0) == 0x0F000000
    assert rig.get(2) == 0x0F000000


def test_entries_are_masked_at_reset(rig: Rig) -> None:
    assert [rig.get(0x10 + 2 * pin) for pin in range(24)] == [Entry.MASKED] * 24
    rig.ioapic.set_irq(4, True)
    assert rig.sent == []


@pytest.mark.parametrize(
    ("low", "destination", "message"),
    [
        (0x0031, 0, (0xFEE00000, 0x31)),
        (0x0031, 3, (0xFEE03000, 0x31)),
        (0x0931, 0xFF, (0xFEEFF004, 0x131)),
        (0xA031, 1, (0xFEE01000, 0xC031)),
        (0x0400, 0, (0xFEE00000, 0x400)),
    ],
)
def test_message_of_an_entry(rig: Rig, low: int, destination: int, message: tuple[int, int]) -> None:
    rig.program(5, low, destination)
    rig.ioapic.set_irq(5, True)
    assert rig.sent == [message]


def test_edge_is_sent_once_and_again_for_the_next_edge(rig: Rig) -> None:
    rig.program(4, 0x31)
    rig.ioapic.set_irq(4, True)
    rig.ioapic.set_irq(4, True)
    assert len(rig.sent) == 1
    rig.ioapic.set_irq(4, False)
    rig.ioapic.set_irq(4, True)
    assert len(rig.sent) == 2


def test_masked_edge_is_lost(rig: Rig) -> None:
    rig.program(4, 0x10031)
    rig.ioapic.set_irq(4, True)
    rig.program(4, 0x31)
    assert rig.sent == []


def test_the_end_of_a_pins_interrupt_is_told_before_it_is_sent_again(rig: Rig) -> None:
    ended: list[int] = []

    def on_end(pin: int) -> None:
        ended.append(pin)
        rig.ioapic.set_irq(pin, False)

    rig.ioapic.on_end = on_end
    for pin, low in ((16, 0xA041), (17, 0xA042), (4, 0x41)):
        rig.program(pin, low)
        rig.ioapic.set_irq(pin, True)
    rig.sent.clear()
    rig.ioapic.eoi(0x41)
    assert ended == [16]
    assert rig.sent == []
    rig.ioapic.eoi(0x41)
    assert ended == [16]


def test_level_waits_for_eoi_and_is_sent_again_while_the_line_is_active(rig: Rig) -> None:
    rig.program(16, 0xA041)
    rig.ioapic.set_irq(16, True)
    assert rig.get(0x30) & Entry.REMOTE_IRR
    rig.ioapic.set_irq(16, False)
    rig.ioapic.set_irq(16, True)
    assert len(rig.sent) == 1
    rig.ioapic.eoi(0x40)
    assert len(rig.sent) == 1
    rig.ioapic.eoi(0x41)
    assert len(rig.sent) == 2
    rig.ioapic.set_irq(16, False)
    rig.ioapic.eoi(0x41)
    assert len(rig.sent) == 2
    assert not rig.get(0x30) & Entry.REMOTE_IRR


def test_unmasking_an_active_level_sends_it(rig: Rig) -> None:
    rig.program(16, 0x1A041)
    rig.ioapic.set_irq(16, True)
    assert rig.sent == []
    rig.program(16, 0xA041)
    assert len(rig.sent) == 1


def test_remote_irr_cannot_be_written_but_edge_mode_clears_it(rig: Rig) -> None:
    rig.program(16, 0xA041 | Entry.REMOTE_IRR)
    assert not rig.get(0x30) & Entry.REMOTE_IRR
    rig.ioapic.set_irq(16, True)
    rig.program(16, 0x12041)
    assert not rig.get(0x30) & Entry.REMOTE_IRR


def test_index_past_the_table_reads_zero(rig: Rig) -> None:
    rig.put(0x40, 0xFFFFFFFF)
    assert rig.get(0x40) == 0


def test_timer_is_wired_to_pin_2_and_the_pic() -> None:
    rig = Rig()
    pic = Pic(lambda level: None)
    deliver = wire(pic, rig.ioapic)
    rig.program(2, 0x30)
    rig.program(20, 0x31)
    deliver(0, True)
    deliver(20, True)
    assert [data for _, data in rig.sent] == [0x30, 0x31]


def test_save_and_restore(rig: Rig) -> None:
    rig.program(16, 0xA041, 1)
    rig.ioapic.set_irq(16, True)
    other = Rig()
    other.ioapic.restore(rig.ioapic.save())
    assert other.sent == []
    other.ioapic.eoi(0x41)
    assert other.sent == rig.sent
    rig.ioapic.reset()
    assert rig.get(0x30) == Entry.MASKED
