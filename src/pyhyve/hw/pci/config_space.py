"""The 256 bytes of configuration space of a PCI function with a type 0 header.

Document: PCI Local Bus Specification 3.0, §6.1 and §6.2; capability list §6.7.

Three arrays describe it: the values, which bits a guest can write, and which bits a written one clears. The header's
fields are a table of these; a capability adds its own bytes. Everything special (decoding, BARs, interrupts) is done by
the function after a write, from the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyhyve.errors import DeviceError
from pyhyve.lifecycle import State, check_version

SIZE = 256
FIRST_CAPABILITY = 0x40


class Offset(IntEnum):
    """Fields of the header."""

    VENDOR = 0x00
    DEVICE = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION = 0x08
    PROG_IF = 0x09
    SUBCLASS = 0x0A
    CLASS = 0x0B
    CACHE_LINE = 0x0C
    LATENCY = 0x0D
    HEADER_TYPE = 0x0E
    BAR0 = 0x10
    SUBSYSTEM_VENDOR = 0x2C
    SUBSYSTEM = 0x2E
    ROM = 0x30
    CAPABILITIES = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D


class Command(IntFlag):
    IO = 0x0001
    MEMORY = 0x0002
    BUS_MASTER = 0x0004
    SPECIAL = 0x0008
    INVALIDATE = 0x0010
    PARITY = 0x0040
    SERR = 0x0100
    INTX_DISABLE = 0x0400


class Status(IntFlag):
    INTERRUPT = 0x0008
    CAPABILITIES = 0x0010
    ERRORS = 0xF900  # written ones clear


MULTI_FUNCTION = 0x80


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a function says it is."""

    vendor: int
    device: int
    class_code: int
    subclass: int
    prog_if: int = 0
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


# offset, size, bits a guest can write, bits that a written one clears
_HEADER: tuple[tuple[Offset, int, int, int], ...] = (
    (
        Offset.COMMAND, 2,
        Command.IO | Command.MEMORY | Command.BUS_MASTER | Command.PARITY | Command.SERR | Command.INTX_DISABLE, 0,
    ),
    (Offset.STATUS, 2, 0, Status.ERRORS),
    (Offset.CACHE_LINE, 1, 0xFF, 0),
    (Offset.LATENCY, 1, 0xFF, 0),
    (Offset.INTERRUPT_LINE, 1, 0xFF, 0),
)  # fmt: skip


class ConfigSpace:
    """Values and write masks."""

    def __init__(self, identity: Identity) -> None:
        self._data = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clearable = bytearray(SIZE)
        self._next_capability = FIRST_CAPABILITY
        self._last_link = int(Offset.CAPABILITIES)
        self.set(Offset.VENDOR, 2, identity.vendor)
        self.set(Offset.DEVICE, 2, identity.device)
        self.set(Offset.REVISION, 1, identity.revision)
        self.set(Offset.PROG_IF, 1, identity.prog_if)
        self.set(Offset.SUBCLASS, 1, identity.subclass)
        self.set(Offset.CLASS, 1, identity.class_code)
        self.set(Offset.SUBSYSTEM_VENDOR, 2, identity.subsystem_vendor)
        self.set(Offset.SUBSYSTEM, 2, identity.subsystem)
        for offset, size, writable, clearable in _HEADER:
            self.allow(offset, size, writable)
            self._clearable[offset : offset + size] = clearable.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        """The value of ``size`` bytes at ``offset``."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Set a value from the device's side, regardless of masks."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, size: int, mask: int) -> None:
        """Let a guest write the bits of ``mask``."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        for i, new in enumerate(value.to_bytes(size, "little"), offset):
            mask = self._writable[i]
            self._data[i] = (self._data[i] & ~mask | new & mask) & ~(new & self._clearable[i])

    def add_capability(self, ident: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; ``body`` follows the id and the link. Returns its offset.

        ``writable`` is the write mask of the body, zero where it is shorter. Raises ``DeviceError`` if it does not fit.
        """
        offset = self._next_capability
        self.place_capability(offset, ident, body, writable)
        self._next_capability = (offset + 2 + len(body) + 3) & ~3
        return offset

    def place_capability(self, offset: int, ident: int, body: bytes, writable: bytes = b"") -> None:
        """The same at a place that the caller knows to be free."""
        end = offset + 2 + len(body)
        if end > SIZE:
            raise DeviceError("too many PCI capabilities for one function")
        self.set(self._last_link, 1, offset)
        self._data[offset:end] = bytes((ident, 0)) + body
        self._writable[offset:end] = bytes(2) + writable.ljust(len(body), b"\0")[: len(body)]
        self._last_link = offset + 1
        self.set(Offset.STATUS, 2, self.get(Offset.STATUS, 2) | Status.CAPABILITIES)

    def save(self) -> State:
        """The values; the masks belong to the device."""
        return {"version": 1, "data": bytes(self._data)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the values. Raises ``DeviceError`` if they are of another device."""
        check_version(self, state)
        data = state.get("data")
        if not isinstance(data, bytes) or len(data) != SIZE or data[:4] != self._data[:4]:
            raise DeviceError("saved PCI configuration is of another device")
        self._data[:] = data
