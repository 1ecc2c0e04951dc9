"""The wiring between interrupt lines and the models of the PIC and the I/O APIC.

It is the ``deliver`` of an ``IrqRouter`` where the backend brings neither chip: GSIs 0 to 15 reach both chips, the rest
the I/O APIC only. The timer, ISA interrupt 0, is wired to the I/O APIC's pin 2, since pin 0 belongs to the PIC's output
(MultiProcessor Specification 1.4, §D.3); firmware tables tell the guest so with an override.
"""

from __future__ import annotations

from collections.abc import Callable

from pyhyve.hw.chipset.ioapic import Ioapic
from pyhyve.hw.chipset.pic import Pic

TIMER_PIN = 2


def wire(pic: Pic, ioapic: Ioapic) -> Callable[[int, bool], None]:
    """A function ``deliver(gsi, level)`` that drives both chips."""

    def deliver(gsi: int, level: bool) -> None:
        if gsi < 16:
            pic.set_irq(gsi, level)
        ioapic.set_irq(TIMER_PIN if gsi == 0 else gsi, level)

    return deliver
