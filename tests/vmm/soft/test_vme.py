"""Virtual-8086 mode extensions and protected-mode virtual interrupts (Intel SDM Vol. 3A 20.3 and 20.4).

Each instruction is compared with Bochs too, in states of every kind (the family ``virtual_interrupts``).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyhyve.vmm import cpuid
from pyhyve.vmm.registers import Reg
from tests.guests import REAL_DATA, Guest, Mode, assemble, boot_guest, find_backend

VME, PVI = 1, 2
IF, VIF, VIP, VM, IOPL = 0x200, 1 << 19, 1 << 20, 1 << 17, 0x3000

# The monitor and the 8086 program, whose code lies at 0x8000, CS 0.
GUEST = """
.include "guest.inc"
    gate32 13, on_gp
    movl $0x70000, 0x3004       # the task's ring-0 stack
    movl $0x10, 0x3008
    movw $0x68, 0x3066          # the I/O map's place: the redirection bits are in front of it
    movb $1, 0x3000 + 0x48 + 6  # INT 30H is the monitor's
    movl $(0x8000 + handler - program), 4 * 0x20
    mov $0x8000, %edi
    mov $program, %esi
    mov $program_end - program, %ecx
    rep movsb
    mov %cr4, %eax
    or $CR4_BITS, %eax
    mov %eax, %cr4
    push $0                     # GS, FS, DS, ES, SS, ESP
    push $0
    push $0
    push $0
    push $0
    push $0x7000
    push $FLAGS
    push $0
    push $0x8000
    iretl
on_gp:
    mov $0x10, %eax
    mov %ax, %ds
    mov (%esp), %eax
    mov %eax, DATA
    mov 4(%esp), %eax
    mov %eax, DATA + 4          # where
    mov 12(%esp), %eax
    mov %eax, DATA + 8          # with which flags
    finish
program:
.code16
    PROGRAM
handler:
    HANDLER
program_end:
"""
KEEP = "pushf; pop %ax; mov %ax, {:#x}\n"
WHOLE = (
    "cli\n" + KEEP.format(0x9000) + "sti\n" + KEEP.format(0x9002) + "int $0x20\n" + KEEP.format(0x9006)
    + "push $0x3000; popf\n" + KEEP.format(0x9008) + "int $0x30"
)  # fmt: skip
HANDLER = KEEP.format(0x9004) + "mov %sp, %bp; mov 4(%bp), %ax; mov %ax, 0x900A\niret"


def run(guests: list[Guest], program: str, flags: int, cr4: int = VME) -> tuple[int, int, int]:
    """Run to #GP: its error code, where in the program, and the flags then."""
    text = GUEST.replace("PROGRAM", program).replace("HANDLER", HANDLER).replace("FLAGS", f"{flags:#x}")
    image = assemble(text.replace("CR4_BITS", str(cr4)), 0x10000, Mode.PROTECTED)
    guest = boot_guest(find_backend("soft"), image, Mode.PROTECTED)
    guests.append(guest)
    guest.until_end()
    return guest.word(0, 4), guest.word(1, 4) - 0x8000, guest.word(2, 4)


def test_a_program_with_vme_has_an_interrupt_flag_of_its_own(guests: list[Guest]) -> None:
    error, _, flags = run(guests, WHOLE, VM | IF)
    assert error == 0
    assert flags & (VM | IF | VIF | IOPL) == VM | IF, "the real IF has stayed, IOPL too; POPF has cleared VIF"
    kept = [guests[0].memory.read_uint(REAL_DATA + 2 * n, 2) & (IF | IOPL) for n in range(6)]
    after_cli, after_sti, in_handler, after_iret, after_popf, pushed = kept
    assert (after_cli, after_sti, in_handler) == (IOPL, IOPL | IF, IOPL)
    assert (pushed, after_iret, after_popf) == (IOPL | IF, IOPL | IF, IOPL)


@pytest.mark.parametrize("program", ["sti", "push $0x200; popf", "push $0x200; push $0; push $0x8000; iret"])
def test_what_enables_interrupts_while_one_waits_is_the_monitors(guests: list[Guest], program: str) -> None:
    error, at, flags = run(guests, program, VM | VIP)
    assert (error, flags & (VIF | VIP)) == (0, VIP)
    assert at == len(assemble(".code16\n" + program + "\n", 0, Mode.REAL).rstrip(b"\0")) - 1


def test_an_interrupt_that_waits_is_found_at_once_where_the_program_may_have_it(guests: list[Guest]) -> None:
    assert run(guests, "ud2", VM | VIP | VIF)[:2] == (0, 0)


@pytest.mark.parametrize("program", ["cli", "sti", "pushf", "popf", "int $0x20", "iret", "data32 pushf", "data32 popf"])
@pytest.mark.parametrize("cr4", [0, PVI])
def test_without_vme_they_are_the_monitors(guests: list[Guest], program: str, cr4: int) -> None:
    assert run(guests, program, VM, cr4)[:2] == (0, 0)


@pytest.mark.parametrize("program", ["data32 pushf", "data32 popf", "data32 iret", "push $0x100; popf", "int $0x30"])
def test_with_vme_some_are_still(guests: list[Guest], program: str) -> None:
    assert run(guests, program, VM)[0] == 0


def test_with_iopl_3_the_flag_is_the_real_one_and_vectors_are_redirected_all_the_same(guests: list[Guest]) -> None:
    program = "sti; int $0x20; hlt"
    _, _, flags = run(guests, program, VM | IOPL)
    assert flags & (IF | VIF) == IF
    assert guests[0].memory.read_uint(REAL_DATA + 4, 2) & (IF | IOPL) == IOPL
    assert guests[0].memory.read_uint(REAL_DATA + 10, 2) & (IF | IOPL) == IF | IOPL


PROTECTED = """
.include "guest.inc"
    gate32 13, on_gp
    movl $0x70000, 0x3004
    movl $0x10, 0x3008
    mov %cr4, %eax
    or $CR4_BITS, %eax
    mov %eax, %cr4
    push $0x1B
    push $0x60000
    push $FLAGS
    push $0x23
    push $program
    iretl
on_gp:
    mov $0x10, %eax
    mov %ax, %ds
    mov 12(%esp), %eax
    mov %eax, DATA + 8
    mov 4(%esp), %eax
    sub $program, %eax
    mov %eax, DATA + 4
    finish
program:
    sti
    pushf
    pop %ecx
    cli
    pushf
    pop %edx
    hlt
"""


@pytest.mark.parametrize(("cr4", "flags", "at"), [(PVI, IF, 6), (PVI, VIP, 0), (VME, IF, 0), (0, IF, 0)])
def test_a_program_in_ring_3_has_one_with_pvi(guests: list[Guest], cr4: int, flags: int, at: int) -> None:
    text = PROTECTED.replace("CR4_BITS", str(cr4)).replace("FLAGS", f"{flags:#x}")
    guest = boot_guest(find_backend("soft"), assemble(text, 0x10000, Mode.PROTECTED), Mode.PROTECTED)
    guests.append(guest)
    guest.until_end()
    assert guest.word(1, 4) == at
    assert guest.word(2, 4) & (IF | VIF | VIP) == flags
    if at:
        shown = guest.register(Reg.RCX), guest.register(Reg.RDX)
        assert [value & (IF | VIF) for value in shown] == [IF | VIF, IF]


def test_it_is_announced_and_is_not_there_otherwise(guests: list[Guest]) -> None:
    text = '.include "guest.inc"\ngate32 13, 1f\nmov $3, %eax\nmov %eax, %cr4\nmovl $1, DATA\nfinish\n1: finish\n'
    for shown in (True, False):
        guest = boot_guest(find_backend("soft"), assemble(text, 0x10000, Mode.PROTECTED), Mode.PROTECTED)
        guests.append(guest)
        table = cpuid.shape(guest.vm.supported_cpuid())
        leaf = next(row for row in table if row.leaf == 1)
        assert leaf.edx & 2
        if not shown:
            guest.vm.set_cpuid([row if row is not leaf else replace(leaf, edx=leaf.edx & ~2) for row in table])
        guest.until_end()
        assert guest.word(0, 4) == shown
