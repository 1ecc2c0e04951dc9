"""The ACPI power management timer: a 32-bit counter at 3.579545 MHz, read-only.

Document: ACPI specification 6.4, §4.8.2.1. The value is computed from the clock at each read.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, saved_int
from pyhyve.loop import Clock

PORT = 0x408
FREQUENCY = 3_579_545
"""Hz, three times the PIT's clock."""

_SECOND = 1_000_000_000


class PmTimer:
    """The timer."""

    def __init__(self, loop: Clock) -> None:
        self._loop = loop
        self._start = loop.now_ns()

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
        self._start = self._loop.now_ns()

    def save(self) -> State:
        """The time it has run."""
        return {"version": 1, "elapsed": self._loop.now_ns() - self._start}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from the saved count."""
        check_version(self, state)
        self._start = self._loop.now_ns() - saved_int(state, "elapsed")
