"""What a drive says of itself: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.

Document: ATA/ATAPI Command Set - 2 (ACS-2), §7.12 and §7.13. 256 words, little endian; strings have the bytes of each
word exchanged.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from pyhyve.backends.block import SectorSize
from pyhyve.errors import DeviceError

WORDS = 256
MODEL_LENGTH, REVISION_LENGTH, SERIAL_LENGTH = 40, 8, 20


class Word(IntEnum):
    GENERAL = 0
    CYLINDERS = 1
    HEADS = 3
    TRACK = 6
    SERIAL = 10
    REVISION = 23
    MODEL = 27
    MULTIPLE = 47
    CAPABILITIES = 49
    CAPABILITIES_2 = 50
    VALID = 53
    CURRENT_MULTIPLE = 59
    SECTORS_28 = 60
    MULTIWORD_DMA = 63
    PIO = 64
    CYCLE_TIMES = 65
    ADDITIONAL = 69
    QUEUE_DEPTH = 75
    SATA = 76
    SATA_FEATURES = 78
    SATA_ENABLED = 79
    MAJOR = 80
    SUPPORTED = 82
    ENABLED = 85
    ULTRA_DMA = 88
    RESET_RESULT = 93
    SECTORS_48 = 100
    TRIM_BLOCKS = 105
    SECTOR_SIZE = 106
    WORDS_PER_SECTOR = 117
    SUPPORTED_2 = 119
    ENABLED_2 = 120
    DATA_SET_MANAGEMENT = 169
    ALIGNMENT = 209
    ROTATION = 217
    TRANSPORT = 222
    INTEGRITY = 255


@dataclass(frozen=True, slots=True)
class Identity:
    """The names of a drive, and its rotation rate (0: not told, 1: no moving parts, else rpm)."""

    serial: str
    revision: str
    model: str
    rotation: int = 0

    @classmethod
    def of(cls, options: Mapping[str, str], path: str, model: str) -> Identity:
        """From the options ``ser``, ``rev``, ``model`` and ``nmrr``; what is not given is what bhyve says."""
        digest = hashlib.md5(path.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest().upper()
        serial = "BHYVE-" + "-".join(digest[at : at + 4] for at in (0, 4, 8))
        rotation = options.get("nmrr", "0")
        try:
            rate = int(rotation, 0)
        except ValueError:
            rate = -1
        if rate not in (0, 1) and not 0x401 <= rate <= 0xFFFE:
            raise DeviceError(
                f"nmrr={rotation}: a rotation rate is 0 (not told), 1 (no moving parts) or 1025 to 65534 rpm"
            )
        return cls(
            _text(options, "ser", serial, SERIAL_LENGTH),
            _text(options, "rev", "001", REVISION_LENGTH),
            _text(options, "model", model, MODEL_LENGTH),
            rate,
        )


def _text(options: Mapping[str, str], name: str, default: str, length: int) -> str:
    text = options.get(name, default)
    if not (text.isascii() and text.isprintable()) or len(text) > length:
        raise DeviceError(f"{name}={text}: it is up to {length} printable ASCII characters")
    return text


class _Words:
    def __init__(self) -> None:
        self.data = bytearray(2 * WORDS)

    def set(self, word: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}H", self.data, 2 * word, *values)

    def text(self, word: int, text: str, length: int) -> None:
        raw = text.ljust(length).encode()
        self.data[2 * word : 2 * word + length] = b"".join(raw[i : i + 2][::-1] for i in range(0, length, 2))

    def finish(self) -> bytes:
        self.data[2 * Word.INTEGRITY] = 0xA5
        self.data[2 * Word.INTEGRITY + 1] = -sum(self.data[:-1]) & 0xFF
        return bytes(self.data)


def _common(identity: Identity, transfer_mode: int) -> _Words:
    words = _Words()
    words.text(Word.SERIAL, identity.serial, SERIAL_LENGTH)
    words.text(Word.REVISION, identity.revision, REVISION_LENGTH)
    words.text(Word.MODEL, identity.model, MODEL_LENGTH)
    words.set(Word.VALID, 0x0006)
    kind, mode = transfer_mode & 0xF8, transfer_mode & 7
    words.set(Word.MULTIWORD_DMA, 0x0007 | (0x100 << mode if kind == 0x20 else 0))
    words.set(Word.PIO, 0x0003)
    words.set(Word.CYCLE_TIMES, 120, 120, 120, 120)
    words.set(Word.MAJOR, 0x01F0)  # ATA/ATAPI-4 to ATA8
    words.set(Word.ULTRA_DMA, 0x007F | (0x100 << mode if kind == 0x40 else 0))
    words.set(Word.TRANSPORT, 0x1020)  # SATA 3.0
    return words


def identify_disk(
    identity: Identity,
    sectors: int,
    sector: SectorSize,
    *,
    queue_depth: int,
    trim_blocks: int,
    write_cache: bool,
    look_ahead: bool,
    smart: bool,
    transfer_mode: int,
    multiple: int,
) -> bytes:
    """The 512 bytes for a disk of ``sectors``; ``trim_blocks`` is 0 for one without TRIM."""
    words = _common(identity, transfer_mode)
    words.set(Word.GENERAL, 0x0040)
    words.set(Word.CYLINDERS, min(sectors // (16 * 63), 16383), 0, 16)
    words.set(Word.TRACK, 63)
    words.set(Word.MULTIPLE, 0x8080)
    words.set(Word.CAPABILITIES, 0x0F00, 0x4000)  # DMA, LBA, IORDY
    words.set(Word.CURRENT_MULTIPLE, 0x0100 | multiple if multiple else 0)
    short = min(sectors, 0x0FFFFFFF)
    words.set(Word.SECTORS_28, short & 0xFFFF, short >> 16)
    if trim_blocks:
        words.set(Word.ADDITIONAL, 0x4020)  # what is trimmed reads as zeroes
        words.set(Word.TRIM_BLOCKS, trim_blocks)
        words.set(Word.DATA_SET_MANAGEMENT, 0x0001)
    words.set(Word.QUEUE_DEPTH, queue_depth - 1)
    words.set(Word.SATA, 0x010E)  # NCQ, generations 1 to 3
    # SMART, power management, write cache, look-ahead, NOP; 48-bit, FLUSH (EXT); logs, WRITE FUA
    words.set(Word.SUPPORTED, 0x4069, 0x7400, 0x4060)
    enabled = 0x4008 | (0x01 if smart else 0) | (0x20 if write_cache else 0) | (0x40 if look_ahead else 0)
    words.set(Word.ENABLED, enabled, 0x3400, 0x4060)
    words.set(Word.SECTORS_48, *(sectors >> shift & 0xFFFF for shift in (0, 16, 32, 48)))
    per_physical = (sector.physical // sector.logical).bit_length() - 1
    large = sector.logical > 512
    words.set(Word.SECTOR_SIZE, 0x4000 | per_physical | (0x2000 if per_physical else 0) | (0x1000 if large else 0))
    if large:
        words.set(Word.WORDS_PER_SECTOR, sector.logical // 2 & 0xFFFF, sector.logical // 2 >> 16)
    words.set(Word.SUPPORTED_2, 0x4000, 0x4000)
    words.set(Word.ALIGNMENT, 0x4000)
    words.set(Word.ROTATION, identity.rotation)
    return words.finish()


def identify_packet(identity: Identity, transfer_mode: int) -> bytes:
    """The 512 bytes for a CD drive."""
    words = _common(identity, transfer_mode)
    words.set(Word.GENERAL, 0x8580)  # packet device, CD-ROM, removable, 12-byte packets
    words.set(Word.CAPABILITIES, 0x0F00, 0x4000)
    words.set(Word.SATA, 0x000E)
    words.set(Word.SUPPORTED, 0x4218, 0x4000, 0x4000)  # NOP, DEVICE RESET, PACKET, power management
    words.set(Word.ENABLED, 0x4218, 0x0000, 0x4000)
    return words.finish()
