"""Taking a device of the host, and every way in which that is refused: one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pyhyve.backends.vfio.container import Container
from pyhyve.backends.vfio.host import HostAddress
from pyhyve.backends.vfio.uapi import RegionFlag
from pyhyve.errors import DeviceError
from pyhyve.hw.pci.passthru import Passthru, host_address
from pyhyve.memory import GuestMemory
from tests.backends.vfio.gadget import MEMORY, MORE, TABLE, VECTORS, Gadget
from tests.backends.vfio.model import Hardware, ModelKernel

NAME = "0000:01:00.0"
ADDRESS = HostAddress(0, 1, 0, 0)
RAM, LOW = 4 << 20, 1 << 20


@pytest.fixture
def kernel() -> Iterator[ModelKernel]:
    kernel = ModelKernel({NAME: Hardware(Gadget), "0000:02:00.0": Hardware(Gadget, group="9")})
    yield kernel
    kernel.shut_down()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(RAM, low_limit=LOW)
    yield memory
    memory.close()


@pytest.fixture
def container(kernel: ModelKernel, memory: GuestMemory) -> Iterator[Container]:
    container = Container(memory, kernel)
    yield container
    container.close()


def test_guest_memory_is_mapped_for_dma_once(kernel: ModelKernel, memory: GuestMemory, container: Container) -> None:
    first = container.open(ADDRESS)
    second = container.open(HostAddress(0, 2, 0, 0))
    expected = [(r.gpa, r.size, memory.host_address(r.gpa)) for r in memory.regions]
    assert len(expected) == 2
    assert kernel.devices[NAME].dma == kernel.devices["0000:02:00.0"].dma == expected
    first.close()
    second.close()
    container.close()
    assert kernel.devices[NAME].dma == []
    assert kernel.fds == {}


def test_regions_and_interrupts_are_told(container: Container) -> None:
    device = container.open(ADDRESS)
    assert [r.size for r in device.regions] == [MEMORY, 0, 16 << 10, 0, 32, 0, 0, 256]
    assert device.regions[0].areas == ((0, MEMORY),)
    assert device.regions[2].areas == ((0, TABLE), (MORE, 0x1000))
    assert device.regions[4].areas == ()
    assert device.regions[4].flags == RegionFlag.READ | RegionFlag.WRITE
    assert [i.count for i in device.interrupts] == [1, 4, VECTORS, 1, 1]
    assert device.read_config(0, 4) == 0x11E81234
    device.close()


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("absent", "no PCI device 0000:01:00.1; lspci"),
        ("no group", "in no IOMMU group: switch the IOMMU on"),
        ("other driver", r"belongs to the host's driver e1000e: give it to vfio-pci \(driverctl set-override"),
        ("no driver", "has no driver on the host: give it to vfio-pci"),
        ("no vfio", "there is no /dev/vfio/vfio: load VFIO"),
        ("container forbidden", "/dev/vfio/vfio is forbidden to you"),
        ("group forbidden", r"\(IOMMU group 7\): /dev/vfio/7 is forbidden to you"),
        ("group missing", "has no /dev/vfio/7"),
        ("group busy", "another program uses the group"),
        ("not viable", r"the host still uses 0000:01:00.1 \(driver snd_hda_intel\) of that group"),
        ("locked memory", "4 MB of guest memory cannot be given to the IOMMU"),
        (
            "interrupt remapping",
            "refuses it: Operation not permitted; without interrupt remapping only with allow_unsafe",
        ),
        ("version", "the host's VFIO has version 7"),
    ],
)
def test_what_is_missing_is_one_line(kernel: ModelKernel, container: Container, what: str, line: str) -> None:
    address, hardware = ADDRESS, kernel.devices[NAME]
    match what:
        case "absent":
            address = HostAddress(0, 1, 0, 1)
        case "no group":
            kernel.missing.add(f"/sys/bus/pci/devices/{NAME}/iommu_group")
        case "other driver":
            hardware.driver = "e1000e"
        case "no driver":
            hardware.driver = None
        case "no vfio":
            kernel.missing.add("/dev/vfio/vfio")
        case "container forbidden":
            kernel.forbidden.add("/dev/vfio/vfio")
        case "group forbidden":
            kernel.forbidden.add("/dev/vfio/7")
        case "group missing":
            kernel.missing.add("/dev/vfio/7")
        case "group busy":
            kernel.busy.add("/dev/vfio/7")
        case "not viable":
            kernel.neighbours["0000:01:00.1"] = ("7", "snd_hda_intel")
        case "locked memory":
            kernel.dma_limit = 1 << 20
        case "interrupt remapping":
            kernel.safe_interrupts = False
        case "version":
            kernel.version = 7
    with pytest.raises(DeviceError, match=line) as caught:
        container.open(address)
    assert "\n" not in str(caught.value)
    container.close()
    assert kernel.fds == {}


def test_a_bridge_is_not_given_away(kernel: ModelKernel, container: Container) -> None:
    kernel.devices[NAME].function.config.set(0x0E, 1, 0x81)
    device = container.open(ADDRESS)
    function = Passthru.__new__(Passthru)
    function.host = device
    with pytest.raises(DeviceError, match="is a bridge"):
        function._read_device()
    device.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1/0/0", "0000:01:00.0"),
        ("10/31/7", "0000:0a:1f.7"),
        ("pci1:2:3", "0000:01:02.3"),
        ("pci0:1:2:3", "0000:01:02.3"),
        ("01:00.0", "0000:01:00.0"),
        ("ab:1f.7", "0000:ab:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
    ],
)
def test_a_device_is_named_as_bhyve_or_as_lspci_does(text: str, address: str) -> None:
    options = Passthru.parse_options(f"{text},rom=x.rom")
    assert options.pop("rom") == "x.rom"
    assert str(host_address(options)) == address


@pytest.mark.parametrize("text", ["", "1/2", "1/32/0", "1/0/8", "256/0/0", "01:20.0", "1/0/0/0", "-1/0/0", "x"])
def test_a_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(f"'{text}' names no device of the host")):
        Passthru.parse_options(text)


def test_freebsds_names_are_told_apart() -> None:
    with pytest.raises(DeviceError, match="FreeBSD"):
        Passthru.parse_options("ppt0")
    with pytest.raises(DeviceError, match="FreeBSD"):
        host_address({"pptdev": "ppt0"})
    with pytest.raises(DeviceError, match="unknown option 'romm'"):
        host_address({"bus": "1", "slot": "0", "func": "0", "romm": "x"})
    with pytest.raises(DeviceError, match="needs a device of the host"):
        host_address({})
