"""What every function on the PCI bus is made of: configuration space, BARs, an interrupt pin.

A device is a subclass, named in ``hw.registry``. Its constructor gets the environment and its options (the
variables below its slot in the configuration tree) and declares BARs, capabilities and an interrupt. The bus then
places it. Guest accesses come by configuration cycles through the bus, and by the BARs' handlers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyhyve.bus.handler import Handler
from pyhyve.config import TRUE
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import Bar, BarKind
from pyhyve.hw.pci.capabilities import Capability
from pyhyve.hw.pci.config_space import MULTI_FUNCTION, SIZE, Command, ConfigSpace, Identity, Offset, Status
from pyhyve.hw.pci.intx import IntxPin
from pyhyve.hw.pci.msi import Msi
from pyhyve.hw.pci.msix import Msix
from pyhyve.hw.pci.rom import Rom
from pyhyve.lifecycle import State, check_version, saved_dict, saved_list

if TYPE_CHECKING:
    from pyhyve.hw.pci.bus import PciAddress, PciBus

# plain numbers are quicker than flags
_COMMAND, _BUS_MASTER, _INTX_DISABLE = int(Offset.COMMAND), int(Command.BUS_MASTER), int(Command.INTX_DISABLE)
_STATUS, _INTERRUPT = int(Offset.STATUS), int(Status.INTERRUPT)
_BAR_END = Offset.ROM + 4  # there is nothing to be written between the BARs and the ROM's register


class Intx:
    """A function's interrupt pin, as the device drives it."""

    __slots__ = ("_function",)

    def __init__(self, function: PciFunction) -> None:
        self._function = function

    def raise_(self) -> None:
        """Assert the pin. Idempotent."""
        self._function.set_intx(True)

    def lower(self) -> None:
        """Release the pin. Idempotent."""
        self._function.set_intx(False)


class PciFunction:
    """Base of all functions. Subclasses set ``identity``."""

    identity: Identity

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        self.lock = threading.RLock()
        self.environment = environment
        self.options = options
        self.config = ConfigSpace(self.identity)
        self.bars: list[Bar] = []
        self.legacy = options.get("legacy", "").lower() in TRUE
        """``-S``: it signals with its INTx line only, and offers no MSI."""
        self.wants_intx = self.legacy
        self.intx = Intx(self)
        self.msi: Msi | None = None
        self.msix: Msix | None = None
        self.capabilities: list[Capability] = []
        """Those that act on a write."""
        self.address: PciAddress | None = None
        self._pin: IntxPin | None = None
        self._intx = False
        self._initial: State | None = None

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """The options in the tail of ``-s slot,driver,conf``: comma-separated ``key=value``, a bare key means true."""
        pairs = (part.partition("=") for part in conf.split(",") if part)
        return {key: value if separator else "true" for key, separator, value in pairs}

    # -- for the device --

    def add_bar(
        self,
        index: int,
        kind: BarKind,
        size: int,
        handler: Handler,
        name: str = "",
        *,
        prefetchable: bool = False,
        width: int = 4,
    ) -> Bar:
        """Declare a BAR answered by ``handler`` under the function's lock. Raises ``ValueError`` for a wrong one.

        ``width`` is the widest access to ports that the handler takes; wider ones are split in bytes.
        """
        bar = Bar(index, kind, size, handler, name or type(self).__name__, self.lock, prefetchable, width)
        if any(i in other.indexes for other in self.bars for i in bar.indexes):
            raise ValueError(f"BAR {index} of {bar.name} is taken")
        bar.install(self.config)
        self.bars.append(bar)
        return bar

    def add_rom(self, image: bytes, name: str) -> None:
        """Offer an expansion ROM."""
        rom = Rom.make(image, name, self.lock)
        rom.install(self.config)
        self.bars.append(rom)

    def use_intx(self) -> None:
        """Declare an interrupt pin; the bus connects it."""
        self.wants_intx = True

    def add_msi(self, vectors: int = 1) -> None:
        """Offer MSI, unless the function was placed with ``-S``."""
        if not self.legacy:
            self.msi = Msi(self.config, self.environment.send_msi, vectors)
            self.capabilities.append(self.msi)

    def add_msix(self, vectors: int, bar: int) -> None:
        """Offer MSI-X with the table in BAR ``bar``, which is made here, unless the function was placed with ``-S``."""
        if not self.legacy:
            self.msix = Msix(self.config, self.environment.send_msi, vectors, bar)
            self.capabilities.append(self.msix)
            self.add_bar(bar, BarKind.MEMORY_32, self.msix.bar_size, self.msix)

    @property
    def uses_messages(self) -> bool:
        """Whether the guest has chosen MSI or MSI-X; the interrupt pin is silent then."""
        return (self.msix is not None and self.msix.enabled) or (self.msi is not None and self.msi.enabled)

    def set_intx(self, level: bool) -> None:
        """Assert or release the interrupt pin, as far as the command register and MSI let it out."""
        with self.lock:
            if level != self._intx:
                self._intx = level
                self._update_intx()

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the function reach memory."""
        return bool(self.config.get(_COMMAND, 2) & _BUS_MASTER)

    def bar_moved(self, bar: Bar) -> None:
        """``bar.mapped`` has changed. For devices whose doorbells must follow."""

    def config_written(self, offset: int, size: int) -> None:
        """The guest wrote configuration bytes. For devices with registers of their own there."""

    # -- for the bus --

    def connect(self, bus: PciBus, address: PciAddress, pin: IntxPin | None) -> None:
        """The bus has placed the function; BAR addresses are set. What it is now is what ``reset`` goes back to."""
        self.address = address
        self._pin = pin
        self._initial = self.config.save()
        self.update_bars()

    def set_multi_function(self) -> None:
        """Say in the header that the slot has more functions."""
        self.config.set(Offset.HEADER_TYPE, 1, self.config.get(Offset.HEADER_TYPE, 1) | MULTI_FUNCTION)
        self.keep_as_initial()

    def routed(self) -> None:
        """Every function is placed and its interrupt routed. For the bridge that shows the routing."""

    def keep_as_initial(self) -> None:
        """The configuration as it is now is what ``reset`` goes back to."""
        self._initial = self.config.save()

    def override(self, offset: int, size: int, value: int) -> None:
        """Show another identity than the device's own (the ``pcireg`` variables)."""
        self.config.set(offset, size, value)
        self._initial = self.config.save()

    def read_config(self, offset: int, size: int) -> int:
        """A configuration read inside the function's 256 bytes; all ones beyond."""
        if offset + size > SIZE:
            return (1 << 8 * size) - 1
        return self.config.get(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A configuration write; nothing happens beyond the function's 256 bytes."""
        if offset + size > SIZE:
            return
        self.config.write(offset, size, value)
        if offset < Offset.COMMAND + 2 and offset + size > Offset.COMMAND:
            self.update_bars()
            self._update_intx()
        elif offset < _BAR_END and offset + size > Offset.BAR0:
            self.update_bars()
        for capability in self.capabilities:
            if offset < capability.offset + capability.size and offset + size > capability.offset:
                capability.written()
                self._update_intx()
        self.config_written(offset, size)

    def update_bars(self) -> None:
        """Put every BAR where the configuration says. With the lock held."""
        for bar in self.bars:
            if bar.update(self.config, self.environment.pio, self.environment.mmio):
                self.bar_moved(bar)

    def _update_intx(self) -> None:
        status = self.config.get(_STATUS, 2) & ~_INTERRUPT
        self.config.set(_STATUS, 2, status | (_INTERRUPT if self._intx else 0))
        if self._pin is not None:
            disabled = self.config.get(_COMMAND, 2) & _INTX_DISABLE
            self._pin.set(self._intx and not disabled and not self.uses_messages)

    # -- lifecycle --

    def reset(self) -> None:
        """As the bus has placed it."""
        with self.lock:
            if self._initial is not None:
                self.config.restore(self._initial)
            for capability in self.capabilities:
                capability.reset()
            self._intx = False
            self.update_bars()
            self._update_intx()

    def save(self) -> State:
        """Configuration space, capabilities and interrupt pin. Subclasses add theirs."""
        with self.lock:
            capabilities: list[object] = [capability.save() for capability in self.capabilities]
            return {
                "version": 1,
                "config": self.config.save(),
                "intx": int(self._intx),
                "capabilities": capabilities,
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over configuration space, capabilities and interrupt pin."""
        check_version(self, state)
        with self.lock:
            self.config.restore(saved_dict(state.get("config"), "config"))
            saved = saved_list(state, "capabilities", len(self.capabilities))
            for capability, its in zip(self.capabilities, saved, strict=True):
                capability.restore(saved_dict(its, "capability"))
            self._intx = bool(state.get("intx"))
            self.update_bars()
            self._update_intx()

    def close(self) -> None:
        """Give back what the device holds of the host. Idempotent."""
