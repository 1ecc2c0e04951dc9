"""Which bytes of a passed-through device's configuration space the guest sees of the hardware, and which are ours.

Documents: PCI Local Bus Specification 3.0, §6.1, §6.7 and appendix H. The policy::

    0x00-0x3F     ours, with the numbers of the device: identity, BARs, ROM, interrupt line and pin. The command
                  register is ours and told to the device; the status is the device's, but for its capability bit.
    MSI, MSI-X    ours, at the device's place and of its form: the guest's message is not the host's.
    SHOWN         the device's (VFIO guards what could harm the host), linked by us into a list of their own.
    others        hidden: not in the list, read as zero, and not written.
    the rest      the device's: some drivers keep registers outside the list.
    0x100-0xFFF   hidden: all ones. A guest has no use for ATS, SR-IOV or a BAR of another size here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyhyve.hw.pci.capabilities import CapabilityId
from pyhyve.hw.pci.config_space import FIRST_CAPABILITY, SIZE, Offset, Status
from pyhyve.hw.pci.msi import Control, msi_size
from pyhyve.hw.pci.msix import Msix

Read = Callable[[int, int], int]
"""Reads the device's configuration: offset, size."""

POWER, VITAL, ADVANCED = 0x01, 0x03, 0x13
POWER_STATE, POWER_STATE_MASK = 4, 3
"""The byte of power management with the device's state, and its bits: 0 is D0, awake."""
SHOWN = frozenset({POWER, VITAL, CapabilityId.VENDOR, CapabilityId.EXPRESS, ADVANCED})
"""Power management, vital product data, vendor-specific, PCI Express, advanced features (function-level reset)."""


@dataclass(frozen=True, slots=True)
class Found:
    """A capability of the device: its number, where it is, and how many bytes it has at most."""

    ident: int
    offset: int
    size: int


def find_capabilities(read: Read) -> list[Found]:
    """The device's capabilities in the order of its list. A list that turns back or leaves the space ends there."""
    if not read(Offset.STATUS, 2) & Status.CAPABILITIES:
        return []
    places: list[int] = []
    at = read(Offset.CAPABILITIES, 1) & ~3
    while FIRST_CAPABILITY <= at < SIZE and at not in places:
        places.append(at)
        at = read(at + 1, 1) & ~3
    ends = sorted([*places, SIZE])
    found = []
    for place in places:
        ident = read(place, 1)
        room = ends[ends.index(place) + 1] - place
        found.append(Found(ident, place, min(room, _size(ident, place, read) or room)))
    return found


def _size(ident: int, place: int, read: Read) -> int:
    """How long a capability is that is ours to answer; 0 for another one."""
    if ident == CapabilityId.MSIX:
        return Msix.size
    if ident == CapabilityId.MSI:
        control = read(place + 2, 2)
        return msi_size(wide=bool(control & Control.WIDE), maskable=bool(control & Control.MASKABLE))
    return 0


def hardware_bytes(found: list[Found]) -> bytearray:
    """One byte for each of configuration space: 1 where the device answers."""
    theirs = bytearray(FIRST_CAPABILITY) + b"\1" * (SIZE - FIRST_CAPABILITY)
    for capability in found:
        if capability.ident in SHOWN:
            hidden = range(capability.offset, capability.offset + 2)  # number and link
        else:
            hidden = range(capability.offset, min(capability.offset + capability.size, SIZE))
        for offset in hidden:
            theirs[offset] = 0
    return theirs
