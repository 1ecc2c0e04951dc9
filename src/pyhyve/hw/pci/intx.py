"""Legacy PCI interrupts: from a function's INTx pin to a global system interrupt.

Documents: PCI Local Bus Specification 3.0, §2.2.6; PIRQ routing registers: Intel 82371SB data sheet §2.2.6.

Pin *p* (1 is INTA) of device *d* is wired to PIRQ (4 + *d* + *p*) mod 8, as bhyve's boot ROM expects it; each further
bus begins one PIRQ later. Each PIRQ is one I/O APIC input, 16 to 23, and for a guest that uses the PIC also the ISA
interrupt in its routing register, which the LPC bridge shows. A PIRQ that no function uses is not routed; the others
get an interrupt when their first function is placed, from ``LegacyIrqs``, as firmware would give it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

from pyhyve.bus.irq import IrqLine, IrqRouter
from pyhyve.hw.chipset.legacy_irq import ROUTABLE, LegacyIrqs
from pyhyve.lifecycle import State, check_version, saved_list

PIRQS = 8
FIRST_GSI = 16
DISABLED = 0x80


def pirq_of(device: int, pin: int, bus: int = 0) -> int:
    """The PIRQ (0-7) of pin 1-4 of a device."""
    return (4 + bus + device + pin) % PIRQS


def gsi_of(device: int, pin: int, bus: int = 0) -> int:
    """The I/O APIC input of a pin."""
    return FIRST_GSI + pirq_of(device, pin, bus)


class IntxPin:
    """The interrupt pin of one function."""

    __slots__ = ("_routing", "level", "pirq")

    def __init__(self, routing: IntxRouting, pirq: int) -> None:
        self._routing = routing
        self.pirq = pirq
        self.level = False

    def set(self, level: bool) -> None:
        """Assert or release it. Idempotent."""
        if level != self.level:
            self.level = level
            self._routing.change(self.pirq, level)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback``, with no lock held, when the guest has ended an interrupt that came by this pin's PIRQ."""
        self._routing.on_end(self.pirq, callback)


class IntxRouting:
    """All eight PIRQs. ``make_level(irq)`` sets an ISA interrupt level triggered in the ELCR, as firmware does.

    A guest that routes a PIRQ elsewhere sets the ELCR itself.
    """

    def __init__(
        self,
        router: IrqRouter,
        make_level: Callable[[int], None] | None = None,
        irqs: LegacyIrqs | None = None,
    ) -> None:
        self._router = router
        self._make_level = make_level
        self._irqs = irqs or LegacyIrqs()
        self._lock = threading.RLock()
        self._holders = [0] * PIRQS
        self._gsi_lines = [router.line(FIRST_GSI + n, f"pirq {chr(65 + n)}") for n in range(PIRQS)]
        self._isa_lines: list[IrqLine | None] = [None] * PIRQS
        self._registers = [DISABLED] * PIRQS
        self._firmware = [DISABLED] * PIRQS  # what ``reset`` goes back to
        self._on_end: list[list[Callable[[], None]]] = [[] for _ in range(PIRQS)]
        self._heard: set[int] = set()

    def pin(self, device: int, pin: int, bus: int = 0) -> IntxPin:
        """A function's pin (1-4). The first one of a PIRQ gets an ISA interrupt for it."""
        pirq = pirq_of(device, pin, bus)
        if self._firmware[pirq] == DISABLED:
            irq = self._firmware[pirq] = self._irqs.allocate()
            if self._make_level is not None:
                self._make_level(irq)
            self.set_register(pirq, irq)
        return IntxPin(self, pirq)

    def register(self, pirq: int) -> int:
        """The routing register of a PIRQ."""
        return self._registers[pirq]

    def set_register(self, pirq: int, value: int) -> None:
        """A guest's write: bit 7 disconnects, the low bits are the ISA interrupt. A reserved one disconnects too."""
        value &= DISABLED | 0x0F
        irq = None if value & DISABLED or value not in ROUTABLE else value
        with self._lock:
            self._registers[pirq] = value
            line = self._isa_lines[pirq]
            if line is not None and line.gsi != irq:
                self._router.release(line)
                line = self._isa_lines[pirq] = None
            if irq is not None and line is None:
                line = self._isa_lines[pirq] = self._router.line(irq, f"pirq {chr(65 + pirq)}")
                line.set(self._holders[pirq] > 0)
                self._hear(pirq)

    def isa_irq(self, pirq: int) -> int | None:
        """The ISA interrupt that a PIRQ reaches."""
        line = self._isa_lines[pirq]
        return None if line is None else line.gsi

    def change(self, pirq: int, level: bool) -> None:
        """One more or one fewer pin holds a PIRQ."""
        with self._lock:
            self._holders[pirq] += 1 if level else -1
            held = self._holders[pirq] > 0
            self._gsi_lines[pirq].set(held)
            line = self._isa_lines[pirq]
            if line is not None:
                line.set(held)

    def on_end(self, pirq: int, callback: Callable[[], None]) -> None:
        """Hear of the ends of a PIRQ's interrupts, at the I/O APIC and at the PIC wherever it is routed there."""
        with self._lock:
            self._on_end[pirq].append(callback)
            self._router.on_end(FIRST_GSI + pirq, callback)
            self._hear(pirq)

    def _hear(self, pirq: int) -> None:
        """Hear of the ISA interrupt that a PIRQ reaches, if somebody wants to hear of the PIRQ."""
        irq = self.isa_irq(pirq)
        if irq is not None and irq not in self._heard and self._on_end[pirq]:
            self._heard.add(irq)
            self._router.on_end(irq, partial(self._isa_ended, irq))

    def _isa_ended(self, irq: int) -> None:
        for pirq in range(PIRQS):
            if self.isa_irq(pirq) == irq:
                for callback in self._on_end[pirq]:
                    callback()

    def reset(self) -> None:
        """The routing that firmware sets up."""
        for pirq, register in enumerate(self._firmware):
            self.set_register(pirq, register)

    def save(self) -> State:
        """The routing registers; the pins' levels are their functions'."""
        return {"version": 1, "registers": list(self._registers)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the routing registers."""
        check_version(self, state)
        for pirq, value in enumerate(saved_list(state, "registers", PIRQS)):
            if isinstance(value, int):
                self.set_register(pirq, value)
