"""Interrupt lines and messages: who holds which global system interrupt, and where its level goes.

A device asks the router for a line and raises and lowers it. Several devices may share a GSI: its level is the OR of
their lines, and only a change of that level is delivered. ``deliver`` is the backend's ``set_irq``, or a function that
feeds the models of the PIC and the I/O APIC; who drives these tells ``ended`` of the guest's EOIs. GSIs 0 to 15 are
the ISA interrupts of the same number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

GSIS = 24


class IrqLine:
    """One device's connection to a GSI."""

    __slots__ = ("_router", "gsi", "level", "name")

    def __init__(self, router: IrqRouter, gsi: int, name: str) -> None:
        self._router = router
        self.gsi = gsi
        self.name = name
        self.level = False
        """Whether this device holds the line."""

    def raise_(self) -> None:
        """Hold the line active. Idempotent."""
        if not self.level:
            self._router._change(self, True)

    def lower(self) -> None:
        """Let the line go. Idempotent."""
        if self.level:
            self._router._change(self, False)

    def set(self, level: bool) -> None:
        """Raise or lower."""
        if self.level != level:
            self._router._change(self, level)

    def pulse(self) -> None:
        """One edge: raise, then lower."""
        self.raise_()
        self.lower()


Deliver = Callable[[int, bool], None]
"""Tells the interrupt controllers the level of a GSI."""
SendMsi = Callable[[int, int], None]
"""Sends a message-signalled interrupt: address, data."""


class IrqRouter:
    """All interrupt lines of a machine."""

    def __init__(self, deliver: Deliver, watch: Callable[[int], None] | None = None) -> None:
        self._deliver = deliver
        self._watch = watch
        self._on_end: dict[int, list[Callable[[], None]]] = {}
        self.raised = [0] * GSIS
        """How often each GSI went from low to high."""
        self._holders = [0] * GSIS
        self._lines: list[IrqLine] = []
        self._lock = threading.RLock()

    def line(self, gsi: int, name: str) -> IrqLine:
        """A new line of ``gsi`` (0-23) for the device ``name``. Raises ``ValueError`` for another number."""
        if not 0 <= gsi < GSIS:
            raise ValueError(f"interrupt {gsi} of {name} is not one of 0 to {GSIS - 1}")
        line = IrqLine(self, gsi, name)
        with self._lock:
            self._lines.append(line)
        return line

    def release(self, line: IrqLine) -> None:
        """Lower a line and forget it."""
        with self._lock:
            line.lower()
            self._lines.remove(line)

    def level(self, gsi: int) -> bool:
        """Whether anybody holds ``gsi``."""
        return self._holders[gsi] > 0

    def lines(self, gsi: int) -> list[IrqLine]:
        """The lines connected to ``gsi``."""
        with self._lock:
            return [line for line in self._lines if line.gsi == gsi]

    def on_end(self, gsi: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the guest has ended an interrupt of ``gsi``, as the interrupt controllers see it.

        For devices whose hardware waits for that. ``watch`` hears of the first callback of a GSI.
        """
        callbacks = self._on_end.setdefault(gsi, [])
        callbacks.append(callback)
        if len(callbacks) == 1 and self._watch is not None:
            self._watch(gsi)

    def awaits_end(self, gsi: int) -> bool:
        """Whether anybody wants to hear of the end of an interrupt of ``gsi``."""
        return gsi in self._on_end

    def ended(self, gsi: int) -> None:
        """The guest has ended an interrupt of ``gsi``. Call it with no device's lock held."""
        for callback in self._on_end.get(gsi, ()):
            callback()

    def interpose(self, wrap: Callable[[Deliver], Deliver]) -> None:
        """Put what ``wrap`` makes of the way to the interrupt controllers in its place: for who wants to look on."""
        with self._lock:
            self._deliver = wrap(self._deliver)

    def redeliver(self) -> None:
        """Tell the interrupt controllers every level again, after they were reset or restored."""
        with self._lock:
            for gsi, holders in enumerate(self._holders):
                self._deliver(gsi, holders > 0)

    def _change(self, line: IrqLine, level: bool) -> None:
        with self._lock:
            if line.level == level:
                return
            line.level = level
            before = self._holders[line.gsi]
            after = self._holders[line.gsi] = before + (1 if level else -1)
            if (before > 0) != (after > 0):
                if level:
                    self.raised[line.gsi] += 1
                self._deliver(line.gsi, level)


class MsiPort:
    """Where the machine's devices send their message-signalled interrupts."""

    def __init__(self, deliver: SendMsi) -> None:
        self._deliver = deliver
        self.sent = 0
        """How many there were, but for those of two threads at the same moment, which may count as one."""

    def send(self, address: int, data: int) -> None:
        """Pass a message on to the local APICs."""
        self.sent += 1
        self._deliver(address, data)

    def interpose(self, wrap: Callable[[SendMsi], SendMsi]) -> None:
        """Put what ``wrap`` makes of the way to the local APICs in its place."""
        self._deliver = wrap(self._deliver)
