"""What the host says of a PCI device before VFIO is asked for it: its driver, its IOMMU group, and what is missing.

Sources: the kernel's sysfs (/sys/bus/pci/devices) and its VFIO documentation. Nothing is changed: to take a device away
from its driver is the user's decision, and each refusal says how it is done.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyhyve.backends.vfio.system import System
from pyhyve.errors import DeviceError

DEVICES = "/sys/bus/pci/devices"
GROUPS = "/sys/kernel/iommu_groups"
CONTAINER = "/dev/vfio/vfio"

_BHYVE = re.compile(r"(\d+)/(\d+)/(\d+)")
_FREEBSD = re.compile(r"pci(?:(\d+):)?(\d+):(\d+):(\d+)")
_LINUX = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-7])")


@dataclass(frozen=True, slots=True)
class HostAddress:
    """Where a device is on the host."""

    domain: int
    bus: int
    slot: int
    function: int

    def __post_init__(self) -> None:
        limits = (self.domain, 1 << 32), (self.bus, 256), (self.slot, 32), (self.function, 8)
        if not all(0 <= number < limit for number, limit in limits):
            raise ValueError("a PCI address has a bus up to 255, a slot up to 31 and a function up to 7")

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function}"

    @classmethod
    def parse(cls, text: str) -> HostAddress:
        """bhyve's ``bus/slot/function`` and ``pciBUS:SLOT:FUNCTION`` (decimal), or lspci's ``[DDDD:]BB:SS.F``.

        Raises ``ValueError``.
        """
        if (match := _BHYVE.fullmatch(text)) or (match := _FREEBSD.fullmatch(text)):
            numbers = [int(n) for n in match.groups("0")]
        elif match := _LINUX.fullmatch(text):
            numbers = [int(n, 16) for n in match.groups("0")]
        else:
            raise ValueError(text)
        return cls(*([0] * (4 - len(numbers))), *numbers)


def _last_part(system: System, link: str) -> str | None:
    """The name that a symbolic link of sysfs leads to."""
    try:
        return posixpath.basename(system.readlink(link))
    except OSError:
        return None


def driver_of(system: System, address: str) -> str | None:
    """The host's driver of a device."""
    return _last_part(system, f"{DEVICES}/{address}/driver")


def is_vfio(driver: str | None) -> bool:
    """Whether a driver is one of VFIO's: vfio-pci, or a variant for one kind of device."""
    return driver is not None and "vfio" in driver


def members(system: System, group: str) -> list[str]:
    """The devices of an IOMMU group."""
    try:
        return sorted(system.listdir(f"{GROUPS}/{group}/devices"))
    except OSError:
        return []


def foreign_members(system: System, group: str) -> Iterator[tuple[str, str]]:
    """The devices of a group that a driver of the host's own holds, and the driver."""
    for address in members(system, group):
        driver = driver_of(system, address)
        if driver is not None and not is_vfio(driver) and driver not in ("pci-stub", "pcieport"):
            yield address, driver


def ready_devices(system: System) -> list[str]:
    """The host's devices that VFIO's drivers hold."""
    try:
        return sorted(a for a in system.listdir(DEVICES) if is_vfio(driver_of(system, a)))
    except OSError:
        return []


def has_iommu(system: System) -> bool:
    """Whether the host's kernel has put any device into an IOMMU group."""
    try:
        return bool(system.listdir(GROUPS))
    except OSError:
        return False


def find_group(system: System, address: HostAddress) -> str:
    """The IOMMU group of a device that is ready for VFIO. Raises ``DeviceError`` with what is missing otherwise."""
    who = f"passthru: device {address}"
    if not system.exists(f"{DEVICES}/{address}"):
        raise DeviceError(f"passthru: this host has no PCI device {address}; lspci -D lists those it has")
    group = _last_part(system, f"{DEVICES}/{address}/iommu_group")
    if group is None:
        raise DeviceError(
            f"{who} is in no IOMMU group: switch the IOMMU on in the firmware's setup and, on Intel, by intel_iommu=on"
            " on the host kernel's command line"
        )
    driver = driver_of(system, str(address))
    if not is_vfio(driver):
        held = f"belongs to the host's driver {driver}" if driver else "has no driver on the host"
        raise DeviceError(f"{who} {held}: give it to vfio-pci (driverctl set-override {address} vfio-pci)")
    if not system.exists(CONTAINER):
        raise DeviceError(f"passthru: there is no {CONTAINER}: load VFIO on the host (modprobe vfio-pci)")
    return group
