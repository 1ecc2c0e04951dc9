"""Several buses: each is a root with its part of the windows, its configuration cycles and its interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve import Config, Machine
from pyhyve.errors import DeviceError
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.bus import BUS_STEPS, ECAM_BASE, WINDOWS, PciAddress
from pyhyve.hw.pci.intx import pirq_of
from tests import kernels
from tests.conftest import find_backend
from tests.hw.pci.test_pci import BAR0, COMMAND, Rig, Sample


@pytest.fixture
def rig() -> Rig:
    """Functions on buses 0 (slot 3), 1 (slot 3, functions 0 and 1) and 7."""
    rig = Rig()
    for address in (PciAddress(1, 3, 0), PciAddress(1, 3, 1), PciAddress(7, 31, 0)):
        rig.bus.add(address, Sample(rig.environment, {}))
    rig.bus.finish()
    return rig


def bar(rig: Rig, bus: int, device: int, function: int, index: int) -> int:
    return rig.get(device, BAR0 + 4 * index, 4, bus=bus, function=function) & ~0xF


def test_functions_of_all_buses_are_found_by_both_mechanisms(rig: Rig) -> None:
    for bus, device, function in ((0, 3, 0), (1, 3, 0), (1, 3, 1), (7, 31, 0)):
        assert rig.get(device, 0, 4, bus=bus, function=function) == 0x1000_1AF4
        assert rig.mmio.read(ECAM_BASE + (bus << 20 | device << 15 | function << 12), 4) == 0x1000_1AF4
    assert rig.get(3, 0, 4, bus=2) == 0xFFFFFFFF
    assert rig.get(3, 0x0E, 1, bus=1) == 0x80
    assert rig.get(31, 0x0E, 1, bus=7) == 0


def test_bars_lie_in_their_buss_part_of_the_windows(rig: Rig) -> None:
    for bus, device, function in ((0, 3, 0), (1, 3, 0), (1, 3, 1), (7, 31, 0)):
        windows = rig.bus.windows_of(bus)
        for index, kind, size in ((0, BarKind.IO, 0x20), (1, BarKind.MEMORY_32, 0x2000)):
            first, end = windows[kind]
            address = bar(rig, bus, device, function, index)
            assert first <= address
            assert address + size <= end
    assert rig.mmio.read(bar(rig, 7, 31, 0, 1), 1) == 0
    assert rig.pio.read(bar(rig, 1, 3, 1, 0) + 3, 1) == 3


def test_the_parts_cover_the_windows_and_leave_room(rig: Rig) -> None:
    assert rig.bus.buses() == [0, 1, 7]
    for kind, (first, end) in WINDOWS.items():
        parts = [rig.bus.windows_of(bus)[kind] for bus in (0, 1, 7)]
        assert [part[0] for part in parts] == [first, parts[0][1], parts[1][1]]
        assert parts[-1][1] == end
        for a, b in parts[:-1]:
            assert b % BUS_STEPS[kind] == 0
            assert b - a >= BUS_STEPS[kind]


def test_pins_of_the_same_slot_on_two_buses_are_on_different_links(rig: Rig) -> None:
    routes = {str(route.address): route.pirq for route in rig.bus.routes()}
    assert routes == {"0:3:0": 0, "1:3:0": 1, "1:3:1": 2, "7:31:0": pirq_of(31, 1, 7)}
    rig.bus.functions[PciAddress(1, 3, 1)].set_intx(True)
    assert rig.lines.level(16 + 2)


def test_a_bus_that_was_left_takes_nothing_any_more(rig: Rig) -> None:
    with pytest.raises(DeviceError, match="bus 7 has been begun already"):
        rig.bus.add(PciAddress(1, 4, 0), Sample(rig.environment, {}))


def test_a_window_that_is_used_up_is_one_line() -> None:
    rig = Rig()
    rig.bus._next[BarKind.IO] = WINDOWS[BarKind.IO][1] - 0x10
    with pytest.raises(DeviceError, match="no room for a BAR of 0x20 bytes in ports"):
        rig.bus.add(PciAddress(1, 0, 0), Sample(rig.environment, {}))


def test_decoding_works_on_another_bus(rig: Rig) -> None:
    address = bar(rig, 7, 31, 0, 1)
    rig.address(31, COMMAND, bus=7)
    rig.pio.write(0xCFC, 2, 0)
    assert rig.mmio.read(address, 4) is None
    rig.address(31, BAR0 + 4, bus=7)
    rig.pio.write(0xCFC, 4, 0xC8000000)
    rig.address(31, COMMAND, bus=7)
    rig.pio.write(0xCFC, 2, 2)
    assert rig.mmio.read(0xC8000004, 1) == 4


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    config = Config.of(
        {
            "name": "buses",
            "memory.size": "16M",
            "vmm.backend": find_backend("soft").name,
            "pci.1.2.0.device": "virtio-rnd",
            "pci.1.2.1.device": "virtio-blk",
            "pci.1.2.1.path": str(disk),
            "pci.9.0.0.device": "amd_hostbridge",
            "boot.kernel": kernels.build(kernels.SPIN),
        }
    )
    with Machine(config) as machine:
        yield machine


def test_a_machine_has_devices_on_any_bus(machine: Machine) -> None:
    assert [str(address) for address in machine.pci.functions] == ["1:2:0", "1:2:1", "9:0:0"]
    windows = machine.pci.windows_of(1)
    for function in machine.pci.functions.values():
        for one in function.bars:
            assert one.mapped is not None
            first, end = windows[one.kind]
            assert first <= one.mapped < end
