"""Frame information structures: what controller and device send each other.

Document: Serial ATA 3.0, §10.3; where each is put in memory: AHCI 1.3, §4.2.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum


class FisType(IntEnum):
    H2D = 0x27
    D2H = 0x34
    DMA_SETUP = 0x41
    PIO_SETUP = 0x5F
    DEVICE_BITS = 0xA1


RECEIVED_AT = {FisType.DMA_SETUP: 0x00, FisType.PIO_SETUP: 0x20, FisType.D2H: 0x40, FisType.DEVICE_BITS: 0x58}
"""Where in the received-FIS area of a port each goes."""

INTERRUPT = 0x40
FROM_DEVICE = 0x20
LBA_MODE = 0x40
SOFT_RESET = 0x04
_COMMAND = 0x80
_H2D = int(FisType.H2D)
# type, flags, command, features, address and device, address and features (high), count, control
_HOST = struct.Struct("<BBBBIIHxB")


@dataclass(slots=True)
class TaskFile:
    """A register FIS of the host: a command, or (``is_command`` False) a new value of the control register."""

    is_command: bool
    command: int
    features: int
    lba: int
    device: int
    count: int
    control: int

    @classmethod
    def parse(cls, fis: bytes) -> TaskFile | None:
        """The 20 bytes at the start of a command table; None if they are something else."""
        kind, flags, command, features, low, high, count, control = _HOST.unpack_from(fis)
        if kind != _H2D:
            return None
        return cls(
            is_command=flags & _COMMAND != 0,
            command=command,
            features=features | high >> 24 << 8,
            lba=low & 0xFFFFFF | (high & 0xFFFFFF) << 24,
            device=low >> 24,
            count=count,
            control=control,
        )


_REGISTERS = struct.Struct("<BBBBBBBBBBBBBBBBI")
_BITS = struct.Struct("<BBBBI")
_DEVICE_BITS = int(FisType.DEVICE_BITS)


def _pack(kind: int, flags: int, status: int, error: int, lba: int, device: int, count: int, last: int) -> bytes:
    low, mid, high, low_ext, mid_ext, high_ext = (lba & 0xFFFFFFFFFFFF).to_bytes(6, "little")
    address = (low, mid, high, device, low_ext, mid_ext, high_ext, 0)
    return _REGISTERS.pack(kind, flags, status, error, *address, count & 0xFF, count >> 8 & 0xFF, 0, last, 0)


def device_to_host(status: int, error: int, lba: int, device: int, count: int, *, interrupt: bool) -> bytes:
    """A register FIS: the device's task file, 20 bytes."""
    return _pack(FisType.D2H, INTERRUPT if interrupt else 0, status, error, lba, device, count, 0)


def pio_setup(status: int, lba: int, device: int, count: int, end_status: int, length: int, *, to_host: bool) -> bytes:
    """A PIO transfer of ``length`` bytes begins with ``status`` and ends with ``end_status``; 20 bytes."""
    flags = INTERRUPT | (FROM_DEVICE if to_host else 0)
    fis = _pack(FisType.PIO_SETUP, flags, status, 0, lba, device, count, end_status)
    return fis[:16] + (length & 0xFFFF).to_bytes(4, "little")


def set_device_bits(status: int, error: int, finished: int) -> bytes:
    """Queued commands have ended, a bit each in ``finished``; 8 bytes."""
    return _BITS.pack(_DEVICE_BITS, INTERRUPT, status & 0x77, error, finished)
