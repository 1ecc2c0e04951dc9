"""The I/O port space: 64 Ki byte-wide addresses, reached by IN and OUT (Intel SDM Vol. 1 §19).

``read`` and ``write`` are on the path of every port access, so a port is one dictionary look-up away from the bound
method that answers it. Registration fills that dictionary; it is rare and may take its time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyhyve.bus.handler import Handler, Lock, Traffic, choose_lock

PORTS = 0x10000

# offset in the range, widest access passed whole, read, write, lock, counts of reads and writes by size
_Entry = tuple[int, int, Callable[[int, int], int], Callable[[int, int, int], None], Lock, list[int], list[int]]


@dataclass(frozen=True, slots=True)
class PioRange:
    """``count`` ports from ``port``, answered by ``handler``."""

    port: int
    count: int
    handler: Handler
    name: str
    lock: Lock


class PioBus:
    """Who answers at an I/O port."""

    def __init__(self) -> None:
        self._ports: dict[int, _Entry] = {}
        self._ranges: dict[int, PioRange] = {}
        self._owners: dict[int, PioRange] = {}
        self.traffic: dict[str, Traffic] = {}
        """What was asked of each name; it stays when a range goes, and grows on when it comes elsewhere."""
        self._lock = threading.Lock()

    def register(
        self,
        port: int,
        count: int,
        handler: Handler,
        name: str,
        lock: Lock | None = None,
        *,
        width: int = 4,
        whole: bool = False,
    ) -> None:
        """Give ``count`` ports from ``port`` to ``handler``. Raises ``ValueError`` if one of them is taken.

        An access of up to ``width`` bytes inside the range is passed whole, any other is split in bytes. With ``whole``
        an access that starts in the range is passed whole even where it reaches past the end (0xCF8 is such a port:
        a dword there is the PCI address, a byte at 0xCF9 is somebody else's).
        """
        if count <= 0 or port < 0 or port + count > PORTS:
            raise ValueError(f"ports {port:#x}+{count:#x} of {name} are outside the port space")
        with self._lock:
            for p in range(port, port + count):
                if p in self._owners:
                    raise ValueError(f"port {p:#x} of {name} belongs to {self._owners[p].name}")
            if lock is None:
                lock = choose_lock(handler, ((r.handler, r.lock) for r in self._ranges.values()))
            self._ranges[port] = found = PioRange(port, count, handler, name, lock)
            traffic = self.traffic.setdefault(name, Traffic())
            way = handler.read, handler.write, lock, traffic.reads, traffic.writes
            for offset in range(count):
                fit = width if whole else min(width, count - offset)
                self._owners[port + offset] = found
                self._ports[port + offset] = (offset, fit, *way)

    def unregister(self, port: int) -> None:
        """Take away the range that starts at ``port``. Raises ``KeyError`` if there is none."""
        with self._lock:
            gone = self._ranges.pop(port)
            for p in range(port, port + gone.count):
                del self._ports[p], self._owners[p]

    def is_free(self, port: int, count: int) -> bool:
        """Whether nobody answers at ``count`` ports from ``port``."""
        return not any(p in self._ports for p in range(port, port + count))

    def ranges(self) -> list[PioRange]:
        """All ranges, by address."""
        with self._lock:
            return sorted(self._ranges.values(), key=lambda r: r.port)

    def find(self, port: int) -> PioRange | None:
        """The range that holds ``port``."""
        return self._owners.get(port)

    def read(self, port: int, size: int) -> int | None:
        """IN of ``size`` bytes; None where nobody answers. Bytes that nobody has read as 0xFF."""
        try:
            offset, fit, read, _, lock, reads, _ = self._ports[port]
        except KeyError:
            fit = 0
        if size <= fit:
            with lock:
                reads[size] += 1
                return read(offset, size)
        return self._read_bytes(port, size) if size > 1 else None

    def write(self, port: int, size: int, value: int) -> bool:
        """OUT of ``size`` bytes; False where nobody answers."""
        try:
            offset, fit, _, write, lock, _, writes = self._ports[port]
        except KeyError:
            fit = 0
        if size <= fit:
            with lock:
                writes[size] += 1
                write(offset, size, value)
            return True
        return self._write_bytes(port, size, value) if size > 1 else False

    def _read_bytes(self, port: int, size: int) -> int | None:
        value, answered = 0, False
        for i in range(size):
            entry = self._ports.get((port + i) % PORTS)
            if entry is None:
                value |= 0xFF << (8 * i)
                continue
            answered = True
            offset, _, read, _, lock, reads, _ = entry
            with lock:
                reads[1] += 1
                value |= read(offset, 1) << (8 * i)
        return value if answered else None

    def _write_bytes(self, port: int, size: int, value: int) -> bool:
        answered = False
        for i in range(size):
            entry = self._ports.get((port + i) % PORTS)
            if entry is not None:
                answered = True
                offset, _, _, write, lock, _, writes = entry
                with lock:
                    writes[1] += 1
                    write(offset, 1, value >> (8 * i) & 0xFF)
        return answered
