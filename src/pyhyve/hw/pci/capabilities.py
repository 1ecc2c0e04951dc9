"""What stands in a function's capability list, apart from MSI and MSI-X.

Documents: PCI Local Bus Specification 3.0, §6.7 and appendix H; PCI Express Base Specification 3.0, §7.8.

A capability is bytes in configuration space, some of which a guest can write. One that acts on a write is a
``Capability``; one that is only there to be read is added with ``ConfigSpace.add_capability`` directly.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Protocol

from pyhyve.hw.pci.config_space import ConfigSpace
from pyhyve.lifecycle import State


class CapabilityId(IntEnum):
    MSI = 0x05
    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11


class PortType(IntEnum):
    """What a PCI Express function is (§7.8.2)."""

    ENDPOINT = 0
    ROOT_PORT = 4
    INTEGRATED_ENDPOINT = 9


class Capability(Protocol):
    """A capability that acts when the guest writes it."""

    offset: int
    """Where it begins in configuration space."""
    size: int
    """Its bytes, with id and link."""

    def written(self) -> None:
        """The guest has written some of its bytes, which are in configuration space already."""

    def reset(self) -> None:
        """Back to power-on, apart from the bytes in configuration space."""

    def save(self) -> State:
        """What is not in configuration space."""

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave; configuration space is there already."""


def add_vendor(config: ConfigSpace, body: bytes, writable: bytes = b"") -> int:
    """A vendor-specific capability: its length goes before ``body``. Returns its offset."""
    length = 3 + len(body)
    return config.add_capability(CapabilityId.VENDOR, bytes((length,)) + body, b"\0" + writable)


def add_express(config: ConfigSpace, port: PortType) -> int:
    """A PCI Express capability, version 2: a 2.5 GT/s link of one lane unless the function is integrated.

    Guests take its presence at the host bridge as a sign that the machine can do MSI. Returns its offset.
    """
    link_capabilities, link_status = (0, 0) if port is PortType.INTEGRATED_ENDPOINT else (0x411, 0x11)
    # capabilities; device: capabilities, control, status; link: capabilities, control, status; the rest is zero
    body = struct.pack("<HIHHIHH", 2 | port << 4, 0, 0, 0, link_capabilities, 0, link_status)
    return config.add_capability(CapabilityId.EXPRESS, body.ljust(58, b"\0"))
