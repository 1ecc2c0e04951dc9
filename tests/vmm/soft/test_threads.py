"""vCPUs of one engine that wait for one another, and code that several of them translate: no wait is for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from pyhyve.vmm.api import Capability, VirtualCpu
from pyhyve.vmm.exits import Bogus, Exit, Hlt, InOut, Suspended, SuspendReason
from tests.guests import DATA, IDT, Guest, assemble, boot_guest, find_backend, is_end

ORG = 0x10000
PATIENCE = 25.0

Boot = Callable[..., Guest]


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Boot]:
    """Makes a guest on the engine; ``cache`` is the size of its code cache."""
    hypervisor = find_backend("soft")
    guests: list[Guest] = []

    def make(source: str, *, cpus: int = 1, cache: int = 96 << 20) -> Guest:
        monkeypatch.setattr("pyhyve.vmm.soft.engine.CODE_SIZE", cache)
        guest = boot_guest(hypervisor, assemble(source, ORG), cpus=cpus)
        for index in range(1, cpus):
            guest.vm.create_vcpu(index)
        guests.append(guest)
        return guest

    yield make
    for guest in guests:
        guest.close()


def in_time(work: Callable[[], object], rescue: VirtualCpu) -> bool:
    """Whether ``work`` comes to its end; if not, a kick may help it out."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not thread.is_alive():
        return True
    rescue.kick()
    thread.join(1)
    return False


def test_a_processor_that_spins_is_stopped_however_often_another_wants_it(boot: Boot) -> None:
    source = """
        mov $0x600FFE, %rbx
        mov $1, %eax
        mov $20000, %ecx
    1:  lock add %eax, (%rbx)
        dec %ecx
        jnz 1b
        out %al, $0xF4
    """
    guest = boot(source, cpus=2)
    spinner = guest.vm.cpus[1]
    guest.memory.write(0x8000, b"\xeb\xfe")
    guest.vm.memory_written(0x8000, 2)
    spinner.start(8)
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            spinner.run()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    found: list[Exit] = []
    worked = in_time(lambda: found.append(guest.vcpu.run()), spinner)
    ended.set()
    spinner.kick()
    thread.join(PATIENCE)
    assert worked
    assert is_end(found[0])


def test_the_cache_may_be_full_when_an_atomic_access_across_pages_has_stopped_the_world(boot: Boot) -> None:
    source = """
        mov $0x600FFE, %rbx
        mov $1, %eax
        mov $3, %ecx
    again:
        .rept 4000
        lock add %eax, (%rbx)
        .endr
        dec %ecx
        jnz again
        out %al, $0xF4
    """
    guest = boot(source, cpus=2, cache=0x30000)
    found: list[Exit] = []
    assert in_time(lambda: found.append(guest.vcpu.run()), guest.vcpu)
    assert is_end(found[0])
    assert guest.memory.read_uint(0x600FFE, 4) == 12000
    assert guest.vm.stats()["code_flushes"] > 5


def test_a_jump_is_not_linked_to_code_that_the_page_tables_put_there_meanwhile(boot: Boot) -> None:
    # 5 GiB is a small page: first P, whose code maps Q there before it jumps on inside the page. What it finds behind
    # the jump is P's code or Q's. Later P is there again, and only its own code may follow.
    source = """
        .equ PAGE, 0x140000000
        .equ PT, 0x31000
        movq $0x30007, 0x5028
        movq $0x31007, 0x30000
        movq $0x40003, PT
        mov $0x41003, %eax
        lea 1f(%rip), %rcx
        movabs $PAGE, %rdx
        mov $PT, %edi
        jmp *%rdx
    1:  mov %ebx, 0x20000
        movq $0x40003, PT
        invlpg (%rdx)
        mov $0x40003, %eax
        lea 2f(%rip), %rcx
        jmp *%rdx
    2:  mov %ebx, 0x20008
        out %al, $0xF4
    """
    page = """
        mov %rax, (%rdi)
        jmp 1f
        .org 0x100
    1:  mov $NUMBER, %ebx
        jmp *%rcx
    """
    guest = boot(source)
    for number, gpa in ((1, 0x40000), (2, 0x41000)):
        guest.memory.write(gpa, assemble(page, 0, NUMBER=number))
    guest.vm.memory_written(0x40000, 0x2000)
    guest.until_end()
    assert guest.memory.read_uint(DATA, 4) in (1, 2)
    assert guest.memory.read_uint(DATA + 8, 4) == 1


def nmi_gate(guest: Guest, handler: int) -> None:
    guest.memory.write_uint(IDT + 2 * 16, handler & 0xFFFF | 8 << 16 | 0x8E << 40 | handler >> 16 << 48, 8)
    guest.vm.memory_written(IDT, 0x1000)


def test_a_processor_that_an_nmi_has_woken_counts_as_running(boot: Boot) -> None:
    guest = boot("    cli\n1:  hlt\n    jmp 1b\n    .org 0x40\n    out %al, $0x80\n    iretq\n")
    guest.vcpu.set_capability(Capability.HLT_EXIT, True)
    nmi_gate(guest, ORG + 0x40)
    for _ in range(3):
        assert guest.next() == Hlt()
        assert guest.next() == Suspended(SuspendReason.HALT)
        guest.vcpu.inject_nmi()
        assert guest.next() == InOut(0x80, 1, False, 0)


def test_an_nmi_does_not_end_the_halt_of_an_nmi_handler(boot: Boot) -> None:
    guest = boot("    jmp .\n    .org 0x40\n    out %al, $0x80\n    hlt\n    out %al, $0x81\n")
    nmi_gate(guest, ORG + 0x40)
    guest.vcpu.inject_nmi()
    assert guest.next() == InOut(0x80, 1, False, 0)
    guest.vcpu.inject_nmi()
    timer = threading.Timer(0.3, guest.vcpu.kick)
    timer.start()
    assert isinstance(guest.run(), Bogus)
    timer.join()


@pytest.mark.parametrize("bits", [0x83, 0x183])
@pytest.mark.parametrize("reload", ["", "mov %cr3, %rax\nmov %rax, %cr3"])
def test_invlpg_of_a_large_page_forgets_all_code_in_it(boot: Boot, bits: int, reload: str) -> None:
    """SDM Vol. 3 4.10.4.1: whatever address in the page it names; code that the data TLB knows nothing of."""
    guest = boot(f"""
        .equ PAGE, 0x140000000
        mov %cr4, %rax
        or $0x80, %eax
        mov %rax, %cr4
        movq $0x30007, 0x5028
        movq $0x600000+{bits}, 0x30000
        movabs $PAGE, %rdx
        lea 0x5000(%rdx), %rsi
        lea 1f(%rip), %rcx
        jmp *%rsi
    1:  mov %ebx, {DATA}
        {reload}
        movq $0x800000+{bits}, 0x30000
        invlpg (%rdx)
        lea 2f(%rip), %rcx
        jmp *%rsi
    2:  mov %ebx, {DATA}+8
        out %al, $0xF4
    """)
    for number, gpa in ((1, 0x605000), (2, 0x805000)):
        guest.memory.write(gpa, assemble(f"mov ${number}, %ebx\njmp *%rcx\n", 0))
        guest.vm.memory_written(gpa, 0x100)
    guest.until_end()
    assert [guest.memory.read_uint(DATA + at, 4) for at in (0, 8)] == [1, 2]
