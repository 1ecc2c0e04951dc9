from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from pyhyve.hw.chipset.legacy_irq import ROUTABLE, LegacyIrqs
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import Bar, BarKind
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus, memory_64_window
from pyhyve.hw.pci.config_space import ConfigSpace, Identity
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxRouting
from tests.hw.fakes import FakeClock, Lines

COMMAND, STATUS, BAR0, PIN, LINE = 0x04, 0x06, 0x10, 0x3D, 0x3C


class Registers:
    def read(self, offset: int, size: int) -> int:
        return offset & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Sample(PciFunction):
    """A function with one BAR of each kind and an interrupt."""

    identity = Identity(0x1AF4, 0x1000, 0x02, 0x00, subsystem_vendor=0x1AF4, subsystem=1)

    def __init__(self, environment: Environment, options: dict[str, str]) -> None:
        super().__init__(environment, options)
        self.moves: list[int | None] = []
        self.add_bar(0, BarKind.IO, 0x20, Registers())
        self.add_bar(1, BarKind.MEMORY_32, 0x2000, Registers())
        self.add_bar(2, BarKind.MEMORY_64, 0x4000, Registers(), prefetchable=True)
        self.use_intx()

    def bar_moved(self, bar: Bar) -> None:
        self.moves.append(bar.mapped)


class Rig:
    def __init__(self) -> None:
        self.lines = Lines()
        self.pio, self.mmio = PioBus(), MmioBus()
        self.environment = Environment(
            loop=FakeClock(), memory=None, pio=self.pio, mmio=self.mmio, router=self.lines.router,
            send_msi=lambda address, data: None, doorbells=None, power=lambda reason: None,
        )  # fmt: skip
        self.bus = PciBus(self.environment, IntxRouting(self.lines.router))
        self.bus.attach()
        self.bus.create(PciAddress(0, 0, 0), "hostbridge", {})
        self.sample = Sample(self.environment, {})
        self.bus.add(PciAddress(0, 3, 0), self.sample)
        self.bus.create(PciAddress(0, 31, 0), "lpc", {})
        self.bus.finish()

    def address(self, device: int, offset: int, function: int = 0, bus: int = 0) -> None:
        self.pio.write(0xCF8, 4, 1 << 31 | bus << 16 | device << 11 | function << 8 | offset & 0xFC)

    def get(self, device: int, offset: int, size: int, **where: int) -> int:
        self.address(device, offset, **where)
        value = self.pio.read(0xCFC + (offset & 3), size)
        assert value is not None
        return value

    def put(self, device: int, offset: int, size: int, value: int) -> None:
        self.address(device, offset)
        assert self.pio.write(0xCFC + (offset & 3), size, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identities(rig: Rig) -> None:
    assert rig.get(0, 0, 4) == 0x1275_1275
    assert rig.get(0, 0x08, 4) == 0x0600_0000
    assert rig.get(31, 0, 4) == 0x7000_8086
    assert rig.get(31, 0x0A, 2) == 0x0601
    assert rig.get(3, 0x2C, 4) == 0x0001_1AF4


def test_amd_hostbridge(rig: Rig) -> None:
    assert rig.bus.create(PciAddress(1, 0, 0), "amd_hostbridge", {}).config.get(0, 4) == 0x7432_1022


def test_empty_slots_read_as_ones(rig: Rig) -> None:
    assert rig.get(5, 0, 4) == 0xFFFFFFFF
    assert rig.get(3, 0, 2, function=1) == 0xFFFF
    assert rig.get(0, 0, 1, bus=7) == 0xFF


def test_address_port(rig: Rig) -> None:
    """The probe of configuration mechanism #1: the address reads back, a byte write to 0xCFB is no address."""
    rig.pio.write(0xCF8, 4, 0x80000000)
    assert rig.pio.read(0xCF8, 4) == 0x80000000
    rig.pio.write(0xCFB, 1, 1)
    assert rig.pio.read(0xCF8, 4) == 0x80000000
    rig.pio.write(0xCF8, 4, 0)
    assert rig.pio.read(0xCFC, 4) == 0xFFFFFFFF


def test_ecam_shows_the_same_and_ones_past_256_bytes(rig: Rig) -> None:
    base = ECAM_BASE + (3 << 15)
    assert rig.mmio.read(base, 4) == rig.get(3, 0, 4)
    rig.mmio.write(base + LINE, 1, 0x5A)
    assert rig.get(3, LINE, 1) == 0x5A
    assert rig.mmio.read(base + 0x100, 4) == 0xFFFFFFFF
    rig.mmio.write(base + 0x100, 4, 0)
    assert rig.mmio.read(ECAM_BASE + (200 << 20), 4) == 0xFFFFFFFF


def test_identity_is_read_only(rig: Rig) -> None:
    rig.put(3, 0, 4, 0)
    rig.put(3, 8, 4, 0)
    assert rig.get(3, 0, 4) == 0x1000_1AF4
    assert rig.get(3, 8, 4) == 0x0200_0000


@pytest.mark.parametrize(
    ("index", "mask"), [(0, 0xFFFFFFE1), (1, 0xFFFFE000), (2, 0xFFFFC00C), (3, 0xFFFFFFFF), (4, 0)]
)
def test_sizing_a_bar(rig: Rig, index: int, mask: int) -> None:
    rig.put(3, COMMAND, 2, 0)
    rig.put(3, BAR0 + 4 * index, 4, 0xFFFFFFFF)
    assert rig.get(3, BAR0 + 4 * index, 4) == mask


def test_bars_get_addresses_and_decode_from_the_start(rig: Rig) -> None:
    io, memory = rig.get(3, BAR0, 4) & ~3, rig.get(3, BAR0 + 4, 4)
    high = rig.get(3, BAR0 + 8, 4) & ~15 | rig.get(3, BAR0 + 12, 4) << 32
    assert (io, memory, high) == (0x2000, 0xC0000000, 0xD000000000)
    assert rig.pio.read(io + 5, 1) == 5
    assert rig.mmio.read(memory + 0x10, 4) == 0x10
    assert rig.mmio.read(high + 0x20, 8) == 0x20


@pytest.mark.parametrize(
    ("memory_end", "bits", "window"),
    [
        (1 << 30, 46, (0xD000000000, 0xF000000000)),
        (1 << 30, 40, (0xD000000000, 0xF000000000)),
        (1 << 30, 39, (0x6000000000, 0x8000000000)),
        (1 << 30, 36, (0xC00000000, 0x1000000000)),
        (900 << 30, 46, (0x300000000000, 0x400000000000)),
        (900 << 30, 40, (960 << 30, 1 << 40)),
        (50 << 30, 36, (52 << 30, 64 << 30)),
    ],
)
def test_64_bit_bars_lie_where_the_cpu_reaches_them_and_memory_does_not(
    memory_end: int, bits: int, window: tuple[int, int]
) -> None:
    assert memory_64_window(memory_end, bits) == window
    environment = replace(Rig().environment, pio=PioBus(), mmio=MmioBus())
    bus = PciBus(environment, IntxRouting(Lines().router), window)
    sample = Sample(bus.environment, {})
    bus.add(PciAddress(0, 3, 0), sample)
    assert sample.bars[2].mapped == window[0]


def test_memory_that_leaves_no_room_for_pci_is_refused() -> None:
    with pytest.raises(DeviceError, match="leaves no room for PCI"):
        memory_64_window((60 << 30) + 1, 36)


def test_decode_enables(rig: Rig) -> None:
    rig.put(3, COMMAND, 2, 0x0001)
    assert rig.pio.read(0x2005, 1) == 5
    assert rig.mmio.read(0xC0000010, 4) is None
    rig.put(3, COMMAND, 2, 0x0002)
    assert rig.pio.read(0x2005, 1) is None
    assert rig.mmio.read(0xC0000010, 4) == 0x10
    assert rig.get(3, COMMAND, 2) == 2


def test_moving_bars(rig: Rig) -> None:
    rig.put(3, BAR0, 4, 0x3000)
    rig.put(3, BAR0 + 4, 4, 0xC1000000)
    rig.put(3, BAR0 + 12, 4, 0xD1)
    assert rig.pio.read(0x2005, 1) is None
    assert rig.pio.read(0x3005, 1) == 5
    assert rig.mmio.read(0xC1000010, 4) == 0x10
    assert rig.mmio.read(0xD100000020, 4) == 0x20
    assert rig.sample.moves[-1] == 0xD100000000


def test_bar_moved_onto_another_is_off_the_bus_until_it_moves_away(rig: Rig) -> None:
    other = Sample(rig.environment, {})
    rig.bus.add(PciAddress(0, 4, 0), other)
    rig.put(4, BAR0 + 4, 4, 0xC0000000)
    assert other.bars[1].mapped is None
    rig.put(4, BAR0 + 4, 4, 0xC8000000)
    assert other.bars[1].mapped == 0xC8000000
    assert rig.mmio.read(0xC0000010, 4) == 0x10


def test_interrupt_pin_routing(rig: Rig) -> None:
    (route,) = rig.bus.routes()
    assert (route.address, route.pin, route.gsi) == (PciAddress(0, 3, 0), 1, 16)
    assert rig.get(3, PIN, 1) == 1
    rig.sample.set_intx(True)
    isa = rig.get(3, LINE, 1)
    assert rig.lines.level(16)
    assert rig.lines.level(isa)
    assert rig.get(3, STATUS, 2) & 8
    rig.put(3, COMMAND, 2, 0x403)
    assert not rig.lines.level(16)
    assert not rig.lines.level(isa)
    rig.put(3, COMMAND, 2, 0x003)
    assert rig.lines.level(16)
    rig.sample.set_intx(False)
    assert not rig.lines.level(16)
    assert not rig.get(3, STATUS, 2) & 8


def test_shared_pirq_is_held_by_both(rig: Rig) -> None:
    other = Sample(rig.environment, {})
    rig.bus.add(PciAddress(0, 11, 0), other)
    rig.sample.set_intx(True)
    other.set_intx(True)
    rig.sample.set_intx(False)
    assert rig.lines.level(16)
    other.set_intx(False)
    assert not rig.lines.level(16)


def test_a_legacy_function_has_an_interrupt_line(rig: Rig) -> None:
    rig.bus.create(PciAddress(0, 5, 0), "hostbridge", {"legacy": "true"})
    rig.bus.create(PciAddress(0, 6, 0), "hostbridge", {})
    assert (rig.get(5, PIN, 1), rig.get(6, PIN, 1)) == (1, 0)
    assert PciAddress(0, 5, 0) in [route.address for route in rig.bus.routes()]


def test_only_links_in_use_are_routed_and_each_to_the_interrupt_with_the_fewest_users() -> None:
    """bhyve's order: board devices first, then a link at a time, the lowest of the least used."""
    lines = Lines()
    level: list[int] = []
    irqs = LegacyIrqs(reserved=(1, 3, 4, 12), shared=(9,))
    routing = IntxRouting(lines.router, level.append, irqs)
    assert [routing.register(pirq) for pirq in range(8)] == [0x80] * 8
    for device in range(2):
        for pin in (1, 2, 3, 4):
            routing.pin(device, pin)
    assert level == [5, 6, 7, 10, 11]
    for device in range(2, 8):
        routing.pin(device, 4)
    assert level == [5, 6, 7, 10, 11, 14, 15, 5]
    assert sorted(routing.register(pirq) for pirq in range(8)) == sorted(level)


def test_an_interrupt_of_the_board_is_not_given_to_pci() -> None:
    irqs = LegacyIrqs(reserved=(3, 4))
    assert irqs.free == (5, 6, 7, 9, 10, 11, 12, 14, 15)
    assert [irqs.users(irq) for irq in (0, 3, 5)] == [None, None, 0]
    with pytest.raises(ValueError, match="not free"):
        irqs.use(3)
    irqs.use(5)
    with pytest.raises(ValueError, match="in use"):
        irqs.reserve(5)
    everything = LegacyIrqs(reserved=ROUTABLE)
    with pytest.raises(ValueError, match="no interrupt is free"):
        everything.allocate()


def test_functions_without_a_free_interrupt_are_refused() -> None:
    rig = Rig()
    bus = PciBus(rig.environment, IntxRouting(Lines().router, None, LegacyIrqs(reserved=ROUTABLE)))
    with pytest.raises(DeviceError, match="pci slot 0:3:0: no interrupt is free"):
        bus.add(PciAddress(0, 3, 0), Sample(rig.environment, {}))


def test_the_bridge_shows_interrupts_of_functions_placed_after_it(rig: Rig) -> None:
    rig.bus.add(PciAddress(0, 4, 0), Sample(rig.environment, {}))
    rig.bus.finish()
    assert rig.get(31, 0x61, 1) == rig.get(4, LINE, 1) != 0x80
    rig.bus.reset()
    assert rig.get(31, 0x61, 1) == rig.get(4, LINE, 1)
    assert rig.get(31, 0x6B, 1) == 0x80


def test_lpc_routes_pirqs_to_isa_interrupts(rig: Rig) -> None:
    rig.sample.set_intx(True)
    before = rig.get(31, 0x60, 1)
    rig.put(31, 0x60, 1, 0x07)
    assert rig.lines.level(7)
    assert not rig.lines.level(before)
    rig.put(31, 0x60, 1, 0x80)
    assert not rig.lines.level(7)
    rig.put(31, 0x60, 1, 0x02)
    assert rig.bus.intx.isa_irq(0) is None


def test_multi_function_slots(rig: Rig) -> None:
    rig.bus.add(PciAddress(0, 3, 1), Sample(rig.environment, {}))
    rig.bus.finish()
    assert rig.get(3, 0x0E, 1) == 0x80
    assert rig.get(3, 0x0E, 1, function=1) == 0x80
    assert rig.get(0, 0x0E, 1) == 0x00
    assert rig.get(3, PIN, 1, function=1) == 2


def test_slot_without_function_0_is_refused(rig: Rig) -> None:
    rig.bus.add(PciAddress(0, 6, 2), Sample(rig.environment, {}))
    with pytest.raises(DeviceError, match="0:6"):
        rig.bus.finish()


@pytest.mark.parametrize("address", [PciAddress(0, 3, 0), PciAddress(0, 32, 0), PciAddress(256, 0, 0)])
def test_slot_that_cannot_be_used(rig: Rig, address: PciAddress) -> None:
    with pytest.raises(DeviceError):
        rig.bus.add(address, Sample(rig.environment, {}))


def test_unknown_device_is_refused_with_the_known_ones(rig: Rig) -> None:
    with pytest.raises(DeviceError, match=r"'frobnicator'.*hostbridge"):
        rig.bus.create(PciAddress(0, 9, 0), "frobnicator", {})
    assert {"hostbridge", "amd_hostbridge", "lpc"} <= set(registry.names())


def test_options_of_a_command_line() -> None:
    assert PciFunction.parse_options("path=/x,ro,a=b=c") == {"path": "/x", "ro": "true", "a": "b=c"}
    assert PciFunction.parse_options("") == {}


def test_capabilities_are_a_list() -> None:
    config = ConfigSpace(Identity(1, 2, 3, 4))
    first = config.add_capability(0x05, bytes(10), b"\xff")
    second = config.add_capability(0x11, bytes(10))
    assert (config.get(0x34, 1), config.get(first + 1, 1), config.get(second + 1, 1)) == (first, second, 0)
    assert config.get(STATUS, 2) & 0x10
    config.write(first, 4, 0xFFFFFFFF)
    assert config.get(first, 4) == 0x00FF_0005 | second << 8
    with pytest.raises(DeviceError):
        config.add_capability(0x09, bytes(250))


def test_reset_puts_everything_back(rig: Rig) -> None:
    rig.put(3, BAR0, 4, 0x3000)
    rig.put(3, COMMAND, 2, 0x406)
    rig.put(31, 0x60, 1, 0x80)
    rig.sample.set_intx(True)
    rig.bus.reset()
    assert rig.pio.read(0x2005, 1) == 5
    assert rig.get(3, COMMAND, 2) == 3
    assert not rig.lines.level(16)
    assert rig.bus.intx.isa_irq(0) == rig.get(31, 0x60, 1)


def test_save_and_restore(rig: Rig) -> None:
    rig.put(3, BAR0, 4, 0x3000)
    rig.put(31, 0x60, 1, 0x07)
    rig.sample.set_intx(True)
    other = Rig()
    other.bus.restore(rig.bus.save())
    assert other.pio.read(0x3005, 1) == 5
    assert other.lines.level(16)
    assert other.lines.level(7)
    assert other.bus.save() == rig.bus.save()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((0, 3, 31)), st.integers(0, 4095), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF)
        ),
        max_size=30,
    )
)
def test_any_configuration_write_is_survived(writes: list[tuple[int, int, int, int]]) -> None:
    rig = Rig()
    for device, offset, size, value in writes:
        offset &= ~(size - 1)
        value &= (1 << 8 * size) - 1
        rig.mmio.write(ECAM_BASE + (device << 15) + offset, size, value)
        if offset < 256:
            rig.put(device, offset, size, value)
            assert rig.get(device, offset, size) < 1 << 8 * size
    rig.bus.reset()
    assert rig.pio.read(0x2005, 1) == 5
