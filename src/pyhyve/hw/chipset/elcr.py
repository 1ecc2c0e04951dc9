"""The edge/level control registers of the two interrupt controllers, ports 0x4D0 and 0x4D1.

Document: Intel 82371SB (PIIX3) data sheet, §2.5.11. A set bit makes the 8259A's input level triggered, for PCI
interrupts. The inputs of the timer, the keyboard, the cascade, the clock and the FPU stay edge triggered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, saved_int

PORT = 0x4D0
WRITABLE = 0xDEF8


class Elcr:
    """Both registers; ``on_change(mask)`` gets the 16 bits, for ``Pic.set_elcr``."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        self.lock = threading.RLock()
        self._on_change = on_change
        self._mask = 0
        self._firmware_mask = 0

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x4D0 and 0x4D1."""
        pio.register(PORT, 2, self, "elcr", width=1)

    @property
    def mask(self) -> int:
        """The level-triggered interrupts."""
        return self._mask

    def set_level(self, irq: int) -> None:
        """Make ``irq`` level triggered, as firmware does for PCI interrupts and the SCI. A reset keeps it so."""
        with self.lock:
            self._firmware_mask |= 1 << irq
            self._set(self._mask | 1 << irq)

    def read(self, offset: int, size: int) -> int:
        """One of the two bytes."""
        return self._mask >> (8 * offset) & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Set one of the two bytes."""
        shift = 8 * offset
        self._set(self._mask & ~(0xFF << shift) | value << shift)

    def _set(self, mask: int) -> None:
        self._mask = mask & WRITABLE
        self._on_change(self._mask)

    def reset(self) -> None:
        """As firmware has set it up; all others edge triggered."""
        with self.lock:
            self._set(self._firmware_mask)

    def save(self) -> State:
        """The mask."""
        return {"version": 1, "mask": self._mask}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the mask."""
        check_version(self, state)
        with self.lock:
            self._set(saved_int(state, "mask"))
