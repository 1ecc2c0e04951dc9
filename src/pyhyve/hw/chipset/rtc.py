"""The MC146818 real-time clock with its CMOS memory.

Documents: Motorola MC146818A data sheet; the memory-size bytes are those PC firmware keeps there (0x15-0x18, 0x30-0x35,
and 0x5B-0x5D for memory above 4 GiB), the century is at 0x32 as ACPI's FADT says.

The time is the host's plus an offset, which changes when the guest sets its clock; time registers are computed when
they are read. Interrupt flags are brought up to date when somebody looks; the event loop's timer runs only for
interrupts that the guest has enabled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import date
from enum import IntEnum, IntFlag

from pyhyve.bus.irq import IrqLine
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, saved_int
from pyhyve.loop import Clock

PORT = 0x70
IRQ = 8
SIZE = 128
NMI_MASK = 0x80

_SECOND = 1_000_000_000
_DAY = 86_400
_UPDATE_NS = 244_000
"""The update-in-progress bit is set this long before the registers change (data sheet, tBUC)."""

MIN_PERIOD_NS = 100_000


class Cell(IntEnum):
    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    WEEKDAY = 0x06
    DAY = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    BASE_MEMORY = 0x15  # KiB below 1 MiB, two bytes
    EXTENDED_MEMORY = 0x17  # KiB above 1 MiB, two bytes
    EXTENDED_MEMORY_POST = 0x30
    CENTURY = 0x32
    MEMORY_ABOVE_16M = 0x34  # 64 KiB units, two bytes
    HIGH_MEMORY = 0x5B  # 64 KiB units above 4 GiB, three bytes


class A(IntFlag):
    RATE = 0x0F
    DIVIDER = 0x70
    UIP = 0x80


class B(IntFlag):
    DST = 0x01
    HOURS_24 = 0x02
    BINARY = 0x04
    SQUARE_WAVE = 0x08
    UIE = 0x10
    AIE = 0x20
    PIE = 0x40
    SET = 0x80


class C(IntFlag):
    UF = 0x10
    AF = 0x20
    PF = 0x40
    IRQF = 0x80


# The same as plain numbers, for what every access passes: an operation of an IntFlag costs a microsecond.
_A_RATE, _A_DIVIDER, _A_UIP = int(A.RATE), int(A.DIVIDER), int(A.UIP)
_B_HOURS_24, _B_BINARY, _B_SQUARE_WAVE, _B_UIE = int(B.HOURS_24), int(B.BINARY), int(B.SQUARE_WAVE), int(B.UIE)
_B_AIE, _B_PIE, _B_SET = int(B.AIE), int(B.PIE), int(B.SET)
_C_UF, _C_AF, _C_PF, _C_IRQF = int(C.UF), int(C.AF), int(C.PF), int(C.IRQF)
_REGISTER_A, _REGISTER_B, _REGISTER_C, _REGISTER_D = int(Cell.A), int(Cell.B), int(Cell.C), int(Cell.D)

_VALID = 0x80  # register D: the battery is good
_DIVIDER_32K = 0x20
_PM = 0x80
_DONT_CARE = 0xC0
_CLOCK_CELLS = frozenset(
    {Cell.SECONDS, Cell.MINUTES, Cell.HOURS, Cell.WEEKDAY, Cell.DAY, Cell.MONTH, Cell.YEAR, Cell.CENTURY}
)
_ALARM_CELLS = frozenset({Cell.SECONDS_ALARM, Cell.MINUTES_ALARM, Cell.HOURS_ALARM})


class Rtc:
    """Clock and CMOS memory. Sizes: bytes of RAM below 4 GiB and above. ``wall`` is the host's time, s since 1970."""

    def __init__(
        self,
        loop: Clock,
        irq_line: IrqLine,
        low_memory: int,
        high_memory: int = 0,
        use_localtime: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.lock = threading.RLock()
        self._loop = loop
        self._irq = irq_line
        self._timer = loop.timer(self._expire)
        self._wall = wall
        self._memory = bytearray(SIZE)
        self._index = 0
        self._nmi_masked = False
        self._disconnected = False
        self._offset = _local_offset(wall()) * _SECOND if use_localtime else 0
        self._memory[_REGISTER_A] = _DIVIDER_32K | 0x06
        self._memory[_REGISTER_B] = _B_HOURS_24
        self._store_memory_sizes(low_memory, high_memory)
        self._seen_second = self._now() // _SECOND
        self._periodic_start = loop.now_ns()
        self._periods_seen = 0

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x70 and 0x71."""
        pio.register(PORT, 2, self, "rtc", width=1)

    @property
    def nmi_masked(self) -> bool:
        """Whether the guest has masked NMIs, with bit 7 of port 0x70."""
        return self._nmi_masked

    def set_legacy_replacement(self, active: bool) -> None:
        """The HPET has taken over interrupt 8 (``active``), or gives it back."""
        with self.lock:
            self._disconnected = active
            self._update()

    def read(self, offset: int, size: int) -> int:
        """Read the selected cell; the index port is write-only."""
        return self.cell(self._index) if offset else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a cell, or write the selected one."""
        if offset:
            self.set_cell(self._index, value)
        else:
            self._index = value & ~NMI_MASK
            self._nmi_masked = bool(value & NMI_MASK)

    def cell(self, index: int) -> int:
        """What a guest reads at ``index`` (0-127). Reading register C acknowledges the interrupt."""
        if index in _CLOCK_CELLS and not self._memory[_REGISTER_B] & _B_SET:
            self._store_time()
        elif index == _REGISTER_A:
            return self._memory[_REGISTER_A] | (_A_UIP if self._updating() else 0)
        elif index == _REGISTER_C:
            self._collect()
            flags = self._memory[_REGISTER_C]
            self._memory[_REGISTER_C] = 0
            self._update()
            self._schedule()
            return flags | self._irqf(flags)
        elif index == _REGISTER_D:
            return _VALID
        return self._memory[index]

    def set_cell(self, index: int, value: int) -> None:
        """A guest's write."""
        if index in _CLOCK_CELLS:
            if not self._memory[_REGISTER_B] & _B_SET:
                self._store_time()
            self._memory[index] = value
            if not self._memory[_REGISTER_B] & _B_SET:
                self._load_time()
        elif index in _ALARM_CELLS:
            self._collect()
            self._memory[index] = value
        elif index == _REGISTER_A:
            self._collect()
            self._memory[index] = value & ~_A_UIP
            self._periodic_start = self._loop.now_ns()
            self._periods_seen = 0
        elif index == _REGISTER_B:
            self._write_b(value)
        elif index not in (_REGISTER_C, _REGISTER_D):
            self._memory[index] = value
        self._schedule()

    def _write_b(self, value: int) -> None:
        self._collect()
        before = self._memory[_REGISTER_B]
        if value & _B_SET:
            if not before & _B_SET:
                self._store_time()
            value &= ~_B_UIE
        self._memory[_REGISTER_B] = value
        if before & _B_SET and not value & _B_SET:
            self._load_time()
        self._update()

    # -- time --

    def _now(self) -> int:
        """The guest's time, ns since 1970 in its own zone."""
        return int(self._wall() * 1e9) + self._offset

    def _updating(self) -> bool:
        running = not self._memory[_REGISTER_B] & _B_SET and self._memory[_REGISTER_A] & _A_DIVIDER == _DIVIDER_32K
        return running and self._now() % _SECOND >= _SECOND - _UPDATE_NS

    def _store_time(self) -> None:
        """Fill the time cells from the clock."""
        t = time.gmtime(max(self._now() // _SECOND, 0))
        for cell, value in (
            (Cell.SECONDS, t.tm_sec),
            (Cell.MINUTES, t.tm_min),
            (Cell.WEEKDAY, (t.tm_wday + 1) % 7 + 1),  # Sunday is 1
            (Cell.DAY, t.tm_mday),
            (Cell.MONTH, t.tm_mon),
            (Cell.YEAR, t.tm_year % 100),
        ):
            self._memory[cell] = self._encode(value)
        self._memory[Cell.CENTURY] = _to_bcd(t.tm_year // 100 % 100)
        self._memory[Cell.HOURS] = self._encode_hour(t.tm_hour)

    def _load_time(self) -> None:
        """Set the clock from the time cells. Values out of range carry over, as far as a calendar allows."""
        m = self._memory
        seconds, minutes, day, month, year = (
            self._decode(m[cell]) for cell in (Cell.SECONDS, Cell.MINUTES, Cell.DAY, Cell.MONTH, Cell.YEAR)
        )
        year += 100 * _from_bcd(m[Cell.CENTURY])
        days = date(min(max(year, 1970), 9000), min(max(month, 1), 12), 1).toordinal() + day - 1
        total = (days - date(1970, 1, 1).toordinal()) * _DAY
        total += self._decode_hour(m[Cell.HOURS]) * 3600 + minutes * 60 + seconds
        self._offset += max(total, 0) * _SECOND - self._now() // _SECOND * _SECOND
        self._seen_second = self._now() // _SECOND

    def _encode(self, value: int) -> int:
        return value if self._memory[_REGISTER_B] & _B_BINARY else _to_bcd(value)

    def _decode(self, value: int) -> int:
        return value if self._memory[_REGISTER_B] & _B_BINARY else _from_bcd(value)

    def _encode_hour(self, hour: int) -> int:
        if self._memory[_REGISTER_B] & _B_HOURS_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._memory[_REGISTER_B] & _B_HOURS_24:
            return self._decode(value)
        return self._decode(value & ~_PM) % 12 + (12 if value & _PM else 0)

    # -- interrupts --

    def _collect(self) -> None:
        """Set the flags of everything that happened since the last look."""
        periods = self._periods(self._loop.now_ns())
        if periods > self._periods_seen:
            self._memory[_REGISTER_C] |= _C_PF
        self._periods_seen = periods
        if self._memory[_REGISTER_B] & _B_SET:
            return
        second, seen = self._now() // _SECOND, self._seen_second
        if second > seen:
            self._memory[_REGISTER_C] |= _C_UF
            if self._next_alarm(seen) <= second:
                self._memory[_REGISTER_C] |= _C_AF
        self._seen_second = second

    def _period_ns(self) -> int:
        """The period of the periodic interrupt; 0 for none."""
        rate = self._memory[_REGISTER_A] & _A_RATE
        if not rate or self._memory[_REGISTER_A] & _A_DIVIDER != _DIVIDER_32K:
            return 0
        return _SECOND * (1 << (rate + 6 if rate <= 2 else rate - 1)) // 32_768

    def _periods(self, now: int) -> int:
        period = self._period_ns()
        return (now - self._periodic_start) // period if period else 0

    def _next_alarm(self, after: int) -> int:
        """The first second after ``after`` at which hour, minute and second match the alarm."""
        m = self._memory
        hour, minute, second = m[Cell.HOURS_ALARM], m[Cell.MINUTES_ALARM], m[Cell.SECONDS_ALARM]
        hours = range(24) if hour >= _DONT_CARE else (self._decode_hour(hour),)
        minutes = range(60) if minute >= _DONT_CARE else (self._decode(minute),)
        seconds = range(60) if second >= _DONT_CARE else (self._decode(second),)
        if hours[0] > 23 or minutes[0] > 59 or seconds[0] > 59:
            return after + 366 * _DAY  # no such time
        start = after + 1
        midnight = start - start % _DAY
        for day in (midnight, midnight + _DAY):
            for h in hours:
                if day + h * 3600 + 3599 < start:
                    continue
                for n in minutes:
                    base = day + h * 3600 + n * 60
                    if base + 59 < start:
                        continue
                    for s in seconds:
                        if base + s >= start:
                            return base + s
        return after + _DAY

    def _irqf(self, flags: int) -> int:
        return _C_IRQF if flags & self._memory[_REGISTER_B] & (_B_UIE | _B_AIE | _B_PIE) else 0

    def _update(self) -> None:
        self._irq.set(not self._disconnected and bool(self._irqf(self._memory[_REGISTER_C])))

    def _schedule(self) -> None:
        """Arm the timer for the next interrupt that is enabled and not yet flagged."""
        wanted = self._memory[_REGISTER_B] & (_B_UIE | _B_AIE | _B_PIE) & ~self._memory[_REGISTER_C]
        now = self._loop.now_ns()
        waits: list[int] = []
        period = self._period_ns()
        if wanted & _B_PIE and period:
            at = self._periodic_start + (self._periods_seen + 1) * period
            waits.append(max(at - now, MIN_PERIOD_NS))
        if not self._memory[_REGISTER_B] & _B_SET:
            if wanted & _B_UIE:
                waits.append((self._seen_second + 1) * _SECOND - self._now())
            if wanted & _B_AIE:
                waits.append(self._next_alarm(self._seen_second) * _SECOND - self._now())
        if waits:
            self._timer.arm_in(max(min(waits), 0))
        else:
            self._timer.cancel()

    def _expire(self) -> None:
        with self.lock:
            self._collect()
            self._update()
            self._schedule()

    # -- memory sizes --

    def _store_memory_sizes(self, low: int, high: int) -> None:
        kib = max(low // 1024 - 1024, 0)
        for cell, value, size in (
            (Cell.BASE_MEMORY, 640, 2),
            (Cell.EXTENDED_MEMORY, min(kib, 0xFFFF), 2),
            (Cell.EXTENDED_MEMORY_POST, min(kib, 0xFFFF), 2),
            (Cell.MEMORY_ABOVE_16M, min(max((low >> 16) - 256, 0), 0xFFFF), 2),
            (Cell.HIGH_MEMORY, min(high >> 16, 0xFFFFFF), 3),
        ):
            self._memory[cell : cell + size] = value.to_bytes(size, "little")

    # -- lifecycle --

    def reset(self) -> None:
        """The RESET pin: interrupts off; the battery keeps time and memory."""
        with self.lock:
            self._memory[_REGISTER_B] &= ~(_B_UIE | _B_AIE | _B_PIE | _B_SQUARE_WAVE) & 0xFF
            self._memory[_REGISTER_C] = 0
            self._index = 0
            self._nmi_masked = False
            self._disconnected = False
            self._update()
            self._schedule()

    def save(self) -> State:
        """The CMOS memory and the distance of the guest's clock from the host's."""
        with self.lock:
            self._collect()
            return {
                "version": 1,
                "memory": bytes(self._memory),
                "index": self._index,
                "nmi_masked": int(self._nmi_masked),
                "disconnected": int(self._disconnected),
                "offset": self._offset,
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over memory and clock; the periodic interrupt starts a new period."""
        check_version(self, state)
        memory = state.get("memory")
        with self.lock:
            if isinstance(memory, bytes):
                self._memory[:] = memory.ljust(SIZE, b"\0")[:SIZE]
            self._index = saved_int(state, "index") & 0x7F
            self._nmi_masked = bool(saved_int(state, "nmi_masked"))
            self._disconnected = bool(saved_int(state, "disconnected"))
            self._offset = saved_int(state, "offset")
            self._seen_second = self._now() // _SECOND
            self._periodic_start, self._periods_seen = self._loop.now_ns(), 0
            self._update()
            self._schedule()


def _to_bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


def _from_bcd(value: int) -> int:
    return (value >> 4) * 10 + (value & 0xF)


def _local_offset(now: float) -> int:
    """Seconds that local time is ahead of UTC."""
    return time.localtime(now).tm_gmtoff
