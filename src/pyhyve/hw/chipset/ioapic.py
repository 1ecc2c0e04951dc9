"""The I/O APIC: 24 interrupt lines in, messages to local APICs out.

Document: Intel 82093AA data sheet (order 290566), §3. Two memory-mapped registers, an index and a window, reach the
redirection table. A line that becomes active sends the message its entry describes, as an MSI (SDM Vol. 3A §11.11): the
local APICs see no difference. A level-triggered entry then waits for the EOI of its vector, which comes back through
``eoi``, and sends again while the line is still active.

The polarity bit is kept but has no effect: lines are logical here, active or not, as on KVM.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag

from pyhyve.bus.mmio import MmioBus
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields

BASE = 0xFEC00000
SIZE = 0x1000
PINS = 24
VERSION = 0x11


class Window(IntEnum):
    """Offsets of the memory-mapped registers."""

    IOREGSEL = 0x00
    IOWIN = 0x10


class Index(IntEnum):
    """Values of IOREGSEL; the redirection table is two registers an entry."""

    ID = 0x00
    VERSION = 0x01
    ARBITRATION = 0x02
    REDIRECTION = 0x10


class Entry(IntFlag):
    """Bits of a redirection entry."""

    VECTOR = 0xFF
    DELIVERY_MODE = 0x700
    LOGICAL = 1 << 11
    PENDING = 1 << 12
    ACTIVE_LOW = 1 << 13
    REMOTE_IRR = 1 << 14
    LEVEL = 1 << 15
    MASKED = 1 << 16


_LEVEL, _MASKED, _REMOTE_IRR = int(Entry.LEVEL), int(Entry.MASKED), int(Entry.REMOTE_IRR)
_READ_ONLY = int(Entry.PENDING | Entry.REMOTE_IRR)
_ENTRY_MASK = 0xFF00_0000_0001_FFFF
_MSI_BASE = 0xFEE00000
_MSI_LOGICAL = 1 << 2
_MSI_ASSERT = 1 << 14


class Ioapic:
    """The chip. ``send_msi(address, data)`` delivers a message."""

    def __init__(self, send_msi: Callable[[int, int], None], ident: int = 0) -> None:
        self.lock = threading.RLock()
        self._send_msi = send_msi
        self._initial_id = ident
        self.on_end: Callable[[int], None] | None = None
        """Called with the pin whose interrupt the guest has ended."""
        self._inputs = 0
        self.reset()

    def attach(self, mmio: MmioBus) -> None:
        """Answer at 0xFEC00000."""
        mmio.register(BASE, SIZE, self, "ioapic")

    def set_irq(self, gsi: int, level: bool) -> None:
        """Drive pin ``gsi`` (0-23)."""
        bit = 1 << gsi
        with self.lock:
            if not level:
                self._inputs &= ~bit
            elif not self._inputs & bit:
                self._inputs |= bit
                self._signal(gsi)

    def eoi(self, vector: int) -> None:
        """The end of a level-triggered interrupt, broadcast by a local APIC."""
        if self.on_end is not None:
            # Without the lock, and before the entry may send again: what hears of it may release the pin.
            for pin in [p for p, entry in enumerate(self._table) if entry & _REMOTE_IRR and entry & 0xFF == vector]:
                self.on_end(pin)
        with self.lock:
            for pin, entry in enumerate(self._table):
                if entry & _REMOTE_IRR and entry & 0xFF == vector:
                    self._table[pin] = entry & ~_REMOTE_IRR
                    self._resend(pin)

    def entry(self, pin: int) -> int:
        """The redirection entry of ``pin``, 64 bits."""
        return self._table[pin]

    def read(self, offset: int, size: int) -> int:
        """Read IOREGSEL or IOWIN."""
        register = offset & ~0x3
        if register == Window.IOREGSEL:
            value = self._select
        elif register == Window.IOWIN:
            value = self._read_window()
        else:
            value = 0
        return value >> (8 * (offset & 3)) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write IOREGSEL or IOWIN. Narrow writes are taken as dwords with zeros above, as the bus shows them."""
        if offset == Window.IOREGSEL:
            self._select = value & 0xFF
        elif offset == Window.IOWIN:
            self._write_window(value & 0xFFFFFFFF)

    def _read_window(self) -> int:
        if self._select == Index.ID:
            return self._id
        if self._select == Index.VERSION:
            return (PINS - 1) << 16 | VERSION
        if self._select == Index.ARBITRATION:
            return self._id
        pin, high = divmod(self._select - Index.REDIRECTION, 2)
        if 0 <= pin < PINS:
            return self._table[pin] >> (32 * high) & 0xFFFFFFFF
        return 0

    def _write_window(self, value: int) -> None:
        if self._select == Index.ID:
            self._id = value & 0x0F000000
            return
        pin, high = divmod(self._select - Index.REDIRECTION, 2)
        if not 0 <= pin < PINS:
            return
        old = self._table[pin]
        if high:
            new = old & 0xFFFFFFFF | value << 32
        else:
            new = old & ~0xFFFFFFFF | value & ~_READ_ONLY | old & _READ_ONLY
            if not new & _LEVEL:
                new &= ~_REMOTE_IRR  # leaving level mode is how software clears a stuck remote IRR
        self._table[pin] = new & _ENTRY_MASK
        self._resend(pin)

    def _resend(self, pin: int) -> None:
        """Send for a level-triggered pin that is (still) active. An edge is not sent twice, nor kept while masked."""
        if self._table[pin] & _LEVEL and self._inputs >> pin & 1:
            self._signal(pin)

    def _signal(self, pin: int) -> None:
        entry = self._table[pin]
        if entry & (_MASKED | _REMOTE_IRR):
            return
        address = _MSI_BASE | entry >> 56 << 12
        if entry & Entry.LOGICAL:
            address |= _MSI_LOGICAL
        data = entry & (0xFF | 0x700)
        if entry & _LEVEL:
            self._table[pin] = entry | _REMOTE_IRR
            data |= _LEVEL | _MSI_ASSERT
        self._send_msi(address, data)

    def reset(self) -> None:
        """All entries masked. The levels of the lines stay: they are the devices'."""
        with self.lock:
            self._select = 0
            self._id = self._initial_id << 24
            self._table = [_MASKED] * PINS

    def save(self) -> State:
        """The registers and the lines."""
        with self.lock:
            return save_fields(self, _FIELDS)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over registers and lines; nothing is sent for it."""
        check_version(self, state)
        with self.lock:
            restore_fields(self, _FIELDS, state)


_FIELDS = ("_select", "_id", "_table", "_inputs")
