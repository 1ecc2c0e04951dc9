"""A guest may write anything anywhere: no chip raises, and every answer fits its size."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.hw.chipset import hpet, ioapic
from pyhyve.hw.chipset.elcr import Elcr
from pyhyve.hw.chipset.hpet import Hpet
from pyhyve.hw.chipset.i8042 import I8042
from pyhyve.hw.chipset.ioapic import Ioapic
from pyhyve.hw.chipset.irqchip import wire
from pyhyve.hw.chipset.pic import Pic
from pyhyve.hw.chipset.pit import Pit
from pyhyve.hw.chipset.pm import Pm
from pyhyve.hw.chipset.pmtmr import PmTimer
from pyhyve.hw.chipset.post import Post
from pyhyve.hw.chipset.reset import Reset
from pyhyve.hw.chipset.rtc import Rtc
from pyhyve.hw.chipset.uart16550 import COM_PORTS, Uart16550
from tests.hw.fakes import FakeChar, FakeClock


class Board:
    """All chips on one pair of buses, wired as in a machine."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.pio, self.mmio = PioBus(), MmioBus()
        self.pic = Pic(lambda level: None)
        self.ioapic = Ioapic(lambda address, data: None)
        router = IrqRouter(wire(self.pic, self.ioapic))
        pit = Pit(self.clock, router.line(0, "pit"))
        rtc = Rtc(self.clock, router.line(8, "rtc"), 1 << 30, 1 << 30, wall=lambda: self.clock.now / 1e9)

        def legacy(active: bool) -> None:
            pit.set_legacy_replacement(active)
            rtc.set_legacy_replacement(active)

        self.uart = Uart16550(router.line(4, "com1"), FakeChar())
        self.uart.attach(self.pio, COM_PORTS["com1"][0])
        mmio_chips = (self.ioapic, Hpet(self.clock, router, legacy))
        pio_chips = (
            self.pic, Elcr(self.pic.set_elcr), pit, rtc, Pm(lambda reason: None, router.line(9, "sci")),
            PmTimer(self.clock), Reset(lambda reason: None), Post(),
            I8042(lambda reason: None, router.line(1, "kbd"), router.line(12, "mouse")),
        )  # fmt: skip
        for mmio_chip in mmio_chips:
            mmio_chip.attach(self.mmio)
        for pio_chip in pio_chips:
            pio_chip.attach(self.pio)
        self.chips = (self.uart, *mmio_chips, *pio_chips)


PORTS = sorted(p for r in Board().pio.ranges() for p in range(r.port, r.port + r.count))
ADDRESSES = [base + offset for base in (ioapic.BASE, hpet.BASE) for offset in range(0x180)]

sizes = st.sampled_from((1, 2, 4))
values = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from((0, 1, 0xFF, 0xFFFFFFFF)))
port_access = st.tuples(st.just("port"), st.sampled_from(PORTS), sizes, values)
memory_access = st.tuples(
    st.just("memory"), st.sampled_from(ADDRESSES), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1)
)
clock_step = st.tuples(st.just("time"), st.integers(0, 2_000_000), st.just(0), st.just(0))
event = st.tuples(st.just("event"), st.integers(0, 255), st.just(0), st.just(0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(port_access, memory_access, clock_step, event), max_size=60))
def test_no_write_raises_and_every_read_fits(steps: list[tuple[str, int, int, int]]) -> None:
    board = Board()
    for kind, where, size, value in steps:
        if kind == "port":
            board.pio.write(where, size, value & ((1 << 8 * size) - 1))
            answer = board.pio.read(where, size)
            assert answer is not None
            assert 0 <= answer < 1 << 8 * size
        elif kind == "memory":
            board.mmio.write(where, size, value & ((1 << 8 * size) - 1))
            answer = board.mmio.read(where, size)
            assert answer is not None
            assert 0 <= answer < 1 << 8 * size
        elif kind == "time":
            board.clock.advance(where)
        else:
            board.pic.acknowledge()
            board.ioapic.eoi(where)
            board.uart.receive(bytes((where,)))
    other = Board()
    other.clock.now = board.clock.now
    for chip, twin in zip(board.chips, other.chips, strict=True):
        saved = chip.save()
        twin.restore(saved)
        assert twin.save() == saved, type(chip).__name__
        chip.reset()
        chip.restore(saved)
        chip.reset()


def test_every_port_takes_every_byte() -> None:
    board = Board()
    for port in PORTS:
        for value in range(256):
            board.pio.write(port, 1, value)
            answer = board.pio.read(port, 1)
            assert answer is not None
            assert 0 <= answer <= 0xFF
    board.clock.advance(10_000_000)
