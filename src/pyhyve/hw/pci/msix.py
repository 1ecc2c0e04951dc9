"""MSI-X: up to 2048 message-signalled interrupts, each with address, data and mask in a table in a BAR.

Document: PCI Local Bus Specification 3.0, §6.8.2.

``Msix`` is the capability and the handler of a BAR of its own: the table from its start, the pending bits behind it on
a page of their own. A vector that is masked, by itself or with all others, becomes pending, and is sent when the mask
goes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag

from pyhyve.errors import DeviceError
from pyhyve.hw.pci.capabilities import CapabilityId
from pyhyve.hw.pci.config_space import Command, ConfigSpace, Offset
from pyhyve.lifecycle import State, check_version

MAXIMUM = 2048
ENTRY = 16
NO_VECTOR = 0xFFFF
"""What a device's vector register holds where no interrupt is wanted."""

_PAGE = 4096
_entry = struct.Struct("<QII")
_CONTROL = 12  # of an entry
_MASKED = 1
# what a guest can change of an entry: address without its two low bits, data, the mask
_WRITABLE = _entry.pack(0xFFFFFFFFFFFFFFFC, 0xFFFFFFFF, _MASKED)


class Control(IntFlag):
    MASK_ALL = 0x4000
    ENABLE = 0x8000


# Plain numbers for the path of every interrupt: the flags' own operators take ten times as long.
_MASK_ALL, _ENABLE, _BUS_MASTER = int(Control.MASK_ALL), int(Control.ENABLE), int(Command.BUS_MASTER)
_COMMAND = int(Offset.COMMAND)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a passed-through device has its capability, and what its table and pending-bits registers say."""

    capability: int
    table: int
    pending: int


class Msix:
    """``vectors`` interrupts, with the table in BAR ``bar``, whose handler this is.

    With ``place`` the table and the pending bits lie elsewhere, and the handler there uses ``read_pending`` as well.
    """

    size = 12

    def __init__(
        self,
        config: ConfigSpace,
        send: Callable[[int, int], None],
        vectors: int,
        bar: int,
        *,
        place: Place | None = None,
    ) -> None:
        if not 1 <= vectors <= MAXIMUM:
            raise ValueError(f"MSI-X has 1 to {MAXIMUM} vectors, not {vectors}")
        self.vectors = vectors
        self._config = config
        self._send = send
        self._table = bytearray()
        self._pending = 0
        self.pending_offset = -(-vectors * ENTRY // _PAGE) * _PAGE
        table, pending = (bar, self.pending_offset | bar) if place is None else (place.table, place.pending)
        body = struct.pack("<HII", vectors - 1, table, pending)
        writable = int(Control.ENABLE | Control.MASK_ALL).to_bytes(2, "little")
        if place is None:
            self.offset = config.add_capability(CapabilityId.MSIX, body, writable)
        else:
            config.place_capability(place.capability, CapabilityId.MSIX, body, writable)
            self.offset = place.capability
        self.reset()

    @property
    def bar_size(self) -> int:
        """Bytes that the BAR needs, a power of two."""
        return 1 << (self.pending_offset + _PAGE - 1).bit_length()

    @property
    def enabled(self) -> bool:
        """Whether the guest has chosen MSI-X."""
        return bool(self._config.get(self.offset + 2, 2) & _ENABLE)

    def notify(self, vector: int) -> None:
        """Raise interrupt ``vector``. Nothing where there is none of that number, or while MSI-X is off.

        Call it with the function's lock held.
        """
        control = self._config.get(self.offset + 2, 2)
        if vector >= self.vectors or not control & _ENABLE:
            return
        address, data, masked = _entry.unpack_from(self._table, vector * ENTRY)
        if masked & _MASKED or control & _MASK_ALL:
            self._pending |= 1 << vector
        elif self._config.get(_COMMAND, 2) & _BUS_MASTER:
            self._send(address, data)

    def message(self, vector: int) -> tuple[int, int] | None:
        """Address and data that ``notify`` would send now, None if it would not."""
        control = self._config.get(self.offset + 2, 2)
        if not control & _ENABLE or control & _MASK_ALL or not self._config.get(_COMMAND, 2) & _BUS_MASTER:
            return None
        address, data, masked = _entry.unpack_from(self._table, vector * ENTRY)
        return None if masked & _MASKED else (address, data)

    def written(self) -> None:
        """The guest has switched the whole function; send what is no longer masked."""
        self._flush()

    def read(self, offset: int, size: int) -> int:
        """Table or pending bits; zero elsewhere."""
        if offset + size <= len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= self.pending_offset:
            return self.read_pending(offset - self.pending_offset, size)
        return 0

    def read_pending(self, offset: int, size: int) -> int:
        """``size`` bytes of the pending bits from byte ``offset`` of them."""
        return self._pending >> 8 * offset & (1 << 8 * size) - 1

    def masked(self, vector: int) -> bool:
        """Whether the guest keeps ``vector`` masked in the table."""
        return bool(self._table[vector * ENTRY + _CONTROL] & _MASKED)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the table; the pending bits are read-only."""
        if offset + size > len(self._table):
            return
        for i, byte in enumerate(value.to_bytes(size, "little"), offset):
            self._table[i] = byte & _WRITABLE[i % ENTRY]
        if self._pending:
            self._flush()

    def _flush(self) -> None:
        """Try every pending vector again; those still masked become pending again."""
        if self._pending and self.enabled:
            waiting, self._pending = self._pending, 0
            for vector in range(waiting.bit_length()):
                if waiting >> vector & 1:
                    self.notify(vector)

    def reset(self) -> None:
        """All vectors masked, none pending."""
        self._table[:] = _entry.pack(0, 0, _MASKED) * self.vectors
        self._pending = 0

    def save(self) -> State:
        """The table and the pending bits."""
        return {"version": 1, "table": bytes(self._table), "pending": self._pending}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over table and pending bits."""
        check_version(self, state)
        table, pending = state.get("table"), state.get("pending")
        if not isinstance(table, bytes) or len(table) != len(self._table) or not isinstance(pending, int):
            raise DeviceError("saved MSI-X table is of another device")
        self._table[:] = table
        self._pending = pending & (1 << self.vectors) - 1
