"""16- and 32-bit code by its stack instructions and near jumps; alignment checks, PCIDs and KVM's clock.

Expectations are those of the Intel SDM: Vol. 2 of each instruction, Vol. 3A 4.10.1 (PCIDs), 6.15 (#AC); the clock's are
those of Linux, Documentation/virt/kvm/x86/msr.rst.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator

import pytest

from pyhyve.debug import lockstep
from pyhyve.debug.lockstep import Options, compare
from pyhyve.vmm.api import Hypervisor
from tests.guests import DATA, REAL_DATA, USER, Guest, Mode, assemble, boot_guest, find_backend
from tests.vmm.soft.native import layout

CODE, REAL_CODE = 0x10000, 0x8000

REAL = """
.code16
.equ DATA, 0x9000
.macro keep reg
    movl \\reg, (%di)
    add $4, %di
.endm
    movw $protection, 4 * 13
    movw $0, 4 * 13 + 2
    mov $DATA, %di
    xorl %eax, %eax
    movl $0xAAAA0005, %ecx
1:  add $3, %ax
    loop 1b
    keep %eax
    keep %ecx
    jcxz 2f
    keep %esp
2:  movl $3, %ecx
3:  inc %ax
    addr32 loop 3b
    keep %eax
    pushl $0x12345678
    pushw $0x9ABC
    popw %bx
    popl %edx
    keep %edx
    call near16
    calll near32
    mov $near16, %si
    call *%si
    movw $near16, 0x7800
    call *0x7800
    movl $near32, 0x7804
    calll *0x7804
    keep %eax
    push %bp
    mov %sp, %bp
    sub $8, %sp
    leave
    keep %esp
    movl $0x70, %ecx
    cmp $1, %ax
4:  loopne 4b
    keep %ecx
    jmp other_page
back:
    jc 5f
    stc
    jc other_page
5:  keep %eax
here:
    .byte 0x66, 0xE9
    .long 0x20000
protection:
    popw %ax
    sub $here, %ax
    movzwl %ax, %eax
    keep %eax
    out %al, $0xF4
near16:
    add $0x100, %ax
    ret
near32:
    addl $0x1000, %eax
    retl
.org 0x9F8 + 0x1000
other_page:
    inc %ax
    jmp back
"""

PROTECTED = """
.include "guest.inc"
.macro keep reg
    mov \\reg, (%ebx)
    add $4, %ebx
.endm
    mov $DATA, %ebx
    lgdt table
    mov $0x18, %eax
    mov %eax, %fs
    movl $0x11223344, %fs:0x10
    addl $1, %fs:0x10
    mov DATA + 0x210, %eax
    keep %eax
    mov %esp, %ebp
    mov $0x30002, %esp          # pushes and pops that cross a page
    push $0x12345678
    pushw $0x9ABC
    popw %cx
    pop %edx
    keep %edx
    mov %ebp, %esp
    xor %eax, %eax
    mov $5, %ecx
1:  add $3, %eax
    loop 1b
    keep %eax
    jecxz 2f
    keep %esp
2:  call near
    mov $near, %esi
    call *%esi
    push %esi
    call *(%esp)
    pop %esi
    push $1
    push $2
    call frees
    keep %eax
    push %ebp
    mov %esp, %ebp
    sub $0x20, %esp
    push %eax
    leave
    keep %esp
    mov $0x40FF0, %edi
    mov $16, %ecx
    mov $0x55AA55AA, %eax
    rep stosl                   # over a page's end
    mov $0x40FF0, %esi
    mov $0x51FE8, %edi
    mov $64, %ecx
    rep movsb
    keep %edi
    mov 0x51FE8 + 60, %eax
    keep %eax
    finish
near:
    add $0x100, %eax
    ret
frees:
    add 4(%esp), %eax
    add 8(%esp), %eax
    ret $8
.balign 8
descriptors:
    .quad 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF93020200FFFF
table:
    .word 31
    .long descriptors
"""

CHECKED = """
.include "guest.inc"
.macro try
    lea 9f(%rip), %r12
.endm
    gate64 17, alignment
    gate64 14, page
    gate64 6, back
    mov $DATA, %ebx
    mov %cr0, %rax
    bts $18, %rax               # AM
    mov %rax, %cr0
    mov %cr4, %rax
    or $0x40600, %rax
    mov %rax, %cr4
    xor %ecx, %ecx
    xor %edx, %edx
    mov $XCR0, %eax
    xsetbv
    lea program(%rip), %rsi
    mov $0x400000, %edi
    mov $program_end - program, %ecx
    rep movsb
    push $0x1B
    mov $USER + 0x8000, %rax
    push %rax
    push $0x40002               # AC
    push $0x23
    mov $USER, %rax
    push %rax
    iretq
program:
    mov $USER + 0x1000, %r15
    PROGRAM
program_end:
    nop
alignment:
    movb $17, (%rbx)
    pop %rax
    mov %al, 1(%rbx)
    jmp skip
page:
    movw $14, (%rbx)
    add $8, %rsp
skip:
    add $2, %ebx
    mov %r12, (%rsp)
    iretq
back:
    movw $6, (%rbx)
    finish
"""


def checked(program: str, xcr0: int = 7) -> str:
    """A guest that runs ``program`` at CPL 3 with alignment checks; it tells the vectors of its faults."""
    return CHECKED.replace("PROGRAM", program).replace("XCR0", str(xcr0))


ALIGNED = checked("""
    mov 1(%r15), %al
    mov 2(%r15), %ax
    mov 4(%r15), %eax
    mov 8(%r15), %rax
    movups 1(%r15), %xmm0
    try
    mov 1(%r15), %ax
9:  try
    mov 2(%r15), %eax
9:  try
    mov 4(%r15), %rax
9:  try
    incl 3(%r15)
9:  try
    movl $1, %fs:5(%r15)
9:  try
    fldl 4(%r15)
9:  dec %rsp
    try
    push %rax
9:  inc %rsp
    lea 0x11(%r15), %rdi
    lea 0x20(%r15), %rsi
    mov $2, %ecx
    try
    rep movsl
9:  movabs $NOT_MAPPED + 1, %rsi
    try
    mov (%rsi), %eax
9:  pushfq
    andl $~0x40000, (%rsp)
    popfq
    mov 1(%r15), %rax
    ud2
""")

PCID = """
.include "guest.inc"
.macro try
    lea 9f(%rip), %r12
.endm
.macro keep
    mov %rax, (%rbx)
    add $8, %ebx
.endm
    gate64 13, protection
    mov $DATA, %ebx
    mov %cr4, %rbp
    mov %rbp, %r14
    bts $17, %r14               # PCIDE
    mov %cr3, %r13
    mov %r14, %cr4
    mov %cr4, %rax
    shr $17, %rax
    keep
    lea 5(%r13), %rax
    mov %rax, %cr3
    mov %cr3, %rax
    sub %r13, %rax
    keep                        # 5
    lea 6(%r13), %rax
    bts $63, %rax
    mov %rax, %cr3
    mov %cr3, %rax
    sub %r13, %rax
    keep                        # 6: bit 63 is not kept
    mov $0x7000, %edx           # invpcid's operand
    movq $7, (%rdx)
    movq $0, 8(%rdx)
    xor %eax, %eax
    invpcid (%rdx), %rax
    mov $3, %eax
    invpcid (%rdx), %rax
    mov $4, %eax
    try
    invpcid (%rdx), %rax        # no such type
9:  mov %cr0, %rcx
    mov %r13, %cr3
    mov %rbp, %cr4
    mov $1, %eax
    try
    invpcid (%rdx), %rax        # a PCID without PCIDE
9:  mov %r13, %rax
    bts $63, %rax
    try
    mov %rax, %cr3
9:  lea 8(%r13), %rax
    mov %rax, %cr3
    try
    mov %r14, %cr4              # CR3 has a PCID already
9:  finish
protection:
    mov $13, %eax
    keep
    add $8, %rsp
    mov %r12, (%rsp)
    iretq
"""

CLOCK = """
.include "guest.inc"
    gate64 13, protection
    mov $0x4B564D01, %ecx
    mov $DATA + 0x101, %eax
    xor %edx, %edx
    wrmsr
    mov $0x4B564D00, %ecx
    mov $DATA + 0x140, %eax
    wrmsr
    mov $0x4B564D01, %ecx
    rdmsr
    mov %eax, DATA
    mov $DATA + 0x102, %eax
    wrmsr
    mov $0xBAD, %eax
    mov %eax, DATA + 8
    finish
protection:
    movl $13, DATA + 8
    finish
"""

Boot = Callable[..., Guest]


@pytest.fixture
def soft() -> Hypervisor:
    return find_backend("soft")


@pytest.fixture
def boot(soft: Hypervisor) -> Iterator[Boot]:
    guests: list[Guest] = []

    def start(text: str, mode: Mode = Mode.LONG) -> Guest:
        guests.append(boot_guest(soft, image(text, mode), mode))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


def image(text: str, mode: Mode) -> bytes:
    return assemble(text, REAL_CODE if mode is Mode.REAL else CODE, mode)


def results(guest: Guest, count: int, place: int = DATA) -> list[int]:
    guest.until_end()
    return list(guest.memory.unpack(place, f"<{count}I"))


def test_16_bit_code_pushes_calls_and_loops_as_the_manual_says(boot: Boot) -> None:
    expected = [15, 0xAAAA0000, 18, 0x12345678, 0x2312, 0x7000, 0, 0x2314, 0]
    assert [hex(value) for value in results(boot(REAL, Mode.REAL), 9, REAL_DATA)] == [hex(value) for value in expected]


def test_32_bit_code_pushes_calls_and_loops_as_the_manual_says(boot: Boot) -> None:
    expected = [0x11223345, 0x12345678, 15, 0x312, 0x80000, 0x52028, 0x55AA55AA]
    assert [hex(value) for value in results(boot(PROTECTED, Mode.PROTECTED), 7)] == [hex(value) for value in expected]


@pytest.mark.parametrize(("text", "mode"), [(REAL, Mode.REAL), (PROTECTED, Mode.PROTECTED), (ALIGNED, Mode.LONG)])
def test_blocks_do_what_single_steps_do(soft: Hypervisor, text: str, mode: Mode) -> None:
    make: Callable[[], lockstep.Subject] = lambda: boot_guest(soft, image(text, mode), mode)  # noqa: E731
    assert compare(make, Options()) is None


def test_alignment_is_checked_at_cpl_3_and_behind_page_faults(boot: Boot) -> None:
    guest = boot(ALIGNED)
    guest.until_end()
    vectors = guest.memory.read(DATA, 20)
    assert list(vectors) == [17, 0] * 8 + [14, 0] + [6, 0], f"of programs at {USER:#x}"


@pytest.mark.parametrize(
    ("code", "faults"),
    [
        ("vmaskmovps 1(%r15), %xmm1, %xmm0", False),
        ("vpmaskmovq %xmm0, %xmm1, 1(%r15)", False),
        ("vpgatherdd %xmm1, 1(%r15, %xmm2), %xmm0", False),
        ("vpgatherdd 1(%r15, %xmm2), %xmm0{%k1}", False),
        ("vpscatterqq %xmm0, 1(%r15, %xmm2){%k1}", False),
        ("vmovups 1(%r15), %xmm0{%k1}", True),
        ("vmovdqu16 %xmm0, 1(%r15){%k1}", True),
        ("vmovdqu8 1(%r15), %xmm0{%k1}", False),
        ("vmovss 1(%r15), %xmm0{%k1}", True),
        ("vmovss 1(%r15), %xmm0{%k2}", False),
        ("vaddps 2(%r15){1to4}, %xmm0, %xmm0{%k1}", True),
        ("vpmovzxbw 1(%r15), %xmm0{%k1}", False),
    ],
)
def test_alignment_under_a_mask(boot: Boot, code: str, faults: bool) -> None:
    """VMASKMOV and gathers are not checked (SDM Vol. 2, VMASKMOV; 2.4, type 12), what is under a mask by elements."""
    masks = "mov $5, %eax; kmovd %eax, %k1; kxorw %k2, %k2, %k2;" if "k" in code.partition("{")[2] else ""
    if masks and not layout.HAS_AVX512:
        pytest.skip("this host's CPU has no AVX-512")
    program = f"vpcmpeqd %xmm1, %xmm1, %xmm1; vpxor %xmm2, %xmm2, %xmm2; {masks} try\n{code}\n9: ud2"
    guest = boot(checked(program, 0xE7 if masks else 7))
    guest.until_end()
    assert list(guest.memory.read(DATA, 4)) == ([17, 0, 6, 0] if faults else [6, 0, 0, 0])


@pytest.mark.parametrize(
    ("code", "wide"),
    [
        ("22, 0xC0", True),
        ("22, 0x03", True),
        ("16, 0xC0", True),
        ("16, 0x03", True),
        ("20, 0xC0", False),
        ("14, 0xC0", False),
    ],
)
def test_a_wide_insertion_or_extraction_outside_64_bit_mode(boot: Boot, code: str, wide: bool) -> None:
    """VPINSRQ and VPEXTRQ: #UD on AMD's processors; on Intel's W means nothing (SDM Vol. 2), as it does with bytes."""
    guest = boot(
        f"""
        .include "guest.inc"
        gate32 6, invalid
        mov %cr4, %eax
        or $0x40600, %eax
        mov %eax, %cr4
        xor %ecx, %ecx
        xor %edx, %edx
        mov $7, %eax
        xsetbv
        mov $DATA + 64, %ebx
        movl $1, DATA
        .byte 0xC4, 0xE3, 0xF9, 0x{code}, 1
        finish
    invalid:
        movl $6, DATA
        finish
        """,
        Mode.PROTECTED,
    )
    guest.until_end()
    leaf = next(entry for entry in guest.vm.supported_cpuid() if entry.leaf == 0)
    intel = leaf.ebx == int.from_bytes(b"Genu", "little")
    assert guest.word(0) == (6 if wide and not intel else 1)


def test_pcids_are_accepted_and_checked(soft: Hypervisor, boot: Boot) -> None:
    guest = boot(PCID)
    leaf1 = next(entry for entry in guest.vm.supported_cpuid() if entry.leaf == 1)
    if not leaf1.ecx >> 17 & 1:
        pytest.skip("the host's CPU has no PCIDs, so none are announced")
    guest.until_end()
    assert guest.words(7) == [guest.word(0), 5, 6, 13, 13, 13, 13]
    assert guest.word(0) & 1


def test_the_paravirtual_clock_tells_time_and_frequency(boot: Boot) -> None:
    before = time.time()
    guest = boot(CLOCK)
    guest.until_end()
    assert guest.word(0) == DATA + 0x101
    assert guest.word(1) == 13, "an address that is not aligned"
    layout = "<IIQQIbB"
    version, _, tsc, now, factor, shift, flags = struct.unpack(
        layout, guest.memory.read(DATA + 0x100, struct.calcsize(layout))
    )
    assert version
    assert not version & 1
    assert flags == 1, "the same TSC on all vCPUs"
    assert 0 < now < 20e9
    hz = (10**9 << 32) / factor / 2**shift
    assert hz == pytest.approx(guest.vm.stats()["tsc_hz"], rel=1e-8)
    assert tsc > 0
    version, seconds, nanoseconds = guest.memory.unpack(DATA + 0x140, "<III")
    assert version == 2
    assert before - 1 <= seconds + nanoseconds / 1e9 <= time.time()
