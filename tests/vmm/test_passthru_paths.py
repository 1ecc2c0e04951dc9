"""A passed-through device under a guest on each backend: what is mapped does not exit, and its interrupt comes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from pyhyve.bus.irq import IrqRouter
from pyhyve.hw.environment import Environment
from pyhyve.vmm.api import Chip, Hypervisor
from pyhyve.vmm.exits import Exit, InstEmul, IoapicEoi
from tests.backends.vfio.gadget import ACK, MORE, RAISE, REGISTERS, TABLE, Gadget
from tests.guests import Mode, assemble, boot_guest
from tests.hw.pci.test_passthru import COMMAND, SLOT, Rig

PIN = 16 + (4 + SLOT + 1) % 8
AT = 0xC8000000
VALUE = 0x12345678


def wait_until(rig: Rig, condition: Callable[[], bool]) -> None:
    """Ask again in the loop, behind whatever it has to do."""
    done = threading.Event()

    def look() -> None:
        if condition():
            done.set()
        else:
            rig.loop.call_soon_threadsafe(look)

    rig.loop.call_soon_threadsafe(look)
    assert done.wait(30)


class HalfMapped(Gadget):
    """Only its last page of registers can be mapped; it is memory."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.mappable = {2: [(MORE, 0x1000)]}


def test_registers_are_reached_and_a_message_arrives(hypervisor: Hypervisor) -> None:
    code = assemble("passthru", 0x10000, Mode.LONG, REGISTERS=AT, MORE=MORE, RAISE=RAISE)
    guest = boot_guest(hypervisor, code, Mode.LONG)
    rig = Rig(make=HalfMapped, memory=guest.memory, direct=guest.vm, send_msi=guest.vm.send_msi)
    rig.put(0x18, 4, AT)
    rig.put(COMMAND, 2, 0x0406)
    for i, value in enumerate((0xFEE00000, 0, 0x51, 0)):
        rig.write(TABLE + 4 * i, value)
    rig.put(rig.capabilities()[0x11] + 2, 2, 0x8000)
    mapped = bool(rig.function._maps._there)
    server = threading.Thread(target=rig.loop.run)
    server.start()

    def answer(found: Exit) -> int | None:
        assert isinstance(found, InstEmul)
        assert AT <= found.gpa < AT + REGISTERS
        if found.is_write:
            rig.mmio.write(found.gpa, found.size, found.value)
            return None
        return rig.mmio.read(found.gpa, found.size)

    try:
        exits = guest.until_end(answer)
        assert guest.words(2) == [VALUE, 0x51]
        own = int.from_bytes(os.pread(rig.hardware.function.memory_fd, 4, MORE + 0x20), "little")
        if mapped:
            assert [found.gpa for found in exits] == [AT + RAISE]
            assert own == VALUE
        else:
            assert [found.gpa for found in exits] == [AT + MORE + 0x20, AT + MORE + 0x20, AT + RAISE]
            assert rig.hardware.function.read(MORE + 0x20, 4) == VALUE
    finally:
        rig.loop.stop()
        server.join()
        rig.close()
        guest.close()
    assert rig.hardware.violations == []
    assert rig.kernel.fds == {}


def test_a_pin_comes_again_until_the_device_is_served(hypervisor: Hypervisor) -> None:
    code = assemble("passthru_pin", 0x10000, Mode.LONG, REGISTERS=AT, RAISE=RAISE, ACK=ACK, PIN=PIN)
    guest = boot_guest(hypervisor, code, Mode.LONG)
    router, ended = None, os.eventfd(0, os.EFD_NONBLOCK)
    if Chip.IOAPIC in guest.vm.provides:
        router = IrqRouter(guest.vm.set_irq, lambda gsi: guest.vm.watch_eoi(gsi, ended) if gsi == PIN else None)
    rig = Rig(make=HalfMapped, memory=guest.memory, direct=guest.vm, send_msi=guest.vm.send_msi, router=router)
    rig.put(0x18, 4, AT)
    if router is None:
        rig.ioapic.attach(rig.mmio)
    rig.loop.add_reader(ended, lambda: (os.eventfd_read(ended), rig.router.ended(PIN)))
    server = threading.Thread(target=rig.loop.run)
    server.start()

    def answer(found: Exit) -> int | None:
        if isinstance(found, IoapicEoi):
            rig.ioapic.eoi(found.vector)
            return None
        assert isinstance(found, InstEmul)
        if found.is_write:
            rig.mmio.write(found.gpa, found.size, found.value)
            return None
        return rig.mmio.read(found.gpa, found.size)

    try:
        guest.until_end(answer)
        assert guest.word(0) == 2
        # The device may have asked again just before it was served: that one waits for a guest that has ended.
        wait_until(rig, lambda: not rig.hardware.masked or rig.router.level(PIN))
    finally:
        rig.loop.stop()
        server.join()
        rig.loop.remove_reader(ended)
        rig.close()
        guest.close()
        os.close(ended)
