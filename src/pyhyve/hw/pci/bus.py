"""The PCI buses: who is in which slot, configuration cycles, and addresses for BARs.

Documents: PCI Local Bus Specification 3.0, §3.2.2.3.2 (configuration mechanism #1, ports 0xCF8 and 0xCFC); PCI Express
Base Specification 3.0, §7.2.2 (ECAM, memory-mapped).

A configuration access finds the function by bus, device and function number and goes to its configuration space under
the function's lock; nobody there reads as all ones. Functions are placed once, at start: the bus gives their BARs
addresses, as firmware would, and turns decoding on.

Each bus is a root of its own, as in bhyve: there are no bridges between them. So each has its part of the windows,
which firmware tells the guest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from pyhyve.bus.handler import Callbacks
from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.config_space import Command, Offset
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import FIRST_GSI, IntxRouting
from pyhyve.lifecycle import State, check_version, restore_fields, saved_dict

ADDRESS_PORT = 0xCF8
DATA_PORT = 0xCFC
ENABLE = 1 << 31
ECAM_BASE = 0xE0000000
ECAM_SIZE = 256 << 20

WINDOWS: dict[BarKind, tuple[int, int]] = {
    BarKind.IO: (0x2000, 0x10000),
    BarKind.MEMORY_32: (0xC0000000, 0xE0000000),
    BarKind.MEMORY_64: (0xD000000000, 0xF000000000),
}
"""First address, and the one after the last, for each kind of BAR; the last one where bhyve has it."""

BUS_STEPS: dict[BarKind, int] = {BarKind.IO: 0x20, BarKind.MEMORY_32: 1 << 20, BarKind.MEMORY_64: 512 << 20}
"""A bus's part of a window ends at a multiple of this, and has at least as much room for a guest that moves BARs."""


def memory_64_window(memory_end: int, physical_bits: int) -> tuple[int, int]:
    """Where 64-bit BARs go on a CPU of so many address bits, above memory.

    That is bhyve's place; or the last quarter of the addresses where that place is out of reach or taken by memory, or
    as many sixteenths as memory leaves of it. Raises ``DeviceError`` where it leaves none.
    """
    first, end = WINDOWS[BarKind.MEMORY_64]
    if end <= 1 << physical_bits and memory_end <= first:
        return first, end
    sixteenth, end = 1 << physical_bits - 4, 1 << physical_bits
    first = max(12 * sixteenth, -(-memory_end // sixteenth) * sixteenth)
    if first >= end:
        raise DeviceError(f"guest memory up to {memory_end:#x} leaves no room for PCI below {end:#x}")
    return first, end


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Bus 0-255, device (slot) 0-31, function 0-7."""

    bus: int
    device: int
    function: int

    def __str__(self) -> str:
        return f"{self.bus}:{self.device}:{self.function}"


@dataclass(frozen=True, slots=True)
class InterruptRoute:
    """How a function's pin (1 is INTA) reaches the interrupt controllers, for firmware tables."""

    address: PciAddress
    pin: int
    pirq: int
    gsi: int
    irq: int
    """The ISA interrupt, for a guest that uses the PIC."""


class PciBus:
    """All buses of the machine."""

    def __init__(
        self, environment: Environment, intx: IntxRouting, memory_64: tuple[int, int] = WINDOWS[BarKind.MEMORY_64]
    ) -> None:
        self.lock = threading.RLock()
        self.environment = environment
        self.intx = intx
        self._second_ecam = 0
        self._ecam_lock = threading.Lock()  # taken last, with a function's lock held
        self.windows = {**WINDOWS, BarKind.MEMORY_64: memory_64}
        self.functions: dict[PciAddress, PciFunction] = {}
        self._routes: list[InterruptRoute] = []
        self._by_number: dict[int, PciFunction] = {}  # bus << 8 | device << 3 | function
        self._next = {kind: start for kind, (start, _) in self.windows.items()}
        self._starts: dict[int, dict[BarKind, int]] = {0: dict(self._next)}
        """Where each bus's part of each window begins; it ends where the next bus's begins."""
        self._selected = 0

    def attach(self) -> None:
        """Answer at 0xCF8, 0xCFC-0xCFF and the ECAM window."""
        pio, mmio = self.environment.pio, self.environment.mmio
        address = Callbacks(self._read_address, self._write_address)
        pio.register(ADDRESS_PORT, 1, address, "pci address", self.lock, whole=True)
        pio.register(DATA_PORT, 4, Callbacks(self._read_data, self._write_data), "pci data", self.lock)
        mmio.register(ECAM_BASE, ECAM_SIZE, Callbacks(self._read_ecam, self._write_ecam), "pci ecam", _NoLock())

    def show_ecam(self, base: int) -> None:
        """Let the ECAM window answer at ``base`` too, 0 for its usual place only; where that is free."""
        mmio = self.environment.mmio
        with self._ecam_lock:
            if self._second_ecam:
                mmio.unregister(self._second_ecam)
                self._second_ecam = 0
            if base and base != ECAM_BASE:
                try:
                    handler = Callbacks(self._read_ecam, self._write_ecam)
                    mmio.register(base, ECAM_SIZE, handler, "pci ecam (2)", _NoLock())
                except ValueError:
                    return  # the guest's mistake
                self._second_ecam = base

    # -- building --

    def create(self, address: PciAddress, name: str, options: Mapping[str, str]) -> PciFunction:
        """Make the device ``name`` and put it in a slot. Raises ``DeviceError`` if either cannot be."""
        if address in self.functions:
            raise DeviceError(f"pci slot {address} is used twice")
        function = registry.find(name)(self.environment, options)
        try:
            self.add(address, function)
        except BaseException:
            function.close()
            raise
        return function

    def add(self, address: PciAddress, function: PciFunction) -> None:
        """Put a function in a slot, with addresses for its BARs and an interrupt if it wants one."""
        if not (0 <= address.bus < 256 and 0 <= address.device < 32 and 0 <= address.function < 8):
            raise DeviceError(f"no such pci slot: {address}")
        if address in self.functions:
            raise DeviceError(f"pci slot {address} is used twice")
        self._begin_bus(address)
        config = function.config
        command = config.get(Offset.COMMAND, 2)
        for bar in function.bars:
            bar.place(config, self._allocate(bar.kind, bar.size))
            command |= Command.IO if bar.kind is BarKind.IO else Command.MEMORY
        config.set(Offset.COMMAND, 2, command)
        pin = None
        if function.wants_intx:
            number = address.function % 4 + 1
            try:
                pin = self.intx.pin(address.device, number, address.bus)
            except ValueError as error:
                raise DeviceError(f"pci slot {address}: {error}") from None
            irq = self.intx.register(pin.pirq)
            config.set(Offset.INTERRUPT_PIN, 1, number)
            config.set(Offset.INTERRUPT_LINE, 1, irq)
            self._routes.append(InterruptRoute(address, number, pin.pirq, FIRST_GSI + pin.pirq, irq))
        self.functions[address] = function
        self._by_number[address.bus << 8 | address.device << 3 | address.function] = function
        function.connect(self, address, pin)

    def finish(self) -> None:
        """All functions are there: mark slots with several. Raises ``DeviceError`` for a slot without function 0."""
        for address, function in self.functions.items():
            siblings = [a for a in self.functions if (a.bus, a.device) == (address.bus, address.device)]
            if min(a.function for a in siblings) != 0:
                raise DeviceError(f"pci slot {address.bus}:{address.device} has no function 0")
            if len(siblings) > 1:
                function.set_multi_function()
            function.routed()

    def routes(self) -> list[InterruptRoute]:
        """The interrupt pins in use, by address."""
        return sorted(self._routes, key=lambda route: route.address)

    def buses(self) -> list[int]:
        """The buses with functions on them, and bus 0, behind which the board's own devices are."""
        return sorted(self._starts)

    def windows_of(self, bus: int) -> dict[BarKind, tuple[int, int]]:
        """The part of each window that is ``bus``'s: first address, and the one after the last."""
        following = next((self._starts[other] for other in self.buses() if other > bus), None)
        return {
            kind: (start, self.windows[kind][1] if following is None else following[kind])
            for kind, start in self._starts[bus].items()
        }

    def _begin_bus(self, address: PciAddress) -> None:
        """Buses are filled one after the other, each with a part of the windows of its own."""
        last = max(self._starts)
        if address.bus < last:
            raise DeviceError(f"pci slot {address}: bus {last} has been begun already")
        if address.bus > last:
            for kind, step in BUS_STEPS.items():
                room = self._next[kind] + step
                self._next[kind] = min((room + step - 1) & -step, self.windows[kind][1])
            self._starts[address.bus] = dict(self._next)

    def _allocate(self, kind: BarKind, size: int) -> int:
        size = max(size, 4096) if kind is not BarKind.IO else size  # devices do not share a page
        address = (self._next[kind] + size - 1) & ~(size - 1)
        while kind is BarKind.IO and not self.environment.pio.is_free(address, size):
            address += size  # a device at fixed ports is in the way
        if address + size > self.windows[kind][1]:
            raise DeviceError(f"no room for a BAR of {size:#x} bytes in {kind.value}")
        self._next[kind] = address + size
        return address

    # -- configuration cycles --

    def read_config(self, number: int, offset: int, size: int) -> int:
        """Read configuration space of function ``number`` (bus << 8 | device << 3 | function)."""
        function = self._by_number.get(number)
        if function is None:
            return (1 << 8 * size) - 1
        with function.lock:
            return function.read_config(offset, size)

    def write_config(self, number: int, offset: int, size: int, value: int) -> None:
        """Write configuration space."""
        function = self._by_number.get(number)
        if function is not None:
            with function.lock:
                function.write_config(offset, size, value)
            # Where a BAR has left a place that another one wants, that one goes there now.
            for other in self._crowded():
                with other.lock:
                    other.update_bars()

    def _crowded(self) -> list[PciFunction]:
        """The functions with a BAR that found its place taken."""
        return [function for function in self.functions.values() if any(bar.crowded for bar in function.bars)]

    def _read_address(self, offset: int, size: int) -> int:
        return self._selected if size == 4 else (1 << 8 * size) - 1

    def _write_address(self, offset: int, size: int, value: int) -> None:
        if size == 4:  # narrower ones are not configuration cycles
            self._selected = value & 0x80FFFFFC

    def _read_data(self, offset: int, size: int) -> int:
        if not self._selected & ENABLE:
            return (1 << 8 * size) - 1
        return self.read_config(self._selected >> 8 & 0xFFFF, (self._selected & 0xFC) + offset, size)

    def _write_data(self, offset: int, size: int, value: int) -> None:
        if self._selected & ENABLE:
            self.write_config(self._selected >> 8 & 0xFFFF, (self._selected & 0xFC) + offset, size, value)

    def _read_ecam(self, offset: int, size: int) -> int:
        return self.read_config(offset >> 12, offset & 0xFFF, size)

    def _write_ecam(self, offset: int, size: int, value: int) -> None:
        self.write_config(offset >> 12, offset & 0xFFF, size, value)

    # -- lifecycle --

    def reset(self) -> None:
        """Reset the address port, the interrupt routing and every function."""
        with self.lock:
            self._selected = 0
        self.intx.reset()
        for function in self.functions.values():
            function.reset()

    def save(self) -> State:
        """Everything on the buses, functions by their address."""
        functions = {str(address): function.save() for address, function in self.functions.items()}
        return {"version": 1, "_selected": self._selected, "intx": self.intx.save(), "functions": functions}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over everything. Raises ``DeviceError`` if the slots differ."""
        check_version(self, state)
        functions = saved_dict(state.get("functions"), "functions")
        if set(functions) != {str(address) for address in self.functions}:
            raise DeviceError("saved state has other pci slots than this machine")
        restore_fields(self, ("_selected",), state)
        self.intx.restore(saved_dict(state.get("intx"), "intx"))
        for address, function in self.functions.items():
            function.restore(saved_dict(functions[str(address)], str(address)))

    def close(self) -> None:
        """Close every function."""
        for function in self.functions.values():
            function.close()


class _NoLock:
    """ECAM has no state of its own: the function's lock is enough."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *args: object) -> None:
        return None
