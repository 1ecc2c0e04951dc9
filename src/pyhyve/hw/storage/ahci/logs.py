"""The pages that a disk tells of itself: the general purpose logs and SMART data.

Document: ACS-2, READ LOG EXT, annex A (log directory, queued error log), SMART READ DATA.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

PAGE = 512


class Log(IntEnum):
    DIRECTORY = 0x00
    QUEUED_ERROR = 0x10


class Smart(IntEnum):
    """The subcommands, in the features register."""

    READ_DATA = 0xD0
    READ_THRESHOLDS = 0xD1
    AUTOSAVE = 0xD2
    OFFLINE_IMMEDIATE = 0xD4
    READ_LOG = 0xD5
    ENABLE = 0xD8
    DISABLE = 0xD9
    RETURN_STATUS = 0xDA


SMART_SIGNATURE = 0xC24F
"""What LBA bits 8 to 23 have to say."""


@dataclass(frozen=True, slots=True)
class QueuedError:
    """The queued command that failed last."""

    tag: int
    status: int
    error: int
    lba: int
    device: int
    count: int

    def page(self) -> bytes:
        """Log 0x10."""
        low, high = self.lba & 0xFFFFFF, self.lba >> 24
        head = struct.pack("<BBBB", self.tag, 0, self.status, self.error) + low.to_bytes(3, "little")
        head += bytes((self.device,)) + high.to_bytes(3, "little") + b"\0" + struct.pack("<H", self.count)
        return with_checksum(head)


NO_QUEUED_ERROR = b"\x80"  # the last error, if there was one, was of a command that was not queued


def with_checksum(head: bytes) -> bytes:
    """A page whose bytes add up to zero."""
    page = head.ljust(PAGE - 1, b"\0")
    return page + bytes((-sum(page) & 0xFF,))


def directory() -> bytes:
    """Log 0: version 1, and how many pages each log has."""
    page = bytearray(PAGE)
    struct.pack_into("<H", page, 0, 1)
    struct.pack_into("<H", page, 2 * Log.QUEUED_ERROR, 1)
    return bytes(page)


def smart_data() -> bytes:
    """No attributes; offline collection never started, the last self-test passed, no automatic anything."""
    page = bytearray(PAGE - 1)
    struct.pack_into("<H", page, 0, 0x0010)
    return with_checksum(bytes(page))


def smart_thresholds() -> bytes:
    """No thresholds."""
    return with_checksum(struct.pack("<H", 0x0010))
