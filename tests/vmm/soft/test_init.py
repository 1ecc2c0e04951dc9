"""INIT to the boot processor (Intel SDM Vol. 3A 9.4.1): it begins anew at the reset vector, without a start-up IPI."""

from __future__ import annotations

import threading

import pytest

from pyhyve.vmm.api import ApicMode, VirtualCpu
from pyhyve.vmm.exits import Exit, InOut, SpindownCpu, SpinupAp
from pyhyve.vmm.registers import Reg
from tests.guests import Guest, Mode, assemble, boot_guest, find_backend

# The boot processor starts the other one, which sends it an INIT; what it does meanwhile is WAIT.
GUEST = """
.include "guest.inc"
    mov $0x8000, %edi
    lea other(%rip), %rsi
    mov $other_end - other, %ecx
    rep movsb
    mov $5, %ebx
    mov $0x830, %ecx            # x2APIC: the interrupt command register
    xor %edx, %edx
    mov $0x000C4500, %eax
    wrmsr
    mov $0x000C4608, %eax
    wrmsr
1:  WAIT
    jmp 1b
other:
.code16
    mov $0x1B, %ecx
    rdmsr
    or $0xC00, %ax
    wrmsr
    mov $0x830, %ecx
    xor %edx, %edx
    mov $0x4500, %eax
    wrmsr
    mov $0x4608, %eax           # the boot processor runs: it does not take this
    wrmsr
1:  jmp 1b
other_end:
"""
FIRMWARE = """
    mov $0x1B, %ecx
    rdmsr
    out %ax, $0xF5              # still the boot processor
    mov %bx, %ax
    out %ax, $0xF5
1:  jmp 1b
"""
BSP = 0x100


class Pair:
    """Two vCPUs; the second one's thread runs until the test is over."""

    def __init__(self, guests: list[Guest], wait: str, firmware: bool) -> None:
        image = assemble(GUEST.replace("WAIT", wait), 0x10000, Mode.LONG)
        self.guest = boot_guest(find_backend("soft"), image, cpus=2, apic=ApicMode.X2APIC)
        guests.append(self.guest)
        self.other: VirtualCpu = self.guest.vm.create_vcpu(1)
        self.other.set_apic_mode(ApicMode.X2APIC)
        self.over = False
        if firmware:
            self.guest.memory.write(0x300000, assemble(".code16\n" + FIRMWARE, 0, Mode.REAL))
            self.guest.memory.write(0x300FF0, b"\xe9" + (-0xFF3 & 0xFFFF).to_bytes(2, "little"))  # jmp to there
            self.guest.vm.map_memory(0xFFFFF000, 0x1000, 0x300000, readonly=True)

    def _work(self) -> None:
        while not self.over:
            self.other.run()

    def exits(self, count: int) -> list[Exit]:
        """What the boot processor leaves with, from where it has started the other one."""
        started = self.guest.next()
        assert started == SpinupAp(1, 8)
        self.other.start(8)
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            found: list[Exit] = []
            while len(found) < count and not isinstance(exit_ := self.guest.next(), SpindownCpu):
                found.append(exit_)
            return found
        finally:
            self.over = True
            while thread.is_alive():
                self.other.kick()
                thread.join(0.02)


@pytest.mark.parametrize("wait", ["pause", "sti; hlt", "cli; hlt"])
def test_the_boot_processor_begins_anew_at_the_reset_vector(guests: list[Guest], wait: str) -> None:
    pair = Pair(guests, wait, firmware=True)
    first, second = pair.exits(2)
    assert isinstance(first, InOut)
    assert (first.port, first.value & BSP) == (0xF5, BSP)
    assert second == InOut(0xF5, 2, False, 0)
    assert pair.guest.vcpu.get_registers((Reg.CR0, Reg.EFER)) == {Reg.CR0: 0x10, Reg.EFER: 0}


def test_it_leaves_where_there_is_no_firmware(guests: list[Guest]) -> None:
    assert Pair(guests, "pause", firmware=False).exits(1) == []


def test_it_leaves_where_it_is_the_only_one(guests: list[Guest]) -> None:
    text = '.include "guest.inc"\nmov $0x830, %ecx\nmov $0x4500, %eax\nxor %edx, %edx\nwrmsr\n1: jmp 1b\n'
    guest = boot_guest(find_backend("soft"), assemble(text, 0x10000), apic=ApicMode.X2APIC, cpus=2)
    guests.append(guest)
    guest.memory.write(0x300FF0, b"\xeb\xfe")
    guest.vm.map_memory(0xFFFFF000, 0x1000, 0x300000, readonly=True)
    guest.vm.create_vcpu(1)
    assert guest.next() == SpindownCpu()
