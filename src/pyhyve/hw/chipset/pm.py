"""ACPI fixed hardware: power management events and control, sleep, the power and sleep buttons.

Document: ACPI specification 6.4, §4.8.3 (PM1 event and control registers), §4.8.2.2 (buttons).

Status bits set by the buttons raise the SCI, a level-triggered interrupt, while they are enabled and the guest has put
the hardware in ACPI mode (through the SMI command port, as firmware's SMI handler would). Writing SLP_EN with the sleep
type of the DSDT's ``_S5`` object ends the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from enum import IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.irq import IrqLine
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, restore_fields, save_fields
from pyhyve.vmm.exits import SuspendReason

EVENT_PORT = 0x400
CONTROL_PORT = 0x404
SMI_PORT = 0xB2
ACPI_ENABLE = 0xA0
ACPI_DISABLE = 0xA1
SCI_IRQ = 9
S5_TYPE = 5
"""SLP_TYP of soft-off, the value in the DSDT's ``_S5``."""


class Event(IntFlag):
    """PM1 status and enable registers."""

    TIMER = 1 << 0
    BUS_MASTER = 1 << 4
    GLOBAL = 1 << 5
    POWER_BUTTON = 1 << 8
    SLEEP_BUTTON = 1 << 9
    RTC = 1 << 10
    WAKE = 1 << 15


class Control(IntFlag):
    """PM1 control register."""

    SCI_EN = 1 << 0
    BUS_MASTER_RELOAD = 1 << 1
    GLOBAL_RELEASE = 1 << 2
    SLEEP_TYPE = 7 << 10
    SLEEP_ENABLE = 1 << 13


_ENABLES = int(Event.TIMER | Event.GLOBAL | Event.POWER_BUTTON | Event.SLEEP_BUTTON | Event.RTC)
_CONTROLS = int(Control.BUS_MASTER_RELOAD | Control.SLEEP_TYPE)


class Pm:
    """The PM1a register blocks and the SMI command port."""

    def __init__(self, power: Callable[[SuspendReason], None], sci: IrqLine) -> None:
        self.lock = threading.RLock()
        self._power = power
        self._sci = sci
        self._status = 0
        self._enable = 0
        self._control = 0

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x400-0x405 and 0xB2."""
        pio.register(EVENT_PORT, 4, Callbacks(self._read_event, self._write_event), "pm1 event", self.lock)
        pio.register(CONTROL_PORT, 2, Callbacks(self._read_control, self._write_control), "pm1 control", self.lock)
        pio.register(SMI_PORT, 1, Callbacks(self._read_smi, self._write_smi), "smi command", self.lock, width=1)

    def power_button(self) -> bool:
        """Press the power button. False if the guest does not listen to it: it will not react."""
        return self._press(Event.POWER_BUTTON)

    def sleep_button(self) -> bool:
        """Press the sleep button; False as for ``power_button``."""
        return self._press(Event.SLEEP_BUTTON)

    @property
    def acpi_enabled(self) -> bool:
        """Whether the guest has taken over the hardware (SCI_EN)."""
        return bool(self._control & Control.SCI_EN)

    def _press(self, button: Event) -> bool:
        with self.lock:
            self._status |= button
            self._update()
            return self.acpi_enabled and bool(self._enable & button)

    def _read_event(self, offset: int, size: int) -> int:
        return _part(self._status | self._enable << 16, offset, size)

    def _write_event(self, offset: int, size: int, value: int) -> None:
        written, mask = _lanes(offset, size, value)
        self._status &= ~written & 0xFFFF  # a one clears
        if mask >> 16:
            self._enable = (self._enable & ~(mask >> 16) | written >> 16) & _ENABLES
        self._update()

    def _read_control(self, offset: int, size: int) -> int:
        return _part(self._control, offset, size)

    def _write_control(self, offset: int, size: int, value: int) -> None:
        written, mask = _lanes(offset, size, value)
        self._control = self._control & ~(mask & _CONTROLS) | written & _CONTROLS
        if written & Control.SLEEP_ENABLE and (self._control & Control.SLEEP_TYPE) >> 10 == S5_TYPE:
            self._power(SuspendReason.POWER_OFF)

    def _read_smi(self, offset: int, size: int) -> int:
        return 0

    def _write_smi(self, offset: int, size: int, value: int) -> None:
        if value == ACPI_ENABLE:
            self._control |= Control.SCI_EN
        elif value == ACPI_DISABLE:
            self._control &= ~Control.SCI_EN
        self._update()

    def _update(self) -> None:
        self._sci.set(self.acpi_enabled and bool(self._status & self._enable))

    def reset(self) -> None:
        """Legacy mode, nothing enabled or pending."""
        with self.lock:
            self._status = self._enable = self._control = 0
            self._update()

    def save(self) -> State:
        """The registers."""
        return save_fields(self, _FIELDS)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the registers and the SCI's level."""
        with self.lock:
            restore_fields(self, _FIELDS, state)
            self._update()


_FIELDS = ("_status", "_enable", "_control")


def _part(value: int, offset: int, size: int) -> int:
    return value >> (8 * offset) & ((1 << 8 * size) - 1)


def _lanes(offset: int, size: int, value: int) -> tuple[int, int]:
    """A write to a part of a register as (value, mask) of the whole."""
    return value << (8 * offset), ((1 << 8 * size) - 1) << (8 * offset)
