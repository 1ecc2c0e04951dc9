"""Families of instructions, each with the operands that make it interesting on a ``Ground``."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.vmm.soft.bochs.ground import (
    APIC,
    CODE,
    COMPAT,
    GDT,
    HANDLERS,
    HIGH,
    LONG,
    MODES,
    PD2,
    PD32,
    PDPT2,
    PML4,
    PROT16,
    PROT32,
    PT,
    PT2,
    PT32,
    REAL,
    STACKS,
    TSS,
    TSS2,
    V86,
    Ground,
)  # fmt: skip
from tests.vmm.soft.fuzz.tables import NX, PS, A, D, G, P, U, W

Family = Callable[[Ground], None]
FAMILIES: dict[str, tuple[Family, int, tuple[str, ...]]] = {}
"""Name to family, its weight, and the modes it is for."""


def family(weight: int, *modes: str) -> Callable[[Family], Family]:
    """Enter a function into ``FAMILIES``."""

    def enter(function: Family) -> Family:
        FAMILIES[function.__name__] = function, weight, modes or MODES
        return function

    return enter


def pick(ground: Ground, *texts: str) -> bytes:
    """One of several encodings, written in hex."""
    return bytes.fromhex(ground.rng.choice(texts))


def operand_size(ground: Ground, code: bytes) -> int:
    """The operand size of code whose prefixes come first."""
    if ground.mode == LONG and code[0] & 0xF8 == 0x48:
        return 8
    size = 2 if ground.bits == 16 else 4
    return 6 - size if code[0] == 0x66 else size


def with_ebx(ground: Ground, code: bytes) -> bytes:
    """``code`` has a [BX]-less memory operand [EBX]: 16-bit code needs the address size prefix."""
    return b"\x67" + code if ground.bits == 16 else code


def target(ground: Ground, size: int) -> int:
    """Where a transfer may go: often to a NOP, sometimes nowhere."""
    good = ground.handler()
    return ground.one_of(good, good, good, good | ground.high, 0x800000000000, ground.rng.getrandbits(8 * size))


def return_frame(ground: Ground, size: int, *, flags: bool, skip: int = 0) -> None:
    """What IRET and RETF pop."""
    rng, level = ground.rng, ground.one_of(ground.cpl, 3, 3, 0, 1)
    selector = ground.one_of(
        (1 + level) * 8 | level, (9 + level) * 8 | level, (1 + level) * 8 | level, ground.any_selector()
    )
    stack = (5 + level) * 8 | level
    stack = ground.one_of(stack, stack, stack, ground.any_selector(), level)
    rip = target(ground, size)
    if ground.mode in (V86, REAL):
        selector = ground.one_of(0, 0x100, rng.getrandbits(12))
        rip = (ground.handler() - 16 * selector) & 0xFFFF
    values = [rip, selector]
    if flags:
        new = rng.getrandbits(32) if ground.chance(0.3) else rng.getrandbits(22) & ~0x4000
        if ground.chance(0.9):
            new &= ~0x20000
        values.append(new & ~0x100)
    values += [0x11] * (skip // size)
    top = ground.one_of(ground.stack_top(), ground.stack_top() | ground.high, rng.getrandbits(64))
    values += [top, stack]
    if flags:
        values += [ground.one_of(STACKS >> 4, ground.any_selector()) for _ in range(4)]
    ground.push(size, *values)


@family(12)
def iret(ground: Ground) -> None:
    """IRET of every size, back to every mode."""
    ground.code = pick(ground, "cf", "66cf", *(("48cf",) * 3 if ground.mode == LONG else ()))
    return_frame(ground, operand_size(ground, ground.code), flags=True)
    if ground.chance(0.25):
        ground.spoil_pages()


@family(8)
def far_return(ground: Ground) -> None:
    """RETF with and without parameters."""
    ground.code = pick(
        ground, "cb", "66cb", "ca0800", "66ca0400", *(("48cb", "48ca1000") if ground.mode == LONG else ())
    )
    skip = ground.code[-2] if ground.code[-1] == 0 else 0
    return_frame(ground, operand_size(ground, ground.code), flags=False, skip=skip)
    if ground.chance(0.25):
        ground.spoil_pages()


@family(8)
def interrupt(ground: Ground) -> None:
    """INT n, INT3, INTO, INT1 through every gate."""
    vector = ground.one_of(3, 4, 0x20, 0x30, 0x31, 0x40, 0x80, ground.rng.randrange(256))
    codes = [f"cd{vector:02x}"] * 4 + ["cc", "f1"]
    if ground.mode != LONG:
        codes.append("ce")
    ground.code = pick(ground, *codes)
    if ground.chance(0.3):
        ground.spoil_pages()


@family(8)
def virtual_interrupts(ground: Ground) -> None:
    """CLI, STI, PUSHF, POPF, INT n and IRET where CR4.VME or PVI may put VIF in IF's place."""
    r = ground.registers
    vector = ground.one_of(0x20, 0x41, ground.rng.randrange(256))
    codes = ["fa", "fb", "9c", "669c", "9d", "669d"]
    if ground.mode == V86:
        codes += ["cf", "66cf", f"cd{vector:02x}", f"cd{vector:02x}", f"cd{vector:02x}", "cc", "0f0b"]
    ground.code = pick(ground, *codes)
    r["cr4"] |= ground.one_of(1, 1, 1, 2, 2, 3, 0)
    r["rflags"] = r["rflags"] & ~0x3000 | ground.one_of(0, 0, 0x1000, 0x2000, 0x3000)
    r["rflags"] |= ground.one_of(0, 0x80000) | ground.one_of(0, 0, 0x100000)
    size = operand_size(ground, ground.code)
    flags = ground.rng.getrandbits(12) | ground.one_of(0, 0x200, 0x200) | ground.rng.getrandbits(22) & 0x3F4000
    flags &= ~(0x100 * ground.chance(0.8))
    if ground.code[-1] == 0xCF:
        ground.push(size, (ground.handler() - 0x1000) & 0xFFFF, 0x100, flags)
    elif ground.code[-1] == 0x9D:
        ground.push(size, flags)
    if not ground.long:
        selector, base, limit, access = ground.segments["tr"]
        limit = ground.one_of(limit, 0x8F, 0x90, 0x70 + vector // 8, 0x6F + vector // 8, 0xFFF)
        ground.segments["tr"] = (selector, base, limit, access)
        place = ground.one_of(0x90, 0x90, 0x90, 0x68, 0x10)
        struct.pack_into("<H", ground.pages[TSS], 0x66, place)
        ground.pages[TSS][0x70:0x90] = ground.rng.randbytes(32)
    if ground.code != b"\x66\x9d" and ground.chance(0.15):  # Bochs reads the stack before it refuses POPFD
        ground.spoil_pages()


@family(8)
def exception(ground: Ground) -> None:
    """Faults of every class, with and without an error code."""
    codes = ["0f0b", "f7f1", "9bd9e8", "660fefc0", "0f20c8", "f4"]
    if ground.mode != LONG:
        codes += ["6203" if ground.bits == 32 else "676203", "d400"]
    ground.code = pick(ground, *codes)
    r = ground.registers
    if ground.code == b"\xf7\xf1":
        r["rcx"] = 0
    elif ground.code[:1] == b"\x9b":
        r["cr0"] |= ground.one_of(8, 4, 0xA, 0xE)
    elif ground.code[:2] == b"\x66\x0f":
        r["cr0"] |= ground.one_of(8, 4, 0)
        r["cr4"] |= 0x200 * ground.chance(0.5)
        if not r["cr0"] & 0xC and r["cr4"] & 0x200:
            r["cr0"] |= 8
    elif b"\x62" in ground.code:
        ground.at_data(struct.pack("<HH", 0x100, 0x200))
        r["rax"] = 0x50
    elif ground.code == b"\xf4" and ground.cpl == 0:
        ground.code = b"\x0f\x0b"
    if ground.chance(0.4):
        ground.spoil_pages()


@family(4)
def numeric(ground: Ground) -> None:
    """#MF from x87 code, #XM or #UD from SSE."""
    r = ground.registers
    ground.leaves_traps = True  # the units keep their exceptions
    r["cr0"] |= 0x20
    if ground.chance(0.5):
        ground.at_data(struct.pack("<H", 0x37E))
        control = with_ebx(ground, b"\xd9\x2b")
        # FNINIT; FLDCW; FCHS of an empty register; then what waits for the exception, or does not
        ground.code = b"\xdb\xe3" + control + b"\xd9\xe0" + pick(ground, "9b", "d9e8", "d9d0", "ded9", "dbe0", "dfe0")
        ground.steps = 4
        return
    r["cr4"] |= 0x200 | ground.one_of(0, 0x400, 0x400, 0x400)
    ground.at_data(struct.pack("<I", 0x1F80 & ~(0x80 << ground.one_of(0, 0, ground.rng.randrange(6)))))
    control = with_ebx(ground, b"\x0f\xae\x13")
    # LDMXCSR; XORPS; 0/0 or a square root, or none of it
    ground.code = control + b"\x0f\x57\xc0" + pick(ground, "0f5ec0", "f30f5ec0", "660f5ec0", "0f51c0", "f20f5ec0")
    ground.steps = 3


@family(4, LONG, COMPAT, PROT32, PROT16, REAL)
def non_maskable(ground: Ground) -> None:
    """An NMI that the local APIC sends to its own processor."""
    ground.map_apic()
    ground.leaves_traps = True  # further NMIs are blocked
    selector = ground.segments["ds"][0]
    ground.segments["ds"] = (selector, 0, 0xFFFFFFFF, 0xC093 | (ground.segments["ds"][3] & 0x60))
    ground.registers["rbx"] = APIC + 0x300
    narrow = b"\x66" if ground.bits == 16 else b""
    ground.code = with_ebx(ground, narrow + b"\xc7\x03" + struct.pack("<I", 0x4400))
    ground.steps = 2
    if ground.chance(0.3):
        ground.spoil_pages()


def far_pointer(ground: Ground, size: int) -> bytes:
    """An offset and a selector, or a gate's."""
    selector = ground.one_of(ground.any_selector(), ground.rng.randrange(1, 13) * 8 | ground.one_of(0, ground.cpl),
                             ground.rng.randrange(38, 48, 2) * 8 | ground.one_of(0, 3), 36 * 8, 34 * 8)  # fmt: skip
    offset = target(ground, size)
    if ground.mode in (V86, REAL):
        selector = ground.one_of(0, 0x100, ground.rng.getrandbits(12))
        offset = (ground.handler() - 16 * selector) & 0xFFFF
    return (offset & (1 << 8 * size) - 1).to_bytes(size, "little") + struct.pack("<H", selector)


@family(12)
def far_transfer(ground: Ground) -> None:
    """JMP and CALL to far pointers: code, call gates, task gates, tasks."""
    direct = ground.mode != LONG and ground.chance(0.5)
    if direct:
        code = pick(ground, "ea", "9a", "66ea", "669a")
        ground.code = code + far_pointer(ground, operand_size(ground, code))
    else:
        code = pick(
            ground, "ff2b", "ff1b", "66ff2b", "66ff1b", *(("48ff2b", "48ff1b") * 2 if ground.mode == LONG else ())
        )
        ground.at_data(far_pointer(ground, operand_size(ground, code)))
        ground.code = with_ebx(ground, code)
    if ground.chance(0.25):
        ground.spoil_pages()


@family(10)
def segment_load(ground: Ground) -> None:
    """MOV, POP and LxS into segment registers, and the way back."""
    selector = ground.any_selector()
    ground.registers["rax"] = ground.registers["rax"] & ~0xFFFF | selector
    register = ground.one_of(0, 2, 3, 4, 5, ground.rng.randrange(8))
    store = f"8c{0xC0 | register % 6 << 3:02x}"
    codes = [f"8e{0xC0 | register << 3:02x}"] * 4
    codes += [store, "66" + store, "0fa1", "0fa9", "660fa1", "660fa9", "0fa0", "0fa8"]
    if ground.mode != LONG:
        codes += ["07", "17", "1f", "6607", "6617", "661f", "06", "0e", "16", "1e", "6606", "660e"]
    loads = ["0fb20b", "0fb40b", "0fb50b"] + (["480fb50b", "480fb20b"] if ground.mode == LONG else ["c40b", "c50b"])
    ground.code = pick(ground, *codes, *loads)
    ground.push(2 if ground.bits == 16 else 4 if ground.bits == 32 else 8, selector)
    if ground.code.hex() in loads:
        size = operand_size(ground, ground.code)
        ground.at_data(bytes(size) + struct.pack("<H", selector))
        ground.code = with_ebx(ground, ground.code)
    if ground.chance(0.15):
        ground.spoil_pages()


@family(8)
def system_segments(ground: Ground) -> None:
    """LLDT, LTR, SLDT, STR, VERR, VERW, LAR, LSL, ARPL."""
    selector = ground.one_of(ground.any_selector(), 32 * 8, 34 * 8, 36 * 8, 0)
    ground.registers["rax"] = ground.registers["rax"] & ~0xFFFF | selector
    which = ground.rng.randrange(6)
    codes = [f"0f00{0xC0 | which << 3:02x}"] * 3 + ["0f02c8", "0f03c8", "660f02c8", "660f03c8"]
    if ground.mode == LONG:
        codes += ["480f02c8", "480f03c8", "480f00c0"]
    else:
        codes.append("63c8")
    ground.code = pick(ground, *codes)
    if ground.chance(0.2):
        ground.code = with_ebx(ground, bytes([0x0F, 0x00, which << 3 | 3]))
        ground.at_data(struct.pack("<H", selector))
    ground.registers["rcx"] = ground.registers["rcx"] & ~0xFFFF | ground.any_selector()


@family(4)
def table_registers(ground: Ground) -> None:
    """SGDT, SIDT, LGDT, LIDT, SMSW, LMSW, SWAPGS."""
    codes = ["0f0103", "0f010b", "0f0113", "0f011b", "660f0103", "660f0113", "0f01e0", "0f01f0"]
    if ground.mode == LONG:
        codes += ["0f01f8"] * 2
    code = pick(ground, *codes)
    ground.code = with_ebx(ground, code) if code[-1] < 0xC0 else code
    base = ground.one_of(GDT, HIGH | GDT, ground.rng.getrandbits(64))
    ground.at_data(struct.pack("<HQ", ground.rng.getrandbits(16), base))
    ground.registers["rax"] = ground.registers["rax"] & ~15 | ground.rng.randrange(16)


@family(8, LONG, COMPAT, PROT32, PROT16)
def system_call(ground: Ground) -> None:
    """SYSCALL, SYSRET, SYSENTER, SYSEXIT."""
    long = ground.mode == LONG
    ground.code = pick(
        ground, "0f34", "0f35", *(("0f05",) * 3 + ("0f07", "480f07", "480f07", "480f35") if long else ())
    )
    r = ground.registers
    for name in ("rcx", "rdx"):
        r[name] = ground.one_of(
            ground.handler(), ground.handler(), 0x800000000000, HIGH | HANDLERS, ground.rng.getrandbits(64)
        )
        if not long:
            r[name] &= 0xFFFFFFFF
    r["r11"] = ground.rng.getrandbits(22) & ~0x100
    if ground.chance(0.1):
        r["lstar"] = HIGH | ground.handler()


CR0_BITS = (0, 1, 2, 3, 5, 16, 18, 29, 30, 31)
CR4_BITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 20, 21)


@family(8)
def control_register(ground: Ground) -> None:
    """MOV to and from control registers, CLTS, WRMSR of EFER."""
    r = ground.registers
    which = ground.one_of(0, 0, 2, 3, 4, 4, ground.rng.randrange(8))
    if ground.chance(0.25):
        ground.code = pick(ground, f"0f20{0xC0 | which << 3:02x}", "0f06", "0f09")
        return
    if ground.chance(0.2):
        ground.code = b"\x0f\x30"
        r["rcx"] = 0xC0000080
        r["rdx"] = ground.one_of(0, 0, 0, 1)
        r["rax"] = (r["efer"] ^ ground.one_of(1, 0x100, 0x400, 0x800, 0x1000, 0x2000, 0)) & 0xFFFFFFFF
        return
    ground.code = bytes([0x0F, 0x22, 0xC0 | which << 3])
    value = ground.rng.getrandbits(64)
    if which == 0:
        value = r["cr0"] ^ 1 << ground.one_of(*CR0_BITS) ^ (1 << ground.one_of(*CR0_BITS)) * ground.chance(0.3)
    elif which == 3:
        value = r["cr3"] | ground.one_of(0, 8, 0x18, 0xFE0, 1 << 63 if ground.mode == LONG else 0, 1 << 52)
        if ground.mode != LONG:
            value &= 0xFFFFFFFF
    elif which == 4:
        value = r["cr4"] ^ 1 << ground.one_of(*CR4_BITS) ^ (1 << ground.one_of(*CR4_BITS)) * ground.chance(0.3)
    elif ground.mode != LONG:
        value &= 0xFFFFFFFF
    r["rax"] = value


@family(5)
def flags(ground: Ground) -> None:
    """PUSHF, POPF, CLI, STI under every IOPL, LAHF, SAHF."""
    ground.code = pick(ground, "9c", "9d", "9d", "669c", "669d", "fa", "fb", "9e", "9f")
    value = ground.rng.getrandbits(32) & ~0x100
    ground.push(8 if ground.mode == LONG else 4, value, 0)
    if ground.cpl == 3 and ground.chance(0.2):
        ground.spoil_pages()


@family(10)
def stack(ground: Ground) -> None:
    """PUSH, POP, near CALL and RET, ENTER, LEAVE, PUSHA, POPA at the edges of stacks."""
    codes = [
        "50",
        "54",
        "58",
        "5c",
        "6650",
        "6658",
        "6812345678",
        "6a80",
        "c3",
        "c20800",
        "c9",
        "c8100000",
        "c8080001",
        "c8080003",
    ]
    if ground.mode != LONG:
        codes += ["60", "61", "6660", "6661", "66c3"]
    memory = ["ff33", "8f03", "ff13", "66ff33", "668f03"]
    code = pick(ground, *codes, *memory)
    ground.code = with_ebx(ground, code) if code.hex() in memory else code
    wide = 8 if ground.mode == LONG else 2 if ground.bits == 16 else 4
    to = ground.handler() | ground.high if ground.mode == LONG else ground.handler()
    base = 0 if ground.mode == LONG else ground.segments["cs"][1]
    ground.push(wide, to - base, ground.rng.getrandbits(32), ground.rng.getrandbits(32))
    if code.hex() == "ff13":
        ground.at_data((to - base & (1 << 8 * wide) - 1).to_bytes(wide, "little"))
    r = ground.registers
    r["rbp"] = r["rsp"] + ground.one_of(0, 8, 16, -8, 0x100)
    if ground.mode in (PROT32, PROT16, COMPAT) and ground.chance(0.4):
        odd_stack(ground)
    elif ground.bits == 16 and ground.chance(0.3):
        r["rsp"] = r["rsp"] & ~0xFFFF | ground.one_of(0, 1, 2, 3, 5, 0xFFFF, 0xFFFE)
    if ground.mode == LONG and ground.chance(0.1):
        r["rsp"] = ground.one_of(0x7FFFFFFFFFFF, 0x800000000000, HIGH, HIGH + 4, 4)
    if ground.mode != LONG:
        r["rsp"] &= 0xFFFFFFFF
        r["rbp"] &= 0xFFFFFFFF
    if ground.chance(0.2):
        ground.spoil_pages()


def odd_stack(ground: Ground) -> None:
    """A small, expand-down or 16-bit SS."""
    selector, _, _, access = ground.segments["ss"]
    access &= ~0x4000
    access |= ground.one_of(0, 0x4000)
    sp = ground.sp - STACKS
    limit = ground.one_of(sp - 1, sp, sp + 1, sp + 3, sp + 7, sp - 4) & 0xFFFFFFFF
    if ground.chance(0.5):
        access |= 4
        limit = ground.one_of(sp - 1, sp - 2, sp - 4, sp - 5, sp - 8, sp) & 0xFFFFFFFF
    if limit > 0xFFFFF:
        limit = 0xFFFF
    ground.segments["ss"] = selector, STACKS, limit, access & ~0x8000
    ground.registers["rsp"] = sp | (ground.rng.getrandbits(16) << 16 if not access & 0x4000 else 0)


ACCESSES = (
    "8a03",
    "8803",
    "8b03",
    "8903",
    "668903",
    "0003",
    "8703",
    "f00103",
    "0fc70b",
    "0fb603",
    "8603",
    "ff03",
    "f713",
)


@family(10)
def segmented(ground: Ground) -> None:
    """Plain loads and stores through segments with limits, rights and bases."""
    code = pick(ground, *ACCESSES)
    names = {"es": b"\x26", "ss": b"\x36", "ds": b"", "fs": b"\x64", "gs": b"\x65", "cs": b"\x2e"}
    name = ground.rng.choice(list(names))
    ground.code = names[name] + with_ebx(ground, code)
    r = ground.registers
    if ground.mode == LONG:
        if name in ("fs", "gs"):
            selector, _, limit, access = ground.segments[name]
            base = ground.one_of(0, 0x1000, HIGH, 0xFFFFFFFFFFFFF000, ground.rng.getrandbits(47))
            ground.segments[name] = selector, base, limit, access
            r["rbx"] = (r["rbx"] - base) & 0xFFFFFFFFFFFFFFFF
        if ground.chance(0.2):
            r["rbx"] = ground.one_of(0x7FFFFFFFFFFF, 0x7FFFFFFFFFFD, 0x800000000000, HIGH - 1, HIGH | ground.data)
        return
    selector, base, limit, access = ground.segments[name]
    offset = ground.data - STACKS
    base = STACKS
    edge = ground.one_of(-5, -4, -2, -1, 0, 1, 2, 3, 4, 7, 8, 0x1000)
    limit = (offset + edge) & 0xFFFFF
    if name in ("es", "ds", "fs", "gs") and ground.mode not in (V86, REAL):
        access = 0x93 | ground.cpl << 5
        access ^= ground.one_of(0, 0, 0, 2, 4, 4, 6, 8, 0xA) | ground.one_of(0, 0x4000)
        if ground.chance(0.05):
            access = 1 << 16
    elif name == "ss":
        limit = 0xFFFFFFFF if access & 0x8000 else 0xFFFF
    elif name == "cs":
        base, limit = ground.segments["cs"][1], ground.segments["cs"][2]
    if ground.mode in (V86, REAL):
        limit = 0xFFFF
        offset = ground.one_of(offset, 0xFFFF, 0xFFFE, 0xFFFD, 0x10000)
    ground.segments[name] = selector, base, limit, access
    r["rbx"] = (ground.data - base if base != STACKS else offset) & 0xFFFFFFFF


@family(5, PROT16, PROT32, COMPAT, LONG)
def alignment(ground: Ground) -> None:
    """Loads, stores, pushes and pops at any address, mostly with CR0.AM and RFLAGS.AC set."""
    r = ground.registers
    size = 8 if ground.mode == LONG else 4
    ground.code = with_ebx(ground, pick(ground, *ACCESSES))
    if ground.chance(0.3):
        ground.code = pick(ground, "50", "58", "53", "6650", "6a07", "9c")
        ground.push(size, ground.handler())
        r["rsp"] += ground.rng.randrange(-3, 4)
    r["rbx"] += ground.rng.randrange(8)
    r["cr0"] |= 0x40000 * ground.chance(0.85)
    r["rflags"] |= 0x40000 * ground.chance(0.85)


STRINGS = ("a4", "a5", "aa", "ab", "ac", "ad", "a6", "a7", "ae", "af")


@family(8)
def string(ground: Ground) -> None:
    """String instructions that meet a fault in the middle, up and down."""
    r = ground.registers
    code = bytes.fromhex(ground.rng.choice(STRINGS))
    prefix = pick(ground, "f3", "f3", "f2", "")
    if ground.chance(0.2):
        prefix += b"\x66"
    if ground.chance(0.2):
        prefix += b"\x67"
    if ground.mode == LONG and ground.chance(0.2):
        prefix += b"\x48"
    if ground.chance(0.2):
        prefix = pick(ground, "64", "26", *(("2e",) if ground.mode == LONG else ())) + prefix
    ground.code = prefix + code
    r["rflags"] = r["rflags"] & ~0x400 | ground.one_of(0, 0, 0x400)
    base_ds = 0 if ground.mode == LONG else ground.segments["ds"][1]
    for name, segment in (("rsi", "ds"), ("rdi", "es")):
        if ground.mode not in (LONG, V86, REAL):
            ground.segments[segment] = ground.from_gdt(8, 3)
        elif ground.mode in (V86, REAL):
            ground.segments[segment] = ground.segments["ss"]
            base_ds = STACKS
        page = STACKS + 0x1000 * ground.rng.randrange(1, 7)
        at = page + ground.one_of(-8, -1, -3, 0, 8, 16, 1, 0x7FC)
        r[name] = (at - (base_ds if ground.mode in (V86, REAL) else 0)) | ground.high
        if prefix.find(b"\x67") >= 0 and ground.mode == LONG:
            r[name] = at
        if ground.chance(0.1) and ground.bits == 16:
            r[name] = r[name] & ~0xFFFF | ground.one_of(0, 1, 2, 0xFFFF, 0xFFFE, 0xFFFC)
    if ground.bits == 16 and ground.mode == PROT16 and b"\x67" not in prefix:
        r["rsi"] &= 0xFFFF
        r["rdi"] &= 0xFFFF
        for segment in ("ds", "es"):
            selector, _, limit, access = ground.segments[segment]
            ground.segments[segment] = selector, STACKS, limit, access
    r["rcx"] = r["rcx"] & ~0xFFFFFFFF | ground.one_of(0, 1, 2, 5, 12, 40)
    if b"\x67" not in prefix or ground.mode != LONG:
        r["rcx"] &= 0xFFFFFFFF
    if ground.chance(0.5):  # equal data, so that comparisons run on
        ground.stack[:] = bytes([0x5A]) * len(ground.stack)
        r["rax"] = 0x5A5A5A5A
    if ground.chance(0.6):
        ground.spoil_pages()


PAGE_CODES = ("8a03", "8803", "0003", "8b03", "8903", "8703", "0f0103", "0f0023", "0fc70b", "ff33", "668b03")


@family(30, LONG, PROT32)
def page_walk(ground: Ground) -> None:
    """Accesses through page tables with every combination of rights, reserved bits and sizes; fetches too."""
    rng, r = ground.rng, ground.registers
    ground.paging = True
    ground.pae = ground.long or ground.chance(0.5)
    r["cr0"] = 0x80000011 | ground.one_of(0, 0x10000)
    r["cr4"] = (
        (0x20 if ground.pae else ground.one_of(0, 0x10))
        | ground.one_of(0, 0x80)
        | ground.one_of(0, 0x100000, 0x200000, 0x300000)
    )
    r["efer"] = (0x500 if ground.long else 0) | (ground.one_of(0, 0x800) if ground.pae else 0)
    r["cr3"] = PML4 if ground.long else 0x5000 if ground.pae else PD32
    r["rflags"] = 2 | ground.one_of(0, 0x40000)
    if not ground.long:
        struct.pack_into("<I", ground.pages[TSS2], 0x1C, r["cr3"])
    ground.cpl = ground.one_of(0, 3)
    level = ground.cpl
    for name in ("es", "ss", "ds", "fs", "gs"):
        ground.segments[name] = ground.from_gdt(5 + level, 8 * 0 | level)
    ground.segments["cs"] = ground.from_gdt(1 + level, level)
    supervisor_only(ground, r["cr4"] & 0x300000 != 0 or ground.chance(0.5))
    fetch = ground.chance(0.25)
    leaf = HANDLERS if fetch else STACKS
    va = (four_levels if ground.pae else two_levels)(ground, leaf)
    va |= 0x10 if fetch else ground.one_of(0x10, 0x10, 0xFF8, 0xFFF, 0xFF6)
    r["rbx"] = va
    r["rax"] = rng.getrandbits(32)
    r["rcx"] = rng.getrandbits(32)
    r["rsp"] = STACKS + 0x5800 + ground.high
    ground.stack[:] = bytes(len(ground.stack))
    if fetch:
        ground.code = b"\xff\xe3"
        ground.steps = 2
    else:
        ground.code = pick(ground, *PAGE_CODES)


def supervisor_only(ground: Ground, wanted: bool) -> None:
    """Take the U bit from the identity mapping, except from code that ring 3 runs."""
    if not wanted:
        return
    for page in range(512):
        if ground.cpl == 3 and (page == ground.slot >> 12 or page >= CODE >> 12):
            continue
        ground.pages[PT][8 * page] &= ~U
        ground.pages[PT32][4 * page] &= ~U


def entry_bits(ground: Ground) -> int:
    """P, W, U and the rest, most of them set most of the time."""
    chances = (
        (P, 0.93),
        (W, 0.8),
        (U, 0.75),
        (8, 0.1),
        (16, 0.1),
        (A, 0.5),
        (D, 0.5),
        (G, 0.3),
        (0x200, 0.2),
        (0x800, 0.2),
    )
    return sum(bit for bit, chance in chances if ground.chance(chance))


def high_bits(ground: Ground) -> int:
    """NX, reserved address bits, and ignored bits."""
    value = NX * ground.chance(0.1)
    if ground.chance(0.05):
        value |= 1 << ground.rng.randrange(40, 52)
    if ground.chance(0.1):
        value |= 1 << ground.rng.randrange(52, 59)
    return value


def four_levels(ground: Ground, leaf: int) -> int:
    """A mapping of ``leaf`` in 4-level or PAE tables; its linear address."""
    rng = ground.rng
    first, second = rng.randrange(512), rng.randrange(512)
    large = ground.one_of(0, 0, 0, 1, 2)
    if ground.long:
        third = rng.randrange(512)
        va = 1 << 39 | third << 30 | second << 21 | first << 12
        top = PDPT2 | entry_bits(ground) | high_bits(ground) | PS * ground.chance(0.03)
        struct.pack_into("<Q", ground.pages[PML4], 8, top)
        if large == 2:
            odd = ground.one_of(0x1000, 0x2000, 1 << 29) * ground.chance(0.1)
            struct.pack_into("<Q", ground.pages[PDPT2], 8 * third, PS | entry_bits(ground) | high_bits(ground) | odd)
            return va & ~0x3FFFFFFF | leaf
        struct.pack_into("<Q", ground.pages[PDPT2], 8 * third, PD2 | entry_bits(ground) & ~PS | high_bits(ground))
    else:
        third = rng.randrange(1, 4)
        va = third << 30 | second << 21 | first << 12
        struct.pack_into("<Q", ground.pages[0x5000], 8 * third, PD2 | (P if ground.chance(0.9) else 0))
    if large:
        odd = ground.one_of(0x1000, 0x2000, 1 << 20) * ground.chance(0.1)
        struct.pack_into("<Q", ground.pages[PD2], 8 * second, PS | entry_bits(ground) | high_bits(ground) | odd)
        return va & ~0x1FFFFF | leaf
    struct.pack_into("<Q", ground.pages[PD2], 8 * second, PT2 | entry_bits(ground) | high_bits(ground))
    struct.pack_into(
        "<Q", ground.pages[PT2], 8 * first, leaf | entry_bits(ground) | high_bits(ground) | PS * ground.chance(0.5)
    )
    if first < 511:
        struct.pack_into("<Q", ground.pages[PT2], 8 * first + 8, leaf + 0x1000 | entry_bits(ground) | high_bits(ground))
    return va


def two_levels(ground: Ground, leaf: int) -> int:
    """A mapping of ``leaf`` in 32-bit tables; its linear address."""
    rng = ground.rng
    second, first = rng.randrange(4, 1024), rng.randrange(1024)
    if ground.chance(0.3) and ground.registers["cr4"] & 0x10:
        odd = (1 << 21) * ground.chance(0.05)
        struct.pack_into("<I", ground.pages[PD32], 4 * second, PS | entry_bits(ground) | odd)
        return second << 22 | leaf
    struct.pack_into(
        "<I", ground.pages[PD32], 4 * second, PT2 | entry_bits(ground) | PS * (not ground.registers["cr4"] & 0x10)
    )
    struct.pack_into("<I", ground.pages[PT2], 4 * first, leaf | entry_bits(ground))
    if first < 1023:
        struct.pack_into("<I", ground.pages[PT2], 4 * first + 4, leaf + 0x1000 | entry_bits(ground))
    return second << 22 | first << 12


@family(5)
def trap(ground: Ground) -> None:
    """POPF sets TF; the instruction behind it is stepped. (Bochs overlooks a TF that was set in its state.)"""
    codes = ["90", "9d", "9d", "8ed0", "cc", "cd30", "fb", "fa", "9c", "0f0b", "f3a4", "0f20c0", "0f06"]
    if ground.mode == LONG:
        codes += ["0f05", "480f07", "48cf"]
    else:
        codes += ["cf", "17"]
    code = pick(ground, *codes)
    ground.code = b"\x9d" + code + b"\x90"
    ground.steps = 3
    ground.leaves_traps = True
    r = ground.registers
    r["rax"] = r["rax"] & ~0xFFFF | ground.segments["ss"][0]
    size = operand_size(ground, b"\x48" if ground.mode == LONG else b"\x90")
    values = [ground.rng.getrandbits(16) & ~0x4000 | 0x100 * ground.chance(0.8)]
    if code[-1] == 0xCF:
        ground.sp += size
        return_frame(ground, size, flags=True)
        ground.sp -= size
    else:
        values.append(ground.rng.getrandbits(16) & ~0x4000 if code == b"\x9d" else ground.segments["ss"][0])
    if code == b"\xf3\xa4":
        for name in ("rsi", "rdi"):
            r[name] = r["rsp"]
        for segment in ("ds", "es"):
            ground.segments[segment] = ground.segments["ss"]
        r["rcx"] = ground.one_of(1, 2, 3)
    ground.push(size, *values)


@family(12, LONG, PROT32, COMPAT, REAL, V86)
def debug_registers(ground: Ground) -> None:
    """MOV to and from debug registers, general detect, CR4.DE. (This Bochs is built without breakpoints.)"""
    r, rng = ground.registers, ground.rng
    reg = rng.randrange(8)
    ground.code = bytes((0x0F, ground.one_of(0x21, 0x23), 0xC0 | reg << 3 | rng.randrange(4)))
    if ground.mode == LONG and ground.chance(0.1):
        ground.code = b"\x44" + ground.code
    value = ground.one_of(rng.getrandbits(32), rng.getrandbits(64), 0xFFFFFFFF, rng.getrandbits(16))
    value &= ~0x8FF & (1 << (64 if ground.mode == LONG else 32)) - 1  # nothing is enabled; bit 11 is RTM's
    for name in ("rax", "rcx", "rdx", "rbx"):
        r[name] = value
    for number in range(4):
        r[f"dr{number}"] = rng.getrandbits(32)
    r["dr6"] = 0xFFFF0FF0 | ground.one_of(0, 1, 0x4000, 0x2003)
    # The privilege level comes before general detect (KVM relies on it; Bochs has it the other way round).
    r["dr7"] = ground.one_of(0x400, 0xF000700, 0x2400 if ground.cpl == 0 and ground.mode != V86 else 0x400)
    r["cr4"] |= ground.one_of(0, 8)
