"""The host bus adapter: generic registers, the ports behind them, and the one interrupt that they share.

Document: AHCI 1.3, §3.1 (registers), §10.4.3 (reset), §10.7 (interrupts).

PxIS bits that PxIE lets through set the port's bit in IS. While any bit is set the interrupt pin is held; a message is
sent when a bit becomes set, and when a driver clears some of several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pyhyve.bus.handler import Lock
from pyhyve.hw.storage.ahci.drive import Drive
from pyhyve.hw.storage.ahci.port import Port
from pyhyve.hw.storage.ahci.registers import (
    CAP_SLOTS_SHIFT,
    PORT_BASE,
    PORT_SIZE,
    SLOTS,
    VERSION,
    Cap,
    Ghc,
    Hba,
)
from pyhyve.lifecycle import State, check_version, saved_dict, saved_int, saved_list
from pyhyve.memory import GuestMemory

_ALL = 0xFFFFFFFF
_INTERRUPTS = int(Ghc.INTERRUPTS)


class AhciController:
    """Ports as many as ``drives`` has entries, None for one that is not wired.

    ``defer`` has a function called soon in another thread, with the lock not held; ``set_level`` holds the interrupt
    pin, ``send_message`` sends an MSI, and each does nothing while the other way is in use.
    """

    def __init__(
        self,
        memory: GuestMemory,
        drives: Sequence[Drive | None],
        lock: Lock,
        *,
        defer: Callable[[Callable[[], None]], None],
        set_level: Callable[[bool], None],
        send_message: Callable[[], None],
        bus_master: Callable[[], bool],
    ) -> None:
        self.memory = memory
        self.lock = lock
        self._defer = defer
        self._set_level = set_level
        self._send_message = send_message
        self._bus_master = bus_master
        self._scheduled: set[int] = set()
        self._resetting = False
        self.ghc = int(Ghc.AHCI_ENABLE)
        self.status = 0
        self.implemented = sum(1 << index for index, drive in enumerate(drives) if drive is not None)
        self.cap = int(
            Cap.ADDRESS_64 | Cap.NCQ | Cap.COMMAND_LIST_OVERRIDE | Cap.GEN3 | Cap.AHCI_ONLY | Cap.PIO_BLOCKS
        ) | (SLOTS - 1) << CAP_SLOTS_SHIFT | (len(drives) - 1)  # fmt: skip
        self.ports = [Port(self, drive) for drive in drives]
        self._active = False
        """Whether the interrupt pin is held."""
        self._wired = [(1 << index, port) for index, port in enumerate(self.ports) if port.drive is not None]
        self._readers: dict[int, Callable[[], int]] = {
            Hba.CAP: lambda: self.cap,
            Hba.GHC: lambda: self.ghc,
            Hba.IS: lambda: self.status,
            Hba.PI: lambda: self.implemented,
            Hba.VS: lambda: VERSION,
        }
        self._writers: dict[int, Callable[[int], None]] = {Hba.GHC: self._write_ghc, Hba.IS: self._write_status}
        for index, port in enumerate(self.ports):
            if port.drive is not None:
                base = PORT_BASE + PORT_SIZE * index
                self._readers.update((base + register, read) for register, read in port.readers().items())
                self._writers.update((base + register, write) for register, write in port.writers().items())

    # -- for the bus --

    def read(self, offset: int, size: int) -> int:
        """Registers are dwords; any part of one, or two, can be read."""
        exact = self._readers.get(offset)
        if exact is not None and size == 4:
            return exact()
        first = offset & ~3
        value = self._read_register(first)
        if offset + size > first + 4:
            value |= self._read_register(first + 4) << 32
        return value >> 8 * (offset & 3) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """A dword, or two; narrower and unaligned writes are not defined and do nothing."""
        if offset & 3 or size < 4:
            return
        self._write_register(offset, value & _ALL)
        if size == 8:
            self._write_register(offset + 4, value >> 32)

    def _read_register(self, offset: int) -> int:
        register = self._readers.get(offset)
        return 0 if register is None else register()

    def _write_register(self, offset: int, value: int) -> None:
        register = self._writers.get(offset)
        if register is not None and not self._resetting:
            register(value)

    def _write_status(self, value: int) -> None:
        before = self.status
        self.status &= ~value
        self.update(remind=before & value != 0)

    def _write_ghc(self, value: int) -> None:
        if value & Ghc.RESET:
            self._resetting = True
            self.ghc = int(Ghc.AHCI_ENABLE | Ghc.RESET)
            for port in self.ports:
                port.abort()
            self.settled()
            return
        allowed = value & Ghc.INTERRUPTS
        newly = allowed and not self.ghc & Ghc.INTERRUPTS
        self.ghc = int(Ghc.AHCI_ENABLE) | allowed
        self.update(remind=bool(newly))

    # -- for the ports --

    @property
    def enabled(self) -> bool:
        """Whether the ports may reach memory."""
        return not self._resetting and self._bus_master()

    def locked(self, function: Callable[[], None]) -> None:
        """Call ``function`` with the lock held."""
        with self.lock:
            function()

    def schedule(self, port: Port) -> None:
        """Have the port's commands begun in another thread."""
        index = self.ports.index(port)
        if index not in self._scheduled:
            self._scheduled.add(index)
            self._defer(lambda: self._process(index))

    def kick(self) -> None:
        """The function may reach memory again."""
        for port in self.ports:
            if port.ci:
                self.schedule(port)

    def update(self, *, remind: bool = False) -> None:
        """Look at every port's interrupt bits; ``remind`` sends a message for what is still set."""
        pending = 0
        for bit, port in self._wired:
            if port.pending() & port.enable:
                pending |= bit
        new = pending & ~self.status
        self.status |= pending
        active = bool(self.status and self.ghc & _INTERRUPTS)
        if active != self._active:
            self._active = active
            self._set_level(active)
        if active and (new or remind):
            self._send_message()

    def settled(self) -> None:
        """Finish a reset if no port waits for its requests any more."""
        if self._resetting and all(port.quiet for port in self.ports):
            self._resetting = False
            self.power_on()

    def _process(self, index: int) -> None:
        with self.lock:
            self._scheduled.discard(index)
            self.ports[index].process()

    # -- lifecycle --

    def power_on(self) -> None:
        """Registers after a reset."""
        self.ghc = int(Ghc.AHCI_ENABLE)
        self.status = 0
        for port in self.ports:
            port.power_on()
        self.update()

    def drain(self) -> None:
        """Wait for every backend. Without the lock."""
        for port in self.ports:
            if port.drive is not None:
                port.drive.drain()

    def reset(self) -> None:
        """Power on again. Without the lock."""
        with self.lock:
            for port in self.ports:
                port.abort()
        self.drain()
        with self.lock:
            self._resetting = False
            self.power_on()

    def save(self) -> State:
        """Everything beside the data on the disks."""
        ports: list[object] = [port.save() for port in self.ports]
        return {"version": 1, "ghc": self.ghc, "status": self.status, "ports": ports}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over a state."""
        check_version(self, state)
        ports = saved_list(state, "ports", len(self.ports))
        self.ghc = saved_int(state, "ghc")
        self.status = saved_int(state, "status")
        self._resetting = bool(self.ghc & Ghc.RESET)
        for port, its in zip(self.ports, ports, strict=True):
            port.restore(saved_dict(its, "port"))
        self.settled()
        self.update()

    def close(self) -> None:
        """Give every backend back. Without the lock."""
        for port in self.ports:
            if port.drive is not None:
                port.drive.close()
