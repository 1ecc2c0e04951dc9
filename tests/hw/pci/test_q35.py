"""The bridges of QEMU's machine q35, as SeaBIOS and OVMF use them."""

import threading

import pytest

from pyhyve.bus.handler import Callbacks
from pyhyve.hw.chipset.pm import CONTROL_PORT, EVENT_PORT, S5_TYPE
from pyhyve.hw.chipset.pmtmr import PORT as TIMER_PORT
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus
from pyhyve.hw.pci.intx import IntxRouting
from tests.hw.pci.test_pci import Rig

PCIEXBAR, PAM, PMBASE, ACPI_CNTL, PIRQA = 0x60, 0x90, 0x40, 0x44, 0x60


class Q35(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, int]] = []
        for port, count in ((EVENT_PORT, 4), (CONTROL_PORT, 2), (TIMER_PORT, 4)):
            self.pio.register(port, count, self._answers(port), f"pm {port:#x}")
        for range_ in self.mmio.ranges():
            self.mmio.unregister(range_.gpa)
        for port in (0xCF8, 0xCFC):
            self.pio.unregister(port)
        self.bus = PciBus(self.environment, IntxRouting(self.lines.router))
        self.bus.attach()
        self.bus.create(PciAddress(0, 0, 0), "q35", {})
        self.bus.create(PciAddress(0, 31, 0), "ich9", {})
        self.bus.finish()

    def _answers(self, port: int) -> Callbacks:
        def write(offset: int, size: int, value: int) -> None:
            self.written.append((port, value))

        return Callbacks(lambda offset, size: port & 0xFF, write)


@pytest.fixture
def rig() -> Q35:
    return Q35()


def test_firmware_recognizes_qemu_by_the_subsystem(rig: Q35) -> None:
    assert rig.get(0, 0, 4) == 0x29C08086
    assert rig.get(0, 0x2C, 4) == 0x11001AF4
    assert rig.get(31, 0, 4) == 0x29188086


def test_configuration_space_answers_where_pciexbar_says_and_at_its_usual_place(rig: Q35) -> None:
    assert rig.get(0, PCIEXBAR, 4) == ECAM_BASE | 1
    rig.put(0, PCIEXBAR, 4, 0xB0000001)
    assert rig.mmio.read(0xB0000000, 4) == 0x29C08086
    assert rig.mmio.read(ECAM_BASE, 4) == 0x29C08086
    rig.put(0, PCIEXBAR, 4, 0xC0000001)
    assert rig.mmio.read(0xB0000000, 4) is None
    assert rig.mmio.read(0xC0000000, 4) == 0x29C08086
    rig.put(0, PCIEXBAR, 4, 0xC0000000)
    assert rig.mmio.read(0xC0000000, 4) is None, "disabled"


def test_pam_registers_keep_what_opens_memory(rig: Q35) -> None:
    assert rig.get(0, PAM, 1) == 0, "closed: SeaBIOS copies itself then"
    rig.put(0, PAM, 1, 0xFF)
    assert rig.get(0, PAM, 1) == 0x33


def test_power_management_registers_answer_at_pmbase_once_it_is_enabled(rig: Q35) -> None:
    rig.put(31, PMBASE, 4, 0x600)
    assert rig.get(31, PMBASE, 4) == 0x601
    assert rig.pio.read(0x608, 4) is None
    rig.put(31, ACPI_CNTL, 1, 0x80)
    assert rig.pio.read(0x608, 4) == TIMER_PORT & 0xFF
    assert rig.pio.write(0x604, 2, 0x2000)
    assert rig.pio.write(0x604, 2, 0x3C00)
    assert rig.written == [(CONTROL_PORT, 0x2000 | S5_TYPE << 10), (CONTROL_PORT, 0x3C00)], "QEMU's soft-off is bhyve's"
    assert rig.pio.read(TIMER_PORT, 4) == TIMER_PORT & 0xFF, "bhyve's place stays"
    assert rig.pio.read(0x630, 4) == 0x20, "SMI_EN: set up already, there is no system management mode"
    assert rig.pio.read(0x620, 2) == 0, "no general-purpose event"
    rig.put(31, PMBASE, 4, 0xB000)
    assert rig.pio.read(0x608, 4) is None
    assert rig.pio.read(0xB008, 4) == TIMER_PORT & 0xFF
    rig.put(31, ACPI_CNTL, 1, 0)
    assert rig.pio.read(0xB008, 4) is None


def test_a_place_that_is_taken_is_not(rig: Q35) -> None:
    rig.put(31, PMBASE, 4, 0x400)
    rig.put(31, ACPI_CNTL, 1, 0x80)
    assert rig.pio.read(TIMER_PORT, 4) == TIMER_PORT & 0xFF


def test_interrupts_are_routed_as_behind_the_other_bridge(rig: Q35) -> None:
    rig.put(31, PIRQA, 1, 0x05)
    assert rig.get(31, PIRQA, 1) == 0x05


def test_reset_and_restore_place_what_the_registers_say(rig: Q35) -> None:
    rig.put(0, PCIEXBAR, 4, 0xB0000001)
    rig.put(31, PMBASE, 4, 0x600)
    rig.put(31, ACPI_CNTL, 1, 0x80)
    state = rig.bus.save()
    rig.bus.reset()
    assert rig.mmio.read(0xB0000000, 4) is None
    assert rig.pio.read(0x608, 4) is None
    rig.bus.restore(state)
    assert rig.mmio.read(0xB0000000, 4) == 0x29C08086
    assert rig.pio.read(0x608, 4) == TIMER_PORT & 0xFF


def test_ports_of_others_inside_the_block_stay_when_it_goes(rig: Q35) -> None:
    rig.put(31, PMBASE, 4, 0x600)
    rig.put(31, ACPI_CNTL, 1, 0x80)
    rig.pio.register(0x640, 4, Callbacks(lambda offset, size: 0x5A, lambda offset, size, value: None), "a BAR")
    rig.put(31, ACPI_CNTL, 1, 0)
    assert rig.pio.read(0x608, 4) is None
    assert rig.pio.read(0x640, 1) == 0x5A


def test_two_cpus_may_move_configuration_space_and_use_it_at_once(rig: Q35) -> None:
    """One by ECAM, which holds the function's lock, the other by ports, which holds the bus's."""
    waiting = threading.Event()
    function = rig.bus.functions[PciAddress(0, 0, 0)]

    def by_ports() -> None:
        with rig.bus.lock:
            waiting.set()
            with function.lock:
                pass

    other = threading.Thread(target=by_ports, daemon=True)
    with function.lock:
        other.start()
        assert waiting.wait(10)
        mover = threading.Thread(target=rig.bus.show_ecam, args=(0xB0000000,), daemon=True)
        mover.start()
        mover.join(10)
        assert not mover.is_alive()
    other.join(10)
    assert not other.is_alive()
