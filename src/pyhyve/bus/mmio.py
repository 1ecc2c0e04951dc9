"""The guest-physical space outside RAM: ordered ranges of memory-mapped I/O.

A look-up is a bisection over the start addresses, with the last range found as a hint: a driver tends to stay at one
device. Readers take no lock on the table, it is replaced as a whole when a range comes or goes.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass

from pyhyve.bus.handler import Handler, Lock, Traffic, choose_lock


@dataclass(slots=True, eq=False)
class MmioRange:
    """The addresses ``gpa`` up to but not including ``end``, answered by ``handler``; counts by size, of its name."""

    gpa: int
    end: int
    handler: Handler
    name: str
    lock: Lock
    reads: list[int]
    writes: list[int]


class MmioBus:
    """Who answers at a guest-physical address."""

    def __init__(self) -> None:
        self._table: tuple[list[int], list[MmioRange]] = ([], [])
        self._hint: MmioRange | None = None
        self.traffic: dict[str, Traffic] = {}
        """What was asked of each name; it stays when a range goes, and grows on when it comes elsewhere."""
        self._lock = threading.Lock()

    def register(self, gpa: int, count: int, handler: Handler, name: str, lock: Lock | None = None) -> None:
        """Give ``count`` bytes from ``gpa`` to ``handler``. Raises ``ValueError`` if some are taken."""
        end = gpa + count
        if count <= 0 or gpa < 0 or end > 1 << 64:
            raise ValueError(f"addresses {gpa:#x}+{count:#x} of {name} are outside the address space")
        with self._lock:
            starts, ranges = self._table
            at = bisect_right(starts, gpa)
            for neighbour in ranges[max(at - 1, 0) : at + 1]:
                if neighbour.gpa < end and gpa < neighbour.end:
                    raise ValueError(f"addresses {gpa:#x}+{count:#x} of {name} overlap {neighbour.name}")
            if lock is None:
                lock = choose_lock(handler, ((r.handler, r.lock) for r in ranges))
            traffic = self.traffic.setdefault(name, Traffic())
            new = MmioRange(gpa, end, handler, name, lock, traffic.reads, traffic.writes)
            self._table = ([*starts[:at], gpa, *starts[at:]], [*ranges[:at], new, *ranges[at:]])

    def unregister(self, gpa: int) -> None:
        """Take away the range that starts at ``gpa``. Raises ``KeyError`` if there is none."""
        with self._lock:
            starts, ranges = self._table
            at = bisect_right(starts, gpa) - 1
            if at < 0 or starts[at] != gpa:
                raise KeyError(gpa)
            gone = ranges[at]
            self._table = (starts[:at] + starts[at + 1 :], ranges[:at] + ranges[at + 1 :])
            gone.end = gone.gpa  # a hint that still points here matches nothing

    def ranges(self) -> list[MmioRange]:
        """All ranges, by address."""
        return list(self._table[1])

    def find(self, gpa: int) -> MmioRange | None:
        """The range that holds ``gpa``."""
        starts, ranges = self._table
        at = bisect_right(starts, gpa) - 1
        if at < 0 or gpa >= ranges[at].end:
            return None
        self._hint = ranges[at]
        return ranges[at]

    def read(self, gpa: int, size: int) -> int | None:
        """Read 1 to 8 bytes; None where nobody answers. Bytes that nobody has read as 0xFF."""
        found = self._hint  # tried here first: a call would cost as much as counting does
        if found is None or not found.gpa <= gpa < found.end:
            found = self.find(gpa)
        if found is not None and gpa + size <= found.end:
            with found.lock:
                found.reads[size] += 1
                return found.handler.read(gpa - found.gpa, size)
        if size == 1:
            return None
        parts = [self.read(gpa + i, 1) for i in range(size)]
        if all(part is None for part in parts):
            return None
        return int.from_bytes((0xFF if part is None else part for part in parts), "little")

    def write(self, gpa: int, size: int, value: int) -> bool:
        """Write 1 to 8 bytes; False where nobody answers."""
        found = self._hint
        if found is None or not found.gpa <= gpa < found.end:
            found = self.find(gpa)
        if found is not None and gpa + size <= found.end:
            with found.lock:
                found.writes[size] += 1
                found.handler.write(gpa - found.gpa, size, value)
            return True
        if size == 1:
            return False
        answers = [self.write(gpa + i, 1, value >> (8 * i) & 0xFF) for i in range(size)]
        return any(answers)
