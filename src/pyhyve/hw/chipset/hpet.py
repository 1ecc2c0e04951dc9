"""The high precision event timer: a 64-bit counter and three comparators.

Document: IA-PC HPET specification 1.0a, §2.3 (registers), §2.3.9 (timers).

The main counter runs at 10 MHz and is computed from the clock when it is read. Each comparator that may interrupt has a
timer of the event loop. Interrupts go to ISA 0 and 8 in legacy replacement mode (the machine then disconnects PIT and
RTC, told through ``on_legacy``), else to the I/O APIC input that the guest picks among GSIs 20 to 23.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from pyhyve.bus.irq import IrqLine, IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields, saved_dict, saved_int, saved_list
from pyhyve.loop import Clock, TimerHandle

BASE = 0xFED00000
SIZE = 0x400
PERIOD_FS = 100_000_000
"""Period of the main counter in femtoseconds, the longest that the specification allows: 100 ns."""

TICK_NS = 100
TIMERS = 3
ROUTES = 0x00F00000
"""GSIs that a timer can be routed to, as a bit mask."""

LEGACY_GSIS = (0, 8)
MIN_PERIOD_NS = 100_000
"""A periodic timer fires no more often than this."""

_MASK64 = (1 << 64) - 1


class Offset(IntEnum):
    """Registers, 64 bits each."""

    CAPABILITIES = 0x000
    CONFIG = 0x010
    STATUS = 0x020
    COUNTER = 0x0F0
    TIMER = 0x100  # then every 0x20
    TIMER_CONFIG = 0x00
    TIMER_COMPARATOR = 0x08


class Config(IntFlag):
    ENABLE = 0x1
    LEGACY = 0x2


class TimerConfig(IntFlag):
    LEVEL = 1 << 1
    ENABLE = 1 << 2
    PERIODIC = 1 << 3
    PERIODIC_CAPABLE = 1 << 4
    SIZE_64 = 1 << 5
    SET_VALUE = 1 << 6
    MODE_32 = 1 << 8
    ROUTE = 0x1F << 9


CAPABILITIES = PERIOD_FS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS - 1) << 8 | 0x01
_TIMER_CAPABILITIES = ROUTES << 32 | int(TimerConfig.PERIODIC_CAPABLE | TimerConfig.SIZE_64)
_TIMER_WRITABLE = int(
    TimerConfig.LEVEL
    | TimerConfig.ENABLE
    | TimerConfig.PERIODIC
    | TimerConfig.SET_VALUE
    | TimerConfig.MODE_32
    | TimerConfig.ROUTE
)

# The same as plain numbers: guests read the counter as their clock, and an operation of an IntFlag costs a microsecond.
_CAPABILITIES, _CONFIG, _STATUS, _COUNTER, _TIMER, _TIMER_COMPARATOR = (
    int(offset)
    for offset in (
        Offset.CAPABILITIES,
        Offset.CONFIG,
        Offset.STATUS,
        Offset.COUNTER,
        Offset.TIMER,
        Offset.TIMER_COMPARATOR,
    )
)
_TIMER_CONFIG = int(Offset.TIMER_CONFIG)
_ENABLE, _LEGACY = int(Config.ENABLE), int(Config.LEGACY)
_LEVEL, _TIMER_ENABLE, _PERIODIC = int(TimerConfig.LEVEL), int(TimerConfig.ENABLE), int(TimerConfig.PERIODIC)
_SET_VALUE, _MODE_32, _ROUTE = int(TimerConfig.SET_VALUE), int(TimerConfig.MODE_32), int(TimerConfig.ROUTE)


@dataclass(slots=True)
class Comparator:
    """One timer of the block."""

    config: int = 0
    """The writable bits of its configuration register."""
    value: int = _MASK64
    period: int = 0
    pending: bool = False
    """It has been set and not fired since."""

    @property
    def mask(self) -> int:
        """Of as many bits as it compares."""
        return 0xFFFFFFFF if self.config & _MODE_32 else _MASK64

    @property
    def repeats(self) -> bool:
        return bool(self.config & _PERIODIC and self.period)


_COMPARATOR_FIELDS = tuple(Comparator.__slots__)


@dataclass(slots=True)
class _Output:
    """Where a comparator's interrupts go, and the loop's timer behind it."""

    timer: TimerHandle
    line: IrqLine | None = field(default=None)


class Hpet:
    """The block of timers."""

    def __init__(self, loop: Clock, router: IrqRouter, on_legacy: Callable[[bool], None] | None = None) -> None:
        self.lock = threading.RLock()
        self._loop = loop
        self._router = router
        self._on_legacy = on_legacy
        self._config = 0
        self._status = 0
        self._offset = 0  # counter while halted; counter minus clock ticks while it runs
        self._comparators = [Comparator() for _ in range(TIMERS)]
        self._outputs = [_Output(loop.timer(self._expiry(i))) for i in range(TIMERS)]

    def attach(self, mmio: MmioBus) -> None:
        """Answer at 0xFED00000."""
        mmio.register(BASE, SIZE, self, "hpet")

    def counter(self) -> int:
        """The main counter now."""
        if self._config & _ENABLE:
            return (self._loop.now_ns() // TICK_NS + self._offset) & _MASK64
        return self._offset

    def read(self, offset: int, size: int) -> int:
        """Read a register or a part of one."""
        register = offset & ~7
        value = self.counter() if register == _COUNTER else self._register(register)
        return value >> (8 * (offset & 7)) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register or a part of one."""
        register, shift = offset & ~7, 8 * (offset & 7)
        mask = (((1 << 8 * size) - 1) << shift) & _MASK64
        value = value << shift & mask
        if register == _STATUS:
            self._clear_status(value)
            return
        value |= self._register(register) & ~mask
        if register == _CONFIG:
            self._set_config(value)
        elif register == _COUNTER:
            if not self._config & _ENABLE:  # §2.3.7: only while halted
                self._offset = value
        elif register >= _TIMER:
            index, part = divmod(register - _TIMER, 0x20)
            if index < TIMERS:
                if part == _TIMER_CONFIG:
                    self._set_timer_config(index, value)
                elif part == _TIMER_COMPARATOR:
                    self._set_comparator(index, value)

    def _register(self, register: int) -> int:
        if register == _COUNTER:
            return self.counter()
        if register == _CAPABILITIES:
            return CAPABILITIES
        if register == _CONFIG:
            return self._config
        if register == _STATUS:
            return self._status
        if register >= _TIMER:
            index, part = divmod(register - _TIMER, 0x20)
            if index < TIMERS:
                comparator = self._comparators[index]
                if part == _TIMER_CONFIG:
                    return comparator.config | _TIMER_CAPABILITIES
                if part == _TIMER_COMPARATOR:
                    self._catch_up(comparator)
                    return comparator.value & comparator.mask
        return 0

    def _set_config(self, value: int) -> None:
        value &= _ENABLE | _LEGACY
        changed = value ^ self._config
        if changed & _ENABLE:
            counter, ticks = self.counter(), self._loop.now_ns() // TICK_NS
            self._offset = (counter - ticks) & _MASK64 if value & _ENABLE else counter
        self._config = value
        if changed & _LEGACY and self._on_legacy is not None:
            self._on_legacy(bool(value & _LEGACY))
        for index in range(TIMERS):
            self._connect(index)
            self._schedule(index)

    def _set_timer_config(self, index: int, value: int) -> None:
        comparator = self._comparators[index]
        self._catch_up(comparator)
        comparator.config = value & _TIMER_WRITABLE
        if not comparator.config & _LEVEL:
            self._status &= ~(1 << index)
        self._connect(index)
        self._schedule(index)

    def _set_comparator(self, index: int, value: int) -> None:
        """§2.3.9.2.2: of a periodic timer, a write sets the period, and the comparator too if it was announced."""
        comparator = self._comparators[index]
        value &= comparator.mask
        self._catch_up(comparator)
        if not comparator.config & _PERIODIC:
            comparator.value = value
            comparator.pending = True
        else:
            if comparator.config & _SET_VALUE:
                comparator.value = value
                comparator.config &= ~_SET_VALUE
            comparator.period = value
            comparator.pending = True
        self._schedule(index)

    def _clear_status(self, value: int) -> None:
        self._status &= ~value
        for index, output in enumerate(self._outputs):
            if value >> index & 1 and output.line is not None:
                output.line.lower()

    def _gsi(self, index: int) -> int | None:
        if self._config & _LEGACY and index < len(LEGACY_GSIS):
            return LEGACY_GSIS[index]
        gsi = (self._comparators[index].config & _ROUTE) >> 9
        return gsi if ROUTES >> gsi & 1 else None

    def _connect(self, index: int) -> None:
        """Hold the line that the configuration names, at the level that the status says."""
        output, comparator = self._outputs[index], self._comparators[index]
        gsi = self._gsi(index) if comparator.config & _TIMER_ENABLE else None
        if output.line is not None and output.line.gsi != gsi:
            self._router.release(output.line)
            output.line = None
        if gsi is not None:
            if output.line is None:
                output.line = self._router.line(gsi, f"hpet timer {index}")
            output.line.set(bool(self._status >> index & 1))

    def _catch_up(self, comparator: Comparator) -> None:
        """Move a periodic comparator past the counter, for the periods nobody was woken for."""
        if not (comparator.repeats and comparator.pending and self._config & _ENABLE):
            return
        mask = comparator.mask
        behind = (self.counter() - comparator.value) & mask
        if behind <= mask >> 1:
            comparator.value = (comparator.value + (behind // comparator.period + 1) * comparator.period) & mask

    def _schedule(self, index: int) -> None:
        comparator, timer = self._comparators[index], self._outputs[index].timer
        if not (self._config & _ENABLE and comparator.config & _TIMER_ENABLE and comparator.pending):
            timer.cancel()
            return
        now = self._loop.now_ns()
        ticks = (comparator.value - (now // TICK_NS + self._offset)) & comparator.mask
        timer.arm_at(now - now % TICK_NS + ticks * TICK_NS)

    def _expiry(self, index: int) -> Callable[[], None]:
        def expire() -> None:
            with self.lock:
                self._expire(index)

        return expire

    def _expire(self, index: int) -> None:
        comparator, output = self._comparators[index], self._outputs[index]
        if not (self._config & _ENABLE and comparator.config & _TIMER_ENABLE and comparator.pending):
            return
        if (self.counter() - comparator.value) & comparator.mask > comparator.mask >> 1:
            self._schedule(index)  # set again while the timer fired
            return
        if comparator.config & _LEVEL:
            self._status |= 1 << index
            if output.line is not None:
                output.line.raise_()
        elif output.line is not None:
            output.line.pulse()
        if comparator.repeats:
            self._catch_up(comparator)
            now = self._loop.now_ns()
            ticks = (comparator.value - (now // TICK_NS + self._offset)) & comparator.mask
            output.timer.arm_at(now + max(ticks * TICK_NS, MIN_PERIOD_NS))
        else:
            comparator.pending = False

    def reset(self) -> None:
        """Halted at zero."""
        with self.lock:
            if self._config & _LEGACY and self._on_legacy is not None:
                self._on_legacy(False)
            self._config = self._status = self._offset = 0
            self._comparators = [Comparator() for _ in range(TIMERS)]
            for index in range(TIMERS):
                self._connect(index)
                self._schedule(index)

    def save(self) -> State:
        """Registers, with the counter's value now."""
        with self.lock:
            return {
                "version": 1,
                "config": self._config,
                "status": self._status,
                "counter": self.counter(),
                "timers": [save_fields(comparator, _COMPARATOR_FIELDS) for comparator in self._comparators],
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the registers; the counter goes on from its saved value."""
        check_version(self, state)
        config, counter = saved_int(state, "config"), saved_int(state, "counter")
        timers = saved_list(state, "timers", TIMERS)
        with self.lock:
            self._config = 0
            self._status = saved_int(state, "status")
            self._offset = counter
            for comparator, fields in zip(self._comparators, timers, strict=True):
                restore_fields(comparator, _COMPARATOR_FIELDS, saved_dict(fields, "timer"))
            self._set_config(config)
