"""The ACPI power management timer: a 32-bit counter at 3.579545 MHz, read-only.

Document: ACPI specification 6.4, §4.8.2.1. The value is computed from the clock at each read, by the backend
itself where it knows clock ports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, saved_int
from pyhyve.loop import Clock
from pyhyve.vmm.api import ClockPort

PORT = 0x408
FREQUENCY = 3_579_545
"""Hz, three times the PIT's clock."""

_SECOND = 1_000_000_000


class PmTimer:
    """The timer. ``clock_port`` is ``VirtualMachine.clock_port``."""

    def __init__(self, loop: Clock, clock_port: Callable[[int, ClockPort | None], int] | None = None) -> None:
        self._loop = loop
        self._clock_port = clock_port
        self._start_at(loop.now_ns())

    def _start_at(self, start: int) -> None:
        self._start = start
        if self._clock_port is not None:
            self._clock_port(PORT, ClockPort(FREQUENCY, start, 32))

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x408."""
        pio.register(PORT, 4, self, "pm timer")

    def count(self) -> int:
        """The counter now."""
        return (self._loop.now_ns() - self._start) * FREQUENCY // _SECOND & 0xFFFFFFFF

    def read(self, offset: int, size: int) -> int:
        """The counter, or a part of it."""
        return self.count() >> (8 * offset) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Read-only."""

    def reset(self) -> None:
        """Start from zero."""
        self._start_at(self._loop.now_ns())

    def save(self) -> State:
        """The time it has run."""
        return {"version": 1, "elapsed": self._loop.now_ns() - self._start}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from the saved count."""
        check_version(self, state)
        self._start_at(self._loop.now_ns() - saved_int(state, "elapsed"))
