"""Direct jumps and calls to another page: they go where the page tables and the code say now, for each vCPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyhyve.vmm.registers import Reg
from tests.guests import DATA, TABLES, Guest, Mode, assemble, boot_guest, enter_guest, find_backend, is_end

ORG = 0x10000
CODE, FIRST, SECOND = 0x40000, 0x41000, 0x42000
"""Guest-physical pages: the one that jumps, and the two that may lie behind it."""
WAYS = {
    "call": ("call 0x1000\njmp *%rcx", "ret"),
    "jump": ("jmp 0x1000", "jmp *%rcx"),
    "branch": ("test %esp, %esp\njnz 0x1000", "jmp *%rcx"),
}
PRELUDE = """
    .equ PAGE, 0x140000000          # 5 GiB
    .equ PT, 0x31000
    .equ PAGE2, PAGE + 0x10000      # the first page once more, another behind it
    movq $0x30007, 0x5028
    movq $0x31007, 0x30000
    movq $0x40003, PT
    movq $0x41003, PT + 8
    movq $0x40003, PT + 0x80
    movq $0x42003, PT + 0x88
    movabs $PAGE, %rdx
    movabs $PAGE2, %rsi
    .macro visit page=%rdx
        lea 9f(%rip), %rcx
        jmp *\\page
    9:
    .endm
    .macro tell at
        visit
        visit
        visit
        mov %ebx, 0x20000 + 8 * \\at
    .endm
"""
END = "\n out %al, $0xF4\n"

Boot = Callable[..., Guest]


@pytest.fixture(params=WAYS)
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    hypervisor = find_backend("soft")
    made: list[Guest] = []

    def make(source: str, *, cpus: int = 1) -> Guest:
        guest = boot_guest(hypervisor, assemble(PRELUDE + source + END, ORG), cpus=cpus)
        jump, back = WAYS[request.param]
        guest.memory.write(CODE, assemble(jump + "\n", 0))
        for number, gpa in ((1, FIRST), (2, SECOND)):
            guest.memory.write(gpa, assemble(f"mov ${number}, %ebx\n{back}", 0))
        guest.vm.memory_written(CODE, 0x3000)
        made.append(guest)
        return guest

    yield make
    for guest in made:
        guest.close()


@pytest.mark.parametrize(
    "forget",
    ["invlpg 0x1000(%rdx)", "mov %cr3, %rax\nmov %rax, %cr3", "mov %cr4, %rax\nxor $0x80, %eax\nmov %rax, %cr4"],
)
def test_another_page_is_mapped_behind(boot: Boot, forget: str) -> None:
    guest = boot(f"tell 0\nmovq $0x42003, PT + 8\n{forget}\ntell 1")
    guest.until_end()
    assert guest.words(2) == [1, 2]


def test_global_pages_outlive_a_load_of_cr3_but_not_invlpg(boot: Boot) -> None:
    guest = boot("""
        mov %cr4, %rax
        or $0x80, %eax
        mov %rax, %cr4
        orq $0x100, PT
        movq $0x41103, PT + 8
        invlpg (%rdx)
        invlpg 0x1000(%rdx)
        tell 0
        mov %cr3, %rax
        mov %rax, %cr3
        tell 1
        movq $0x42103, PT + 8
        invlpg 0x1000(%rdx)
        tell 2
    """)
    guest.until_end()
    assert guest.words(3) == [1, 1, 2]


def test_the_code_behind_is_changed(boot: Boot) -> None:
    guest = boot("""
        tell 0
        movb $7, 0x41001
        tell 1
        mov $20000, %ebp
    1:  visit
        dec %ebp
        jnz 1b
    """)
    guest.until_end()
    assert guest.words(2) == [1, 7]
    # Who has once come upon the code that is gone does not come upon it for ever.
    assert guest.vcpu.stats()["enters"] < 2000


def test_the_page_that_jumps_lies_at_two_addresses(boot: Boot) -> None:
    guest = boot("""
        mov $3000, %ebp
    1:  visit
        imul $3, %eax
        add %ebx, %eax
        visit %rsi
        imul $3, %eax
        add %ebx, %eax
        dec %ebp
        jnz 1b
        mov %eax, 0x20000
        mov %cr3, %rax
        mov %rax, %cr3
        tell 1
        visit %rsi
        mov %ebx, 0x20010
    """)
    guest.until_end()
    expected = 0
    for _ in range(3000):
        expected = ((expected * 3 + 1) * 3 + 2) & 0xFFFFFFFF
    assert guest.words(3, 8) == [expected, 1, 2]
    # What is known is not forgotten each time.
    assert guest.vcpu.stats()["enters"] < 2000


@pytest.mark.parametrize("late", [False, True])
def test_each_vcpu_has_its_own_page_tables(boot: Boot, late: bool) -> None:
    guest = boot("tell 0", cpus=2)
    for _ in range(1 - late):
        guest.vm.create_vcpu(1)
    guest.until_end()
    other = guest.vm.create_vcpu(1) if late else guest.vm.cpus[1]
    # The second's tables are a copy but for what lies behind the page that jumps.
    for gpa, copy in ((TABLES, 0x50000), (TABLES + 0x1000, 0x51000), (0x30000, 0x52000), (0x31000, 0x53000)):
        guest.memory.write(copy, guest.memory.read(gpa, 0x1000))
    for gpa, value in ((0x50000, 0x51007), (0x51028, 0x52007), (0x52000, 0x53007), (0x53008, SECOND | 3)):
        guest.memory.write_uint(gpa, value, 8)
    visits = assemble(PRELUDE.split("movq", 1)[0] + "movabs $PAGE, %rdx\n.macro" + PRELUDE.split(".macro", 1)[1]
                      + "tell 1" + END, 0x18000)  # fmt: skip
    guest.memory.write(0x18000, visits)
    guest.vm.memory_written(0x18000, len(visits))
    other.start(8)
    enter_guest(other, guest.memory, Mode.LONG, 0x18000)
    other.set_registers({Reg.CR3: 0x50000})
    while not is_end(other.run()):
        pass
    assert guest.words(2) == [1, 2]


def test_the_cache_is_full_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhyve.vmm.soft.engine.CODE_SIZE", 0x30000)
    pages = "\n".join(
        f".balign 4096\np{n}: " + "\n".join(f"add ${n}, %rax\njnc 1f\n1: call f{n}" for _ in range(16))
        + f"\njmp p{n + 1}\nf{n}: ret" for n in range(64)
    )  # fmt: skip
    pages = pages.replace("ret", ".org . + 2048\nret")
    source = f"""
        mov $20, %ecx
    0:  jmp p0
        {pages}
        .balign 4096
    p64: dec %ecx
        jnz 0b
        mov %rax, {DATA}
        out %al, $0xF4
    """
    guest = boot_guest(find_backend("soft"), assemble(source, 0x400000), org=0x400000)
    try:
        guest.until_end()
        assert guest.word(0) == 20 * 16 * sum(range(64))
        assert guest.vm.stats()["code_flushes"] > 5
    finally:
        guest.close()
