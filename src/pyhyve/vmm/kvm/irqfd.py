"""Interrupts that go from an eventfd into KVM, or the other way, without a thread of ours.

Source: the kernel's KVM API documentation, 4.52 KVM_SET_GSI_ROUTING and 4.75 KVM_IRQFD. A message gets a number behind
those of the lines, and a route of its own in the table. The ends of a line's interrupts come by an irqfd that signals
nothing by itself: KVM tells its ``resamplefd`` when the guest ends an interrupt of that line, whoever raised it.
"""

from __future__ import annotations

import os
import threading

from pyhyve.errors import BackendError
from pyhyve.vmm.kvm import ioctls, structs
from pyhyve.vmm.kvm.ioctls import Cap, IrqFdFlag


class IrqFds:
    """All irqfds of one machine. ``wires`` are the routes of its lines, ``first`` the first number behind them."""

    def __init__(self, system: int, fd: int, wires: bytes, first: int) -> None:
        self._system = system
        self._fd = fd
        self._wires = wires
        self._first = first
        self._messages: dict[int, tuple[int, structs.MsiRoutingEntry]] = {}  # eventfd: number, route
        self._silent: list[int] = []
        self._lock = threading.Lock()

    def route(self) -> None:
        """Give KVM the whole table. Raises ``OSError``."""
        routes = [bytes(entry) for _, entry in self._messages.values()]
        count = len(self._wires) // len(bytes(structs.IrqRoutingEntry())) + len(routes)
        table = bytearray(structs.IrqRouting(nr=count)) + self._wires + b"".join(routes)
        ioctls.call(self._fd, ioctls.SET_GSI_ROUTING, table)

    def bind(self, fd: int, address: int, data: int) -> bool:
        """Have eventfd ``fd`` send a message, from now on this one. False where KVM has no room for it."""
        if not ioctls.extension(self._system, Cap.IRQFD):
            return False
        with self._lock:
            known = self._messages.get(fd)
            taken = {number for number, _ in self._messages.values()}
            number = known[0] if known else next(n for n in range(self._first, 1 << 16) if n not in taken)
            entry = structs.MsiRoutingEntry(
                gsi=number,
                type=ioctls.IRQ_ROUTING_MSI,
                address_lo=address & 0xFFFFFFFF,
                address_hi=address >> 32,
                data=data & 0xFFFFFFFF,
            )
            self._messages[fd] = number, entry
            try:
                self.route()
                if known is None:
                    ioctls.call(self._fd, ioctls.IRQFD, structs.IrqFd(fd=fd, gsi=number))
            except OSError:
                if known is None:
                    del self._messages[fd]
                else:
                    self._messages[fd] = known
                return False
            return True

    def unbind(self, fd: int) -> None:
        """``fd`` is an eventfd like others again."""
        with self._lock:
            number, _ = self._messages.pop(fd)
            request = structs.IrqFd(fd=fd, gsi=number, flags=int(IrqFdFlag.DEASSIGN))
            ioctls.call(self._fd, ioctls.IRQFD, request, doing="take an interrupt's eventfd away")
            self.route()

    def watch(self, gsi: int, fd: int) -> None:
        """Signal ``fd`` when the guest ends an interrupt of line ``gsi``. Raises ``BackendError``."""
        if not ioctls.extension(self._system, Cap.IRQFD_RESAMPLE):
            raise BackendError("this KVM does not tell the end of an interrupt: use a device with MSI")
        silent = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._silent.append(silent)
        request = structs.IrqFd(fd=silent, gsi=gsi, flags=int(IrqFdFlag.RESAMPLE), resamplefd=fd)
        ioctls.call(self._fd, ioctls.IRQFD, request, doing=f"watch line {gsi}")

    def close(self) -> None:
        """Close what is ours; the eventfds of messages are not. Idempotent."""
        while self._silent:
            os.close(self._silent.pop())
