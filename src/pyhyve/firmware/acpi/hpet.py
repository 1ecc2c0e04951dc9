"""The HPET description table: where the high precision event timer is.

Document: IA-PC HPET specification 1.0a, §3.2.4.
"""

from __future__ import annotations

import struct

from pyhyve.firmware.acpi.table import AccessSize, AddressSpace, address, table
from pyhyve.firmware.platform import Platform

_REVISION = 1
_NO_PAGE_PROTECTION = 0
_MINIMUM_TICK = 0


def hpet(platform: Platform) -> bytes:
    """The table for the platform's one HPET."""
    body = struct.pack("<I", platform.hpet_capabilities)
    body += address(AddressSpace.MEMORY, 0, AccessSize.UNDEFINED, platform.hpet_address)
    body += struct.pack("<BHB", 0, _MINIMUM_TICK, _NO_PAGE_PROTECTION)
    return table(b"HPET", _REVISION, body)
