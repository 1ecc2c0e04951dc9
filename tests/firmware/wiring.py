"""PCI interrupts as a board would wire them, for tests that need some."""

from pyhyve.firmware.platform import PciInterrupt
from pyhyve.hw.chipset.legacy_irq import LegacyIrqs
from pyhyve.hw.pci.intx import gsi_of, pirq_of


def pci_interrupts(pins):
    """Of (bus, device, pin) triples, in order; each link gets the next free ISA interrupt."""
    irqs, routed = LegacyIrqs(reserved=(3, 4, 12), shared=(9,)), {}
    found = []
    for bus, device, pin in pins:
        pirq = pirq_of(device, pin, bus)
        if pirq not in routed:
            routed[pirq] = irqs.allocate()
        found.append(PciInterrupt(bus, device, pin, pirq, gsi_of(device, pin, bus), routed[pirq]))
    return tuple(found)
