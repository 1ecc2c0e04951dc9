"""What a device on the PCI bus may use of the machine around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.loop import EventLoop
from pyhyve.memory import GuestMemory
from pyhyve.vmm.exits import SuspendReason

if TYPE_CHECKING:
    from pyhyve.backends.vfio.container import Container


class Doorbells(Protocol):
    """The part of ``VirtualMachine`` that turns a guest's write into an eventfd signal."""

    def add_doorbell(
        self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None
    ) -> None: ...

    def remove_doorbell(
        self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None
    ) -> None: ...


class DirectPaths(Protocol):
    """The part of ``VirtualMachine`` that lets a device of the host and the guest meet without a thread of ours."""

    def map_host(self, gpa: int, size: int, address: int) -> bool: ...

    def unmap_host(self, gpa: int) -> None: ...

    def bind_msi(self, fd: int, address: int, data: int) -> bool: ...

    def unbind_msi(self, fd: int) -> None: ...


def _nothing() -> None:
    """Nobody caches what is in memory."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Handed to every device's constructor."""

    loop: EventLoop
    memory: GuestMemory
    pio: PioBus
    mmio: MmioBus
    router: IrqRouter
    send_msi: Callable[[int, int], None]
    doorbells: Doorbells
    power: Callable[[SuspendReason], None]
    virtio_msix: bool = True
    """Whether virtio devices signal with MSI-X; else (``-W``) with one MSI vector."""
    name: str = ""
    """The machine's."""
    direct: DirectPaths | None = None
    vfio: Callable[[], Container] | None = None
    """The container for devices of the host, made when the first one asks."""
    device_wrote: Callable[[], None] = _nothing
    """To be called when hardware may have written guest memory: code that was translated from there may be stale."""
