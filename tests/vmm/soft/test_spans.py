"""Spans: several accesses around a register with one look-up.

Blocks have them, single steps do not: each guest runs both ways (``lockstep``) and has to come to the same.
"""

from __future__ import annotations

import random

import pytest

from pyhyve.debug.lockstep import compare
from tests.guests import Mode, assemble, boot_guest, find_backend

CODE = 0x10000
END = "\n mov %rax, DATA\n mov %rdx, DATA + 8\n finish\n"

CASES = {
    "fields of a structure over a page border": """
        mov $0x60fe8, %ebx
        mov $20, %ecx
    1:  mov %rcx, (%rbx)
        add %rcx, 8(%rbx)
        mov %rax, 24(%rbx)
        add (%rbx), %rax
        xor 8(%rbx), %rdx
        adc 24(%rbx), %rdx
        lea 1(%rbx), %rbx
        dec %ecx
        jnz 1b
    """,
    "registers that the host has in memory": """
        mov $0x60ff0, %r10d
        mov $0x60f00, %r15d
        mov $20, %ecx
    1:  mov %rcx, (%r10)
        add %r10, 8(%r15)
        mov 8(%r10), %r14
        add (%r10), %r14
        mov %r14, 16(%r15)
        mov (%r15), %r11
        add 16(%r15), %rax
        mov %r14b, 3(%r10)
        mov %ah, 0x60f30
        mulx 16(%r15), %r11, %r14
        andn 8(%r10), %r11, %r14
        add %r14, %rdx
        xor %r11, %rdx
        lea 1(%r10), %r10
        dec %ecx
        jnz 1b
    """,
    "the register changes in between": """
        mov $0x60100, %ebx
        mov $0x60200, %esi
        mov $20, %ecx
    1:  mov %rcx, (%rbx)
        mov %rsi, 8(%rbx)
        mov 8(%rbx), %rbx
        add %rcx, 8(%rbx)
        add (%rbx), %rax
        xchg %rbx, %rsi
        mov %rax, 16(%rbx)
        add 16(%rsi), %rdx
        mov $0x60100, %ebx
        mov $0x60200, %esi
        dec %ecx
        jnz 1b
    """,
    "the accumulator by instructions that do not name it": """
        mov $20, %r8d
    1:  mov $0x60100, %eax
        mov %r8, (%rax)
        mov %r8, 8(%rax)
        mov $3, %edx
        sub $0x40, %al
        mov %r8, 16(%rax)
        add 24(%rax), %r9
        xor %eax, %eax
        mov $0x60140, %edx
        mov (%rdx), %r10
        mov $0x30000, %eax
        mov $2, %ecx
        mul %ecx
        mov %rax, 8(%rax)
        add 8(%rax), %r9
        mov $0x60000, %eax
        mov (%rax), %r10
        cwd
        cmpxchg %r8, 0x100(%rax)
        mov (%rax), %r10
        mov $0x60000, %ecx
        mov (%rcx), %r11
        pcmpistri $0, (%rcx), %xmm0
        add 8(%rcx), %r9
        mov $0x60000, %eax
        lahf
        dec %r8d
        jnz 1b
        mov %r9, %rdx
    """,
    "pushed from the other end of the frame": """
        mov $0x61100, %esp
        mov $20, %ecx
    1:  sub $0x1008, %rsp
        mov %rcx, 0xf00(%rsp)
        add %rsp, 0xf08(%rsp)
        pushq 0xf08(%rsp)
        pushq 0xf08(%rsp)
        add $5, %rax
        lea 9f(%rip), %rdi
        mov %rdi, 0x1000(%rsp)
        call *0x1000(%rsp)
        pop %rbx
        add %rbx, %rax
        pop %rbx
        add %rbx, %rdx
        add $0x1008, %rsp
        sub $56, %rsp
        dec %ecx
        jnz 1b
        jmp 8f
    9:  add 0xf10(%rsp), %rdx
        ret
    8:
    """,
    "a look-up ahead of the instructions that set flags": """
        mov $0x61100, %esp
        mov $400, %ecx
    1:  cmp $100, %ecx
        call 3f
        adc $0, %rax
        sbb %rdx, %rdx
        call 4f
        lea -8(%rsp), %rsp
        dec %ecx
        jnz 1b
        jmp 9f
    3:  push %rbx
        sub $24, %rsp
        mov %rcx, 8(%rsp)
        cmp $50, %rcx
        jb 5f
        mov 8(%rsp), %rbx
        add $24, %rsp
        cmp $60, %rcx
        pop %rbx
        ret
    5:  add $24, %rsp
        stc
        pop %rbx
        ret
    4:  xor %rax, %rdx
        ret
    9:
    """,
    "a stack pointer that is not a sum": """
        mov $0x61100, %esp
        mov $40, %ecx
    1:  push %rbp
        mov %rsp, %rbp
        push %rcx
        sub $40, %rsp
        and $-64, %rsp
        mov %rcx, (%rsp)
        mov %rax, 8(%rsp)
        add (%rsp), %rax
        push %rsp
        pop %rsp
        add 8(%rsp), %rdx
        lea -8(%rbp), %rsp
        pop %rbx
        add %rbx, %rdx
        leave
        sub $72, %rsp
        dec %ecx
        jnz 1b
    """,
    "code that changes what lies beside it": """
        mov $20, %ecx
    1:  addl $1, 2f(%rip)
        incb 3f + 1(%rip)
        mov 2f(%rip), %ebx
        add %rbx, %rax
    3:  mov $1, %bl
        add %rbx, %rdx
        dec %ecx
        jnz 1b
        jmp 9f
        .balign 8
    2:  .quad 0
    9:
    """,
    "device memory": """
        mov $DEVICE, %ebx
        mov $5, %ecx
    1:  movl %ecx, (%rbx)
        mov 4(%rbx), %esi
        movl %esi, 8(%rbx)
        add %rsi, %rax
        dec %ecx
        jnz 1b
    """,
}


def run(text: str) -> None:
    soft = find_backend("soft")
    image = assemble('.include "guest.inc"\n xor %eax, %eax\n xor %edx, %edx\n' + text + END, CODE, Mode.LONG)
    found = compare(lambda: boot_guest(soft, image, Mode.LONG))
    assert found is None, found.report()


@pytest.mark.parametrize("name", CASES)
def test_accesses_around_a_register(name: str) -> None:
    run(CASES[name])


@pytest.mark.parametrize("seed", range(6))
def test_programs_by_chance(seed: int) -> None:
    run(program(random.Random(seed)))


# --- programs ---------------------------------------------------------------------------------------------------------

REGISTERS = "rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
SAVED = "rbx rbp r12 r13 r14 r15".split()
FUNCTIONS = 12


def program(rng: random.Random) -> str:
    """Functions with frames of all sizes that call later ones, on a stack that begins anywhere in a page."""
    lines = [f"mov ${rng.getrandbits(63):#x}, %{register}" for register in REGISTERS]
    lines += [f"mov ${0x68000 - 8 * rng.randrange(600)}, %esp", "mov $5, %ecx", "push %rcx", "1:"]
    lines += [f"call function{number}" for number in range(3)]
    lines += ["pop %rcx", "dec %ecx", "push %rcx", "jnz 1b", "pop %rcx", "jmp 9f"]
    lines += [".balign 64", "data: .skip 256, 0x5a"]
    for number in range(FUNCTIONS):
        lines += function(rng, number)
    return "\n".join([*lines, "9:"])


def function(rng: random.Random, number: int) -> list[str]:
    saved = rng.sample(SAVED, rng.randrange(7))
    frame = rng.choice([0, 8, 24, 0x58, 0x118, 0x400, 0x918, 0x1808])
    lines = [f"function{number}:", *(f"push %{register}" for register in saved)]
    if frame:
        lines.append(rng.choice([f"sub ${frame}, %rsp", f"lea -{frame}(%rsp), %rsp"]))
    for _ in range(rng.randrange(3, 20)):
        lines += statement(rng, number, max(frame - 8, 1))
    lines.append(rng.choice(["xor %eax, %eax", "test %rcx, %rdx", "cmp $5, %rax", "mov %rcx, %rax"]))
    if frame:
        lines.append(rng.choice([f"add ${frame}, %rsp", f"lea {frame}(%rsp), %rsp"]))
    lines += [f"pop %{register}" for register in reversed(saved)]
    return [*lines, "ret", f".skip {rng.randrange(1, 700)}, 0x90" if rng.random() < 0.3 else ""]


def statement(rng: random.Random, number: int, room: int) -> list[str]:
    a, b = rng.choice(REGISTERS), rng.choice(REGISTERS)
    slot = f"{rng.randrange(room) & ~7}(%rsp)" if room > 8 else "data(%rip)"
    kind = rng.randrange(12)
    if kind == 0 and number + 1 < FUNCTIONS:
        return [f"call function{rng.randrange(number + 1, min(number + 4, FUNCTIONS))}"]
    if kind == 1:
        return [f"{rng.choice(['jz', 'jc', 'js', 'jno', 'jg'])} 2f", f"add {slot}, %{a}", f"mov %{b}, {slot}", "2:"]
    if kind == 2:
        return [f"push %{a}", f"add {8 * rng.randrange(3)}(%rsp), %{b}", f"pop %{a}"]
    if kind == 3:
        return [f"lea data(%rip), %{a}", f"add %{b}, {rng.randrange(64)}(%{a})", f"xor {rng.randrange(64)}(%{a}), %{b}"]
    if kind == 4:
        return [f"add data + {rng.randrange(64)}(%rip), %{a}", f"mov %{b}, data + {rng.randrange(64)}(%rip)"]
    if kind == 5:
        return [f"pushq {slot}", f"pop %{a}"]
    if kind == 6:
        return [f"{rng.choice(['inc', 'dec', 'neg', 'not'])} %{a}"]
    if kind < 9:
        return [f"{rng.choice(['add', 'sub', 'xor', 'adc', 'cmp', 'test', 'imul'])} %{a}, %{b}"]
    return [f"mov %{a}, {slot}" if rng.random() < 0.5 else f"{rng.choice(['mov', 'add', 'sbb'])} {slot}, %{a}"]
