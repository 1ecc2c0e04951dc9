"""XSAVEC, XSAVES, XRSTORS, XGETBV with ECX 1 and IA32_XSS on the engine (Intel SDM Vol. 1, 13.7 to 13.12).

A processor runs XSAVES in its kernel only, so the host cannot be compared with; but XSAVEC's image is the same where
there is no supervisor state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pyhyve.vmm import cpuid
from pyhyve.vmm.api import CpuidEntry
from pyhyve.vmm.exits import RdMsr
from pyhyve.vmm.registers import Reg
from pyhyve.vmm.soft import announce, xstate
from pyhyve.vmm.soft.cpuid import host_leaf
from tests.guests import DATA, Guest, Mode, assemble, boot_guest, find_backend
from tests.vmm.soft.native import layout

CARRIED = xstate.carried_components()
X87, SSE, AVX, OPMASK, COMPACTED = 1, 2, 4, 0x20, 1 << 63
NONE, UD, NM, GP = 0, 6, 7, 13
AREA = DATA + 0x1000
HEADER = 512
HAS_XSAVEC = bool(host_leaf(0xD, 1)[0] & 2)
pytestmark = pytest.mark.skipif(not HAS_XSAVEC or not CARRIED & AVX, reason="this host's CPU has no XSAVEC")
needs_avx512 = pytest.mark.skipif(not layout.HAS_AVX512, reason="this host's CPU has no AVX-512")

TRAPS = """
.include "guest.inc"
    gate64 6, vector6
    gate64 7, vector7
    gate64 13, vector13
    mov $DATA + 0x1000, %ebx
"""
HANDLERS = """
    finish
vector6:
    movl $6, DATA
    finish
vector7:
    movl $7, DATA
    finish
vector13:
    movl $13, DATA
    finish
"""
WANT = "mov ${:#x}, %eax\nxor %edx, %edx\n"

Boot = Callable[..., Guest]


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Boots long-mode assembly text in which RBX is ``AREA``, with all state in XCR0."""
    guests: list[Guest] = []

    def start(text: str, **extra: object) -> Guest:
        guest = boot_guest(find_backend("soft"), assemble(TRAPS + text + HANDLERS, 0x10000, Mode.LONG), Mode.LONG)
        guests.append(guest)
        table = guest.vm.supported_cpuid()
        if "extra" in extra:
            table = [replace(row, eax=extra["extra"]) if (row.leaf, row.subleaf) == (0xD, 1) else row for row in table]
        guest.vm.set_cpuid(cpuid.shape(table))
        guest.vcpu.set_registers({Reg.CR4: guest.register(Reg.CR4) | 1 << 18 | 0x600, Reg.XCR0: CARRIED})
        guest.memory.write(AREA, b"\xee" * 4096)
        return guest

    yield start
    for guest in guests:
        guest.close()


def end(guest: Guest) -> int:
    """Run to the end; the exception's vector."""
    guest.until_end()
    return guest.word(0, 4)


FILL = """
    mov $0x11223344, %eax
    vmovd %eax, %xmm3
    vpbroadcastd %xmm3, %ymm3
    fldpi
"""


@pytest.mark.parametrize("wanted", [CARRIED, X87 | SSE, AVX, SSE | AVX, X87 | AVX, 0, CARRIED & ~SSE])
def test_xsaves_writes_what_xsavec_writes(boot: Boot, wanted: int) -> None:
    text = FILL + WANT.format(wanted) + "xsavec64 (%rbx)\nadd $0x1000, %ebx\nxsaves64 (%rbx)"
    guest = boot(text)
    guest.memory.write(AREA + 0x1000, b"\xee" * 4096)
    assert end(guest) == NONE
    one, other = guest.memory.read(AREA, 4096), guest.memory.read(AREA + 0x1000, 4096)
    assert other == one
    assert int.from_bytes(other[HEADER + 8 : HEADER + 16], "little") == wanted | COMPACTED
    assert int.from_bytes(other[HEADER : HEADER + 8], "little") == wanted & (X87 | SSE | AVX)


@needs_avx512
def test_components_in_their_initial_state_are_not_written(boot: Boot) -> None:
    guest = boot("vzeroall\nmov $5, %eax\nkmovd %eax, %k1\n" + WANT.format(CARRIED) + "xsaves64 (%rbx)")
    assert end(guest) == NONE
    image = guest.memory.read(AREA, 4096)
    assert int.from_bytes(image[HEADER : HEADER + 8], "little") == OPMASK
    place = 576 + 256  # behind AVX's, which has its room all the same
    assert image[place : place + 16] == bytes(8) + (5).to_bytes(8, "little")
    assert image[:HEADER] + image[576:place] == b"\xee" * (HEADER + 256)


def test_what_xsaves_wrote_xrstors_reads(boot: Boot) -> None:
    text = FILL + WANT.format(CARRIED) + """
        xsaves64 (%rbx)
        vzeroall
        fninit
        xrstors64 (%rbx)
        vmovdqu %ymm3, DATA + 32
        fstpl DATA + 64"""
    guest = boot(text)
    guest.memory.write(AREA, bytes(4096))  # XSAVES leaves the rest of the header alone
    assert end(guest) == NONE
    assert guest.memory.read(DATA + 32, 32) == (0x11223344).to_bytes(4, "little") * 8
    assert guest.memory.read(DATA + 64, 8) == bytes.fromhex("182d4454fb210940")


def test_xrstors_makes_initial_what_is_not_there(boot: Boot) -> None:
    text = FILL + WANT.format(CARRIED) + "xrstors64 (%rbx)\nvmovdqu %ymm3, DATA + 32\nstmxcsr DATA + 64"
    guest = boot("movl $0x1F00, DATA + 64\nldmxcsr DATA + 64\n" + text)
    guest.memory.write(AREA, bytes(4096))
    guest.memory.write_uint(AREA + HEADER + 8, CARRIED | COMPACTED, 8)
    assert end(guest) == NONE
    assert guest.memory.read(DATA + 32, 32) == bytes(32)
    assert guest.word(16, 4) == 0x1F80


@pytest.mark.parametrize(("present", "format_", "beyond", "vector"), [
    (0, CARRIED | COMPACTED, 0, NONE), (SSE, SSE | COMPACTED, 0, NONE), (0, COMPACTED, 0, NONE),
    (SSE, 0, 0, GP), (SSE, CARRIED, 0, GP), (AVX, SSE | COMPACTED, 0, GP), (0, 1 << 9 | COMPACTED, 0, GP),
    (0, 1 << 8 | COMPACTED, 0, GP), (0, 1 << 62 | COMPACTED, 0, GP), (0, CARRIED | COMPACTED, 1, GP),
])  # fmt: skip
def test_xrstors_takes_compacted_images_only(boot: Boot, present: int, format_: int, beyond: int, vector: int) -> None:
    guest = boot(WANT.format(CARRIED) + "xrstors64 (%rbx)")
    guest.memory.write(AREA, bytes(4096))
    for at, value in ((0, present), (8, format_), (56, beyond)):
        guest.memory.write_uint(AREA + HEADER + at, value, 8)
    assert end(guest) == vector


@pytest.mark.parametrize("code", ["xsaves64 (%rbx)", "xrstors64 (%rbx)"])
@pytest.mark.parametrize(("prepare", "vector"), [
    ("", NONE), ("add $32, %ebx", GP), ("mov %cr0, %rcx; or $8, %ecx; mov %rcx, %cr0", NM),
    ("mov %cr4, %rcx; btr $18, %rcx; mov %rcx, %cr4", UD), ("user", GP),
])  # fmt: skip
def test_xsaves_and_xrstors_fault(boot: Boot, code: str, prepare: str, vector: int) -> None:
    if prepare == "user":
        text = f"""
            mov $0x400000, %edi              # what USER maps
            lea 1f(%rip), %rsi
            mov $2f - 1f, %ecx
            rep movsb
            push $0x1B
            push $0x80000
            push $2
            push $0x23
            movabs $USER, %rax
            push %rax
            iretq
        1:  mov $7, %eax
            xor %edx, %edx
            {code}
        2:"""
    else:
        text = WANT.format(7) + prepare + "\n" + code
    guest = boot(text)
    guest.memory.write(AREA, bytes(4096))
    guest.memory.write_uint(AREA + HEADER + 8, 7 | COMPACTED, 8)
    assert end(guest) == vector


@pytest.mark.parametrize(("value", "vector"), [(0, NONE), (1, GP), (1 << 8, GP), (1 << 11, GP), (1 << 40, GP)])
def test_xss_holds_nothing(boot: Boot, value: int, vector: int) -> None:
    text = f"""
        mov $0xDA0, %ecx
        mov ${value & 0xFFFFFFFF:#x}, %eax
        mov ${value >> 32:#x}, %edx
        wrmsr
        mov $-1, %eax
        mov $-1, %edx
        rdmsr
        mov %eax, DATA + 8
        mov %edx, DATA + 12"""
    guest = boot(text)
    guest.memory.write_uint(DATA + 8, (1 << 64) - 1, 8)
    assert end(guest) == vector
    assert vector or guest.word(1) == 0


def test_cpuid_tells_of_the_family_and_the_compacted_size(boot: Boot) -> None:
    text = """
        mov $3, %eax
        call sizes
        mov $7, %eax
        call sizes
        jmp 1f
    sizes:
        xor %ecx, %ecx
        xor %edx, %edx
        xsetbv
        mov $0xD, %eax
        mov $1, %ecx
        mov %rbx, %rsi
        cpuid
        mov %eax, (%rsi)
        mov %ebx, 4(%rsi)
        mov %ecx, 8(%rsi)
        mov %edx, 12(%rsi)
        lea 16(%rsi), %ebx
        ret
    1:"""
    guest = boot(text)
    assert end(guest) == NONE
    words = [guest.memory.read_uint(AREA + 4 * n, 4) for n in range(8)]
    assert words == [0xF, 576, 0, 0, 0xF, 832, 0, 0]


def test_xgetbv_tells_what_is_in_use(boot: Boot) -> None:
    guest = boot("fninit\nvzeroall\nmov $1, %ecx\nxgetbv\nmov %eax, DATA + 8\nfldpi\nvpcmpeqd %xmm1, %xmm1, %xmm1\n"
                 "xgetbv\nmov %eax, DATA + 12")  # fmt: skip
    assert end(guest) == NONE
    assert (guest.word(2, 4) & CARRIED, guest.word(3, 4) & (X87 | SSE | AVX)) == (0, X87 | SSE)


@pytest.mark.parametrize(("code", "needs"), [
    ("xsaveopt64 (%rbx)", 1), ("xsavec64 (%rbx)", 2), ("mov $1, %ecx; xgetbv", 4), ("xsaves64 (%rbx)", 8),
    ("xrstors64 (%rbx)", 8), ("mov $0xDA0, %ecx; rdmsr", 8),
])  # fmt: skip
@pytest.mark.parametrize("extra", [0, 1, 2, 4, 7, 8, 15])
def test_what_is_not_announced_is_not_there(boot: Boot, code: str, needs: int, extra: int) -> None:
    guest = boot(WANT.format(0) + code, extra=extra)
    guest.memory.write(AREA, bytes(4096))
    guest.memory.write_uint(AREA + HEADER + 8, COMPACTED, 8)
    if needs == 8 and "rdmsr" in code and not extra & 8:
        found = guest.next()  # an MSR that the engine does not know is the machine's to answer
        assert isinstance(found, RdMsr)
        return
    assert end(guest) == (NONE if extra & needs else GP if needs == 4 else UD)


@pytest.mark.parametrize(("host", "shown"), [(0xF, 0xF), (2, 0xF), (7, 0xF), (1, 1), (5, 1), (0, 0)])
def test_a_host_with_xsavec_gives_the_whole_family(host: int, shown: int) -> None:
    def read(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        eax, ebx, ecx, edx = host_leaf(leaf, subleaf)
        return (host if (leaf, subleaf) == (0xD, 1) else eax), ebx, ecx, edx

    rows = [CpuidEntry(*row) for row in announce.supported_rows(read, CARRIED, 1_000_000_000)]
    assert next(row.eax for row in rows if (row.leaf, row.subleaf) == (0xD, 1)) == shown
