"""MSI and MSI-X through configuration space and the table's BAR, as a driver sets them up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus
from pyhyve.hw.pci.config_space import Identity
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxRouting
from tests.hw.pci.test_pci import COMMAND, PIN, Rig

MASTER = 0x0406  # memory, bus master, INTx off
ADDRESS, DATA = 0xFEE0_1000, 0x4020


class Messenger(PciFunction):
    """A function with MSI, MSI-X and a pin."""

    identity = Identity(0x1AF4, 0x1042, 0x01, 0x00)
    vectors = 8

    def __init__(self, environment: Environment, options: dict[str, str]) -> None:
        super().__init__(environment, options)
        self.use_intx()
        self.add_msi(self.vectors)
        self.add_msix(300, bar=1)


class Messages(Rig):
    def __init__(self, options: dict[str, str] | None = None) -> None:
        super().__init__()
        self.sent: list[tuple[int, int]] = []
        environment = replace(self.environment, send_msi=lambda address, data: self.sent.append((address, data)))
        self.function = Messenger(environment, options or {})
        self.bus.add(PciAddress(0, 4, 0), self.function)
        self.bus.finish()
        self.put(4, COMMAND, 2, MASTER)
        self.msi, self.msix = self.capability(0x05), self.capability(0x11)
        self.table = self.get(4, 0x14, 4)

    def capability(self, ident: int) -> int:
        offset = self.get(4, 0x34, 1)
        while offset and self.get(4, offset, 1) != ident:
            offset = self.get(4, offset + 1, 1)
        return offset

    def setup_msi(self, granted: int) -> None:
        self.put(4, self.msi + 4, 4, ADDRESS)
        self.put(4, self.msi + 8, 4, 0)
        self.put(4, self.msi + 12, 2, DATA)
        self.put(4, self.msi + 2, 2, granted << 4 | 1)

    def setup_msix(self, vector: int, control: int = 0) -> None:
        self.put(4, self.msix + 2, 2, 0x8000)
        for i, value in enumerate((ADDRESS, 0, DATA + vector, control)):
            self.mmio.write(self.table + 16 * vector + 4 * i, 4, value)

    def pending(self, vector: int) -> int:
        base = self.table + (self.get(4, self.msix + 8, 4) & ~7)
        value = self.mmio.read(base + vector // 64 * 8, 8)
        assert value is not None
        return value >> vector % 64 & 1


@pytest.fixture
def rig() -> Messages:
    return Messages()


def test_msi_is_a_write_of_the_guests_value(rig: Messages) -> None:
    assert rig.get(4, rig.msi + 2, 2) == 0x0186
    rig.function.msi.notify()
    assert rig.sent == []
    rig.setup_msi(granted=0)
    rig.function.msi.notify(0)
    rig.function.msi.notify(5)
    assert rig.sent == [(ADDRESS, DATA)] * 2


def test_msi_vectors_are_the_low_bits_of_the_data(rig: Messages) -> None:
    rig.setup_msi(granted=2)
    for vector in (0, 3, 5):
        rig.function.msi.notify(vector)
    assert rig.sent == [(ADDRESS, DATA), (ADDRESS, DATA + 3), (ADDRESS, DATA + 1)]
    rig.put(4, rig.msi + 2, 2, 7 << 4 | 1)  # more than the function asked for
    assert rig.function.msi.granted == 8


def test_a_masked_msi_waits(rig: Messages) -> None:
    rig.setup_msi(granted=3)
    rig.put(4, rig.msi + 16, 4, 0b1010)
    rig.function.msi.notify(1)
    rig.function.msi.notify(1)
    rig.function.msi.notify(3)
    assert (rig.sent, rig.get(4, rig.msi + 20, 4)) == ([], 0b1010)
    rig.put(4, rig.msi + 20, 4, 0)  # read-only
    rig.put(4, rig.msi + 16, 4, 0b1000)
    assert (rig.sent, rig.get(4, rig.msi + 20, 4)) == ([(ADDRESS, DATA + 1)], 0b1000)


def test_the_64_bits_of_an_msi_address(rig: Messages) -> None:
    rig.setup_msi(granted=0)
    rig.put(4, rig.msi + 4, 4, 0xFFFFFFFF)
    rig.put(4, rig.msi + 8, 4, 0x12)
    rig.function.msi.notify()
    assert rig.sent == [(0x12_FFFFFFFC, DATA)]


def test_msix_has_a_table_and_pending_bits_in_its_bar(rig: Messages) -> None:
    assert rig.get(4, rig.msix + 2, 2) == 299
    assert rig.get(4, rig.msix + 4, 4) == 1
    assert rig.get(4, rig.msix + 8, 4) == 0x2001
    assert rig.mmio.read(rig.table + 16 * 299 + 12, 4) == 1
    rig.put(4, COMMAND, 2, 0)
    rig.put(4, 0x14, 4, 0xFFFFFFFF)
    assert rig.get(4, 0x14, 4) == 0xFFFFC000


def test_msix_vectors_are_sent_each_as_its_entry_says(rig: Messages) -> None:
    rig.setup_msix(0)
    rig.setup_msix(299)
    for vector in (0, 299, 300, 0xFFFF):
        rig.function.msix.notify(vector)
    assert rig.sent == [(ADDRESS, DATA), (ADDRESS, DATA + 299)]


def test_a_masked_msix_vector_becomes_pending_and_is_sent_once(rig: Messages) -> None:
    rig.setup_msix(70, control=1)
    rig.function.msix.notify(70)
    rig.function.msix.notify(70)
    assert (rig.sent, rig.pending(70), rig.pending(6)) == ([], 1, 0)
    rig.mmio.write(rig.table + 16 * 70 + 12, 4, 0)
    assert (rig.sent, rig.pending(70)) == ([(ADDRESS, DATA + 70)], 0)


def test_the_function_mask_holds_all_msix_vectors(rig: Messages) -> None:
    rig.setup_msix(1)
    rig.setup_msix(2)
    rig.put(4, rig.msix + 2, 2, 0xC000)
    rig.function.msix.notify(1)
    rig.function.msix.notify(2)
    assert (rig.sent, rig.pending(1), rig.pending(2)) == ([], 1, 1)
    rig.put(4, rig.msix + 2, 2, 0x8000)
    assert rig.sent == [(ADDRESS, DATA + 1), (ADDRESS, DATA + 2)]


def test_the_pending_bits_are_read_only_and_the_table_takes_any_width(rig: Messages) -> None:
    rig.setup_msix(1, control=1)
    rig.function.msix.notify(1)
    rig.mmio.write(rig.table + 0x2000, 8, 0)
    assert rig.pending(1)
    rig.mmio.write(rig.table + 16, 8, 0x1_0000_1003)
    assert rig.mmio.read(rig.table + 16, 8) == 0x1_0000_1000
    assert rig.mmio.read(rig.table + 20, 4) == 1
    assert rig.mmio.read(rig.table + 0x1F00, 4) == 0


def test_without_bus_mastering_no_message_leaves(rig: Messages) -> None:
    rig.setup_msi(granted=0)
    rig.setup_msix(0)
    rig.put(4, COMMAND, 2, 0x402)
    rig.function.msi.notify()
    rig.function.msix.notify(0)
    assert rig.sent == []


@pytest.mark.parametrize("setup", [lambda rig: rig.setup_msi(0), lambda rig: rig.setup_msix(0)])
def test_the_pin_is_silent_while_messages_are_on(rig: Messages, setup) -> None:
    rig.put(4, COMMAND, 2, 6)
    rig.function.intx.raise_()
    gsi = next(route.gsi for route in rig.bus.routes() if route.address.device == 4)
    assert rig.lines.level(gsi)
    setup(rig)
    assert not rig.lines.level(gsi)
    assert rig.get(4, 6, 2) & 8
    rig.put(4, rig.msi + 2, 2, 0)
    rig.put(4, rig.msix + 2, 2, 0)
    assert rig.lines.level(gsi)
    rig.function.intx.lower()
    assert not rig.lines.level(gsi)


def test_a_function_placed_with_capital_s_offers_its_pin_only() -> None:
    rig = Messages({"legacy": "true"})
    assert (rig.msi, rig.msix) == (0, 0)
    assert rig.get(4, PIN, 1) == 1


def test_messages_are_saved_and_reset(rig: Messages) -> None:
    rig.setup_msix(3, control=1)
    rig.function.msix.notify(3)
    other = Messages()
    other.bus.restore(rig.bus.save())
    assert other.pending(3)
    other.mmio.write(other.table + 16 * 3 + 12, 4, 0)
    assert other.sent == [(ADDRESS, DATA + 3)]
    state = rig.bus.save()
    rig.bus.reset()
    assert not rig.pending(3)
    assert not rig.function.msix.enabled
    state["functions"]["0:4:0"]["capabilities"][1]["table"] = b""
    with pytest.raises(DeviceError):
        rig.bus.restore(state)


def test_a_bar_goes_to_its_place_when_another_one_leaves_it() -> None:
    rig = Messages()
    environment = replace(rig.environment)
    first, second = Messenger(environment, {}), Messenger(environment, {})
    bus = PciBus(replace(environment, mmio=type(rig.mmio)(), pio=type(rig.pio)()), IntxRouting(rig.lines.router))
    first.environment = second.environment = bus.environment
    bus.add(PciAddress(0, 1, 0), first)
    bus.add(PciAddress(0, 2, 0), second)
    here, there = first.bars[0].mapped, second.bars[0].mapped
    bus.write_config(1 << 3, 0x14, 4, there)
    assert first.bars[0].mapped is None
    bus.write_config(2 << 3, 0x14, 4, here)
    assert (first.bars[0].mapped, second.bars[0].mapped) == (there, here)


def test_the_host_bridge_says_that_it_is_pci_express(rig: Messages) -> None:
    offset = rig.get(0, 0x34, 1)
    assert rig.get(0, offset, 1) == 0x10
    assert rig.get(0, offset + 2, 2) == 0x42
    assert rig.mmio.read(ECAM_BASE + offset, 4) == rig.get(0, offset, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 0x3FF8), st.sampled_from((1, 2, 4, 8)), st.integers(0))))
def test_any_write_to_table_and_capabilities_is_survived(writes: list[tuple[bool, int, int, int]]) -> None:
    rig = Messages()
    for table, offset, size, value in writes:
        value &= (1 << 8 * size) - 1
        if table:
            rig.mmio.write(rig.table + offset, size, value)
        else:
            rig.mmio.write(
                ECAM_BASE + (4 << 15) + 0x40 + offset % 0x80, min(size, 4), value & (1 << 8 * min(size, 4)) - 1
            )
        for vector in (0, 1, 299):
            rig.function.msi.notify(vector)
            rig.function.msix.notify(vector)
        got = rig.mmio.read(rig.table + offset, size)
        assert got is None or got < 1 << 8 * size
