"""AVX-512 on the engine: what a mask keeps from memory, devices, code and watchpoints; and when there is any.

That every instruction computes what the host's CPU computes is ``native``'s subject, and so are faults at page borders.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest

from pyhyve.vmm.api import CpuidEntry, Point, PointKind
from pyhyve.vmm.exits import Bogus, Debug, InstEmul, Suspended, SuspendReason
from pyhyve.vmm.registers import Reg
from pyhyve.vmm.soft import announce, opcodes_evex, xstate
from tests.guests import (
    DATA,
    DEVICE,
    END,
    MEMORY_SIZE,
    REAL_DATA,
    Guest,
    Mode,
    assemble,
    boot_guest,
    find_backend,
    is_end,
)
from tests.vmm.soft.native import layout
from tests.vmm.soft.native.compare import Comparison, memory_for, pack
from tests.vmm.soft.native.generate import PLAIN_IMAGE, RBX, Blob, Item, State

HAS_AVX512 = layout.HAS_AVX512
needs_avx512 = pytest.mark.skipif(not HAS_AVX512, reason="this host's CPU has no AVX-512")
ALL_STATE = 0xE7
CR4_OSXSAVE = 1 << 18

Boot = Callable[..., Guest]
Access = tuple[int, int, bool, int]
"""Address, size, is it a write, value."""


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Boots assembly text with AVX-512 enabled in XCR0: ``boot(text)``."""
    guests: list[Guest] = []

    def start(text: str, mode: Mode = Mode.LONG, xcr0: int = ALL_STATE) -> Guest:
        image = assemble('.include "guest.inc"\n' + text + "\nfinish\n", 0x10000, mode)
        guest = boot_guest(find_backend("soft"), image, mode)
        guests.append(guest)
        cr4 = guest.register(Reg.CR4)
        guest.vcpu.set_registers({Reg.CR4: cr4 | CR4_OSXSAVE | 0x600, Reg.XCR0: xcr0})
        return guest

    yield start
    for guest in guests:
        guest.close()


def device_accesses(guest: Guest, contents: bytes = b"") -> list[Access]:
    """Run to the end; device memory from DEVICE on reads as ``contents``."""
    found: list[Access] = []
    while not is_end(result := guest.run()):
        if isinstance(result, Bogus):
            continue
        assert isinstance(result, InstEmul), result
        offset = result.gpa - DEVICE
        if result.is_write:
            found.append((offset, result.size, True, result.value))
        else:
            value = int.from_bytes(contents[offset : offset + result.size], "little")
            guest.vcpu.answer(value)
            found.append((offset, result.size, False, value))
    return found


def enabled(accesses: list[Access]) -> set[int]:
    """The bytes touched; none twice."""
    touched = [at + n for at, size, _, _ in accesses for n in range(size)]
    assert len(touched) == len(set(touched))
    return set(touched)


CONTENTS = bytes((7 * n + 3) & 0xFF for n in range(256))
LOAD_MASK = "movabs ${:#x}, %rax\nkmovq %rax, %k1\nmov $DEVICE + {}, %rbx\nmov $DATA, %edi\n"


@needs_avx512
@pytest.mark.parametrize("mask", [0, 1, 1 << 63, 0x5555555555555555, 0xF0F000FF80000001, (1 << 64) - 1])
@pytest.mark.parametrize("offset", [0, 5, 64])
def test_a_masked_load_reads_of_a_device_what_is_enabled(boot: Boot, mask: int, offset: int) -> None:
    guest = boot(LOAD_MASK.format(mask, offset) + "vmovdqu8 (%rbx), %zmm1{%k1}{z}\nvmovdqu8 %zmm1, (%rdi)")
    lanes = {n for n in range(64) if mask >> n & 1}
    assert enabled(device_accesses(guest, CONTENTS)) == {offset + n for n in lanes}
    expected = bytes(CONTENTS[offset + n] if n in lanes else 0 for n in range(64))
    assert guest.memory.read(DATA, 64) == expected


@needs_avx512
@pytest.mark.parametrize("mask", [0, 1, 0x8000, 0x5A5A, 0xFFFF])
def test_a_masked_store_writes_to_a_device_what_is_enabled(boot: Boot, mask: int) -> None:
    guest = boot(LOAD_MASK.format(mask, 0) + "vmovdqu8 (%rdi), %zmm1\nvmovdqu32 %zmm1, (%rbx){%k1}")
    guest.memory.write(DATA, CONTENTS[:64])
    found = device_accesses(guest)
    assert enabled(found) == {4 * n + k for n in range(16) if mask >> n & 1 for k in range(4)}
    for at, size, is_write, value in found:
        assert is_write
        assert value == int.from_bytes(CONTENTS[at : at + size], "little")


@needs_avx512
@pytest.mark.parametrize("mask", [0xFFFF, 0x00FF, 0xFF00, 0x0180, 0x1008])
def test_an_operand_may_lie_in_memory_and_a_device(boot: Boot, mask: int) -> None:
    edge = MEMORY_SIZE - 32
    lanes = {n for n in range(16) if mask >> n & 1}
    text = LOAD_MASK.format(mask, 0).replace("DEVICE + 0", f"{edge:#x}")
    guest = boot(text + "vmovdqu8 (%rdi), %zmm1\nvmovdqu32 %zmm1, (%rbx){%k1}")
    guest.memory.write(DATA, CONTENTS[:64])
    written = {4 * n + k for n in lanes if n >= 8 for k in range(4)}
    assert {at + DEVICE - edge for at in enabled(device_accesses(guest))} == written
    stored = b"".join(CONTENTS[4 * n : 4 * n + 4] if n in lanes else bytes(4) for n in range(16))
    assert guest.memory.read(edge, 32) == stored[:32]

    guest = boot(text + "vmovdqu32 (%rbx), %zmm1{%k1}{z}\nvmovdqu8 %zmm1, (%rdi)")
    guest.memory.write(edge, CONTENTS[:32])
    found = []
    while not is_end(result := guest.next()):
        assert isinstance(result, InstEmul)
        assert not result.is_write
        found.append((result.gpa - edge, result.size, False, 0))
        guest.vcpu.answer(int.from_bytes(CONTENTS[result.gpa - edge :][: result.size], "little"))
    assert enabled(found) == written
    assert guest.memory.read(DATA, 64) == stored


@needs_avx512
def test_a_broadcast_reads_one_element_and_none_where_the_mask_is_empty(boot: Boot) -> None:
    text = "vpaddd (%rbx){1to16}, %zmm0, %zmm1{%k1}{z}"
    assert enabled(device_accesses(boot(LOAD_MASK.format(0x10, 8) + text), CONTENTS)) == {8, 9, 10, 11}
    assert device_accesses(boot(LOAD_MASK.format(0, 8) + text), CONTENTS) == []


@needs_avx512
def test_compressing_and_expanding_touch_as_much_as_there_are_elements(boot: Boot) -> None:
    guest = boot(LOAD_MASK.format(0x8101, 0) + "vmovdqu8 (%rdi), %zmm1\nvpcompressd %zmm1, (%rbx){%k1}")
    guest.memory.write(DATA, CONTENTS[:64])
    stored = b"".join(value.to_bytes(size, "little") for _, size, _, value in device_accesses(guest))
    assert stored == CONTENTS[0:4] + CONTENTS[32:36] + CONTENTS[60:64]
    guest = boot(LOAD_MASK.format(0x8101, 0) + "vpexpandd (%rbx), %zmm1{%k1}{z}\nvmovdqu8 %zmm1, (%rdi)")
    assert enabled(device_accesses(guest, CONTENTS)) == set(range(12))
    found = guest.memory.read(DATA, 64)
    assert (found[0:4], found[32:36], found[60:64]) == (CONTENTS[0:4], CONTENTS[4:8], CONTENTS[8:12])


@needs_avx512
def test_an_extract_writes_to_a_device_what_is_enabled(boot: Boot) -> None:
    guest = boot(LOAD_MASK.format(0b1010, 0) + "vmovdqu8 (%rdi), %zmm1\nvextracti32x4 $1, %zmm1, (%rbx){%k1}")
    guest.memory.write(DATA, CONTENTS[:64])
    assert enabled(device_accesses(guest)) == {4, 5, 6, 7, 12, 13, 14, 15}
    guest = boot(LOAD_MASK.format(0, 0) + "vextracti32x4 $1, %zmm1, (%rbx){%k1}")
    assert device_accesses(guest) == []


@needs_avx512
def test_gathers_and_scatters_reach_devices(boot: Boot) -> None:
    prepare = LOAD_MASK.format(0x8421, 0) + "vmovdqu32 (%rdi), %zmm2\n"
    indices = b"".join((12 * n).to_bytes(4, "little") for n in range(16))
    guest = boot(prepare + "vpxor %xmm1, %xmm1, %xmm1\nvpgatherdd (%rbx,%zmm2), %zmm1{%k1}\n"
                 "vmovdqu32 %zmm1, (%rdi)\nkmovq %k1, 64(%rdi)")  # fmt: skip
    guest.memory.write(DATA, indices + b"\xff" * 8)
    assert [at for at, size, _, _ in device_accesses(guest, CONTENTS) if size == 4] == [0, 60, 120, 180]
    expected = b"".join(CONTENTS[12 * n : 12 * n + 4] if 0x8421 >> n & 1 else bytes(4) for n in range(16))
    assert guest.memory.read(DATA, 72) == expected + bytes(8)

    guest = boot(prepare + "vpscatterdd %zmm2, (%rbx,%zmm2){%k1}\nkmovq %k1, 64(%rdi)")
    guest.memory.write(DATA, indices + b"\xff" * 8)
    assert device_accesses(guest) == [(12 * n, 4, True, 12 * n) for n in (0, 5, 10, 15)]
    assert guest.memory.read(DATA + 64, 8) == bytes(8)


@needs_avx512
@pytest.mark.parametrize(("mask", "value"), [(1 << 5, 7), (1 << 6, 0x701), (3 << 40, 1), (0, 1)])
def test_a_masked_store_changes_the_code_that_runs_if_it_is_enabled_there(boot: Boot, mask: int, value: int) -> None:
    guest = boot(f"""
        mov ${mask:#x}, %eax
        kmovq %rax, %k1
        mov $7, %eax
        vpbroadcastb %eax, %zmm1
        lea 1f - 4(%rip), %rbx
        jmp 2f
        .balign 64
    2:  vmovdqu8 %zmm1, (%rbx){{%k1}}
        .byte 0x90, 0x90, 0x90, 0x90
    1:  mov $1, %ecx
        mov %ecx, DATA""")
    guest.until_end()
    assert guest.word(0, 4) == value


@needs_avx512
def test_a_watchpoint_sees_what_a_masked_store_writes(boot: Boot) -> None:
    text = LOAD_MASK.format(0x00F0, 0) + "vmovdqu8 %zmm1, (%rdi){%k1}"
    for at, hit in ((3, False), (4, True), (7, True), (8, False)):
        guest = boot(text)
        guest.vcpu.set_points([Point(PointKind.WRITE, DATA + at, 1)])
        assert any(isinstance(found, Debug) for found in guest.until_end()) == hit, at


@needs_avx512
def test_32_bit_code_masks_limits_too(boot: Boot) -> None:
    # FS is no flat segment here: its limit counts for enabled elements only
    guest = boot("""
        movl $0x3FFFF, 0x1000 + 0x30         # a data segment at 0x20000 of 64 bytes: base and limit
        movl $0x0002003F, 0x1000 + 0x30
        movl $0x00009300, 0x1000 + 0x34
        movl $0x00409302, 0x1000 + 0x34
        movl $0x0000003F, 0x1000 + 0x30
        mov $0x30, %eax
        mov %ax, %fs
        mov $0x000F, %eax
        kmovd %eax, %k1
        mov $5, %eax
        vpbroadcastd %eax, %zmm1
        vmovdqu32 %zmm1, %fs:48{%k1}
        vmovdqu32 %fs:48, %zmm2{%k1}{z}
        vmovdqu32 %zmm2, DATA + 0x100
        vmovupd DATA + 0x180, %ymm1
        vfmadd132pd DATA + 0x180, %ymm1, %ymm1
        vpermq $0x1B, %ymm1, %ymm1           # VEX.W counts in 32-bit code too
        vmovupd %ymm1, DATA + 0x1C0
        """, Mode.PROTECTED)  # fmt: skip
    guest.memory.write(DATA + 0x180, struct.pack("<4d", 1, 2, 3, 4))
    guest.until_end()
    assert struct.unpack("<4d", guest.memory.read(DATA + 0x1C0, 32)) == (20, 12, 6, 2)
    assert guest.memory.read(DATA + 48, 32) == (5).to_bytes(4, "little") * 4 + bytes(16)
    assert guest.memory.read(DATA + 0x100, 64) == (5).to_bytes(4, "little") * 4 + bytes(48)


TRAPS = """
    gate64 6, undefined
    gate64 7, unavailable
    gate64 13, general
"""
HANDLERS = """
    finish
undefined:
    movl $6, DATA
    finish
unavailable:
    movl $7, DATA
    finish
general:
    movl $13, DATA
"""


@needs_avx512
@pytest.mark.parametrize(
    "code", ["vaddps %zmm1, %zmm1, %zmm1", "kmovw %eax, %k1", "vpscatterdd %xmm1, (%rax,%xmm1){%k1}"]
)
@pytest.mark.parametrize(("prepare", "xcr0", "expected"), [
    ("", ALL_STATE, 0), ("", 7, 6), ("", 3, 6), ("mov %cr0, %rax; or $8, %eax; mov %rax, %cr0", ALL_STATE, 7),
    ("mov %cr0, %rax; or $8, %eax; mov %rax, %cr0", 7, 6),
    ("mov %cr4, %rax; btr $18, %rax; mov %rax, %cr4", ALL_STATE, 6),
])  # fmt: skip
def test_control_registers_say_whether_there_is_it(
    boot: Boot, code: str, prepare: str, xcr0: int, expected: int
) -> None:
    # a scatter without a mask bit touches no memory
    guest = boot(TRAPS + prepare + "\nxor %eax, %eax\n" + code + "\n" + HANDLERS, xcr0=xcr0)
    guest.until_end()
    assert guest.word(0, 4) == expected


_REAL_CODE = ["vaddps %xmm0, %xmm0, %xmm0", "andn %eax, %eax, %eax", ".byte 0x62, 0xF1, 0x7C, 0x48, 0x58, 0xC0"]


@pytest.mark.parametrize("code", _REAL_CODE)
def test_real_mode_has_no_vex_and_no_evex(code: str) -> None:
    text = f"""
        .code16
        movw $undefined, 6 * 4
        movw $0, 6 * 4 + 2
        {code}
        out %al, ${END}
    undefined:
        movb $6, {REAL_DATA}
        out %al, ${END}
    """
    guest = boot_guest(find_backend("soft"), assemble(text, 0x8000, Mode.REAL), Mode.REAL)
    guest.vcpu.set_registers({Reg.CR4: CR4_OSXSAVE | 0x600, Reg.XCR0: ALL_STATE})
    guest.until_end()
    assert guest.memory.read(REAL_DATA, 1) == b"\x06"
    guest.close()


@needs_avx512
@pytest.mark.parametrize(
    ("value", "faults"), [(0xE7, 0), (7, 0), (3, 0), (0xE3, 13), (0x67, 13), (0x27, 13), (0xE0, 13)]
)
def test_xcr0_has_all_of_avx_512_or_nothing(boot: Boot, value: int, faults: int) -> None:
    guest = boot(TRAPS + f"xor %ecx, %ecx; xor %edx, %edx; mov ${value:#x}, %eax; xsetbv\n" + HANDLERS)
    guest.until_end()
    assert guest.word(0, 4) == faults
    assert guest.register(Reg.XCR0) == (ALL_STATE if faults else value)


@needs_avx512
def test_the_state_goes_out_and_in_whole(boot: Boot) -> None:
    guest = boot("""
        mov $0x5A, %eax
        vpbroadcastb %eax, %zmm3
        vpbroadcastb %eax, %zmm31
        kmovq %rax, %k6
        out %al, $0x50
        vmovdqu64 %zmm3, DATA
        vmovdqu64 %zmm31, DATA + 64
        kmovq %k6, DATA + 128""")
    guest.next()
    image = guest.vcpu.get_xsave()
    assert len(image) == xstate.image_size(ALL_STATE)
    assert image[layout.ZMM_16_AT + 15 * 64 :][:64] == b"\x5a" * 64
    assert image[layout.ZMM_HIGH_AT + 3 * 32 :][:32] == b"\x5a" * 32
    changed = bytearray(image)
    changed[layout.ZMM_HIGH_AT + 3 * 32] = 1
    changed[layout.ZMM_16_AT + 15 * 64] = 2
    changed[layout.OPMASK_AT + 6 * 8] = 3
    guest.vcpu.set_xsave(bytes(changed))
    guest.until_end()
    assert guest.memory.read(DATA, 64) == b"\x5a" * 32 + b"\x01" + b"\x5a" * 31
    assert guest.memory.read(DATA + 64, 65) == b"\x02" + b"\x5a" * 63 + b"\x03"


def without_avx512(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """The host's CPUID, if it had no AVX-512."""
    from pyhyve.vmm.soft import cpuid

    eax, ebx, ecx, edx = cpuid.host_leaf(leaf, subleaf)
    if leaf == 7 and subleaf == 0:
        ebx &= ~(1 << 16 | 1 << 17 | 1 << 21 | 1 << 28 | 1 << 30 | 1 << 31)
        ecx &= ~(1 << 1 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 14)
    return eax, ebx, ecx, edx


def test_a_guest_that_is_told_of_none_has_none(boot: Boot) -> None:
    rows = [CpuidEntry(*row) for row in announce.supported_rows(without_avx512, 0xE7, 1_000_000_000)]
    shown = {(row.leaf, row.subleaf or 0): row for row in rows}
    assert shown[0xD, 0].eax == 7
    assert (shown[0xD, 0].ecx, (0xD, 5) in shown) == (832, False)
    assert (shown[7, 0].ebx >> 16 & 1, shown[7, 0].eax) == (0, 0)
    guest = boot(TRAPS + "xor %ecx, %ecx; xor %edx, %edx; mov $7, %eax; xsetbv; vpaddb %ymm1, %ymm1, %ymm1\n"
                 "mov $0xE7, %eax; xsetbv\n" + HANDLERS, xcr0=1)  # fmt: skip
    guest.vm.set_cpuid(rows)
    guest.vcpu.set_registers({Reg.XCR0: ALL_STATE})
    assert guest.register(Reg.XCR0) == 7
    guest.until_end()
    assert guest.word(0, 4) == 13
    assert len(guest.vcpu.get_xsave()) == 832
    guest = boot("vaddps %zmm1, %zmm1, %zmm1")
    guest.vm.set_cpuid(rows)
    guest.vcpu.set_registers({Reg.XCR0: ALL_STATE})
    assert guest.next() == Suspended(SuspendReason.TRIPLE_FAULT)


@needs_avx512
def test_the_hosts_features_are_announced_with_their_state() -> None:
    from pyhyve.vmm.soft import cpuid

    rows = announce.supported_rows(cpuid.host_leaf, 0xE7, 1_000_000_000)
    shown = {(leaf, subleaf or 0): regs for leaf, subleaf, *regs in rows}
    assert shown[7, 0][1] & 0xF0230000 == cpuid.host_leaf(7, 0)[1] & 0xF0230000 & ~(1 << 29) | shown[7, 0][1] & 1 << 29
    assert shown[0xD, 0][0] == 0xE7
    for number in (2, 5, 6, 7):
        assert shown[0xD, number][:2] == list(cpuid.host_leaf(0xD, number)[:2])


def encodings(rng: random.Random) -> Iterator[bytes]:
    """Cells of the EVEX table with fields that are mostly right, and some that are not."""
    cells = {place: row for row in opcodes_evex.rows() for place in opcodes_evex.cells(row)[1]}
    for place, row in cells.items():
        rest, reg = divmod(place, 8)
        if reg != 4 and "/" not in row.split()[0]:
            continue
        rest, register = divmod(rest, 2)
        rest, wide = divmod(rest, 2)
        rest, pp = divmod(rest, 4)
        map_, opcode = divmod(rest, 256)
        vsib = " S" in row
        for _ in range(5):
            payload = [0xF0 | map_ + 1, wide << 7 | 0x78 | 4 | pp, 0x08 | rng.randrange(4) << 5]
            payload[2] |= rng.choice((0, 0, 0x80)) | rng.choice((0, 0, 0x10)) | rng.choice((0, 1, 1))
            payload[1] ^= rng.choice((0, 0, 0, 5)) << 3
            if rng.random() < 0.2:
                payload[0] ^= rng.choice((8, 0x10, 0x80))
            if rng.random() < 0.05:
                payload[2] ^= 8
            if rng.random() < 0.03:
                payload[1] ^= 4
            modrm = bytes([0xC0 | reg << 3 | 2]) if register else bytes([reg << 3 | 3])
            if vsib:
                modrm = bytes([reg << 3 | 4, 1 << 3 | 3])
            yield bytes([0x62, *payload, opcode]) + modrm + b"\x00" * (" Ib" in row)


@needs_avx512
def test_what_is_no_instruction_is_none_here_either() -> None:
    """Reserved bits, masks, zeroing, broadcasts and vector lengths where they may not be, as the host has it."""
    rng = random.Random(512)
    state = State([0x2000 if n == RBX else 0 for n in range(16)], 1 << RBX, 2, 0, 0, PLAIN_IMAGE)
    blobs = [Blob([Item(0, code)], [state]) for code in encodings(rng)]
    with Comparison() as comparison:
        while blobs:
            batch = pack(blobs[: layout.BLOBS], rng)
            assert [found.blob.items[0].data.hex() for found in comparison.run(batch, memory_for(rng))] == []
            blobs = blobs[len(batch) :]
        assert comparison.faults[6] > 1000
        assert comparison.faults[6] < comparison.cases * 0.8


@needs_avx512
def test_what_is_no_instruction_is_none_either_where_the_unit_is_switched_off(boot: Boot) -> None:
    """#UD comes before #NM (SDM Vol. 3A table 6-2): with CR0.TS set the host is not asked what is an instruction."""
    rng = random.Random(513)
    codes = rng.sample(list(encodings(rng)), 1200)
    tries = "".join(
        f"lea 9f(%rip), %r13; mov %rsp, %r14; .byte {', '.join(map(str, code))}\n9: mov %r14, %rsp; inc %r15\n"
        for code in codes
    )
    guest = boot(
        f"""
        gate64 6, invalid
        gate64 7, unavailable
        mov $DATA + 0x2000, %ebx
        xor %r15, %r15
    again:
        {tries}
        mov %cr0, %rax
        bts $3, %rax
        mov %rax, %cr0
        jnc again
        finish
    invalid:
        movb $6, DATA(%r15)
        jmp skip
    unavailable:
        movb $7, DATA(%r15)
    skip:
        mov %r13, (%rsp)
        iretq
        """
    )
    guest.until_end()
    there = guest.memory.read(DATA, len(codes))
    off = guest.memory.read(DATA + len(codes), len(codes))
    assert set(there) == {0, 6}
    assert [code.hex() for code, on, now in zip(codes, there, off, strict=True) if now != (on or 7)] == []
