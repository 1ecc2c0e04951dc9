"""The width of physical addresses: what CPUID announces is where table entries and registers begin to be reserved."""

from __future__ import annotations

import pytest

from pyhyve.vmm.registers import Reg
from tests.guests import Guest, Mode, assemble, boot_guest, find_backend, is_end

GUEST = """
.include "guest.inc"
    .equ VA, 0x140000000            # 5 GiB, by an entry of the page directory pointer table
    .equ PDPTE, 0x5028
    .equ PD, 0x30000
    .equ PT, 0x31000
    .equ FAULTED, 0x10000
    gate64 13, fault
    gate64 14, fault
    mov $0x80000008, %eax
    cpuid
    movzbl %al, %esi                # the width
    lea BELOW(%rsi), %ecx
    mov $1, %edi
    shl %cl, %rdi                   # the bit
    movq $PD + 7, PDPTE
    movq $PT + 7, PD
    movq $0x100007, PT
    xor %r10d, %r10d
    movabs $VA, %rbx
    mov %cr3, %rax
    WRITE
    finish
fault:
    pop %r10                        # the error code
    or $FAULTED, %r10
    finish
"""

IN_A_TABLE = "or %rdi, {entry}; mov %rax, %cr3; lea (%rbx), %rdx; mov (%rdx), %rdx"
MSR = "mov ${msr}, %ecx; rdmsr; shl $32, %rdx; or %rdx, %rax; or %rdi, %rax; mov %rax, %rdx; shr $32, %rdx; wrmsr"
WRITES = {
    "page table": IN_A_TABLE.format(entry="PT"),
    "page directory": IN_A_TABLE.format(entry="PD"),
    "page directory pointer table": IN_A_TABLE.format(entry="PDPTE"),
    "CR3": "or %rdi, %rax; mov %rax, %cr3",
    "IA32_APIC_BASE": MSR.format(msr=0x1B),
    "IA32_MTRR_PHYSMASK0": MSR.format(msr=0x201),
}
FAULTED, PRESENT_AND_RESERVED = 0x10000, 9


def run(guests: list[Guest], text: str, mode: Mode = Mode.LONG) -> Guest:
    """Run to the end; a load from where there is no memory is an exit on the way."""
    guest = boot_guest(find_backend("soft"), assemble(text, 0x10000, mode), mode)
    guests.append(guest)
    while not is_end(guest.next()):
        pass
    return guest


def write_bit(guests: list[Guest], write: str, below: int) -> Guest:
    return run(guests, GUEST.replace("BELOW", str(-below)).replace("WRITE", WRITES[write]))


@pytest.mark.parametrize("write", WRITES)
def test_the_first_bit_beyond_the_announced_width_is_reserved(guests: list[Guest], write: str) -> None:
    guest = write_bit(guests, write, 0)
    assert guest.register(Reg.RSI) == 40
    assert guest.register(Reg.R10) == FAULTED | (PRESENT_AND_RESERVED if "page" in write else 0)


@pytest.mark.parametrize("write", ["page table", "IA32_APIC_BASE", "IA32_MTRR_PHYSMASK0"])
def test_the_last_bit_of_the_announced_width_is_an_address(guests: list[Guest], write: str) -> None:
    assert write_bit(guests, write, 1).register(Reg.R10) == 0


PAE_GUEST = """
.include "guest.inc"
    .equ PDPT, 0x40000
    .equ PD, 0x41000
    .equ PT, 0x42000
    .equ FAULTED, 0x10000
    gate32 13, fault
    gate32 14, fault
    xor %ebp, %ebp
    movl $PD + 1, PDPT
    movl $0, PDPT + 4
    movl $PD + 1, PDPT + 8
    movl $0, PDPT + 12
    movl $0x83, PD                  # the first 2 MiB as they are
    movl $PT + 7, PD + 8
    movl $0x100007, PT
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $PDPT, %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx
    rdmsr
    or $0x800, %eax                 # NXE: bit 63 of the lower entries is XD
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    orl $1 << (BIT - 32), ENTRY + 4
    mov %cr3, %eax
    mov %eax, %cr3
    mov 0x40200000, %edx
    finish
fault:
    pop %ebp
    or $FAULTED, %ebp
    finish
"""


@pytest.mark.parametrize("bit", [40, 51, 52, 62, 63])
@pytest.mark.parametrize(
    ("entry", "fault"), [("PDPT + 8", 0), ("PD + 8", PRESENT_AND_RESERVED), ("PT", PRESENT_AND_RESERVED)]
)
def test_pae_reserves_all_bits_beyond_the_address_but_execute_disable(
    guests: list[Guest], entry: str, fault: int, bit: int
) -> None:
    """SDM Vol. 3A tables 4-8 to 4-11. The entries of the pointer table are checked when CR3 is loaded: #GP."""
    guest = run(guests, PAE_GUEST.replace("BIT", str(bit)).replace("ENTRY", entry), Mode.PROTECTED)
    reserved = bit < 63 or entry.startswith("PDPT")
    assert guest.register(Reg.RBP) == (FAULTED | fault if reserved else 0)
