"""Loops whose look-ups remember their page: what they meet when the next step is not as the one before.

Blocks do so, single steps do not: guests run both ways (``lockstep``) and have to come to the same. What comes from
outside, and faults, whose handlers see more than the loop, are told by what the guest notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyhyve.debug.lockstep import compare
from tests.guests import Guest, Mode, assemble, boot_guest, find_backend

CODE = 0x10000
CASES = {
    "over the ends of pages, upwards and down": """
        mov $0x60fd0, %ebx
        mov $0x64010, %esi
        mov $2000, %ecx
    1:  mov %rcx, (%rbx)
        add -3(%rbx), %rax
        xor (%rsi), %rdx
        mov %eax, 5(%rsi)
        add $5, %rbx
        sub $7, %rsi
        dec %ecx
        jnz 1b
    """,
    "with an index": """
        mov $0x60000, %ebx
        xor %esi, %esi
        mov $-1800, %r10
    1:  mov %esi, (%rbx, %rsi, 4)
        add 0x2fe1(%rbx, %r10), %rax
        lea (%rax, %rsi), %edi
        movslq %esi, %r14
        mov %dil, 0x4000(%rbx, %r14, 2)
        inc %r10
        inc %esi
        cmp $1700, %esi
        jne 1b
    """,
    "several accesses around a register": """
        mov $0x60f00, %r15d
        mov $0x63f00, %ebp
        mov $500, %ecx
    1:  mov %rcx, (%r15)
        add %rcx, 8(%r15)
        add (%r15), %rax
        mov %rax, 16(%rbp)
        xor 12(%rbp), %rdx
        mov %edx, (%rbp)
        lea 12(%r15), %r15
        lea -12(%rbp), %rbp
        dec %ecx
        jnz 1b
    """,
    "flags that matter in between": """
        mov $0x60f80, %ebx
        mov $300, %ecx
        clc
    1:  mov (%rbx), %rsi
        adc %rcx, %rax
        mov %rax, 8(%rbx)
        lea 4(%rbx), %rbx
        dec %ecx
        jnz 1b
    """,
    "a step from a register that changes": """
        mov $0x60000, %ebx
        mov $1, %esi
        mov $150, %ecx
    1:  mov %rcx, (%rbx)
        add 1(%rbx), %rax
        add %rsi, %rbx
        inc %rsi
        dec %ecx
        jnz 1b
    """,
    "into device memory": """
        mov $DEVICE - 40, %ebx
        mov $9, %ecx
    1:  mov %ecx, (%rbx)
        mov (%rbx), %esi
        add %rsi, %rax
        add $8, %rbx
        dec %ecx
        jnz 1b
    """,
    "the frame": """
        mov $0x61080, %esp
        mov $60, %ecx
    1:  push %rcx
        add %rcx, (%rsp)
        pop %rax
        push %rax
        add %rax, %rdx
        dec %ecx
        jnz 1b
    """,
    "rows of a table": """
        mov $0x60000, %ebx
        mov $20, %edi
    1:  mov $12, %ecx
    2:  add %rcx, (%rbx)
        add $0x230, %rbx
        dec %ecx
        jnz 2b
        sub $0x1a38, %rbx
        add (%rbx), %rax
        dec %edi
        jnz 1b
    """,
    "a store to the loop itself": """
        lea 2f(%rip), %rbx
        sub $400, %rbx
        mov $101, %ecx
    1:  incb (%rbx)
    2:  mov $3, %bpl
        add %rbp, %rax
        add $4, %rbx
        dec %ecx
        jnz 1b
        jmp 3f
        .balign 4096
    3:
    """,
    "a store to the code of another page": """
        lea 5f(%rip), %rdi
        mov $40, %r8d
    1:  call *%rdi
        lea -0xf8(%rdi), %rbx
        mov $32, %ecx
    2:  mov %cl, 1(%rbx)
        add $8, %rbx
        dec %ecx
        jnz 2b
        call *%rdi
        dec %r8d
        mov %r8b, 1(%rdi)
        jnz 1b
        jmp 6f
        .balign 4096
        .skip 0x400
    5:  mov $7, %bl
        add %rbx, %rax
        ret
        .balign 4096
    6:
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_single_steps_agree(name: str) -> None:
    soft = find_backend("soft")
    start = '.include "guest.inc"\n mov $0x70000, %esp\n user_mode\n xor %eax, %eax\n xor %edx, %edx\n xor %ebp, %ebp\n'
    end = "\n mov %rax, DATA\n mov %rdx, DATA + 8\n finish\n"
    image = assemble(start + CASES[name] + end, CODE, Mode.LONG)
    found = compare(lambda: boot_guest(soft, image, Mode.LONG))
    assert found is None, found.report()


# --- told by the guest ------------------------------------------------------------------------------------------------

PRELUDE = """
    .include "guest.inc"
    .equ PAGE, 0x140000000          # 5 GiB; behind it a page that is not there
    .equ PT, 0x31000
    mov $0x70000, %esp
    movq $0x30007, 0x5028
    movq $0x31007, 0x30000
    movq $0x600007, PT
    movq $1, 0x600000
    movq $2, 0x700000
    gate64 12, ss
    gate64 13, gp
    gate64 14, pf
    gate64 0x41, switch, 3
    user_mode
"""
END = """
    finish
    .weak switch
ss: movq $12, DATA
    jmp note
gp: movq $13, DATA
    jmp note
pf: movq $14, DATA
note:
    mov %rax, DATA + 0x28
    pop %rax
    mov %rax, DATA + 0x8
    pop %rax
    lea 1b(%rip), %rdx
    sub %rdx, %rax
    mov %rax, DATA + 0x10
    mov %rcx, DATA + 0x18
    mov %cr2, %rax
    mov %rax, DATA + 0x20
    finish
"""

Run = Callable[[str], Guest]


@pytest.fixture
def run() -> Iterator[Run]:
    made: list[Guest] = []

    def start(source: str) -> Guest:
        guest = boot_guest(find_backend("soft"), assemble(PRELUDE + source + END, CODE))
        made.append(guest)
        guest.until_end()
        return guest

    yield start
    for guest in made:
        guest.close()


@pytest.mark.parametrize(
    ("access", "error"),
    [
        ("mov (%rbx), %rax", 4),
        ("mov %rax, (%rbx)", 6),
        ("add %rax, (%rbx)", 6),
        ("mov (%rbx), %rdx; mov 8(%rbx), %rax", 4),
    ],
)
def test_a_step_to_a_page_that_is_not_there(run: Run, access: str, error: int) -> None:
    guest = run(f"""
        movabs $PAGE, %rbx
        xor %eax, %eax
        mov $10000, %ecx
    1:  {access}
        add $8, %rbx
        dec %ecx
        jnz 1b
    """)
    second = "; mov" in access
    at, steps = (0x140000FF8, 511) if second else (0x140000FF8, 512)
    assert guest.words(5) == [14, error, 3 if second else 0, 10000 - steps, at + 8]


def test_a_page_that_is_to_be_read_only(run: Run) -> None:
    guest = run("""
        movq $0x601005, PT + 8
        movabs $PAGE + 0xFFC, %rbx
        mov $8, %ecx
    1:  mov (%rbx), %eax
        mov %ecx, (%rbx)
        add $2, %rbx
        dec %ecx
        jnz 1b
    """)
    assert guest.words(5) == [14, 7, 2, 7, 0x140001000]


@pytest.mark.parametrize("drop", ["invlpg (%rdi)", "mov %cr3, %rax\nmov %rax, %cr3"])
def test_a_page_that_goes_elsewhere_between_two_runs(run: Run, drop: str) -> None:
    guest = run(f"""
        mov $2, %ebp
        movabs $PAGE, %rdi
    0:  mov %rdi, %rbx
        mov $20, %ecx
        xor %edx, %edx
    1:  add (%rbx), %rdx
        mov %rcx, 8(%rbx)
        add $16, %rbx
        dec %ecx
        jnz 1b
        mov %rdx, DATA(, %rbp, 8)
        int $0x41
        dec %ebp
        jnz 0b
        finish
    switch:
        movq $0x700007, PT
        {drop}
        iretq
    """)
    assert guest.words(3) == [0, 2, 1]
    assert guest.memory.read_uint(0x700008, 8) == guest.memory.read_uint(0x600008, 8) == 20


def test_a_page_that_goes_elsewhere_in_an_interrupt(run: Run) -> None:
    guest = run("""
        gate64 0x40, tick
        write_reg LAPIC_SVR, 0x1FF
        write_reg LAPIC_TIMER_DIVIDE, 0xB
        write_reg LAPIC_LVT_TIMER, 0x40
        write_reg LAPIC_TIMER_INITIAL, 0x20000
        movabs $PAGE, %rbx
        xor %edx, %edx
        sti
    1:  mov %rdx, 8(%rbx)
        mov 16(%rbx), %rcx
        inc %rdx
        cmpq $1, (%rbx)
        je 1b
        mov (%rbx), %rax
        mov %rax, DATA
        cli
        finish
    tick:
        movq $0x700007, PT
        invlpg (%rbx)
        write_reg LAPIC_EOI, 0
        iretq
    """)
    assert guest.word(0) == 2
    stored = [guest.memory.read_uint(page + 8, 8) for page in (0x600000, 0x700000)]
    assert stored[0] > 100
    assert stored[1] in (0, stored[0], stored[0] + 1)


@pytest.mark.parametrize(
    ("access", "vector"),
    [
        ("mov (%rbx), %rax", 13),
        ("mov %rax, (%rbx)", 13),
        ("mov (%rbp), %rax", 12),
        ("mov %rax, 8(%rbx); mov %rax, (%rbx)", 13),
        ("mov %rax, (%rbp); add 8(%rbp), %rax", 12),
        ("movaps %xmm0, (%rbx)", 13),
    ],
)
def test_an_address_that_is_none(run: Run, access: str, vector: int) -> None:
    """What stands in a place that has found no page yet is not taken for one."""
    guest = run(f"""
        movabs $PAGE, %rbx
        mov %rbx, %rbp
        mov $5, %edi
    1:  {access}
        add $16, %rbx
        add $16, %rbp
        dec %edi
        jnz 1b
        xor %eax, %eax
        cpuid
        mov $0x123, %ecx
        mov $0x8000000000000000, %rbx
        mov %rbx, %rbp
        jmp 1b
    """)
    assert guest.words(4) == [vector, 0, 0, 0x123]


def test_pages_that_do_not_lie_side_by_side(run: Run) -> None:
    guest = run("""
        movq $0x700007, PT + 8
        movabs $PAGE + 0xFC1, %rbx
        xor %eax, %eax
        xor %edx, %edx
        mov $40, %ecx
    1:  add (%rbx, %rdx), %rax
        mov %rcx, (%rdx, %rbx)
        add $3, %rbx
        dec %ecx
        jnz 1b
        mov %rax, DATA
    """)
    memory, sum_, at = bytearray(0x2000), 0, 0xFC1
    memory[0x1000] = 2
    for count in range(40, 0, -1):
        sum_ += int.from_bytes(memory[at : at + 8], "little")
        memory[at : at + 8] = count.to_bytes(8, "little")
        at += 3
    assert guest.word(0) == sum_ & (1 << 64) - 1
    assert guest.memory.read(0x600FC0, 0x40) == memory[0xFC0:0x1000]
    assert guest.memory.read(0x700000, 0x80) == memory[0x1000:0x1080]
