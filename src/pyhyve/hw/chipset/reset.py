"""The reset control register at 0xCF9 and system control port A at 0x92.

Documents: Intel 82371SB data sheet §2.5.8 (RC); port 0x92: IBM PS/2 technical reference, system control port A. ACPI's
reset register (FADT) points at 0xCF9, with the value 6.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from enum import IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, restore_fields, save_fields
from pyhyve.vmm.exits import SuspendReason

PORT = 0xCF9
PORT_A = 0x92
RESET_VALUE = 0x06


class Control(IntFlag):
    """Register 0xCF9."""

    SYSTEM = 0x02  # a reset is a hard one
    RESET = 0x04


class PortA(IntFlag):
    """Port 0x92."""

    INIT = 0x01
    A20 = 0x02


class Reset:
    """Both registers. ``power`` is told ``SuspendReason.RESET``."""

    def __init__(self, power: Callable[[SuspendReason], None]) -> None:
        self.lock = threading.RLock()
        self._power = power
        self._control = 0
        self._port_a = int(PortA.A20)

    def attach(self, pio: PioBus) -> None:
        """Answer at 0xCF9 and 0x92."""
        pio.register(PORT, 1, self, "reset", width=1)
        pio.register(PORT_A, 1, Callbacks(self._read_a, self._write_a), "port 92", self.lock, width=1)

    def read(self, offset: int, size: int) -> int:
        """The value last written, without the reset bit."""
        return self._control

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 2 resets the machine."""
        self._control = value & Control.SYSTEM
        if value & Control.RESET:
            self._power(SuspendReason.RESET)

    def _read_a(self, offset: int, size: int) -> int:
        return self._port_a

    def _write_a(self, offset: int, size: int, value: int) -> None:
        self._port_a = value & PortA.A20 or int(PortA.A20)  # A20 is never masked here
        if value & PortA.INIT:
            self._power(SuspendReason.RESET)

    def reset(self) -> None:
        """As after power-on."""
        with self.lock:
            self._control = 0
            self._port_a = int(PortA.A20)

    def save(self) -> State:
        """Both registers."""
        return save_fields(self, ("_control", "_port_a"))

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over both registers."""
        with self.lock:
            restore_fields(self, ("_control", "_port_a"), state)
