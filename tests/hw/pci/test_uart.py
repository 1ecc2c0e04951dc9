"""A 16550 behind a BAR; the chip itself is tested in tests/hw/chipset."""

from __future__ import annotations

import pytest

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci import uart as uart_module
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.hw.pci.uart import PciUart
from pyhyve.vmm.exits import SuspendReason
from tests.hw.fakes import FakeChar, FakeClock, Lines

DATA, IER, IIR, SCRATCH = 0, 1, 2, 7
CONFIG = ECAM_BASE + (5 << 15)


class Card:
    def __init__(self, options: dict[str, str]) -> None:
        self.lines = Lines()
        self.messages: list[tuple[int, int]] = []
        self.ends: list[SuspendReason] = []
        self.pio, self.mmio = PioBus(), MmioBus()
        environment = Environment(
            loop=FakeClock(), memory=None, pio=self.pio, mmio=self.mmio, router=self.lines.router,
            send_msi=lambda address, data: self.messages.append((address, data)), doorbells=None,
            power=self.ends.append,
        )  # fmt: skip
        self.bus = PciBus(environment, IntxRouting(self.lines.router))
        self.bus.attach()
        self.function = self.bus.create(PciAddress(0, 5, 0), "uart", options)
        self.port = self.function.bars[0].mapped

    def get(self, offset: int, size: int = 1) -> int:
        return self.mmio.read(CONFIG + offset, size)

    def put(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(CONFIG + offset, size, value)

    @property
    def pin(self) -> bool:
        return self.lines.level(self.bus.routes()[0].gsi)


@pytest.fixture
def char(monkeypatch):
    made = FakeChar()
    made.close = lambda: None
    monkeypatch.setattr(uart_module, "open_char", lambda spec, loop, on_quit: setattr(made, "quit", on_quit) or made)
    return made


@pytest.fixture
def card(char):
    return Card({"path": "stdio"})


def test_a_wide_access_is_one_to_each_register(card, char):
    card.pio.write(card.port + DATA, 2, 0x0041)  # 41 hex to the data register, 0 to the one behind it
    assert char.sent == b"A"
    card.pio.write(card.port + 4, 4, 0x5A000003)  # modem control ... scratch
    assert card.pio.read(card.port + SCRATCH, 1) == 0x5A
    assert card.pio.read(card.port + 4, 4) >> 24 == 0x5A


def test_it_is_a_16550_by_its_class(card):
    assert card.get(9, 3) == 0x070002
    assert card.get(0x3D) == 1


def test_characters_go_both_ways(card, char):
    card.pio.write(card.port + DATA, 1, ord("x"))
    assert char.sent == b"x"
    card.pio.write(card.port + IER, 1, 1)
    char.on_input(b"y")
    assert card.pin
    assert card.pio.read(card.port + DATA, 1) == ord("y")
    assert not card.pin


def test_with_msi_an_interrupt_is_a_message(card, char):
    offset = card.get(0x34)
    assert card.get(offset) == 5
    card.put(4, 2, 7)
    card.put(offset + 4, 4, 0xFEE00000)
    card.put(offset + 12, 2, 0x41)
    card.put(offset + 2, 2, 1)
    card.pio.write(card.port + IER, 1, 1)
    char.on_input(b"y")
    assert card.messages == [(0xFEE00000, 0x41)]
    assert not card.pin


def test_the_registers_move_with_the_bar(card):
    card.pio.write(card.port + SCRATCH, 1, 0x5A)
    card.put(0x10, 4, 0x9000)
    assert card.pio.read(0x9000 + SCRATCH, 1) == 0x5A
    assert card.pio.read(card.port + SCRATCH, 1) in (None, 0xFF)


def test_a_saved_card_goes_on_where_it_was(card, char):
    card.pio.write(card.port + SCRATCH, 1, 0x5A)
    card.pio.write(card.port + IER, 1, 1)
    char.on_input(b"z")
    state = card.function.save()
    card.function.reset()
    assert not card.pin
    card.function.restore(state)
    assert card.pin
    assert card.pio.read(card.port + SCRATCH, 1) == 0x5A
    assert card.pio.read(card.port + DATA, 1) == ord("z")


def test_leaving_the_console_ends_the_machine(card, char):
    char.quit()
    assert card.ends == [SuspendReason.POWER_OFF]


def test_without_a_backend_it_is_there_and_silent():
    card = Card({})
    card.pio.write(card.port + DATA, 1, ord("x"))
    assert card.pio.read(card.port + SCRATCH, 1) == 0
    card.bus.close()


def test_all_of_the_option_is_the_backend():
    assert PciUart.parse_options("tcp=127.0.0.1:4444") == {"path": "tcp=127.0.0.1:4444"}
    assert PciUart.parse_options("") == {}
