"""Passthru on the kernel's own VFIO, not on the model: ``python -m tests.backends.vfio.real BUS/SLOT/FUNCTION``.

To be run by root where there is an IOMMU and vfio-pci holds the device; ``tests.system.vfio_under_qemu`` makes such a
host of QEMU. With QEMU's teaching device ``edu`` (docs/specs/edu: an identification at 0, an inverter at 4, interrupts
raised at 0x60 and acknowledged at 0x64, DMA at 0x80 to 0x98 to and from a buffer at 0x40000) everything is looked at.
With another device its configuration space is read, and its MSI-X vectors are raised by the kernel's loop-back. It
prints a line for each thing that it saw, and ends with 1 if one was wrong.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from pyhyve.backends.vfio.container import Container
from pyhyve.backends.vfio.uapi import IrqIndex, SetIrq
from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.ioapic import Ioapic
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bus import PciAddress, PciBus
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.hw.pci.passthru import Passthru
from pyhyve.loop import EventLoop
from pyhyve.memory import GuestMemory

EDU = 0x11E81234
SLOT = 4
GSI = 16 + (4 + SLOT + 1) % 8
IDENTITY, INVERTER, RAISE, ACK, SOURCE, TARGET, COUNT, GO = 0x00, 0x04, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
BUFFER = 0x40000
MESSAGE, DATA = 0xFEE01000, 0x4051


class Direct:
    """Takes mappings and remembers them."""

    def __init__(self) -> None:
        self.there: dict[int, tuple[int, int]] = {}

    def map_host(self, gpa: int, size: int, address: int) -> bool:
        self.there[gpa] = (size, address)
        return True

    def unmap_host(self, gpa: int) -> None:
        del self.there[gpa]

    def bind_msi(self, fd: int, address: int, data: int) -> bool:
        return False

    def unbind_msi(self, fd: int) -> None:
        raise AssertionError


class Driver:
    """The device as a driver in a guest would see it."""

    def __init__(self, name: str) -> None:
        self.memory = GuestMemory(8 << 20)
        self.loop = EventLoop()
        self.container = Container(self.memory)
        self.pins: list[tuple[int, int]] = []
        self.messages: list[tuple[int, int]] = []
        self.mmio = MmioBus()
        self.ioapic = Ioapic(lambda address, data: self.pins.append((address, data)))
        self.router = IrqRouter(self.ioapic.set_irq)
        self.ioapic.on_end = self.router.ended
        self.direct = Direct()
        environment = Environment(
            loop=self.loop, memory=self.memory, pio=PioBus(), mmio=self.mmio, router=self.router,
            send_msi=lambda address, data: self.messages.append((address, data)), doorbells=None,
            power=lambda reason: None, direct=self.direct, vfio=lambda: self.container,
        )  # fmt: skip
        self.bus = PciBus(environment, IntxRouting(self.router))
        self.bus.create(PciAddress(0, 0, 0), "hostbridge", {})
        self.function = self.bus.create(PciAddress(0, SLOT, 0), "passthru", Passthru.parse_options(name))
        self.bus.finish()
        self.bar = self.get(0x10, 4) & ~0xF

    def get(self, offset: int, size: int) -> int:
        return self.bus.read_config(SLOT << 3, offset, size)

    def put(self, offset: int, size: int, value: int) -> None:
        self.bus.write_config(SLOT << 3, offset, size, value)

    def read(self, offset: int, size: int = 4) -> int | None:
        return self.mmio.read(self.bar + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.mmio.write(self.bar + offset, size, value)

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Serve the loop until ``condition``, for ten seconds at most."""
        timer = self.loop.timer(self.loop.stop)
        for _ in range(1000):
            if condition():
                return True
            timer.arm_in(10_000_000)
            self.loop.run()
        return False

    def capability(self, ident: int) -> int:
        at = self.get(0x34, 1)
        while at and self.get(at, 1) != ident:
            at = self.get(at + 1, 1)
        return at

    def copy(self, source: int, target: int, count: int, command: int) -> None:
        self.write(SOURCE, source, 8)
        self.write(TARGET, target, 8)
        self.write(COUNT, count, 8)
        self.write(GO, command, 8)

    def close(self) -> None:
        self.bus.close()
        self.container.close()
        self.loop.close()
        self.memory.close()


See = Callable[[str, object], None]


def look_at_edu(edu: Driver, see: See) -> None:
    """Registers, pin, MSI, DMA, reset."""
    see(f"BAR 0 at {edu.bar:#x}, register 0 is {edu.read(IDENTITY):#x}", edu.read(IDENTITY) == 0x010000ED)
    edu.write(INVERTER, 0x12345678)
    see("a register keeps what it is given", edu.read(INVERTER) == 0x12345678 ^ 0xFFFFFFFF)
    size, address = edu.direct.there.get(edu.bar, (0, 0))
    see("BAR 0 can be mapped", size == 1 << 20)
    see("and register 0 is read there", size and ctypes.c_uint32.from_address(address).value == 0x010000ED)

    gsi_entry = 0x8000 | 0x55
    edu.ioapic.write(0, 4, 0x10 + 2 * GSI + 1)
    edu.ioapic.write(0x10, 4, 0)
    edu.ioapic.write(0, 4, 0x10 + 2 * GSI)
    edu.ioapic.write(0x10, 4, gsi_entry)
    edu.write(RAISE, 1)
    see("the pin interrupts", edu.wait_for(lambda: len(edu.pins) == 1))
    edu.ioapic.eoi(0x55)
    see("and again while it is not served", edu.wait_for(lambda: len(edu.pins) == 2))
    edu.write(ACK, 1)
    edu.ioapic.eoi(0x55)
    see("and is still when it is", not edu.wait_for(lambda: len(edu.pins) > 2) and not edu.router.level(GSI))

    data = os.urandom(1000)
    edu.memory.write(0x3000, data)
    edu.copy(0x3000, BUFFER, 1000, 1)
    see("no DMA before the guest allows it", edu.wait_for(lambda: not (edu.read(GO, 4) or 0) & 1))
    edu.put(0x04, 2, 0x0406)
    edu.copy(0x3000, BUFFER, 1000, 1)
    see("DMA from memory ends", edu.wait_for(lambda: not (edu.read(GO, 4) or 0) & 1))
    msi = edu.capability(0x05)
    see(f"MSI is at {msi:#x}", msi)
    edu.put(msi + 4, 4, MESSAGE)
    edu.put(msi + 8, 4, 0)
    edu.put(msi + 12, 2, DATA)
    edu.put(msi + 2, 2, 1)
    see("MSI is in use at the host", edu.function._interrupts.kind is IrqIndex.MSI)
    edu.copy(BUFFER, 0x7000, 1000, 1 | 2 | 4)
    see("DMA to memory ends with a message", edu.wait_for(lambda: edu.messages == [(MESSAGE, DATA)]))
    see("and brought what was sent", edu.memory.read(0x7000, 1000) == data)
    edu.write(ACK, 0x100)
    edu.bus.reset()
    see("after a reset it has its pin again", edu.function._interrupts.kind is IrqIndex.INTX)
    see("and its registers", edu.read(IDENTITY) == 0x010000ED)
    edu.put(0x04, 2, 0)
    see("without decoding nobody answers", edu.read(IDENTITY) is None and edu.direct.there == {})


def look_at_vectors(card: Driver, see: See) -> None:
    """Every MSI-X vector, raised by the kernel as if the device had."""
    msix, host = card.function.msix, card.function.host
    assert msix is not None
    card.put(0x04, 2, 0x0406)
    at = card.capability(0x11)
    card.put(at + 2, 2, 0x8000)
    see(f"{msix.vectors} MSI-X vectors are in use at the host", card.function._interrupts.kind is IrqIndex.MSIX)
    where, start, _ = card.function._table
    bar = next(bar.mapped for bar in card.function.bars if bar.index == where)
    assert bar is not None
    for vector in reversed(range(msix.vectors)):
        for i, value in enumerate((MESSAGE, 0, DATA + vector, 0)):
            card.mmio.write(bar + start + 16 * vector + 4 * i, 4, value)
        card.messages.clear()
        host._set_irqs(SetIrq.DATA_NONE | SetIrq.TRIGGER, IrqIndex.MSIX, vector, 1)
        see(f"vector {vector} arrives", card.wait_for(lambda: bool(card.messages)))
        see("and is the guest's message", card.messages == [(MESSAGE, DATA + vector)])
    see("the table's page is not mapped", all(bar + start != gpa for gpa in card.direct.there))


def main() -> int:
    """Look at everything; 1 if something was wrong."""
    wrong = 0

    def see(what: str, right: object) -> None:
        nonlocal wrong
        wrong += not right
        print(f"{'ok' if right else 'WRONG'}: {what}", flush=True)

    try:
        driver = Driver(sys.argv[1])
    except DeviceError as error:
        print(f"refused: {error}", flush=True)
        return 1
    identity = driver.get(0, 4)
    see(f"identity {identity:#x}, interrupts {[one.count for one in driver.function.host.interrupts]}", identity)
    shown, at = [], driver.get(0x34, 1)
    while at:
        shown.append(f"{driver.get(at, 1):#x}")
        at = driver.get(at + 1, 1)
    see(f"capabilities {' '.join(shown)}", True)
    for bar in driver.function.bars:
        areas = driver.function.host.regions[bar.index].areas
        see(f"BAR {bar.index}: {bar.size:#x} bytes in {bar.kind.value}, can be mapped: {areas}", bar.mapped)
    if identity == EDU:
        look_at_edu(driver, see)
    elif driver.function.msix is not None:
        look_at_vectors(driver, see)
    driver.bus.reset()
    see("after a reset its identity is the same", driver.get(0, 4) == identity)
    driver.close()
    print("real: done" if not wrong else f"real: {wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
