"""Base address registers: where a PCI function's registers appear in port or memory space.

Document: PCI Local Bus Specification 3.0, §6.2.5.1. The size shows as the lowest address bit that can be written, so
the write masks of the configuration space answer a guest that sizes a BAR; this module moves the range on the bus.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pyhyve.bus.handler import Handler, Lock
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PORTS, PioBus
from pyhyve.hw.pci.config_space import Command, ConfigSpace, Offset

BARS = 6


class BarKind(Enum):
    IO = "ports"
    MEMORY_32 = "memory below 4 GiB"
    MEMORY_64 = "memory anywhere"


_FLAGS = {BarKind.IO: 0x1, BarKind.MEMORY_32: 0x0, BarKind.MEMORY_64: 0x4}
_MINIMUM = {BarKind.IO: 4, BarKind.MEMORY_32: 16, BarKind.MEMORY_64: 16}


@dataclass(slots=True, eq=False)
class Bar:
    """One BAR. ``size`` is a power of two of at least 4 ports or 16 bytes; a 64-bit one takes two indexes."""

    index: int
    kind: BarKind
    size: int
    handler: Handler
    name: str
    lock: Lock
    prefetchable: bool = False
    width: int = 4
    """For ports: an access of more bytes than these comes to the handler byte by byte."""
    mapped: int | None = None
    """Where it is on the bus now."""
    crowded: bool = False
    """Somebody else is where it should be."""

    def __post_init__(self) -> None:
        if self.size & (self.size - 1) or self.size < _MINIMUM[self.kind]:
            raise ValueError(f"BAR {self.index} of {self.name} cannot have {self.size:#x} bytes")
        if not 0 <= self.index <= BARS - self._dwords:
            raise ValueError(f"{self.name} has no BAR {self.index}")

    @property
    def indexes(self) -> range:
        """The BAR numbers that it occupies."""
        return range(self.index, self.index + self._dwords)

    def install(self, config: ConfigSpace) -> None:
        """Make the registers: type bits, and address bits that can be written."""
        config.allow(self._offset, 4 * self._dwords, ((1 << 32 * self._dwords) - 1) & ~(self.size - 1))
        self.place(config, 0)

    def place(self, config: ConfigSpace, address: int) -> None:
        """Put an address in the registers."""
        config.set(self._offset, 4 * self._dwords, address | _FLAGS[self.kind] | (8 if self.prefetchable else 0))

    def address(self, config: ConfigSpace) -> int:
        """The address in the registers."""
        return config.get(self._offset, 4 * self._dwords) & ~(self.size - 1)

    def decoded(self, config: ConfigSpace) -> bool:
        """Whether the command register lets it answer."""
        return bool(config.get(Offset.COMMAND, 2) & (Command.IO if self.kind is BarKind.IO else Command.MEMORY))

    def update(self, config: ConfigSpace, pio: PioBus, mmio: MmioBus) -> bool:
        """Be on the bus where registers and command say; True if that changed something.

        A place outside the space leaves the BAR undecoded until it is moved; a place that is taken, until it is free.
        """
        address = self.address(config) if self.decoded(config) else None
        if address == 0 or (self.kind is BarKind.IO and address is not None and address + self.size > PORTS):
            address = None
        if address == self.mapped:
            self.crowded = False
            return False
        before = self.mapped
        if before is not None:
            (pio if self.kind is BarKind.IO else mmio).unregister(before)
        self.mapped = None
        self.crowded = False
        if address is not None:
            try:
                if self.kind is BarKind.IO:
                    pio.register(address, self.size, self.handler, self.name, self.lock, width=self.width)
                else:
                    mmio.register(address, self.size, self.handler, self.name, self.lock)
                self.mapped = address
            except ValueError:
                self.crowded = True
        return before != self.mapped

    @property
    def _dwords(self) -> int:
        return 2 if self.kind is BarKind.MEMORY_64 else 1

    @property
    def _offset(self) -> int:
        return Offset.BAR0 + 4 * self.index
