"""What a device on the PCI bus may use of the machine around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.loop import EventLoop
from pyhyve.memory import GuestMemory
from pyhyve.vmm.exits import SuspendReason


class Doorbells(Protocol):
    """The part of ``VirtualMachine`` that turns a guest's write into an eventfd signal."""

    def add_doorbell(
        self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None
    ) -> None: ...

    def remove_doorbell(
        self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None
    ) -> None: ...


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
