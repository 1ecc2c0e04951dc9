"""The debugger's breakpoints, watchpoints and single steps on the engine (``VirtualCpu.set_points``).

Guests place the instructions that matter with ``.org``, so that their addresses are ``CODE`` plus a number.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import pytest

from pyhyve.errors import BackendError
from pyhyve.vmm.api import Capability, Point, PointKind
from pyhyve.vmm.exits import Bogus, Debug, Exit, InOut, InstEmul, Mtrap, SpinupAp
from pyhyve.vmm.registers import Reg, SegmentName
from tests.guests import DATA, DEVICE, END, READ_ONLY, Guest, Mode, assemble, boot_guest, find_backend, is_end

CODE = 0x10000
REAL_CODE = 0x8000
RF, TF = 0x10000, 0x100

Boot = Callable[..., Guest]


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Boots assembly text: ``boot(text, mode)``."""
    guests: list[Guest] = []

    def start(text: str, mode: Mode = Mode.LONG, cpus: int = 1) -> Guest:
        org = REAL_CODE if mode is Mode.REAL else CODE
        include = '.include "guest.inc"\n' if mode is not Mode.REAL else ".code16\n"
        text = re.sub(r"\.org (\w+)", r".org \1, 0x90", text)  # NOPs up to there
        guest = boot_guest(find_backend("soft"), assemble(include + text, org, mode), mode, cpus=cpus)
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.close()


def execute(*addresses: int) -> list[Point]:
    return [Point(PointKind.EXECUTE, address) for address in addresses]


def write(address: int, length: int = 1) -> Point:
    return Point(PointKind.WRITE, address, length)


def access(address: int, length: int = 1) -> Point:
    return Point(PointKind.ACCESS, address, length)


def stops(guest: Guest) -> list[tuple[int, int | None]]:
    """Run to the end; where it stopped, as offset from CODE, and the watchpoint."""
    return [(e.rip - CODE, e.watch) for e in guest.until_end() if isinstance(e, Debug)]


def stepping(guest: Guest, on: bool = True) -> None:
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, on)


def steps(guest: Guest, count: int) -> list[int]:
    """``count`` single steps; RIP behind each as offset from CODE."""
    found = []
    for _ in range(count):
        assert guest.next() == Mtrap()
        found.append(guest.register(Reg.RIP) - CODE)
    return found


# Breakpoints.

LOOP = """
    mov $10, %ecx
    .org 0x10
    inc %rax
    dec %ecx
    .org 0x20
    jnz . - 0x10
    finish
"""


def test_a_breakpoint_stops_before_its_instruction_each_time(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(CODE + 0x10))
    for count in range(10):
        assert guest.next() == Debug(CODE + 0x10)
        assert guest.register(Reg.RIP) == CODE + 0x10
        assert guest.register(Reg.RAX) == count
    assert guest.until_end() == []
    assert guest.register(Reg.RAX) == 10


def test_a_breakpoint_where_rip_was_set_is_passed_once(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(CODE))
    assert guest.until_end() == []
    guest.vcpu.set_registers({Reg.RIP: CODE})
    guest.vcpu.set_points(execute(CODE, CODE + 0x20))
    assert guest.next() == Debug(CODE + 0x20)


def test_breakpoints_reach_translated_chained_code_and_leave_it_again(boot: Boot) -> None:
    guest = boot("""
    mov $3, %ebx
    .org 0x10
    mov $1000, %ecx
    .org 0x20
    nop
    .org 0x30
    loop . - 0x10
    in $0x80, %al
    dec %ebx
    jnz . - 0x26
    finish
    """)
    assert isinstance(guest.next(), InOut)
    guest.vcpu.answer(0)
    guest.vcpu.set_points(execute(CODE + 0x30))
    for count in range(1000, 0, -1):
        assert guest.next() == Debug(CODE + 0x30)
        assert guest.register(Reg.RCX) == count
    assert isinstance(guest.next(), InOut)
    guest.vcpu.answer(0)
    guest.vcpu.set_points([])
    assert guest.until_end(lambda found: 0) == [InOut(0x80, 1, True)]


def test_hundreds_of_breakpoints(boot: Boot) -> None:
    guest = boot(".fill 600, 1, 0x90\n finish\n")
    addresses = [CODE + 2 * i + 1 for i in range(300)]
    guest.vcpu.set_points(execute(*addresses))
    assert [CODE + at for at, _ in stops(guest)] == addresses


def test_breakpoints_at_the_same_offset_of_many_pages(boot: Boot) -> None:
    guest = boot(
        "\n".join(f".org {page << 12}\n mov ${page}, %eax\n jmp . + 0x1000 - 5\n" for page in range(9))
        + """
    .org 0x9000
    mov $9, %eax
    finish
    """
    )
    chosen = [CODE + (page << 12) + 5 for page in (1, 3, 4, 6, 7, 8)]
    for count in (1, 4, 6):
        guest.vcpu.set_registers({Reg.RIP: CODE})
        guest.vcpu.set_points(execute(*chosen[:count]))
        assert [CODE + at for at, _ in stops(guest)] == chosen[:count]


def test_a_breakpoint_is_a_linear_address(boot: Boot) -> None:
    # The same code runs at two addresses.
    guest = boot(f"""
    mov ${READ_ONLY + CODE + 0x20}, %rax
    call . + 0x20 - 10
    call *%rax
    finish
    .org 0x20
    nop
    .org 0x28
    nop
    ret
    """)
    guest.vcpu.set_points(execute(CODE + 0x28))
    assert stops(guest) == [(0x28, None)]
    guest.vcpu.set_registers({Reg.RIP: CODE})
    guest.vcpu.set_points(execute(READ_ONLY + CODE + 0x28))
    assert stops(guest) == [(READ_ONLY + 0x28, None)]


def test_a_breakpoint_at_an_instruction_that_lies_in_two_pages(boot: Boot) -> None:
    guest = boot("jmp . + 0xFF0\n .org 0xFF0\n nop\n .org 0xFFD\n mov $0x12345678, %eax\n finish\n")
    guest.vcpu.set_points(execute(CODE + 0xFFD))
    assert guest.next() == Debug(CODE + 0xFFD)
    assert guest.register(Reg.RAX) == 0
    assert guest.until_end() == []
    assert guest.register(Reg.RAX) == 0x12345678


def test_flags_are_exact_at_a_breakpoint(boot: Boot) -> None:
    # ADD overwrites what STC and the comparison left: nobody but the debugger sees it.
    guest = boot("""
    mov $DATA, %ebx
    xor %eax, %eax
    stc
    .org 0x20
    mov (%rbx), %rcx
    .org 0x30
    add $1, %eax
    finish
    """)
    guest.vcpu.set_points(execute(CODE + 0x30))
    guest.next()
    assert guest.register(Reg.RFLAGS) & 0x8D5 == 0x45


def test_breakpoints_in_real_mode_count_the_segment_base(boot: Boot) -> None:
    guest = boot(
        """
    ljmp $0x0700, $0x1010
    .org 0x10
    nop
    .org 0x18
    inc %ax
    out %al, $0xF4
    """,
        Mode.REAL,
    )
    guest.vcpu.set_points(execute(REAL_CODE + 0x18))
    assert guest.next() == Debug(0x1018)
    assert guest.register(Reg.RAX) == 0


def test_the_guest_sees_nothing_of_a_breakpoint(boot: Boot) -> None:
    guest = boot(f"""
    mov ${CODE + 0x40}, %esi
    .org 0x10
    movzbl (%rsi), %eax
    .org 0x40
    pushf
    pop %rbx
    finish
    """)
    guest.vcpu.set_points(execute(CODE + 0x10, CODE + 0x40, CODE + 0x41))
    assert stops(guest) == [(0x10, None), (0x40, None), (0x41, None)]
    assert guest.register(Reg.RAX) == 0x9C
    assert guest.register(Reg.RBX) & (RF | TF) == 0


def test_a_kick_at_a_breakpoint_does_not_lose_it(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(CODE + 0x20))
    assert guest.next() == Debug(CODE + 0x20)
    guest.vcpu.kick()
    assert guest.run() == Bogus()
    assert guest.next() == Debug(CODE + 0x20)
    assert guest.register(Reg.RAX) == 2


FAULTS = """
    gate64 6, handler
    .org 0x80
    ud2
    .org 0x90
    finish
    .org 0x100
handler:
    addq $0x10, (%rsp)
    .org 0x110
    iretq
"""


def test_a_faulting_instruction_stops_before_its_fault(boot: Boot) -> None:
    guest = boot(FAULTS)
    guest.vcpu.set_points(execute(CODE + 0x80, CODE + 0x100))
    assert stops(guest) == [(0x80, None), (0x100, None)]


def test_a_repeated_instruction_stops_once(boot: Boot) -> None:
    guest = boot("mov $DATA, %edi\n mov $5000, %ecx\n .org 0x20\n rep stosb\n .org 0x30\n finish\n")
    guest.vcpu.set_points(execute(CODE + 0x20, CODE + 0x30))
    assert stops(guest) == [(0x20, None), (0x30, None)]


def test_an_instruction_that_wants_an_answer_stops_once(boot: Boot) -> None:
    guest = boot("""
    .org 0x10
    in $0x80, %al
    mov $DEVICE, %ebx
    .org 0x30
    add %eax, (%rbx)
    finish
    """)
    guest.vcpu.set_points(execute(CODE + 0x10, CODE + 0x30))
    found = guest.until_end(lambda e: 5 if e in (InOut(0x80, 1, True), InstEmul(DEVICE, 4, False)) else None)
    assert found == [
        Debug(CODE + 0x10),
        InOut(0x80, 1, True),
        Debug(CODE + 0x30),
        InstEmul(DEVICE, 4, False),
        InstEmul(DEVICE, 4, True, 10),
    ]


def test_more_points_than_fit_are_refused(boot: Boot) -> None:
    guest = boot(LOOP)
    with pytest.raises(BackendError, match="2000 breakpoints"):
        guest.vcpu.set_points(execute(*range(2000)))
    with pytest.raises(BackendError, match="100 watchpoints"):
        guest.vcpu.set_points([write(at) for at in range(100)])
    assert guest.until_end() == []


# Watchpoints.


def test_a_write_watchpoint_stops_behind_the_instruction_that_touched_its_bytes(boot: Boot) -> None:
    guest = boot("""
    mov $DATA, %ebx
    mov $0x1122334455667788, %rax
    .org 0x20
    mov %al, 0x100(%rbx)
    mov %al, 0x103(%rbx)
    mov 0x101(%rbx), %cl
    .org 0x40
    mov %al, 0x101(%rbx)
    mov %eax, 0xFD(%rbx)
    .org 0x50
    mov %eax, 0xFE(%rbx)
    mov %ax, 0xFF(%rbx)
    .org 0x60
    mov %ax, 0x102(%rbx)
    mov %eax, 0x103(%rbx)
    .org 0x70
    movups %xmm0, 0xF2(%rbx)
    finish
    """)
    guest.vcpu.set_points([write(DATA + 0x101, 2)])
    watch = DATA + 0x101
    assert stops(guest) == [(0x46, watch), (0x56, watch), (0x67, watch), (0x77, watch)]


def test_an_access_watchpoint_sees_reads_too(boot: Boot) -> None:
    guest = boot("""
    mov $DATA, %ebx
    .org 0x10
    mov (%rbx), %eax
    .org 0x20
    cmp %al, 2(%rbx)
    .org 0x30
    mov %eax, 4(%rbx)
    finish
    """)
    guest.vcpu.set_points([access(DATA + 2), write(DATA + 0x800), access(DATA + 7)])
    assert stops(guest) == [(0x12, DATA + 2), (0x23, DATA + 2), (0x33, DATA + 7)]


def test_watchpoints_see_modification_pushes_calls_and_locked_instructions(boot: Boot) -> None:
    guest = boot("""
    mov $DATA + 0x808, %esp
    .org 0x10
    push %rax
    .org 0x20
    pop %rax
    .org 0x30
    call . + 0x10
    .org 0x40
    lock incl (%rsp)
    .org 0x50
    pushf
    .org 0x60
    addb $1, 8(%rsp)
    finish
    """)
    guest.vcpu.set_points([write(DATA + 0x800, 8)])
    watch = DATA + 0x800
    assert stops(guest) == [(0x11, watch), (0x40, watch), (0x44, watch), (0x65, watch)]


@pytest.mark.parametrize("at", [0xFFE, 0xFFF, 0x1000, 0x1001])
def test_watchpoints_see_both_parts_of_an_access_that_crosses_a_page(boot: Boot, at: int) -> None:
    guest = boot("""
    mov $DATA + 0xFFE, %ebx
    .org 0x10
    mov %eax, (%rbx)
    .org 0x20
    mov (%rbx), %eax
    finish
    """)
    guest.vcpu.set_points([access(DATA + at)])
    assert stops(guest) == [(0x12, DATA + at), (0x22, DATA + at)]
    guest.vcpu.set_registers({Reg.RIP: CODE})
    guest.vcpu.set_points([access(DATA + 0xFFD), access(DATA + 0x1002)])
    assert stops(guest) == []


def test_string_instructions_stop_at_the_element(boot: Boot) -> None:
    guest = boot("""
    mov $DATA, %esi
    mov $DATA + 0x1800, %edi
    mov $0x400, %ecx
    .org 0x20
    rep movsq
    finish
    """)
    guest.vcpu.set_points([write(DATA + 0x1823)])
    assert guest.next() == Debug(CODE + 0x20, DATA + 0x1823)
    assert guest.register(Reg.RCX) == 0x400 - 5
    assert guest.register(Reg.RDI) == DATA + 0x1828
    assert guest.until_end() == []
    assert guest.register(Reg.RDI) == DATA + 0x3800


def test_string_instructions_downwards_and_comparisons(boot: Boot) -> None:
    guest = boot("""
    mov $DATA + 0x100, %edi
    mov $0x80, %ecx
    std
    .org 0x20
    rep stosb
    cld
    mov $DATA + 0x80, %edi
    mov $0x80, %ecx
    mov $1, %al
    .org 0x40
    repne scasb
    finish
    """)
    guest.vcpu.set_points([access(DATA + 0xC0)])
    assert guest.next() == Debug(CODE + 0x20, DATA + 0xC0)
    assert guest.register(Reg.RDI) == DATA + 0xBF
    assert guest.next() == Debug(CODE + 0x40, DATA + 0xC0)
    assert guest.register(Reg.RDI) == DATA + 0xC1
    assert guest.until_end() == []


def test_what_a_port_writes_to_memory_is_seen(boot: Boot) -> None:
    guest = boot("mov $DATA, %edi\n mov $0x80, %dx\n .org 0x20\n insl\n .org 0x30\n mov %edi, %esi\n outsb\n finish\n")
    guest.vcpu.set_points([access(DATA + 3), access(DATA + 4)])
    found = guest.until_end(lambda e: 7 if isinstance(e, InOut) and e.is_in else None)
    assert [e for e in found if isinstance(e, Debug)] == [Debug(CODE + 0x21, DATA + 3), Debug(CODE + 0x33, DATA + 4)]
    assert [type(e) for e in found] == [InOut, Debug, InOut, Debug]


def test_what_a_faulting_instruction_read_is_forgotten(boot: Boot) -> None:
    # PUSH reads its operand, then finds its stack not mapped.
    guest = boot("""
    gate64 14, handler
    movb $1, IDT + 16 * 14 + 4      # its own stack
    mov $DATA, %ebx
    mov $NOT_MAPPED + 0x100, %rsp
    .org 0x80
    push (%rbx)
    .org 0x100
handler:
    mov (%rbx), %eax
    finish
    """)
    guest.memory.write_uint(0x3000 + 0x24, 0x70000, 8)  # IST1
    guest.vcpu.set_points([access(DATA)])
    assert stops(guest) == [(0x102, DATA)]


def test_the_frame_of_an_exception_is_seen(boot: Boot) -> None:
    guest = boot(FAULTS)
    top = 0x80000
    guest.vcpu.set_points([write(top - 40, 8)])
    assert guest.next() == Debug(CODE + 0x100, top - 40)
    assert guest.next() == Debug(CODE + 0x105, top - 40)


def test_other_data_on_a_watched_page_stays_right(boot: Boot) -> None:
    guest = boot("""
    mov $DATA, %ebx
    mov $200, %ecx
1:  mov %ecx, (%rbx, %rcx, 4)
    add (%rbx, %rcx, 4), %eax
    lock xadd %edx, 0x800(%rbx)
    loop 1b
    finish
    """)
    guest.vcpu.set_points([access(DATA + 0xF00, 8)])
    assert stops(guest) == []
    assert guest.register(Reg.RAX) == 200 * 201 // 2


def test_watchpoints_go_again(boot: Boot) -> None:
    guest = boot("mov $DATA, %ebx\n mov $50, %ecx\n .org 0x10\n incl (%rbx)\n loop . - 2\n finish\n")
    guest.vcpu.set_points([write(DATA, 4)])
    for _ in range(10):
        assert guest.next() == Debug(CODE + 0x12, DATA)
    guest.vcpu.set_points([])
    assert guest.until_end() == []
    assert guest.word(0, 4) == 50


# Single steps.


def test_steps_pass_breakpoints(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(CODE + 0x10))
    assert guest.next() == Debug(CODE + 0x10)
    stepping(guest)
    assert steps(guest, 3)[:2] == [0x13, 0x15]
    stepping(guest, False)
    assert guest.next() == Debug(CODE + 0x10)


def test_a_step_to_a_breakpoint_does_not_make_it_stop_twice(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(CODE + 0x13))
    guest.vcpu.set_registers({Reg.RIP: CODE + 0x10, Reg.RCX: 2})
    stepping(guest)
    assert steps(guest, 1) == [0x13]
    stepping(guest, False)
    assert guest.next() == Debug(CODE + 0x13)
    assert guest.register(Reg.RCX) == 1


def test_a_step_of_a_fault_ends_at_the_first_instruction_of_its_handler(boot: Boot) -> None:
    guest = boot(FAULTS)
    guest.vcpu.set_points(execute(CODE + 0x80))
    assert guest.next() == Debug(CODE + 0x80)
    stepping(guest)
    assert steps(guest, 2) == [0x100, 0x105]


def test_a_step_of_a_repeated_instruction_is_an_element(boot: Boot) -> None:
    guest = boot("mov $DATA, %edi\n mov $3, %ecx\n .org 0x20\n rep stosq\n .org 0x30\n finish\n")
    guest.vcpu.set_points(execute(CODE + 0x20))
    assert guest.next() == Debug(CODE + 0x20)
    stepping(guest)
    counts = []
    for _ in range(3):
        assert guest.next() == Mtrap()
        counts.append((guest.register(Reg.RIP) - CODE, guest.register(Reg.RCX)))
    assert counts == [(0x20, 2), (0x20, 1), (0x23, 0)]


def test_a_step_of_halt_ends_behind_it(boot: Boot) -> None:
    guest = boot("nop\n hlt\n nop\n finish\n")
    stepping(guest)
    assert steps(guest, 2) == [1, 2]


def test_a_step_of_a_device_access_tells_the_device_first(boot: Boot) -> None:
    guest = boot(f"""
    out %al, $0x80
    in $0x80, %al
    mov ${DEVICE}, %ebx
    .org 0x10
    mov %eax, (%rbx)
    mov (%rbx), %ecx
    finish
    """)
    stepping(guest)
    found: list[Exit] = []
    while found[-1:] != [InOut(END, 1, False, 9)]:
        found.append(guest.next())
        match found[-1]:
            case InOut(is_in=True) | InstEmul(is_write=False):
                guest.vcpu.answer(9)
            case Mtrap():
                found[-1:] = [Mtrap(), guest.register(Reg.RIP) - CODE]  # type: ignore[list-item]
    assert found[:6] == [InOut(0x80, 1, False, 0), Mtrap(), 2, InOut(0x80, 1, True), Mtrap(), 4]
    assert found[-7:-1] == [InstEmul(DEVICE, 4, True, 9), Mtrap(), 0x12, InstEmul(DEVICE, 4, False), Mtrap(), 0x14]


def test_a_step_behind_the_shadow_of_a_stack_load_is_one_instruction(boot: Boot) -> None:
    guest = boot("mov %ss, %eax\n mov %eax, %ss\n nop\n nop\n sti\n nop\n cli\n finish\n")
    stepping(guest)
    assert steps(guest, 7) == [2, 4, 5, 6, 7, 8, 9]


INTERRUPT = """
    gate64 0x40, handler
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_ICR, 0x44040    # to itself; IF is clear
    sti
    .org 0x80
    inc %eax
    .org 0x90
    inc %eax
    finish
    .org 0x100
handler:
    mov %rax, DATA
    finish
"""


def test_interrupts_wait_while_the_debugger_steps(boot: Boot) -> None:
    guest = boot(INTERRUPT)
    guest.vcpu.set_points(execute(CODE + 0x80))
    guest.vcpu.set_registers({Reg.RAX: 0})
    stepping(guest)
    seen = []
    while guest.register(Reg.RIP) != CODE + 0x90:
        found = guest.next()
        if found == Mtrap():
            seen.append(guest.register(Reg.RIP) - CODE)
    assert 0x100 not in seen
    stepping(guest, False)
    assert guest.until_end() == []
    assert guest.register(Reg.RIP) == CODE + 0x10A


def test_an_interrupt_waits_for_the_instruction_that_is_passed(boot: Boot) -> None:
    guest = boot(INTERRUPT.replace("sti\n", "cli\n"))
    guest.vcpu.set_points(execute(CODE + 0x80))
    assert guest.next() == Debug(CODE + 0x80)
    guest.vcpu.set_registers({Reg.RFLAGS: 0x202, Reg.RAX: 0})
    guest.vcpu.set_points(execute(CODE + 0x80))
    assert guest.until_end() == []
    assert guest.word(0) == 1


def test_a_watchpoint_ends_a_step_instead_of_the_step(boot: Boot) -> None:
    guest = boot("mov $DATA, %ebx\n .org 0x10\n mov %eax, (%rbx)\n nop\n finish\n")
    guest.vcpu.set_points([*execute(CODE + 0x10), write(DATA)])
    assert guest.next() == Debug(CODE + 0x10)
    stepping(guest)
    assert guest.next() == Debug(CODE + 0x12, DATA)
    assert steps(guest, 1) == [0x13]


# Several vCPUs.


def test_points_are_one_vcpus_and_take_effect_while_another_runs_the_code(boot: Boot) -> None:
    guest = boot(
        """
    write_reg LAPIC_ICR_HIGH, 1 << 24
    write_reg LAPIC_ICR, 0x4500     # INIT
    write_reg LAPIC_ICR, 0x4610     # start up
    .org 0x80
    lock incq (%rbx)
    .org 0x90
    nop
    dec %rcx
    jnz . - 0x14
    finish
    """,
        cpus=2,
    )
    second = guest.vm.create_vcpu(1)
    found = guest.next()
    assert isinstance(found, SpinupAp)
    second.start(found.vector)
    state = (Reg.CR0, Reg.CR3, Reg.CR4, Reg.EFER, Reg.RFLAGS)
    second.set_registers({**guest.vcpu.get_registers(state), Reg.RIP: CODE + 0x80})
    for name in SegmentName:
        second.set_segment(name, guest.vcpu.get_segment(name))
    rounds = 300000
    guest.vcpu.set_registers({Reg.RIP: CODE + 0x80, Reg.RBX: DATA, Reg.RCX: rounds})
    second.set_registers({Reg.RBX: DATA + 8, Reg.RCX: 1000})
    other = threading.Thread(target=guest.until_end)
    other.start()
    try:
        for count in range(1, 101):
            second.set_points(execute(CODE + 0x90) if count % 2 else [write(DATA + 8, 8)])
            assert second.run() == (Debug(CODE + 0x90) if count % 2 else Debug(CODE + 0x84, DATA + 8))
        second.set_points([])
        assert is_end(second.run())
    finally:
        other.join()
    assert guest.words(2) == [rounds, 1000]
