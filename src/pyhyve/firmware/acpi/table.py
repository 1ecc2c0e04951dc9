"""What all ACPI tables share: the header with its checksum, and the generic address structure.

Document: ACPI specification 6.4, §5.2.6 (header), §5.2.3.2 (generic address).
"""

from __future__ import annotations

import struct
from enum import IntEnum

OEM_ID = b"BHYVE "
CREATOR_ID = b"PYHV"
CREATOR_REVISION = 1
HEADER_SIZE = 36
CHECKSUM_OFFSET = 9


class AddressSpace(IntEnum):
    """Where a register lies."""

    MEMORY = 0
    IO = 1


class AccessSize(IntEnum):
    UNDEFINED = 0
    BYTE = 1
    WORD = 2
    DWORD = 3


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of ``data`` and itself zero modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A whole table: header, ``body``, checksum. OEM identifiers are those that bhyve's guests see."""
    oem_table_id = b"BV" + signature.ljust(6)
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        HEADER_SIZE + len(body),
        revision,
        0,
        OEM_ID,
        oem_table_id,
        1,
        CREATOR_ID,
        CREATOR_REVISION,
    )
    whole = bytearray(header + body)
    whole[CHECKSUM_OFFSET] = checksum(whole)
    return bytes(whole)


def address(space: AddressSpace, bits: int, access: AccessSize, at: int) -> bytes:
    """A generic address structure of 12 bytes. ``bits`` is the register's width."""
    return struct.pack("<BBBBQ", space, bits, 0, access, at)


NO_ADDRESS = bytes(12)
