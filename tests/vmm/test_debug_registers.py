"""The guest's own debug registers: breakpoints, watchpoints, single steps, and what #DB tells of them.

Expectations are those of the Intel SDM, Vol. 3B chapter 17 (18 in newer editions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyhyve.vmm.api import Capability, Hypervisor, Point, PointKind
from pyhyve.vmm.exits import Debug, InOut, Mtrap
from pyhyve.vmm.registers import Reg
from tests.guests import DATA, Guest, Mode, assemble, boot_guest, find_backend

CODE = 0x10000
B0, B1, B2, B3, BD, BS = 1, 2, 4, 8, 0x2000, 0x4000
DR6_FIXED = 0xFFFF0FF0
RF, TF = 0x10000, 0x100

Boot = Callable[..., Guest]

PROLOGUE = """
.include "guest.inc"
.macro set_dr number, value
    mov $\\value, %eax
    mov %rax, %dr\\number
.endm
    gate64 1, debug
    mov $DATA + 0x800, %r13d
    mov $DATA, %ebx
    jmp start
debug:
    push %rax
    mov %dr6, %rax
    mov %rax, (%r13)
    mov 8(%rsp), %rax
    mov %rax, 8(%r13)
    mov 24(%rsp), %rax
    mov %rax, 16(%r13)
    add $24, %r13d
    set_dr 6, 0
    orl $0x10000, 24(%rsp)      # RF
    pop %rax
    iretq
.org 0x200
start:
"""


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Boots assembly text behind the prologue, at CODE + 0x200, on the engine."""
    guests: list[Guest] = []

    def start(text: str) -> Guest:
        guest = boot_guest(find_backend("soft"), assemble(PROLOGUE + text, CODE))
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.close()


def traps(guest: Guest) -> list[tuple[int, int]]:
    """Run to the end; the exceptions as (DR6 without what is fixed, offset of RIP)."""
    guest.until_end(lambda found: 0)
    return noted(guest)


def noted(guest: Guest) -> list[tuple[int, int]]:
    count = (guest.register(Reg.R13) - DATA - 0x800) // 24
    words = guest.words(0x100 + 3 * count)[0x100:]
    return [(words[3 * i] & ~DR6_FIXED, words[3 * i + 1] - CODE) for i in range(count)]


def test_debug_registers_do_what_the_manual_says(hypervisor: Hypervisor) -> None:
    guest = boot_guest(hypervisor, assemble("debug_registers", CODE))
    try:
        if guest.software_kvm:
            pytest.skip("this host's software KVM has no data breakpoints")
        guest.until_end(lambda found: 0 if isinstance(found, InOut) and found.is_in else None)
        rows = [guest.words(4 * i + 4)[4 * i :] for i in range(23)]
        found = [(dr6 ^ DR6_FIXED, rip, flags & (RF | TF), dr7) for dr6, rip, flags, dr7 in rows]
        execute, writes, both, port, detect = 0x401, 0x9D00418, 0xF00408, 0x20000480, 0x400
        assert found[:15] == [
            (B0, 0x40, 0, execute),  # a fault: before the instruction; RF passes it over once (17.3.1.1)
            (B0, 0x40, 0, execute),
            (B0, 0x40, 0, execute),
            (B1, 0xA9, 0, writes),  # a trap: behind the instruction, for any byte (17.2.5)
            (B1, 0xB7, 0, writes),
            (B2, 0xC6, 0, writes),
            (B1, 0xE6, 0, both),
            (BS | B1, 0xFC, TF, both),  # one exception for both (17.2.3)
            (BS, 0xFE, TF, both),
            (BS, 0xFF, 0, both),
            (B1, 0x109, 0, both),
            (B1, 0x128, 0, both),  # behind the instruction that follows MOV SS (6.8.3)
            (B1, 0x140, RF, both),  # between two elements (17.3.1.1)
            (B3, 0x182, 0, port),
            (B3, 0x192, 0, port),
        ]
        assert rows[15][0] == 6  # MOV DR4 with CR4.DE (17.2.2)
        assert rows[16] == [DR6_FIXED, 0xFFFFEFFF, 0xFFFF07FF, DR6_FIXED]
        assert rows[17][0] == 13  # the upper half of DR7 (17.2.6)
        assert found[18][:2] == (BD, 0x240)
        assert found[18][3] == detect
        # The first taken branch; BTF is clear then (17.4.4).
        assert [row[:2] for row in found[19:22]] == [(BS, 0x280), (BS, 0x282), (BS, 0x283)]
        assert rows[22][0] == 0
    finally:
        guest.close()


def test_a_breakpoint_at_a_repeated_instruction_stops_before_its_first_element(boot: Boot) -> None:
    guest = boot(
        """
    set_dr 0, CODE + 0x240
    set_dr 7, 1
    mov $DATA + 0x1000, %edi
    mov $3000, %ecx
    .org 0x240, 0x90
    rep stosb
    finish
    """.replace("CODE", hex(CODE))
    )
    assert traps(guest) == [(B0, 0x240)]
    assert guest.register(Reg.RDI) == DATA + 0x1000 + 3000


def test_no_breakpoint_in_the_shadow_of_a_stack_load(boot: Boot) -> None:
    guest = boot(
        """
    set_dr 0, CODE + 0x240
    set_dr 1, CODE + 0x241
    set_dr 7, 5
    mov %ss, %ecx
    .org 0x23E, 0x90
    mov %ecx, %ss
    nop
    nop
    finish
    """.replace("CODE", hex(CODE))
    )
    assert traps(guest) == [(B1, 0x241)]


def test_what_a_faulting_instruction_read_is_forgotten(boot: Boot) -> None:
    guest = boot("""
    gate64 14, fault
    set_dr 0, DATA
    set_dr 7, 0xF0001
    mov $NOT_MAPPED, %esi
    mov $NOT_MAPPED >> 32, %ecx
    shl $32, %rcx
    or %rcx, %rsi
    mov %rsp, %rbp
    .org 0x260, 0x90
    mov $DATA, %edi
    xchg %rsi, %rdi
    cmpsb
    fault:
    mov %rbp, %rsp
    set_dr 7, 0
    finish
    """)
    assert traps(guest) == []


def test_a_ninth_byte_and_a_disabled_register_stop_nobody(boot: Boot) -> None:
    guest = boot("""
    set_dr 0, DATA + 0x13       # counts as DATA + 0x10: the length aligns it
    set_dr 1, DATA + 0x20
    set_dr 7, 0x1F90001         # 8 bytes, writes; DR1 is not enabled
    mov %al, 0x0F(%rbx)
    mov %al, 0x18(%rbx)
    mov %al, 0x20(%rbx)
    mov 0x10(%rbx), %al
    .org 0x240, 0x90
    mov %al, 0x17(%rbx)
    .org 0x250, 0x90
    mov %al, 0x10(%rbx)
    set_dr 7, 0
    mov %al, 0x10(%rbx)
    finish
    """)
    assert traps(guest) == [(B0, 0x243), (B0, 0x253)]


def test_the_debugger_comes_before_the_guest_at_one_instruction(boot: Boot) -> None:
    guest = boot(
        """
    set_dr 0, CODE + 0x240
    set_dr 7, 1
    .org 0x240, 0x90
    nop
    finish
    """.replace("CODE", hex(CODE))
    )
    guest.vcpu.set_points([Point(PointKind.EXECUTE, CODE + 0x240)])
    assert guest.next() == Debug(CODE + 0x240)
    assert noted(guest) == []
    assert guest.next() == Debug(CODE + 0x240)
    assert noted(guest) == [(B0, 0x240)]
    assert traps(guest) == [(B0, 0x240)]


def test_debugger_and_guest_watch_the_same_bytes(boot: Boot) -> None:
    guest = boot("""
    set_dr 0, DATA
    set_dr 7, 0xD0001
    .org 0x240, 0x90
    mov %eax, (%rbx)
    finish
    """)
    guest.vcpu.set_points([Point(PointKind.WRITE, DATA + 2)])
    assert guest.next() == Debug(CODE + 0x242, DATA + 2)
    assert traps(guest) == [(B0, 0x242)]


def test_the_trap_of_a_port_access_comes_behind_the_exit(boot: Boot) -> None:
    guest = boot("""
    pushq $0x102
    popfq
    out %al, $0x80
    in $0x80, %al
    nop
    pushq $2
    popfq
    finish
    """)
    assert guest.next() == InOut(0x80, 1, False, guest.register(Reg.RAX) & 0xFF)
    assert noted(guest) == []
    assert guest.next() == InOut(0x80, 1, True)
    assert noted(guest) == [(BS, 0x208)]
    guest.vcpu.answer(0x55)
    assert traps(guest)[1:3] == [(BS, 0x20A), (BS, 0x20B)]
    assert guest.register(Reg.RAX) & 0xFF == 0x55


def test_a_step_of_a_traced_port_access_ends_before_its_exception(boot: Boot) -> None:
    guest = boot("""
    pushq $0x102
    popfq
    out %al, $0x80
    pushq $2
    popfq
    finish
    """)
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, True)
    while not isinstance(guest.next(), InOut):
        pass
    places = []
    for _ in range(2):
        assert guest.next() == Mtrap()
        places.append(guest.register(Reg.RIP) - CODE)
    assert places[0] == 0x208
    assert places[1] < 0x200
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, False)
    assert traps(guest)[0] == (BS, 0x208)


def test_registers_set_from_outside_take_effect(boot: Boot) -> None:
    guest = boot("""
    out %al, $0x80
    mov %eax, (%rbx)
    .org 0x240, 0x90
    nop
    finish
    """)
    guest.next()
    guest.vcpu.set_registers({Reg.DR0: DATA, Reg.DR1: CODE + 0x240, Reg.DR7: 0xD0405})
    assert traps(guest) == [(B0, 0x204), (B1, 0x240)]


def test_steps_of_the_debugger_pass_the_guests_exception(boot: Boot) -> None:
    guest = boot("""
    set_dr 0, DATA
    set_dr 7, 0xD0001
    out %al, $0x80
    mov %eax, (%rbx)
    nop
    finish
    """)
    guest.next()
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, True)
    places = []
    for _ in range(3):
        assert guest.next() == Mtrap()
        places.append(guest.register(Reg.RIP) - CODE)
    store, handler, behind = places
    assert behind == handler + 1 < 0x200 < store
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, False)
    assert traps(guest) == [(B0, store)]


def test_a_breakpoint_in_real_mode() -> None:
    text = """
    .code16
    movw $debug, 4
    movw $0, 6
    mov $0x8040, %eax
    mov %eax, %dr2
    mov $0x10, %eax
    mov %eax, %dr7
    .org 0x40, 0x90
    nop
    out %al, $0xF4
debug:
    mov %dr6, %eax
    mov %eax, 0x9000
    pop %ax
    mov %ax, 0x9004
    out %al, $0xF4
    """
    guest = boot_guest(find_backend("soft"), assemble(text, 0x8000, Mode.REAL), Mode.REAL)
    try:
        assert guest.until_end() == []
        assert guest.memory.read_uint(0x9000, 4) == DR6_FIXED | B2
        assert guest.memory.read_uint(0x9004, 2) == 0x8040
    finally:
        guest.close()
