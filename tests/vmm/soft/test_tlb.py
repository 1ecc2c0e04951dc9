"""The second TLB: pages that share an entry of the first come back from it, and what drops an entry drops it there too.

In all guests ``ONE`` and ``TWO`` are pages with the same entry of the first TLB, so that whoever touches one after the
other finds it in the second TLB only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.guests import DATA, Guest, assemble, boot_guest, find_backend

ORG = 0x10000
TWO = 0xE00000
FIRST, SECOND = 0x600000, 0x800000
"""What ``ONE`` can be mapped to."""
WRITABLE, GLOBAL = 7, 0x107

# ONE is a small page, at 5 GiB or in the upper half; TWO one of the first gigabytes' large pages.
PRELUDE = f"""
    .equ TABLE, 0x31000
    .equ DIRECTORY, 0x30008     # the entry of ONE
    .equ TWO, {TWO:#x}
    movq $0x30007, 0x5028
    movq $TABLE+7, DIRECTORY
    movq $0x5007, 0x4FF8
    movq $0x30007, 0x5FF8
    mov $0x80, %eax
    mov %cr4, %rcx
    or %rcx, %rax
    mov %rax, %cr4
"""
LOWER, UPPER = 0x140200000, 0xFFFFFFFFC0200000

Run = Callable[..., Guest]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a guest to its end; ``one`` is where ONE lies, and ``bits`` what its table entry has."""
    hypervisor = find_backend("soft")
    guests: list[Guest] = []

    def start(source: str, *, one: int = LOWER, bits: int = WRITABLE) -> Guest:
        text = f"""
            .equ ONE, {one}
            {PRELUDE}
            movq ${FIRST + bits:#x}, TABLE
            movabs $ONE, %rbx
            mov $TWO, %esi
            {source}
            out %al, $0xF4
        """
        guest = boot_guest(hypervisor, assemble(text, ORG))
        guests.append(guest)
        guest.memory.write_uint(FIRST, 1, 8)
        guest.memory.write_uint(SECOND, 2, 8)
        guest.until_end()
        return guest

    yield start
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("carry", ["", "adc $0, %rdx"])
def test_pages_that_share_an_entry_are_both_known(run: Run, carry: str) -> None:
    guest = run(f"""
        mov $20000, %ecx
        xor %edx, %edx
    1:  add %rcx, (%rbx)
        mov (%rsi), %rax
        {carry}
        mov (%rbx), %rax
        {carry}
        mov %rcx, (%rsi)
        dec %ecx
        jnz 1b
        mov %rax, {DATA}
    """)
    assert guest.word(0) == 1 + 20000 * 20001 // 2
    assert guest.memory.read_uint(TWO, 8) == 1
    assert guest.vcpu.stats()["slow_accesses"] < 200


def test_many_pages_are_known(run: Run) -> None:
    guest = run("""
        mov $50, %edx
    1:  mov $0x100000, %edi
    2:  mov 0x400(%rdi), %al
        add $0x1000, %edi
        cmp $0xF00000, %edi
        jb 2b
        dec %edx
        jnz 1b
    """)
    assert guest.vcpu.stats()["slow_accesses"] < 4000


def test_neither_flags_nor_registers_change_when_an_entry_comes_back(run: Run) -> None:
    guest = run(f"""
        xor %ebp, %ebp
    1:  mov (%rbx), %rax
        mov (%rsi), %rax
        mov %rbp, %rdx
        and $0x8D5, %edx
        push %rdx
        popfq
        mov %rbp, %rcx
        mov %rbp, %r11
        mov (%rbx), %r10
        mov %rbp, (%rsi)
        mov %rbp, (%rbx)
        mov (%rsi), %r14
        pushfq
        pop %rax
        and $0x8D5, %eax
        cmp %rax, %rdx
        jne bad
        cmp %rbp, %rcx
        jne bad
        cmp %rbp, %r11
        jne bad
        cmp %rbp, %r14
        jne bad
        inc %ebp
        cmp $0x1000, %ebp
        jb 1b
        movl $1, {DATA}
    bad:
    """)
    assert guest.word(0, 4) == 1
    assert guest.vcpu.stats()["slow_accesses"] < 200


RELOAD = "mov %cr3, %rax; mov %rax, %cr3"
TOGGLE = "mov %cr4, %rax; xor $0x80, %eax; mov %rax, %cr4; xor $0x80, %eax; mov %rax, %cr4"


def remap(bits: int, drop: str, access: str, touch: str) -> str:
    """ONE is known; ``touch`` moves it to the second TLB; it goes elsewhere; ``drop`` says so; then an ``access``."""
    return f"addq $4, (%rbx); {touch}; movq ${SECOND:#x}+{bits}, TABLE; {drop}; {access}"


@pytest.mark.parametrize("one", [LOWER, UPPER])
@pytest.mark.parametrize("touch", ["", "addl $1, (%rsi)"])
@pytest.mark.parametrize(
    ("bits", "drop"),
    [(WRITABLE, "invlpg (%rbx)"), (GLOBAL, "invlpg (%rbx)"), (WRITABLE, RELOAD), (GLOBAL, TOGGLE)],
)
def test_a_page_that_went_elsewhere_is_not_found_where_it_was(
    run: Run, one: int, touch: str, bits: int, drop: str
) -> None:
    guest = run(remap(bits, drop, f"mov (%rbx), %rax; mov %rax, {DATA}; incq (%rbx)", touch), one=one, bits=bits)
    assert guest.word(0) == 2
    assert [guest.memory.read_uint(where, 8) for where in (FIRST, SECOND)] == [5, 3]


@pytest.mark.parametrize("one", [LOWER, UPPER])
def test_a_store_finds_a_page_that_went_elsewhere_there(run: Run, one: int) -> None:
    guest = run(remap(WRITABLE, RELOAD, "movq $7, (%rbx)", "mov (%rsi), %rax"), one=one)
    assert [guest.memory.read_uint(where, 8) for where in (FIRST, SECOND)] == [5, 7]


def test_a_global_page_of_the_kernel_is_kept(run: Run) -> None:
    guest = run(
        remap(GLOBAL, RELOAD, f"mov (%rbx), %rax; mov %rax, {DATA}", "mov (%rsi), %rax"), one=UPPER, bits=GLOBAL
    )
    assert guest.word(0) == 5


@pytest.mark.parametrize("one", [LOWER, UPPER])
def test_invlpg_of_any_address_of_a_large_page_drops_the_second_tlbs_pieces(run: Run, one: int) -> None:
    guest = run(
        f"""
        movq ${FIRST:#x}+0x87, DIRECTORY
        invlpg (%rbx)
        mov (%rbx), %rax
        mov (%rsi), %rax
        movq ${SECOND:#x}+0x87, DIRECTORY
        invlpg 0x5000(%rbx)
        mov (%rbx), %rax
        mov %rax, {DATA}
        """,
        one=one,
    )
    assert guest.word(0) == 2


@pytest.mark.parametrize("drop", ["invlpg (%rsi)", RELOAD])
def test_the_upper_levels_of_all_addresses_are_forgotten(run: Run, drop: str) -> None:
    """SDM Vol. 3A 4.10.4.1: INVLPG drops the paging-structure caches, whatever address it names."""
    guest = run(f"""
        movq ${SECOND:#x}+7, 0x32008
        movq ${FIRST:#x}+0x67, TABLE+8
        mov (%rbx), %rax
        movq $0x32007, DIRECTORY
        {drop}
        mov 0x1000(%rbx), %rax
        mov %rax, {DATA}
    """)
    assert guest.word(0) == 2


def test_the_accessed_flag_is_set_where_the_upper_levels_are_known(run: Run) -> None:
    guest = run(f"""
        movq ${SECOND:#x}+7, TABLE+8
        mov (%rbx), %rax
        mov 0x1000(%rbx), %rax
        mov TABLE+8, %rax
        mov %rax, {DATA}
    """)
    assert guest.word(0) & 0x60 == 0x20


def test_the_dirty_flag_is_set_by_the_first_store_and_by_none_behind_it(run: Run) -> None:
    guest = run(f"""
        mov (%rbx), %rax
        mov (%rsi), %rax
        mov TABLE, %rax
        mov %rax, {DATA}
        mov (%rbx), %rax
        movq $5, (%rbx)
        mov TABLE, %rax
        mov %rax, {DATA}+8
        btrl $6, TABLE
        mov (%rsi), %rax
        movq $6, (%rbx)
        mov TABLE, %rax
        mov %rax, {DATA}+16
    """)
    assert [guest.word(i) & 0x60 for i in range(3)] == [0x20, 0x60, 0x20]


def test_a_page_that_became_code_is_not_written_unseen(run: Run) -> None:
    guest = run(f"""
        movl $0x000001B8, (%rbx)    # mov $1, %eax; ret
        movw $0xC300, 4(%rbx)
        mov (%rsi), %rax            # the page's write tag is in the second TLB
        call *%rbx
        mov %eax, {DATA}
        movb $2, 1(%rbx)
        call *%rbx
        mov %eax, {DATA}+4
    """)
    assert guest.words(2, 4) == [1, 2]


def test_a_watched_page_is_in_neither_tlb(run: Run) -> None:
    # DR0 watches eight bytes of ONE for stores: each raises #DB, also where the page was known before.
    guest = run(f"""
        lea 1f(%rip), %rax
        mov %ax, 0x2010
        movw $8, 0x2012
        movw $0x8E00, 0x2014
        shr $16, %rax
        mov %ax, 0x2016
        movq $0, 0x2018
        xor %r12d, %r12d
        incq 8(%rbx)
        mov (%rsi), %rax
        mov %rbx, %dr0
        mov $0x90002, %eax
        mov %rax, %dr7
        incq 8(%rbx)
        mov (%rsi), %rax
        incq (%rbx)
        mov (%rsi), %rax
        incq (%rbx)
        mov %r12d, {DATA}
        jmp 2f
    1:  inc %r12d
        iretq
    2:
    """)
    assert guest.word(0, 4) == 2


def test_keys_may_come_round(run: Run) -> None:
    # Each load of CR3 takes a new key, of which there are fewer than 65536. 511 pages are filed under one of the first;
    # when it is that one's turn again, one of them after the other is looked at.
    guest = run(f"""
        mov $511, %ecx
    1:  movq ${FIRST:#x}+7, TABLE(,%rcx,8)
        dec %ecx
        jnz 1b
        mov $0x1FF000, %ecx
    1:  add (%rbx,%rcx), %r8
        sub $0x1000, %ecx
        jnz 1b
        mov $511, %ecx
    1:  movq ${SECOND:#x}+7, TABLE(,%rcx,8)
        dec %ecx
        jnz 1b
        mov $65300, %ecx
        mov %cr3, %rdx
    1:  mov %rdx, %cr3
        mov (%rsi), %rax
        dec %ecx
        jnz 1b
        mov $0x1FF000, %ecx
        xor %r9d, %r9d
    1:  mov %rdx, %cr3
        mov (%rsi), %rax
        add (%rbx,%rcx), %r9
        sub $0x1000, %ecx
        jnz 1b
        mov %r8, {DATA}
        mov %r9, {DATA}+8
    """)
    assert guest.words(2) == [511, 1022]


def test_the_entry_that_is_filed_under_the_first_of_all_keys_again_is_whole(run: Run) -> None:
    # Page 0 takes each key, gives way to a page with the same entry of the first TLB, and comes back.
    guest = run(f"""
        movq $5, 8
        mov $70000, %ecx
        mov %cr3, %rdx
        xor %r8d, %r8d
    1:  mov %rdx, %cr3
        mov 8, %rax
        mov 0x400008, %rax
        add 8, %r8
        dec %ecx
        jnz 1b
        mov %r8, {DATA}
    """)
    assert guest.word(0) == 350000


FAULTS = {
    "another table where the upper levels were remembered": """
        gate64 14, handler
        movq $0x30007, 0x5028
        movq $T1 + 7, PD
        movq $T2 + 7, PD + 8
        movq $0x100067, T1              # VA by T1, and VA + 1000h by T2
        movq $0x101067, T2 + 8
        movq $1, 0x101000
        movq $2, 0x102000
        mov %cr3, %rax
        mov %rax, %cr3
        movabs $VA, %rbx
        mov (%rbx), %rax
        movq $0, PD                     # no INVLPG: what is not there cannot be accessed either way
        mov 0x1000(%rbx, %r8), %rdx
        mov %rdx, DATA
        finish
    handler:
        movq $T2 + 7, PD
        movq $0x102067, T1 + 8          # the old table has another use now
        add $8, %rsp
        iretq
    """,
    "another page where one could be read": """
        gate64 14, handler
        movq $0x30007, 0x5028
        movq $T1 + 7, PD
        movq $0x101025, T1 + 8          # read-only
        movq $1, 0x102000
        movq $2, 0x101000
        mov %cr3, %rax
        mov %rax, %cr3
        movabs $VA + 0x1000, %rbx
        mov (%rbx, %r8), %rax
        movq $0, T1 + 8
        mov %rax, (%rbx, %r8)
        mov (%rbx, %r8), %rdx
        mov %rdx, DATA
        finish
    handler:
        movq $0x102025, T1 + 8
        add $8, %rsp
        addq $4, (%rsp)                 # no store
        iretq
    """,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_page_fault_forgets_its_address(name: str) -> None:
    """SDM Vol. 3A 4.10.4.1: whoever mends the tables in the handler needs no INVLPG."""
    text = '.include "guest.inc"\n .equ VA, 0x140000000\n .equ PD, 0x30000\n .equ T1, 0x31000\n .equ T2, 0x32000\n'
    guest = boot_guest(find_backend("soft"), assemble(text + "xor %r8d, %r8d\n" + FAULTS[name], ORG))
    try:
        guest.until_end()
        assert guest.word(0) == 1
    finally:
        guest.close()
