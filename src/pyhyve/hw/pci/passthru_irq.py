"""How the interrupts of a passed-through device come in: one kind at a time, each as an eventfd.

VFIO lets a device use its pin, MSI or MSI-X, as the guest has chosen. The event loop reads the eventfds and tells the
function, which does what its model would do: asserts the guest's pin, or sends the guest's message. Where the backend
can send a message for an eventfd by itself, it does, as long as the guest lets the vector come.

MSI-X is enabled with all of the device's vectors at once, since some hosts cannot add any later, but a vector gets its
eventfd when the guest first unmasks it. Eventfds are kept until the end: a number that comes again means the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

from pyhyve.backends.vfio.device import NO_EVENT, VfioDevice
from pyhyve.backends.vfio.uapi import IrqIndex
from pyhyve.hw.environment import DirectPaths
from pyhyve.loop import EventLoop

Deliver = Callable[[IrqIndex, int], None]


class HostInterrupts:
    """``deliver(kind, vector)`` is called in the loop's thread. Call everything with the function's lock held."""

    def __init__(self, device: VfioDevice, loop: EventLoop, deliver: Deliver, direct: DirectPaths | None) -> None:
        self.kind: IrqIndex | None = None
        """What is in use of pin, MSI and MSI-X."""
        self._device = device
        self._loop = loop
        self._deliver = deliver
        self._events: dict[tuple[IrqIndex, int], int] = {}
        self._connected: set[int] = set()
        self._direct = direct
        self._bound: dict[int, tuple[int, int]] = {}  # vector: the message that the backend sends for it

    def use(self, kind: IrqIndex | None, vectors: int = 1) -> None:
        """Use another kind of interrupt, or none. Raises ``OSError`` if the host refuses; then none is used."""
        if kind == self.kind:
            return
        before = self.kind
        if before is not None:
            for vector in list(self._bound):
                self.bind(vector, None)
            self.kind = None
            self._connected.clear()
            self._device.disconnect(before)
        if kind is None:
            return
        events = [NO_EVENT if kind is IrqIndex.MSIX else self._event(kind, vector) for vector in range(vectors)]
        self._device.connect(kind, events)
        self.kind = kind
        if kind is IrqIndex.MSI:
            self._connected.update(range(vectors))

    def listen(self, vector: int) -> None:
        """Let MSI-X vector ``vector`` come. Raises ``OSError``."""
        if self.kind is IrqIndex.MSIX and vector not in self._connected:
            self._device.connect(IrqIndex.MSIX, [self._event(IrqIndex.MSIX, vector)], vector)
            self._connected.add(vector)

    def vectors(self) -> list[int]:
        """The messages that may come."""
        return sorted(self._connected)

    def bind(self, vector: int, message: tuple[int, int] | None) -> None:
        """Have the backend send ``message`` for a vector by itself, where it can; with None it comes to us again."""
        if self._direct is None or self.kind is None or vector not in self._connected:
            return
        before = self._bound.get(vector)
        if message == before:
            return
        fd = self._events[self.kind, vector]
        if message is not None and self._direct.bind_msi(fd, *message):
            self._bound[vector] = message
            if before is None:
                self._loop.remove_reader(fd)
        elif before is not None:
            self._direct.unbind_msi(fd)
            del self._bound[vector]
            self._loop.add_reader(fd, partial(self._arrived, self.kind, vector, fd))

    def announce(self, kind: IrqIndex) -> None:
        """Hear of the device's errors, or of the host's wish to have it back. Nothing where there is no such event."""
        if self._device.interrupts[kind].count:
            with contextlib.suppress(OSError):
                self._device.connect(kind, [self._event(kind, 0)])

    def unmask_pin(self) -> None:
        """The pin masked itself when it came; let it come again. Raises ``OSError``."""
        if self.kind is IrqIndex.INTX:
            self._device.unmask(IrqIndex.INTX)

    def close(self) -> None:
        """Close the eventfds. The device must be closed."""
        for fd in self._events.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._events.clear()

    def _event(self, kind: IrqIndex, vector: int) -> int:
        fd = self._events.get((kind, vector))
        if fd is None:
            fd = self._events[kind, vector] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._loop.add_reader(fd, partial(self._arrived, kind, vector, fd))
        else:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)  # what came before does not count
        return fd

    def _arrived(self, kind: IrqIndex, vector: int, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
            self._deliver(kind, vector)
