"""``uart``: a serial port on the PCI bus.

Documents: National Semiconductor PC16550D data sheet; PCI class codes 07h/00h/02h (16550-compatible, PCI Code and ID
Assignment Specification §1.8). The chip is that of COM1 (``hw.chipset.uart16550``); its eight registers are BAR 0.

bhyve's card calls itself 131f:2000, a Cyber Serial whose registers Linux looks for behind another BAR. This one has
the numbers of the one-port adapter that Linux's 8250_pci drives with the registers in BAR 0; a driver that goes by the
class finds it either way.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyhyve.backends.char import open_char
from pyhyve.hw.chipset.uart16550 import PORTS, Uart16550
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.bus import PciAddress, PciBus
from pyhyve.hw.pci.config_space import Identity
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxPin
from pyhyve.lifecycle import State, saved_dict
from pyhyve.vmm.exits import SuspendReason


class _Interrupt:
    """The chip's interrupt output: the function's pin, and a message at every rising edge."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self.level = False

    def set(self, level: bool) -> None:
        if level == self.level:
            return
        self.level = level
        self._function.set_intx(level)
        if level and self._function.msi is not None:
            self._function.msi.notify()

    def lower(self) -> None:
        self.set(False)


class PciUart(PciFunction):
    """The card. Option ``path``: a character backend; without one nothing is connected."""

    identity = Identity(0x1B36, 0x0002, 0x07, 0x00, prog_if=2, subsystem_vendor=0x1AF4, subsystem=0x1100)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        super().__init__(environment, options)
        spec = options.get("path")
        self._backend = None if spec is None else open_char(spec, environment.loop, on_quit=self._quit)
        self.uart = Uart16550(_Interrupt(self), self._backend, "pci uart")
        self.uart.lock = self.lock
        self.add_bar(0, BarKind.IO, PORTS, self.uart, width=1)
        self.use_intx()
        self.add_msi()

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """All of it is the backend."""
        return {"path": conf} if conf else {}

    def _quit(self) -> None:
        self.environment.power(SuspendReason.POWER_OFF)

    def connect(self, bus: PciBus, address: PciAddress, pin: IntxPin | None) -> None:
        """Begin to take input."""
        super().connect(bus, address, pin)
        self.uart.start()

    def reset(self) -> None:
        """Bus and chip as after power-on."""
        with self.lock:
            self.uart.reset()
            super().reset()

    def save(self) -> State:
        """The function and the chip."""
        with self.lock:
            return {**super().save(), "uart": self.uart.save()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over function and chip."""
        with self.lock:
            super().restore(state)
            self.uart.restore(saved_dict(state.get("uart"), "uart"))

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
