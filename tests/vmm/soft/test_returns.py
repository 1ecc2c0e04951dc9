"""Calls and returns that do not pair, pushes and pops over page borders.

Blocks take short cuts there (``stack``, groups), single steps do not: each guest runs both ways (``lockstep``) and has
to come to the same.
"""

from __future__ import annotations

import pytest

from pyhyve.debug.lockstep import compare
from tests.guests import NO_EXECUTE, Mode, assemble, boot_guest, find_backend

CODE = 0x10000
PRELUDE = """
.include "guest.inc"
    xor %eax, %eax
    xor %edx, %edx
    mov $20, %ecx
"""

MISMATCHED = {
    "returns to where nobody called from": """
    1:  lea 2f(%rip), %rbx
        call 3f
        ud2
    3:  mov %rbx, (%rsp)
        add $7, %rax
        ret
    2:  inc %rdx
        dec %ecx
        jnz 1b
    """,
    "several frames unwound at once": """
    1:  mov %rsp, %rbp
        call 3f
        inc %rdx
        dec %ecx
        jnz 1b
        jmp 9f
    3:  call 4f
        ud2
    4:  call 5f
        ud2
    5:  lea 1b(%rip), %rbx
        add $3, %rax
        lea -8(%rbp), %rsp
        ret
    9:
    """,
    "two stacks in turn": """
        mov $0x70000, %ebx
        lea 7f(%rip), %rsi
        mov %rsi, -8(%rbx)
        lea -8(%rbx), %rbx
    1:  call 3f
        inc %rdx
        dec %ecx
        jnz 1b
        jmp 9f
    3:  xchg %rsp, %rbx
        ret
    7:  add $5, %rax
        call 3b
        add $11, %rax
        call 3b
        jmp 7b
    9:
    """,
    "arguments taken off by the return": """
    1:  push %rcx
        push %rcx
        call 3f
        add %rsp, %rdx
        dec %ecx
        jnz 1b
        jmp 9f
    3:  add 8(%rsp), %rax
        call 4f
        ret $16
    4:  add $1, %rax
        ret
    9:
    """,
    "return to address zero": """
        movb $0xFF, 0       # at 0: jmp *%rbx
        movb $0xE3, 1
        lea 2f(%rip), %rbx
    1:  push $0
        ret
    2:  inc %rdx
        dec %ecx
        jnz 1b
    """,
    "indirect calls that push over a page border": """
        mov $0x60004, %esp
        lea 3f(%rip), %rbx
        lea 4f(%rip), %r14
        mov %rbx, 0x61000
    1:  cmp $10, %ecx
        call *%rbx
        adc $0, %rax
        call *0x61000
        call *%r14
        sbb $0, %rdx
        dec %ecx
        jnz 1b
        jmp 9f
    3:  ret
    4:  pop %r15
        sub %rsp, %rdx
        add %r15, %rdx
        jmp *%r15
    9:
    """,
    "flags through calls and returns": """
    1:  cmp $10, %ecx
        call 3f
        adc $0, %rax
        dec %ecx
        jnz 1b
        jmp 9f
    3:  push %rbx
        push %r14
        push %r12
        pop %r12
        pop %r14
        pop %rbx
        ret
    9:
    """,
    "the callee changes the code that it returns to": """
    1:  call 3f
    2:  mov $1, %bl
        add %rbx, %rax
        dec %ecx
        jnz 1b
        jmp 9f
    3:  incb 2b + 1(%rip)
        ret
    9:
    """,
    "the callee changes the call": """
        .balign 128, 0x90
        .skip 123, 0x90
    1:  call 3f
        inc %rdx
        dec %ecx
        jnz 1b
        jmp 9f
        .balign 128
    3:  add $1, %rax
        xorb $64, 1b + 1(%rip)      # there or 64 bytes further
        ret
        .balign 64
    4:  add $100, %rax
        xorb $64, 1b + 1(%rip)
        ret
    9:
    """,
}


def source(text: str) -> bytes:
    return assemble(PRELUDE + text + "\n mov %rax, DATA\n mov %rdx, DATA + 8\n finish\n", CODE, Mode.LONG)


@pytest.mark.parametrize("name", MISMATCHED)
def test_calls_and_returns_that_do_not_pair(name: str) -> None:
    soft = find_backend("soft")
    image = source(MISMATCHED[name])
    found = compare(lambda: boot_guest(soft, image, Mode.LONG))
    assert found is None, found.report()


# The numbers differ, so that a register in the place of another shows.
FILL = "\n".join(f"mov $0x1111 * {n + 1}, %r{n}" for n in range(8, 16))
PUSHES = "push %rbx; push %r8; push %r10; push %r15; push %rdi; push %r14; push %r11; push %rbp"
POPS = "pop %rbx; pop %r9; pop %r10; pop %r15; pop %rsi; pop %r14; pop %r11; pop %r12"


@pytest.mark.parametrize("offset", [0, 8, 24, 56, 64, 4, 60])
def test_pushes_and_pops_around_a_page_border(offset: int) -> None:
    """``offset`` bytes of the group lie above the border."""
    soft = find_backend("soft")
    image = source(
        f"""
        {FILL}
        mov $0x60000 + {offset}, %esp
    1:  cmp $7, %ecx
        {PUSHES}
        adc %rsp, %rax
        {POPS}
        call 3f
        add %rbx, %rax
        xor %r10, %rdx
        rol $3, %rdx
        dec %ecx
        jnz 1b
        jmp 9f
    3:  push %r13
        push %rbx
        lea (%r10, %r15), %rbx
        pop %r13
        pop %rbx
        ret
    9:  add %r9, %rdx
    """
    )
    found = compare(lambda: boot_guest(soft, image, Mode.LONG))
    assert found is None, found.report()


def test_a_push_that_faults_leaves_those_before_it_done() -> None:
    soft = find_backend("soft")
    image = assemble(
        """
        .include "guest.inc"
            gate64 14, handler
            movb $1, IDT + 16 * 14 + 4      # on a stack of its own: IST1
            movq $0x70000, 0x3024
            mov $NO_EXECUTE, %rsp           # writable from here up, not below
            lea 16(%rsp), %rsp
            mov $5, %ebx
            push %rbx
            push %rcx
            push %rdx
            push %rdi
            finish
        handler:
            mov %cr2, %rax
            mov %rax, DATA
            mov 32(%rsp), %rax
            mov %rax, DATA + 8
            finish
        """,
        CODE,
        Mode.LONG,
    )
    found = compare(lambda: boot_guest(soft, image, Mode.LONG))
    assert found is None, found.report()
    guest = boot_guest(soft, image, Mode.LONG)
    try:
        guest.until_end()
        assert guest.words(2) == [NO_EXECUTE - 8, NO_EXECUTE]
    finally:
        guest.close()


@pytest.mark.parametrize("target", ["%rbx", "%r14", "0x60000"])
def test_an_indirect_call_whose_push_faults_has_not_happened(target: str) -> None:
    soft = find_backend("soft")
    image = assemble(
        f"""
        .include "guest.inc"
            gate64 14, handler
            movb $1, IDT + 16 * 14 + 4      # on a stack of its own: IST1
            movq $0x70000, 0x3024
            lea called(%rip), %rbx
            mov %rbx, %r14
            mov %rbx, 0x60000
            mov $NO_EXECUTE, %rsp           # writable from here up, not below
            cmp $1, %esp                    # carry clear, not zero
        1:  call *{target}
        2:  ud2
        called:
            setz DATA + 24
            setc DATA + 25
            mov (%rsp), %rax
            lea 2b(%rip), %rcx
            sub %rcx, %rax
            mov %rax, DATA + 16
            finish
        handler:
            mov %cr2, %rax
            mov %rax, DATA
            mov 8(%rsp), %rax
            lea 1b(%rip), %rcx
            sub %rcx, %rax
            mov %rax, DATA + 8
            movq $0x60800, 32(%rsp)
            add $8, %rsp
            iretq
        """,
        CODE,
        Mode.LONG,
    )
    guest = boot_guest(soft, image, Mode.LONG)
    try:
        guest.until_end()
        assert guest.words(4) == [NO_EXECUTE - 8, 0, 0, 0]
    finally:
        guest.close()


def test_calls_without_end_and_without_returns() -> None:
    """Far more of them than a stack of return addresses has room for; both kinds of recursion."""
    image = source(
        """
        mov $300000, %ecx
        mov %rsp, %rbx
    1:  mov %rbx, %rsp
        call 2f
        ud2
    2:  inc %rax
        dec %ecx
        jnz 1b
        mov %rbx, %rsp
        mov $0x200000 - 0x1000, %esp     # down through a megabyte of memory
        mov $100000, %ecx
        call 4f
        jmp 9f
    4:  inc %rdx
        dec %ecx
        jz 5f
        call 4b
    5:  ret
    9:
    """
    )
    guest = boot_guest(find_backend("soft"), image, Mode.LONG)
    try:
        guest.until_end()
        assert guest.words(2) == [300000, 100000]
    finally:
        guest.close()
