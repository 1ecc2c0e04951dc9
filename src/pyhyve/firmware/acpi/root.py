"""RSDP, RSDT and XSDT: how a guest finds the other tables.

Document: ACPI specification 6.4, §5.2.5 (RSDP), §5.2.7 (RSDT), §5.2.8 (XSDT).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pyhyve.firmware.acpi.table import OEM_ID, checksum, table

RSDP_SIZE = 36
_RSDP_SIZE_V1 = 20
_REVISION = 2


def rsdp(rsdt_address: int, xsdt_address: int) -> bytes:
    """The root pointer, revision 2. It must lie on a 16-byte boundary."""
    data = bytearray(
        struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, _REVISION, rsdt_address, RSDP_SIZE, xsdt_address, 0)
    )
    data[8] = checksum(data[:_RSDP_SIZE_V1])
    data[32] = checksum(data)
    return bytes(data)


def rsdt(addresses: Sequence[int]) -> bytes:
    """The root table with 32-bit addresses."""
    return table(b"RSDT", 1, struct.pack(f"<{len(addresses)}I", *addresses))


def xsdt(addresses: Sequence[int]) -> bytes:
    """The root table with 64-bit addresses."""
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))
