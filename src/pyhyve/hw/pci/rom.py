"""The expansion ROM of a PCI function: a file that firmware finds behind a base address register of its own.

Document: PCI Local Bus Specification 3.0, §6.2.5.2 (the register; bit 0 enables it) and §6.3 (what is in a ROM).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyhyve.bus.handler import Lock
from pyhyve.errors import DeviceError
from pyhyve.hw.pci.bar import Bar, BarKind
from pyhyve.hw.pci.config_space import ConfigSpace, Offset

_INDEX = (Offset.ROM - Offset.BAR0) // 4
_SMALLEST, _LARGEST = 2048, 16 << 20
_ENABLE = 1


def read_image(path: str) -> bytes:
    """The ROM in a file. Raises ``DeviceError`` if it cannot be one."""
    try:
        image = Path(path).read_bytes()
    except OSError as error:
        raise DeviceError(f"option ROM {path}: {error.strerror}") from None
    if not 0 < len(image) <= _LARGEST:
        raise DeviceError(f"option ROM {path} has {len(image)} bytes: it must have 1 to {_LARGEST >> 20} MiB")
    return image


class _Image:
    """The bytes, and all ones behind them."""

    def __init__(self, image: bytes, size: int) -> None:
        self._bytes = image.ljust(size, b"\xff")

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """It is a ROM."""


@dataclass(slots=True, eq=False)
class Rom(Bar):
    """The register at 0x30. ``make`` builds one from an image."""

    def __post_init__(self) -> None:
        """Any power of two from 2 KiB is right, and ``make`` takes care of that."""

    @classmethod
    def make(cls, image: bytes, name: str, lock: Lock) -> Rom:
        """A ROM of the next power of two."""
        size = max(_SMALLEST, 1 << (len(image) - 1).bit_length())
        return cls(_INDEX, BarKind.MEMORY_32, size, _Image(image, size), name, lock)

    def install(self, config: ConfigSpace) -> None:
        """Make the register: address bits and the enable bit can be written."""
        config.allow(Offset.ROM, 4, 0xFFFFFFFF & ~(self.size - 1) | _ENABLE)

    def decoded(self, config: ConfigSpace) -> bool:
        """Both memory decoding and the register must be on."""
        return Bar.decoded(self, config) and bool(config.get(Offset.ROM, 1) & _ENABLE)
