"""MCFG: where PCI Express configuration space is mapped in memory.

Document: PCI Firmware specification 3.2, §4.1.2.
"""

from __future__ import annotations

import struct

from pyhyve.firmware.acpi.table import table
from pyhyve.firmware.platform import Platform

_REVISION = 1


def mcfg(platform: Platform) -> bytes:
    """The table for segment 0: one range of 1 MiB a bus."""
    allocation = struct.pack("<QHBBI", platform.ecam_base, 0, 0, platform.ecam_buses - 1, 0)
    return table(b"MCFG", _REVISION, bytes(8) + allocation)
