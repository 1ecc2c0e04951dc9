"""The LPC bridge: the PCI function behind which the ISA devices sit.

Document: Intel 82371SB (PIIX3) data sheet, function 0; the PIRQ routing registers of its successors, four at 0x60 and
four at 0x68. The devices behind the bridge (UARTs, clock, timers) answer at fixed ports by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyhyve.errors import DeviceError
from pyhyve.hw.pci.bus import PciAddress, PciBus
from pyhyve.hw.pci.config_space import Identity
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import PIRQS, IntxPin, IntxRouting

LPC_BRIDGES = ("lpc", "ich9")
"""The names of the drivers that are one."""
PIRQ_OFFSETS = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)


class Lpc(PciFunction):
    """PCI to ISA bridge. Its routing registers are those of the bus's ``IntxRouting``."""

    identity = Identity(0x8086, 0x7000, 0x06, 0x01)

    _routing: IntxRouting | None = None

    def connect(self, bus: PciBus, address: PciAddress, pin: IntxPin | None) -> None:
        """Show the interrupt routing. Raises ``DeviceError`` for a second bridge, or one that is not on bus 0."""
        if address.bus:
            raise DeviceError(f"pci slot {address}: an LPC bridge can be on bus 0 only")
        if any(isinstance(other, Lpc) and other is not self for other in bus.functions.values()):
            raise DeviceError(f"pci slot {address}: only one LPC bridge is allowed")
        self._routing = bus.intx
        for offset in PIRQ_OFFSETS:
            self.config.allow(offset, 1, 0x8F)
        super().connect(bus, address, pin)
        self.routed()

    def routed(self) -> None:
        """Show the routing registers; a function placed after the bridge may have given one its interrupt."""
        if self._routing is not None:
            for pirq in range(PIRQS):
                self.config.set(PIRQ_OFFSETS[pirq], 1, self._routing.register(pirq))
            self.keep_as_initial()

    def config_written(self, offset: int, size: int) -> None:
        """Route again what the guest routed."""
        if self._routing is not None:
            for pirq, register in enumerate(PIRQ_OFFSETS):
                if offset <= register < offset + size:
                    self._routing.set_register(pirq, self.config.get(register, 1))

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the configuration, and route as it says."""
        super().restore(state)
        self.config_written(PIRQ_OFFSETS[0], PIRQ_OFFSETS[-1] - PIRQ_OFFSETS[0] + 1)
