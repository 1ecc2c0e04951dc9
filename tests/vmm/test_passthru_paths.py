"""A passed-through device under a guest on each backend: what is mapped does not exit, and its interrupt comes."""

from __future__ import annotations

import os
import threading

from pyhyve.hw.environment import Environment
from pyhyve.vmm.api import Hypervisor
from pyhyve.vmm.exits import Exit, InstEmul
from tests.backends.vfio.gadget import MORE, RAISE, REGISTERS, TABLE, Gadget
from tests.guests import Mode, assemble, boot_guest
from tests.hw.pci.test_passthru import COMMAND, Rig

AT = 0xC8000000
VALUE = 0x12345678


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
    mapped = bool(rig.function._mapped)
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
