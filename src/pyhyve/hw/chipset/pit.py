"""The 8254 interval timer and the port that gates and watches its third counter.

Documents: Intel 82C54 data sheet (order 231244); port 0x61: Intel 82371SB data sheet §2.5.3.

Nothing ticks: a counter remembers when it started, and its value and output are computed from the clock when somebody
reads them. So a guest that calibrates its time-stamp counter against the PIT gets the true rate, however slow an access
is. Only counter 0, the system timer, needs a timer of the event loop, which drives ISA interrupt 0. A count written
while a periodic counter runs takes effect at once, not at the end of the period.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.irq import IrqLine
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields, saved_dict, saved_list
from pyhyve.loop import Clock
from pyhyve.vmm.api import ClockPort

PORT = 0x40
SPEAKER_PORT = 0x61
FREQUENCY = 1_193_182
"""Input clock, Hz."""

_SECOND = 1_000_000_000
_REFRESH_NS = 15_085
"""Half the period of the memory refresh signal."""

MIN_PERIOD_NS = 100_000
"""A guest's periodic timer fires no more often than this, so that it cannot occupy the event loop."""


class Mode(IntEnum):
    TERMINAL_COUNT = 0
    ONE_SHOT = 1
    RATE = 2
    SQUARE = 3
    SOFTWARE_STROBE = 4
    HARDWARE_STROBE = 5


class Access(IntEnum):
    """Which bytes of a count a read or write of the data port moves."""

    LATCH = 0
    LOW = 1
    HIGH = 2
    BOTH = 3


class Speaker(IntFlag):
    """Port 0x61."""

    GATE2 = 0x01
    DATA = 0x02
    CHECKS = 0x0C
    REFRESH = 0x10
    OUT2 = 0x20


_PERIODIC = (Mode.RATE, Mode.SQUARE)
_TRIGGERED = (Mode.ONE_SHOT, Mode.HARDWARE_STROBE)


def to_ticks(nanoseconds: int) -> int:
    """Whole input clocks in a time."""
    return nanoseconds * FREQUENCY // _SECOND


def to_ns(ticks: int) -> int:
    """The first moment at which so many clocks have passed."""
    return -(-ticks * _SECOND // FREQUENCY)


@dataclass(slots=True)
class Counter:
    """One of the three counters. ``now`` is the loop's clock in ns."""

    mode: int = Mode.SQUARE
    access: int = Access.BOTH
    bcd: bool = False
    reload: int = 0
    """The count as written; 0 is the largest."""
    loaded: bool = False
    """A full count was written since the mode was."""
    running: bool = False
    start: int = 0
    """While running: when the count was ``reload``. Else how many ns it had run when the gate stopped it."""
    gate: bool = True
    low_written: int = -1
    """The low byte of a two-byte write, until the high one comes; -1 for none."""
    high_next: bool = False
    """The next read of a two-byte count gives the high byte."""
    latch: int = -1
    status: int = -1
    """Latched values that wait to be read; -1 for none."""

    def period(self) -> int:
        """The programmed count in clocks."""
        if not self.bcd:
            return self.reload or 0x10000
        return _from_bcd(self.reload) or 10_000

    def ticks(self, now: int) -> int:
        """Clocks since the count was loaded or triggered."""
        return to_ticks(max(now - self.start, 0) if self.running else self.start)

    def count(self, now: int) -> int:
        """The counting element, as a read shows it."""
        if not self.loaded:
            return self.reload
        period, ticks = self.period(), self.ticks(now)
        if self.mode == Mode.RATE:
            value = period - ticks % period
        elif self.mode == Mode.SQUARE:
            half = (period + 1) // 2
            phase = ticks % period
            value = period - 2 * (phase if phase < half else phase - half) & ~1
        else:
            value = period - ticks
        return _to_bcd(value % 10_000) if self.bcd else value & 0xFFFF

    def output(self, now: int) -> bool:
        """The level of OUT."""
        if not self.loaded:
            return self.mode != Mode.TERMINAL_COUNT
        period, ticks = self.period(), self.ticks(now)
        if self.mode == Mode.TERMINAL_COUNT:
            return ticks >= period
        if self.mode == Mode.ONE_SHOT:
            return not self.running or ticks >= period
        if self.mode == Mode.RATE:
            return not self.gate or ticks % period != period - 1
        if self.mode == Mode.SQUARE:
            return not self.gate or ticks % period < (period + 1) // 2
        return not self.running or ticks != period

    def set_gate(self, level: bool, now: int) -> None:
        """Drive GATE: it pauses modes 0 and 4, restarts 2 and 3, triggers 1 and 5."""
        if level == self.gate:
            return
        self.gate = level
        if not self.loaded:
            return
        if self.mode in _TRIGGERED:
            if level:
                self.start, self.running = now, True
        elif level:
            self.start, self.running = (now if self.mode in _PERIODIC else now - self.start), True
        else:
            self.start, self.running = (max(now - self.start, 0) if self.running else self.start), False

    def control(self, value: int, now: int) -> None:
        """A control word for this counter: latch the count, or set mode, access and code."""
        access = value >> 4 & 3
        if access == Access.LATCH:
            self.latch_count(now)
            return
        mode = value >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode  # x10 and x11 are modes 2 and 3
        self.access = access
        self.bcd = bool(value & 1)
        self.loaded = self.running = False
        self.start = 0
        self.reload = 0
        self.low_written = self.latch = self.status = -1
        self.high_next = False

    def latch_count(self, now: int) -> None:
        """Hold the count for the next read; a count that is held already stays."""
        if self.latch < 0:
            self.latch = self.count(now)
            self.high_next = self.access == Access.HIGH

    def latch_status(self, now: int) -> None:
        """Hold the status byte (data sheet, figure 13)."""
        if self.status < 0:
            self.status = (
                self.output(now) << 7 | (not self.loaded) << 6 | self.access << 4 | self.mode << 1 | int(self.bcd)
            )

    def read(self, now: int) -> int:
        """Read the data port."""
        if self.status >= 0:
            value, self.status = self.status, -1
            return value
        value = self.latch if self.latch >= 0 else self.count(now)
        if self.access == Access.BOTH:
            high = self.high_next
            self.high_next = not high
            done = high
        else:
            high = self.access == Access.HIGH
            done = True
        if done:
            self.latch = -1
        return value >> 8 if high else value & 0xFF

    def write(self, value: int, now: int) -> bool:
        """Write the data port; True when the count is complete and starts."""
        if self.access == Access.BOTH:
            if self.low_written < 0:
                self.low_written = value
                if self.mode == Mode.TERMINAL_COUNT:
                    self.loaded = self.running = False  # the first byte stops the count and lowers OUT
                return False
            value = self.low_written | value << 8
            self.low_written = -1
        elif self.access == Access.HIGH:
            value <<= 8
        self.reload = value
        self.loaded = True
        if self.mode in _TRIGGERED:
            self.start, self.running = 0, False
        else:
            self.running = self.gate
            self.start = now if self.gate else 0
        return True

    def next_rise(self, after: int) -> int | None:
        """The first clock after clock ``after`` at which OUT goes from low to high; None if it will not."""
        if not self.running:
            return None
        period = self.period()
        if self.mode in _PERIODIC:
            return (after // period + 1) * period
        rise = period if self.mode in (Mode.TERMINAL_COUNT, Mode.ONE_SHOT) else period + 1
        return rise if rise > after else None


_COUNTER_FIELDS = tuple(Counter.__slots__)


class Pit:
    """The chip, with the speaker port. ``irq_line`` is ISA interrupt 0.

    While counter 2 counts down once, as for a calibration, the backend may answer its reads (``clock_port`` is
    ``VirtualMachine.clock_port``): the calibration then is as short and as exact as on real hardware.
    """

    def __init__(
        self, loop: Clock, irq_line: IrqLine, clock_port: Callable[[int, ClockPort | None], int] | None = None
    ) -> None:
        self.lock = threading.RLock()
        self._loop = loop
        self._clock_port = clock_port
        self._irq = irq_line
        self._timer = loop.timer(self._expire)
        self._counters = [Counter(), Counter(), Counter(gate=False)]
        self._rise = 0
        self._speaker = 0
        self._disconnected = False

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x40-0x43 and 0x61."""
        pio.register(PORT, 4, self, "pit", width=1)
        pio.register(SPEAKER_PORT, 1, Callbacks(self._read_speaker, self._write_speaker), "speaker", self.lock, width=1)

    def set_legacy_replacement(self, active: bool) -> None:
        """The HPET has taken over interrupt 0 (``active``), or gives it back."""
        with self.lock:
            self._disconnected = active
            self._irq.lower()

    def read(self, offset: int, size: int) -> int:
        """Read a counter; the control port reads as nothing."""
        if offset == 3:
            return 0xFF
        return self._counters[offset].read(self._loop.now_ns())

    def _take_back(self) -> None:
        """Answer for counter 2 ourselves again; its byte flip-flop has moved with every read answered meanwhile."""
        if self._clock_port is not None and self._clock_port(PORT + 2, None) & 1:
            self._counters[2].high_next = not self._counters[2].high_next

    def _hand_over(self) -> None:
        """Let the backend answer for counter 2 where it is nothing but a clock."""
        counter = self._counters[2]
        plain = counter.running and counter.loaded and not counter.bcd and counter.mode == Mode.TERMINAL_COUNT
        waiting = counter.latch >= 0 or counter.status >= 0 or counter.low_written >= 0
        if self._clock_port is not None and plain and counter.access == Access.BOTH and not waiting:
            self._clock_port(
                PORT + 2,
                ClockPort(FREQUENCY, counter.start, 16, counter.period(), -1, True, counter.high_next),
            )

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a count or the control word."""
        self._take_back()
        self._write(offset, value)
        self._hand_over()

    def _write(self, offset: int, value: int) -> None:
        now = self._loop.now_ns()
        if offset < 3:
            if self._counters[offset].write(value, now) and offset == 0:
                self._irq.lower()
                self._schedule(0, now)
            return
        select = value >> 6
        if select == 3:
            self._read_back(value, now)
            return
        self._counters[select].control(value, now)
        if select == 0 and value & 0x30:
            self._timer.cancel()
            self._irq.lower()

    def _read_back(self, value: int, now: int) -> None:
        for index, counter in enumerate(self._counters):
            if value >> (index + 1) & 1:
                if not value & 0x20:
                    counter.latch_count(now)
                if not value & 0x10:
                    counter.latch_status(now)

    def _read_speaker(self, offset: int, size: int) -> int:
        now = self._loop.now_ns()
        value: int = self._speaker
        if now // _REFRESH_NS & 1:
            value |= Speaker.REFRESH
        if self._counters[2].output(now):
            value |= Speaker.OUT2
        return int(value)

    def _write_speaker(self, offset: int, size: int, value: int) -> None:
        self._take_back()
        self._speaker = value & 0x0F
        self._counters[2].set_gate(bool(value & Speaker.GATE2), self._loop.now_ns())
        self._hand_over()

    def _schedule(self, after: int, now: int) -> None:
        """Arm the timer for the first rise of counter 0 after clock ``after`` of its run."""
        counter = self._counters[0]
        rise = counter.next_rise(after)
        if rise is None:
            self._timer.cancel()
            return
        self._rise = rise
        deadline = counter.start + to_ns(rise)
        if counter.mode in _PERIODIC:
            deadline = max(deadline, now + MIN_PERIOD_NS) if after else deadline
        self._timer.arm_at(deadline)

    def _expire(self) -> None:
        with self.lock:
            now = self._loop.now_ns()
            counter = self._counters[0]
            if not counter.running:
                return
            if now < counter.start + to_ns(self._rise):
                self._schedule(self._rise - 1, now)  # programmed again while the timer fired
                return
            if not self._disconnected:
                if counter.mode == Mode.TERMINAL_COUNT:
                    self._irq.raise_()
                else:
                    self._irq.pulse()
            self._schedule(max(self._rise, counter.ticks(now)), now)

    def reset(self) -> None:
        """Stop all counters."""
        with self.lock:
            self._take_back()
            self._timer.cancel()
            self._counters = [Counter(), Counter(), Counter(gate=False)]
            self._speaker = 0
            self._disconnected = False
            self._irq.lower()

    def save(self) -> State:
        """The counters; running ones as the time they have run."""
        with self.lock:
            self._take_back()
            now = self._loop.now_ns()
            counters: list[object] = []
            for counter in self._counters:
                state = save_fields(counter, _COUNTER_FIELDS)
                state["start"] = now - counter.start if counter.running else counter.start
                counters.append(state)
            self._hand_over()
            return {
                "version": 1,
                "counters": counters,
                "_speaker": self._speaker,
                "_disconnected": self._disconnected,
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the counters; they go on from where they were."""
        check_version(self, state)
        saved = saved_list(state, "counters", 3)
        with self.lock:
            self._take_back()
            restore_fields(self, ("_speaker", "_disconnected"), state)
            now = self._loop.now_ns()
            for counter, fields in zip(self._counters, saved, strict=True):
                restore_fields(counter, _COUNTER_FIELDS, saved_dict(fields, "counter"))
                if counter.running:
                    counter.start = now - counter.start
            timer = self._counters[0]
            self._irq.set(timer.loaded and timer.mode == Mode.TERMINAL_COUNT and timer.output(now))
            self._schedule(timer.ticks(now), now)
            self._hand_over()


def _from_bcd(value: int) -> int:
    """The number of a BCD count. Digits above nine are taken at their value, as the chip counts them down."""
    return ((value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15)) % 10_000


def _to_bcd(value: int) -> int:
    return int(f"{value:04d}", 16)
