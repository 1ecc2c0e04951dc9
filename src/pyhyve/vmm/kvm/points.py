"""A debugger's points in the processor's debug registers.

Source: SDM Vol. 3B §17.2 (debug registers), and KVM_SET_GUEST_DEBUG (4.87) with KVM_GUESTDBG_USE_HW_BP: KVM runs the
guest with the host's choice of DR0-DR3 and DR7 and exits instead of raising #DB; the guest keeps seeing its own.

There are four, and each watches 1, 2, 4 or 8 bytes that are aligned to their number, so a watchpoint may take several.
Instruction breakpoints in memory (INT3) would allow more, but the guest could read them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyhyve.errors import BackendError
from pyhyve.vmm.api import Point, PointKind

REGISTERS = 4
SINGLE_STEP = 1 << 14  # DR6.BS
_GLOBAL_ENABLE = 2  # G0 of DR7, two bits a register
_RW = {PointKind.EXECUTE: 0, PointKind.WRITE: 1, PointKind.ACCESS: 3}
_LENGTH = {1: 0, 2: 1, 4: 3, 8: 2}
_RW_SHIFT, _FIELD_BITS, _LENGTH_SHIFT = 16, 4, 18


class DebugRegisters:
    """Where each of ``points`` lies. Raises ``BackendError`` if they do not fit."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self.addresses = [0] * REGISTERS
        self._enable = [0, 0]  # DR7 of the breakpoints, and of the watchpoints
        self._owners: list[Point] = []
        self._stops: set[int] = set()
        for point in points:
            for gva, length in _pieces(point):
                self._use(point, gva, length)

    def _use(self, point: Point, gva: int, length: int) -> None:
        number = len(self._owners)
        if number == REGISTERS:
            raise BackendError(f"KVM holds breakpoints and watchpoints in {REGISTERS} debug registers; these need more")
        self._owners.append(point)
        self.addresses[number] = gva
        control = _GLOBAL_ENABLE << 2 * number
        control |= _RW[point.kind] << _RW_SHIFT + _FIELD_BITS * number
        control |= _LENGTH[length] << _LENGTH_SHIFT + _FIELD_BITS * number
        self._enable[point.kind is not PointKind.EXECUTE] |= control
        if point.kind is PointKind.EXECUTE:
            self._stops.add(gva)

    def __bool__(self) -> bool:
        return bool(self._owners)

    def control(self, *, breakpoints: bool) -> int:
        """DR7, with the breakpoints or without."""
        return self._enable[1] | (self._enable[0] if breakpoints else 0)

    def stops_at(self, linear: int) -> bool:
        """Whether an instruction at this linear address is a breakpoint."""
        return linear in self._stops

    def watched(self, dr6: int) -> Point | None:
        """The watchpoint that ``dr6`` reports."""
        for number, point in enumerate(self._owners):
            if dr6 >> number & 1 and point.kind is not PointKind.EXECUTE:
                return point
        return None


def _pieces(point: Point) -> Iterable[tuple[int, int]]:
    """A point's bytes in pieces that a debug register can hold."""
    if point.kind is PointKind.EXECUTE:
        yield point.gva, 1
        return
    gva, end = point.gva, point.gva + point.length
    while gva < end:
        length = next(n for n in (8, 4, 2, 1) if gva % n == 0 and gva + n <= end)
        yield gva, length
        gva += length
