"""A device of the host in the guest's hands, through the model of VFIO: as a driver sees it, and as the host does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhyve.backends.vfio.container import Container
from pyhyve.backends.vfio.uapi import IrqIndex
from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.ioapic import Ioapic
from pyhyve.hw.chipset.irqchip import wire
from pyhyve.hw.chipset.pic import Pic
from pyhyve.hw.environment import DirectPaths, Environment
from pyhyve.hw.pci.bus import PciAddress, PciBus
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.hw.pci.passthru_map import cut
from pyhyve.loop import EventLoop
from pyhyve.memory import GuestMemory
from tests.backends.vfio.gadget import (
    ACK,
    GO,
    LENGTH,
    MORE,
    PENDING,
    RAISE,
    SATA,
    SCRATCH,
    SOURCE,
    TABLE,
    TARGET,
    VECTORS,
    Gadget,
)
from tests.backends.vfio.model import Hardware, ModelKernel

NAME = "0000:01:00.0"
OPTIONS = {"bus": "1", "slot": "0", "func": "0"}
SLOT = 4
COMMAND, STATUS, BAR0, ROM, CAPABILITIES, LINE, PIN = 0x04, 0x06, 0x10, 0x30, 0x34, 0x3C, 0x3D
MESSAGE, DATA = 0xFEE0_1000, 0x4020
RAM = 8 << 20


class Direct:
    """What a backend does by itself."""

    def __init__(self) -> None:
        self.there: dict[int, tuple[int, int]] = {}
        self.bound: dict[int, tuple[int, int]] = {}
        self.can_bind = False

    def map_host(self, gpa: int, size: int, address: int) -> bool:
        assert gpa % 4096 == size % 4096 == 0
        self.there[gpa] = (size, address)
        return True

    def unmap_host(self, gpa: int) -> None:
        del self.there[gpa]

    def bind_msi(self, fd: int, address: int, data: int) -> bool:
        if self.can_bind:
            self.bound[fd] = (address, data)
        return self.can_bind

    def unbind_msi(self, fd: int) -> None:
        del self.bound[fd]


class Rig:
    def __init__(
        self,
        options: dict[str, str] = OPTIONS,
        *,
        can_reset: bool = True,
        make: Callable[[Environment], Gadget] = Gadget,
        memory: GuestMemory | None = None,
        direct: DirectPaths | None = None,
        send_msi: Callable[[int, int], None] | None = None,
        router: IrqRouter | None = None,
    ) -> None:
        self.hardware = Hardware(make, can_reset=can_reset)
        self.kernel = ModelKernel({NAME: self.hardware})
        self.memory = memory or GuestMemory(RAM)
        self.loop = EventLoop()
        self.container = Container(self.memory, self.kernel)
        self.messages: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int]] = []
        self.wrote = 0
        self.pio, self.mmio = PioBus(), MmioBus()
        self.pic = Pic(lambda level: None)
        self.ioapic = Ioapic(send_msi or (lambda a, d: self.sent.append((a, d))))
        self.router = router or IrqRouter(wire(self.pic, self.ioapic))
        self.ioapic.on_end = self.router.ended
        self.pic.on_end = self.router.ended
        self.pic.attach(self.pio)
        self.direct = direct or Direct()
        environment = Environment(
            loop=self.loop, memory=self.memory, pio=self.pio, mmio=self.mmio, router=self.router,
            send_msi=send_msi or (lambda a, d: self.messages.append((a, d))), doorbells=None, power=lambda reason: None,
            direct=self.direct, vfio=lambda: self.container, device_wrote=self._device_wrote,
        )  # fmt: skip
        self.bus = PciBus(environment, IntxRouting(self.router))
        self.bus.attach()
        self.bus.create(PciAddress(0, 0, 0), "hostbridge", {})
        self.function = self.bus.create(PciAddress(0, SLOT, 0), "passthru", options)
        self.bus.finish()

    def _device_wrote(self) -> None:
        self.wrote += 1

    def close(self) -> None:
        self.bus.close()
        self.container.close()
        self.loop.close()
        self.kernel.shut_down()
        self.memory.close()

    def get(self, offset: int, size: int) -> int:
        self.pio.write(0xCF8, 4, 1 << 31 | SLOT << 11 | offset & 0xFC)
        value = self.pio.read(0xCFC + (offset & 3), size)
        assert value is not None
        return value

    def put(self, offset: int, size: int, value: int) -> None:
        self.pio.write(0xCF8, 4, 1 << 31 | SLOT << 11 | offset & 0xFC)
        assert self.pio.write(0xCFC + (offset & 3), size, value)

    def capabilities(self) -> dict[int, int]:
        found, at = {}, self.get(CAPABILITIES, 1)
        while at:
            found[self.get(at, 1)] = at
            at = self.get(at + 1, 1)
        return found

    @property
    def memory_bar(self) -> int:
        return self.get(BAR0, 4) & ~0xF | self.get(BAR0 + 4, 4) << 32

    @property
    def registers(self) -> int:
        return self.get(BAR0 + 8, 4) & ~0xF

    def read(self, offset: int, size: int = 4) -> int:
        value = self.mmio.read(self.registers + offset, size)
        assert value is not None
        return value

    def write(self, offset: int, value: int, size: int = 4) -> None:
        assert self.mmio.write(self.registers + offset, size, value)

    def serve(self) -> None:
        """Let the event loop do what is there to be done."""
        self.loop._loop.call_soon(lambda: self.loop._loop.call_soon(self.loop.stop))
        self.loop.run()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Run the loop until ``condition``; the eventfds wake it."""
        for _ in range(1000):
            if condition():
                return
            self.serve()
        raise AssertionError("it did not come")

    def enable_msix(self, vector: int) -> None:
        msix = self.capabilities()[0x11]
        for i, value in enumerate((MESSAGE, 0, DATA + vector, 0)):
            self.write(TABLE + 16 * vector + 4 * i, value)
        self.put(msix + 2, 2, 0x8000)

    def ioapic_pin(self, gsi: int, entry: int) -> None:
        for half in (1, 0):
            self.ioapic.write(0, 4, 0x10 + 2 * gsi + half)
            self.ioapic.write(0x10, 4, entry >> 32 * half & 0xFFFFFFFF)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()
    assert rig.hardware.violations == []
    assert rig.kernel.fds == {}


# -- configuration space --


def test_the_guest_sees_the_devices_numbers(rig: Rig) -> None:
    assert rig.get(0, 4) == 0x11E8_1234
    assert rig.get(8, 4) == 0xFF00_0003
    assert rig.get(0x2C, 4) == 0x1100_1AF4


def test_bars_have_the_devices_sizes_and_addresses_of_ours(rig: Rig) -> None:
    assert rig.get(BAR0, 4) & 0xF == 0xC  # 64 bits, prefetchable
    for register, size in ((BAR0, 64 << 10), (BAR0 + 8, 16 << 10), (BAR0 + 16, 32)):
        before = rig.get(register, 4)
        rig.put(register, 4, 0xFFFFFFFF)
        assert rig.get(register, 4) & ~0xF == 0x1_0000_0000 - size
        rig.put(register, 4, before)
    assert rig.memory_bar >= 0xD0_0000_0000


def test_known_capabilities_are_linked_and_others_hidden(rig: Rig) -> None:
    shown = rig.capabilities()
    assert sorted(shown) == [0x01, 0x05, 0x09, 0x10, 0x11]
    assert SATA not in shown
    assert rig.get(STATUS, 2) & 0x10
    hidden = rig.hardware.function.hidden
    assert [rig.get(hidden + at, 4) for at in (0, 4)] == [0, 0]
    rig.put(hidden + 4, 4, 0x12345678)
    assert rig.hardware.function.config.get(hidden + 2, 6) == int.from_bytes(b"secret", "little")
    assert rig.get(0x100 - 8, 4) == 0


def test_a_shown_capability_is_the_devices(rig: Rig) -> None:
    power, vendor = rig.capabilities()[0x01], rig.capabilities()[0x09]
    rig.put(power + 4, 2, 0x0003)
    assert rig.hardware.function.config.get(power + 4, 2) == 0x000B  # D3, keeps its state
    assert rig.get(power + 4, 2) == 0x000B
    before = rig.capabilities()
    rig.put(vendor, 4, 0xFFFF_FFFF)  # neither number, link nor length can be written, the next two bytes can
    assert rig.capabilities() == before
    assert rig.get(vendor + 2, 1) == 9
    rig.put(vendor + 4, 2, 0x4142)
    assert rig.hardware.function.config.get(vendor + 4, 2) == 0x4142
    assert rig.get(vendor + 4, 4) == int.from_bytes(b"BAge", "little")


def test_registers_outside_the_list_are_the_devices(rig: Rig) -> None:
    rig.put(0xF8, 4, 0xCAFE_F00D)
    assert rig.hardware.function.config.get(0xF8, 4) == 0xCAFE_F00D
    assert rig.get(0xFA, 2) == 0xCAFE


def test_extended_configuration_space_is_hidden(rig: Rig) -> None:
    assert rig.bus.read_config(SLOT << 3, 0x100, 4) == 0xFFFFFFFF
    rig.bus.write_config(SLOT << 3, 0x100, 4, 1)


def test_the_command_register_reaches_the_device(rig: Rig) -> None:
    config = rig.hardware.function.config
    assert config.get(COMMAND, 2) & 0x7 == 0x3  # decoding, no bus mastering before a driver asks for it
    rig.put(COMMAND, 2, 0x0006)
    assert config.get(COMMAND, 2) & 0x7 == 0x6
    rig.put(COMMAND, 2, 0x0000)
    assert config.get(COMMAND, 2) & 0x7 == 0
    assert rig.mmio.read(rig.registers, 4) is None


def test_an_interrupt_status_of_the_device_is_seen(rig: Rig) -> None:
    assert not rig.get(STATUS, 2) & 0x8
    rig.hardware.function.set_intx(True)
    assert rig.get(STATUS, 2) & 0x8
    assert rig.get(COMMAND, 4) >> 16 & 0x8


def test_an_option_rom_is_shown_when_it_is_enabled(tmp_path: Path) -> None:
    image = tmp_path / "card.rom"
    image.write_bytes(b"\x55\xaa" + os.urandom(3000))
    rig = Rig(options={**OPTIONS, "rom": str(image)})
    try:
        rig.put(ROM, 4, 0xFFFFFFFF)
        assert rig.get(ROM, 4) == 0xFFFFF001
        rig.put(ROM, 4, 0xC8000000)
        assert rig.mmio.read(0xC8000000, 2) is None
        rig.put(ROM, 4, 0xC8000001)
        assert rig.mmio.read(0xC8000000, 4) == int.from_bytes(image.read_bytes()[:4], "little")
        assert rig.mmio.read(0xC8000000 + 3002, 1) == 0xFF
        rig.mmio.write(0xC8000000, 4, 0)
        assert rig.mmio.read(0xC8000000, 2) == 0xAA55
    finally:
        rig.close()


# -- registers --


def test_an_access_reaches_the_device_with_its_size(rig: Rig) -> None:
    rig.hardware.accesses.clear()
    for size in (1, 2, 4, 8):
        rig.write(SCRATCH, 0x8877665544332211 & (1 << 8 * size) - 1, size)
        assert rig.read(SCRATCH, size) == 0x8877665544332211 & (1 << 8 * size) - 1
    assert rig.hardware.accesses[:2] == [("write", 2, SCRATCH, 1), ("read", 2, SCRATCH, 1)]
    assert rig.hardware.accesses[-1] == ("read", 2, SCRATCH, 8)
    ports = rig.get(BAR0 + 16, 4) & ~3
    rig.pio.write(ports + 8, 2, 0xABCD)
    assert rig.pio.read(ports + 8, 4) == 0xABCD
    assert rig.hardware.function.ports.data[8:10] == b"\xcd\xab"


def test_a_device_that_refuses_an_access_reads_as_all_ones(rig: Rig) -> None:
    rig.hardware.function.config.set(COMMAND, 2, 0)  # decoding is off behind our back
    assert rig.read(SCRATCH) == 0xFFFFFFFF
    rig.write(SCRATCH, 1)


def test_dma_reaches_guest_memory_at_its_guest_physical_address(rig: Rig) -> None:
    data = os.urandom(1000)
    rig.memory.write(0x1234, data)
    for register, value in ((SOURCE, 0x1234), (TARGET, RAM - 1000)):
        rig.write(register, value, 8)
    rig.write(LENGTH, 1000)
    rig.write(GO, 1)
    assert rig.memory.read(RAM - 1000, 1000) == bytes(1000)  # not a bus master yet
    rig.put(COMMAND, 2, 0x0007)
    rig.write(GO, 1)
    assert rig.memory.read(RAM - 1000, 1000) == data
    rig.write(TARGET, RAM - 999, 8)
    rig.write(GO, 1)
    assert rig.read(SCRATCH, 1) == 0xEE  # the IOMMU lets nothing through that is not guest memory


# -- mapped BARs --


def test_whole_pages_are_mapped_but_not_those_of_the_msix_table(rig: Rig) -> None:
    assert {gpa: size for gpa, (size, _) in rig.direct.there.items()} == {
        rig.memory_bar: 64 << 10,
        rig.registers: 0x1000,
        rig.registers + MORE: 0x1000,
    }


def test_mappings_follow_the_bar(rig: Rig) -> None:
    rig.put(BAR0 + 8, 4, 0xC9000000)
    assert 0xC9000000 in rig.direct.there
    assert len(rig.direct.there) == 3
    rig.put(COMMAND, 2, 0)
    assert rig.direct.there == {}
    rig.put(COMMAND, 2, 2)
    assert len(rig.direct.there) == 3


def test_a_device_that_sleeps_is_not_mapped(rig: Rig) -> None:
    power = rig.capabilities()[0x01]
    rig.put(power + 4, 2, 0x0003)
    assert rig.direct.there == {}
    rig.put(BAR0 + 8, 4, 0xC9000000)
    assert rig.direct.there == {}
    rig.put(power, 4, 0)  # number and link are not written, the state is not touched
    rig.put(power + 4, 2, 0x0000)
    assert len(rig.direct.there) == 3
    assert 0xC9000000 in rig.direct.there


def test_a_table_in_the_middle_of_a_region_that_can_all_be_mapped_is_left_out() -> None:
    assert cut([(0, 0x8000)], [(0x1000, 0x2000), (0x4000, 0x5000)]) == [
        (0, 0x1000), (0x2000, 0x2000), (0x5000, 0x3000)
    ]  # fmt: skip
    assert cut([(0, 0x1000)], [(0, 0x1000)]) == []
    assert cut([(0, 0x1000)], []) == [(0, 0x1000)]


# -- interrupts --


def test_msix_vectors_become_the_guests_messages(rig: Rig) -> None:
    rig.put(COMMAND, 2, 0x0406)
    rig.enable_msix(3)
    rig.write(RAISE, 3)
    rig.wait_for(lambda: bool(rig.messages))
    assert rig.messages == [(MESSAGE, DATA + 3)]
    assert rig.wrote == 1
    assert rig.hardware.kind is IrqIndex.MSIX
    assert rig.hardware.vectors == VECTORS


def test_a_masked_msix_vector_waits_until_it_is_unmasked(rig: Rig) -> None:
    rig.put(COMMAND, 2, 0x0406)
    rig.enable_msix(1)
    rig.write(TABLE + 16 + 12, 1)
    rig.write(RAISE, 1)
    rig.wait_for(lambda: bool(rig.read(PENDING, 8)))
    assert rig.read(PENDING, 8) == 2
    assert rig.messages == []
    rig.write(TABLE + 16 + 12, 0)
    assert rig.messages == [(MESSAGE, DATA + 1)]
    assert rig.read(PENDING, 8) == 0


def test_the_device_never_sees_the_guests_table(rig: Rig) -> None:
    rig.hardware.accesses.clear()
    rig.enable_msix(2)
    assert rig.read(TABLE + 32) == MESSAGE
    rig.read(PENDING)
    rig.write(TABLE - 2, 0xFFFFFFFF)  # half in it
    assert [access for access in rig.hardware.accesses if TABLE <= access[2] < MORE] == []


def test_msi_vectors_become_the_guests_messages(rig: Rig) -> None:
    msi = rig.capabilities()[0x05]
    assert rig.get(msi + 2, 2) == 0x0104  # 4 vectors, 32-bit address, masks: the device's form
    rig.put(COMMAND, 2, 0x0406)
    rig.put(msi + 4, 4, MESSAGE)
    rig.put(msi + 8, 2, DATA)
    rig.put(msi + 2, 2, 0x0021)
    rig.write(RAISE, 2)
    rig.wait_for(lambda: bool(rig.messages))
    assert rig.messages == [(MESSAGE, DATA | 2)]
    rig.put(msi + 12, 4, 1 << 1)
    rig.write(RAISE, 1)
    rig.wait_for(lambda: rig.get(msi + 16, 4) == 2)
    rig.put(msi + 12, 4, 0)
    assert rig.messages[1:] == [(MESSAGE, DATA | 1)]
    rig.put(msi + 2, 2, 0)
    assert rig.hardware.kind is IrqIndex.INTX


def test_the_pin_stays_active_until_the_guest_ends_the_interrupt(rig: Rig) -> None:
    gsi = 16 + (4 + SLOT + 1) % 8
    rig.ioapic_pin(gsi, 1 << 15 | 0x51)  # level triggered
    rig.write(RAISE, 0)
    rig.wait_for(lambda: bool(rig.sent))
    assert len(rig.sent) == 1
    assert rig.hardware.masked
    rig.ioapic.eoi(0x51)  # the device has not been served: it asks again
    rig.wait_for(lambda: len(rig.sent) == 2)
    rig.write(ACK, 0)
    rig.ioapic.eoi(0x51)
    rig.serve()
    assert len(rig.sent) == 2
    assert not rig.router.level(gsi)
    assert not rig.hardware.masked
    rig.write(RAISE, 0)
    rig.wait_for(lambda: len(rig.sent) == 3)


def test_an_end_of_interrupt_at_the_pic_counts_too(rig: Rig) -> None:
    irq = rig.get(LINE, 1)
    chip = 0xA0 if irq & 8 else 0x20
    for port in (0x20, 0xA0):
        for value, at in ((0x11, 0), (0x20, 1), (4 if port == 0x20 else 2, 1), (1, 1), (0, 1)):
            rig.pio.write(port + at, 1, value)
    rig.pic.set_elcr(1 << irq)
    rig.write(RAISE, 0)
    rig.wait_for(lambda: rig.pic.intr)
    rig.pic.acknowledge()
    rig.write(ACK, 0)
    rig.pio.write(chip, 1, 0x20)
    rig.serve()
    assert not rig.router.level(irq)
    assert not rig.hardware.masked


def test_interrupts_that_the_host_refuses_are_told_once(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.hardware.refuses = {IrqIndex.MSIX}
    msix = rig.capabilities()[0x11]
    for _ in range(3):
        rig.put(msix + 2, 2, 0x8000)
        rig.put(COMMAND, 2, 0x0406)
        rig.put(msix + 2, 2, 0)
    assert capsys.readouterr().err.count("\n") == 1
    assert rig.hardware.kind is IrqIndex.INTX
    rig.hardware.refuses = set()
    rig.enable_msix(0)
    assert rig.hardware.kind is IrqIndex.MSIX


def test_a_write_that_spans_two_entries_counts_for_both(rig: Rig) -> None:
    rig.direct.can_bind = True
    rig.put(COMMAND, 2, 0x0406)
    rig.enable_msix(0)
    rig.enable_msix(1)
    rig.write(TABLE + 12, (MESSAGE + 0x1000) << 32, 8)
    assert sorted(rig.direct.bound.values()) == [(MESSAGE, DATA), (MESSAGE + 0x1000, DATA + 1)]


def test_a_backend_that_can_sends_messages_by_itself_while_nothing_masks_them(rig: Rig) -> None:
    rig.direct.can_bind = True
    rig.enable_msix(2)
    assert rig.direct.bound == {}  # not a bus master yet: it may send nothing
    rig.put(COMMAND, 2, 0x0406)
    assert list(rig.direct.bound.values()) == [(MESSAGE, DATA + 2)]
    rig.write(TABLE + 32 + 8, DATA + 9)
    assert list(rig.direct.bound.values()) == [(MESSAGE, DATA + 9)]
    rig.write(TABLE + 32 + 12, 1)
    assert rig.direct.bound == {}
    rig.write(RAISE, 2)
    rig.wait_for(lambda: bool(rig.read(PENDING, 8)))  # it comes to us again
    rig.write(TABLE + 32 + 12, 0)
    assert rig.messages == [(MESSAGE, DATA + 9)]
    assert len(rig.direct.bound) == 1
    rig.put(rig.capabilities()[0x11] + 2, 2, 0)
    assert rig.direct.bound == {}


def test_choosing_messages_releases_the_pin(rig: Rig) -> None:
    gsi = 16 + (4 + SLOT + 1) % 8
    rig.write(RAISE, 0)
    rig.wait_for(lambda: rig.router.level(gsi))
    rig.enable_msix(0)
    assert not rig.router.level(gsi)
    assert rig.hardware.kind is IrqIndex.MSIX


def test_a_legacy_device_has_its_pin_only() -> None:
    rig = Rig(options={**OPTIONS, "legacy": "true"})
    try:
        assert sorted(rig.capabilities()) == [0x01, 0x09, 0x10]
        assert rig.get(PIN, 1) == 1
    finally:
        rig.close()


def test_the_hosts_events_are_told(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, words in ((IrqIndex.ERROR, "cannot recover"), (IrqIndex.REQUEST, "wants the device back")):
        rig.hardware.raise_event(kind)
        rig.serve()
        assert words in capsys.readouterr().err


# -- lifecycle --


def test_a_reset_resets_the_device(rig: Rig) -> None:
    rig.put(COMMAND, 2, 0x0406)
    rig.enable_msix(0)
    before = rig.hardware.resets
    rig.bus.reset()
    assert rig.hardware.resets == before + 1
    assert rig.hardware.kind is IrqIndex.INTX
    assert rig.hardware.function.config.get(COMMAND, 2) & 0x407 == 0x3
    assert rig.read(TABLE + 12) == 1  # masked again


def test_a_device_that_cannot_be_reset_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(can_reset=False)
    try:
        assert capsys.readouterr().err.startswith("passthru 0000:01:00.0: no reset of its own")
        rig.bus.reset()
        assert rig.hardware.resets == 0
    finally:
        rig.close()


def test_closing_gives_everything_back(rig: Rig) -> None:
    rig.enable_msix(0)
    rig.bus.close()
    rig.container.close()
    assert rig.hardware.resets >= 1
    assert rig.hardware.kind is None
    assert rig.kernel.fds == {}
    assert rig.direct.there == {}
    assert all(mapping.closed for mapping in rig.kernel.mappings)


def test_hardware_is_not_saved(rig: Rig) -> None:
    with pytest.raises(DeviceError, match="cannot be saved"):
        rig.bus.save()
