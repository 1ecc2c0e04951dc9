"""Random instructions: plain bytes, forms of the opcode table with odd prefixes, and sequences with a purpose.

A chunk is a run of bytes that means something by itself, so that a shrinker can leave chunks out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from pyhyve.vmm.soft import opcodes, opcodes_evex

PREFIXES = b"\x66\x67\xf0\xf2\xf3\x26\x2e\x36\x3e\x64\x65"
_MANDATORY = {"np": b"", "66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
_ESCAPES = {"": b"", "0F": b"\x0f", "0F38": b"\x0f\x38", "0F3A": b"\x0f\x3a"}

MSRS = (
    0x10, 0x17, 0x1B, 0x3A, 0x3B, 0x79, 0x8B, 0xCE, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x1A0, 0x1D9, 0x200, 0x201,
    0x20F, 0x250, 0x258, 0x26F, 0x277, 0x2FF, 0x6E0, 0x802, 0x808, 0x80B, 0x80D, 0x80F, 0x828, 0x830, 0x832, 0x835,
    0x838, 0x83E, 0x83F, 0xDA0, 0x40000000, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000100,
    0xC0000101, 0xC0000102, 0xC0000103, 0xC0010015, 0xC001001F,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where code will lie and what it may aim at: ``bits`` of its segment, ``rip`` of the chunk, interesting addresses."""

    bits: int
    rip: int
    end: int
    targets: tuple[int, ...]
    selectors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Form:
    vex: bool
    escape: str
    first: int
    last: int
    reg: int | None
    shape: str
    prefix: str


@cache
def _forms() -> tuple[_Form, ...]:
    found = []
    for row in opcodes.rows():
        key = row.split()[0]
        vex = key.startswith("V")
        key, _, prefix = key.removeprefix("V").partition(":")
        shape = ""
        if key.endswith((".m", ".r")):
            key, shape = key[:-2], key[-1]
        key, _, reg = key.partition("/")
        escape, _, opcode = key.rpartition(".")
        low, _, high = opcode.partition("-")
        found.append(_Form(vex, escape, int(low, 16), int(high or low, 16), int(reg) if reg else None, shape, prefix))
    return tuple(found)


def _modrm(rng: random.Random, place: Place, reg: int | None, shape: str) -> bytes:
    """ModRM, SIB and displacement, often so that the operand lies where something is."""
    field = rng.randrange(8) if reg is None else reg
    if shape == "r" or (not shape and rng.random() < 0.4):
        return bytes([0xC0 | field << 3 | rng.randrange(8)])
    style = rng.random()
    if style < 0.25 and place.bits != 16:
        target = rng.choice(place.targets) + rng.randrange(-16, 16)
        if place.bits == 64:
            target -= place.rip
        return bytes([field << 3 | 5]) + (target & 0xFFFFFFFF).to_bytes(4, "little")
    rm = rng.randrange(8)
    mod = rng.randrange(3)
    out = bytes([mod << 6 | field << 3 | rm])
    if rm == 4 and place.bits != 16:
        out += bytes([rng.randrange(256)])
    if mod == 1:
        out += bytes([rng.randrange(256)])
    elif mod == 2 or (mod == 0 and rm in (5, 6)):
        out += (rng.randrange(-64, 64) & 0xFFFFFFFF).to_bytes(4, "little")[: 2 if place.bits == 16 else 4]
    return out


def from_table(rng: random.Random, place: Place) -> bytes:
    """A form of the engine's own opcode table, with prefixes that may or may not suit it."""
    form = rng.choice(_forms())
    opcode = bytes([rng.randint(form.first, form.last)])
    tail = _modrm(rng, place, form.reg, form.shape) + rng.randbytes(4)
    odd = bytes(rng.choice(PREFIXES) for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2, 5))))
    if form.vex:
        return odd[:1] * (rng.random() < 0.1) + _vex(rng, form) + opcode + tail
    rex = bytes([rng.randrange(0x40, 0x50)]) if place.bits == 64 and rng.random() < 0.5 else b""
    return odd + _MANDATORY.get(form.prefix, b"") + rex + _ESCAPES[form.escape] + opcode + tail


def _vex(rng: random.Random, form: _Form) -> bytes:
    pp = {"np": 0, "66": 1, "F3": 2, "F2": 3}.get(form.prefix, rng.randrange(4))
    if rng.random() < 0.1:
        pp = rng.randrange(4)
    low = (rng.choice((0, rng.randrange(16)))) << 3 ^ 0x78 | rng.randrange(2) << 2 | pp
    if form.escape == "0F" and rng.random() < 0.5:
        return bytes([0xC5, rng.choice((0x80, 0)) | low])
    number = {"0F": 1, "0F38": 2, "0F3A": 3}[form.escape]
    return bytes([0xC4, rng.choice((0xE0, rng.randrange(8) << 5)) | number, rng.choice((0, 0x80)) | low])


def evex(rng: random.Random, place: Place) -> bytes:
    """A row of the EVEX table, with masks, broadcasts and vector lengths that may or may not suit it."""
    row = rng.choice(opcodes_evex.rows())
    cell = rng.choice(opcodes_evex.cells(row)[1])
    rest, reg = divmod(cell, 8)
    rest, register = divmod(rest, 2)
    rest, wide = divmod(rest, 2)
    rest, pp = divmod(rest, 4)
    map_, opcode = divmod(rest, 256)
    high = rng.choice((0xF0, rng.randrange(16) << 4)) if place.bits == 64 else 0xF0
    payload = [high | map_ + 1, wide << 7 | rng.choice((15, rng.randrange(16))) << 3 | 4 | pp,
               rng.choice((0, 0x80)) | rng.choice((0, 0x20, 0x40)) | rng.choice((0, 0, 0x10)) | 8 | rng.randrange(8)]  # fmt: skip
    if rng.random() < 0.1:
        payload[rng.randrange(3)] ^= 1 << rng.randrange(8)
    modrm = _modrm(rng, place, reg if "/" in row.split()[0] else None, "r" if register else "m")
    return bytes([0x62, *payload, opcode]) + modrm + rng.randbytes(1)


def noise(rng: random.Random, place: Place) -> bytes:
    """Bytes."""
    return rng.randbytes(rng.randint(1, 15))


def escapes(rng: random.Random, place: Place) -> bytes:
    """Bytes behind an opcode escape, VEX and EVEX among them."""
    head = rng.choice((b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\x62", b"\xc4", b"\xc5", b"\x0f\x01", b"\x0f\xae"))
    return bytes([rng.choice(PREFIXES)]) * (rng.random() < 0.3) + head + rng.randbytes(rng.randint(2, 10))


def _imm(place: Place, value: int) -> bytes:
    size = 2 if place.bits == 16 else 4
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def _wide(place: Place) -> bytes:
    """The prefix for a 32-bit operand."""
    return b"\x66" if place.bits == 16 else b""


def load(rng: random.Random, place: Place, register: int, value: int) -> bytes:
    """MOV of a constant into a register, whole where that is possible."""
    if place.bits == 64:
        return bytes([0x48, 0xB8 | register]) + (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
    return _wide(place) + bytes([0xB8 | register]) + (value & 0xFFFFFFFF).to_bytes(4, "little")


def _store_byte(place: Place, target: int, value: int) -> bytes:
    """MOV byte [target], imm8."""
    if place.bits == 16:
        return b"\x67\xc6\x05" + (target & 0xFFFFFFFF).to_bytes(4, "little") + bytes([value])
    if place.bits == 64:
        target -= place.rip + 7
    return b"\xc6\x05" + (target & 0xFFFFFFFF).to_bytes(4, "little") + bytes([value])


def self_modifying(rng: random.Random, place: Place) -> bytes:
    """A store into the code around it: before, into the next instructions, or into itself."""
    return _store_byte(place, place.rip + rng.randrange(-24, 40), rng.randrange(256))


def self_modifying_string(rng: random.Random, place: Place) -> bytes:
    """REP STOS or MOVS over the code."""
    length = rng.choice((1, 3, 8, 40, 0x1000))
    start = place.rip + rng.randrange(-32, 64)
    code = load(rng, place, 7, start) + load(rng, place, 1, length)
    if rng.random() < 0.5:
        code += load(rng, place, 6, rng.choice((place.rip, start - 1, *place.targets)))
        return code + rng.choice((b"", b"\xfd")) + b"\xf3" + rng.choice((b"\xa4", b"\xa5"))
    return code + load(rng, place, 0, rng.choice((0x90909090, 0xF4F4F4F4, rng.getrandbits(32)))) + b"\xf3\xaa"


def branch(rng: random.Random, place: Place) -> bytes:
    """A short or near jump, call, loop or return, mostly within the code."""
    kind = rng.randrange(8)
    if kind < 3:
        return bytes([rng.randrange(0x70, 0x80), rng.randrange(256)])
    if kind == 3:
        return bytes([rng.choice((0xEB, 0xE0, 0xE1, 0xE2, 0xE3)), rng.randrange(256)])
    if kind == 4:
        return bytes([rng.choice((0xE8, 0xE9))]) + _imm(place, rng.choice(place.targets) - place.rip - rng.randrange(8))
    if kind == 5:
        return rng.choice((b"\xc3", b"\xc2\x08\x00", b"\xcb", b"\xcf", b"\x48\xcf", b"\x66\xc3"))
    if kind == 6:
        return load(rng, place, 0, rng.choice(place.targets) + rng.randrange(64)) + rng.choice(
            (b"\xff\xe0", b"\xff\xd0")
        )
    return b"\x0f" + bytes([rng.randrange(0x80, 0x90)]) + _imm(place, rng.randrange(-48, 64))


def control(rng: random.Random, place: Place) -> bytes:
    """MOV to or from a control or debug register, LMSW, CLTS, XSETBV."""
    kind = rng.randrange(8)
    register = rng.choice((0, 0, 2, 3, 3, 4, 4, 8, rng.randrange(16)))
    values = {
        0: (0x80000011 ^ 1 << rng.randrange(32), 0x80010031, 0x11, 0x10, 0x80050033 ^ 1 << rng.randrange(32)),
        3: (0x1000, 0x5000, 0x6000, rng.choice(place.targets) & ~0xFFF, rng.getrandbits(40), 0x1000 | 1 << 63),
        4: (0x20 ^ 1 << rng.randrange(23), 0x6A0 ^ 1 << rng.randrange(23), 0, 0x40620, rng.getrandbits(24)),
    }
    value = rng.choice(values.get(register, (0, 15, rng.getrandbits(64))))
    if kind < 5:
        rex = b"\x44" if register > 7 and place.bits == 64 else b""
        return load(rng, place, 0, value) + rex + bytes([0x0F, 0x22, 0xC0 | (register & 7) << 3])
    if kind == 5:
        return rng.choice(
            (b"\x0f\x06", b"\x0f\x01\xf0", b"\x0f\x20\xc0", b"\x0f\x20\xd8", b"\x0f\x20\xe0", b"\x0f\x01\xd0")
        )
    if kind == 6:
        state = load(rng, place, 0, rng.choice((1, 3, 7, 0, 5, 0xE7))) + load(rng, place, 2, 0)
        return state + load(rng, place, 1, rng.choice((0, 0, 1))) + b"\x0f\x01\xd1"
    value = rng.choice((rng.getrandbits(32), 0x400, 0x2400, 0xFFFFFFFF, rng.choice(place.targets)))
    return load(rng, place, 0, value) + bytes([0x0F, 0x23, 0xC0 | rng.randrange(8) << 3])


def model_specific(rng: random.Random, place: Place) -> bytes:
    """WRMSR or RDMSR of a register that is likely to exist."""
    index = rng.choice((*MSRS, 0x200 + rng.randrange(0x20), 0x800 + rng.randrange(0x40), rng.getrandbits(32)))
    low = rng.choice(
        (0, 1, 0x900, 0xFEE00900, 0xFEE00D00, 0x500, 0x501, 0xD01, 1 << rng.randrange(32), rng.getrandbits(32))
    )
    high = rng.choice((0, 0, 0, 0xFFFFFFFF, 0xFFFF8000, rng.getrandbits(32), 1 << rng.randrange(32)))
    code = load(rng, place, 1, index) + load(rng, place, 0, low) + load(rng, place, 2, high)
    return code + rng.choice((b"\x0f\x30", b"\x0f\x30", b"\x0f\x32"))


def segments(rng: random.Random, place: Place) -> bytes:
    """Loads of segment registers, LDTR, TR, GDTR, IDTR, and far transfers."""
    selector = rng.choice(place.selectors)
    put = load(rng, place, 0, selector)
    kind = rng.randrange(9)
    if kind < 3:
        return put + bytes([0x8E, 0xC0 | rng.randrange(6) << 3])
    if kind == 3:
        return put + bytes([0x0F, 0x00, 0xC0 | rng.randrange(8) << 3])
    if kind == 4:
        slot = load(rng, place, 3, rng.choice(place.targets) + rng.randrange(64))
        wide = b"\x67" if place.bits == 16 else b""
        return slot + wide + bytes([0x0F, 0x01, rng.randrange(4) << 3 | 3])
    if kind == 5 and place.bits != 64:
        target = _imm(place, rng.choice(place.targets) + rng.randrange(64))
        return bytes([rng.choice((0xEA, 0x9A))]) + target + (selector & 0xFFFF).to_bytes(2, "little")
    if kind == 6:
        slot = load(rng, place, 3, rng.choice(place.targets) + rng.randrange(64))
        wide = b"\x67" if place.bits == 16 else b""
        rex = b"\x48" if place.bits == 64 and rng.random() < 0.3 else b""
        return slot + wide + rex + b"\xff" + bytes([rng.choice((0x1B, 0x2B))])
    if kind == 7:
        return rng.choice((b"\x0f\x05", b"\x0f\x07", b"\x48\x0f\x07", b"\x0f\x34", b"\x0f\x35", b"\x48\x0f\x35",
                           b"\x0f\x01\xf8", b"\xcf", b"\x48\xcf", b"\xcb", b"\x48\xcb", b"\x66\xcf"))  # fmt: skip
    return put + b"\x50" + rng.choice((b"\x07", b"\x17", b"\x1f", b"\x0f\xa1", b"\x0f\xa9"))


def interrupts(rng: random.Random, place: Place) -> bytes:
    """INT, flags, HLT, shadows."""
    flags = load(rng, place, 0, rng.getrandbits(22)) + b"\x50\x9d"
    return rng.choice((bytes([0xCD, rng.randrange(256)]), b"\xcc", b"\xce", b"\xf1", b"\x0f\x0b", flags, flags, b"\xfb",
                       b"\xfa", b"\xf4", b"\xfb\xf4", b"\x9c\x9d", b"\x0f\xa2", b"\xf3\x90", b"\x0f\x31"))  # fmt: skip


def strings(rng: random.Random, place: Place) -> bytes:
    """String instructions with and without REP, ports among them."""
    code = b""
    for register in (6, 7):
        if rng.random() < 0.6:
            code += load(rng, place, register, rng.choice(place.targets) + rng.randrange(-64, 0x1000))
    code += load(rng, place, 1, rng.choice((0, 1, 5, 70, 0x1000, 0x10003, rng.getrandbits(32))))
    if rng.random() < 0.3:
        code += load(rng, place, 2, rng.choice((0x3F8, 0xF4, rng.randrange(0x10000))))
    prefix = rng.choice((b"", b"\xf3", b"\xf3", b"\xf2", b"\x67", b"\x67\xf3", b"\x66\xf3", b"\x64\xf3"))
    rex = b"\x48" if place.bits == 64 and rng.random() < 0.3 else b""
    direction = rng.choice((b"", b"\xfd", b"\xfc"))
    return (
        code
        + direction
        + prefix
        + rex
        + bytes([rng.choice(b"\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf\x6c\x6d\x6e\x6f")])
    )


def ports(rng: random.Random, place: Place) -> bytes:
    """IN and OUT."""
    if rng.random() < 0.5:
        return bytes([rng.choice((0xE4, 0xE5, 0xE6, 0xE7)), rng.randrange(256)])
    return load(rng, place, 2, rng.randrange(0x10000)) + bytes([rng.randrange(0xEC, 0xF0)])


def extended_state(rng: random.Random, place: Place) -> bytes:
    """FXSAVE, XSAVE and their kin, FLDENV, FRSTOR, LDMXCSR, gathers and masked moves from wherever."""
    where = rng.choice(place.targets) + rng.choice((0, 0, 0x40, 0x10, rng.randrange(0x1000)))
    code = load(rng, place, 3, where)
    wide = b"\x67" if place.bits == 16 else b""
    rex = b"\x48" if place.bits == 64 and rng.random() < 0.3 else b""
    code += load(rng, place, 0, rng.choice((7, 3, 1, 0xE7, 0x60, 0xFFFFFFFF))) + load(rng, place, 2, rng.choice((0, 0xFFFFFFFF)))
    kind = rng.randrange(6)
    if kind < 3:
        return code + wide + rex + b"\x0f\xae" + bytes([rng.randrange(8) << 3 | 3])
    if kind == 3:
        return (
            code
            + wide
            + rng.choice((b"\xd9\x23", b"\xd9\x33", b"\xdd\x23", b"\xdd\x33", b"\xd9\x2b", b"\xdb\x2b", b"\xdf\x23"))
        )
    if kind == 4:
        return code + wide + rex + b"\x0f\xc7" + bytes([rng.randrange(8) << 3 | 3])
    opcode = rng.choice((0x2C, 0x2D, 0x2E, 0x2F, 0x8C, 0x8E, 0x90, 0x91, 0x92, 0x93))
    last = b"\x03" if opcode < 0x90 else bytes([0x04, rng.randrange(256) & ~7 | 3])
    return code + wide + bytes([0xC4, 0xE2, rng.choice((0x71, 0x75, 0xF1, 0xF5)), opcode]) + last


def invalidation(rng: random.Random, place: Place) -> bytes:
    """A store into page or descriptor tables, and INVLPG or not."""
    code = load(rng, place, 3, rng.randrange(0x1000, 0xD000) & ~7) + load(
        rng, place, 0, rng.getrandbits(64) & ~0xFFFFFFF00018
    )
    wide = b"\x67" if place.bits == 16 else b""
    rex = b"\x48" if place.bits == 64 else b""
    code += wide + rng.choice((rex + b"\x89\x03", b"\x80\x33" + bytes([1 << rng.randrange(8)]), b"\xfe\x03"))
    if rng.random() < 0.6:
        code += load(rng, place, 3, rng.choice(place.targets)) + wide + b"\x0f\x01\x3b"
    return code


def aim(rng: random.Random, place: Place) -> bytes:
    """A register gets an address at which something is."""
    return load(
        rng,
        place,
        rng.randrange(8),
        rng.choice(place.targets) + rng.choice((0, 0, 0xFFF, 0xFFC, rng.randrange(-16, 0x1000))),
    )


Maker = Callable[[random.Random, Place], bytes]
MAKERS: dict[str, tuple[tuple[Maker, ...], tuple[int, ...]]] = {
    "noise": ((noise, escapes), (3, 1)),
    "table": ((from_table, evex, aim), (4, 2, 1)),
    "self": ((self_modifying, self_modifying_string, from_table, branch, aim), (5, 1, 3, 2, 1)),
    "system": (
        (control, model_specific, segments, interrupts, strings, ports, extended_state, invalidation, from_table, branch),
        (3, 3, 4, 3, 3, 1, 2, 2, 2, 1),
    ),
    "strings": ((strings, ports, aim, self_modifying), (6, 2, 1, 1)),
    "state": ((extended_state, from_table, evex, control), (5, 3, 3, 1)),
    "mixed": (
        (noise, escapes, from_table, self_modifying, branch, control, model_specific, segments, interrupts, strings,
         extended_state, invalidation, aim, evex),
        (2, 1, 6, 2, 2, 1, 1, 2, 2, 2, 2, 1, 2, 3),
    ),
}  # fmt: skip
"""What a case's code is made of: makers and how often each is taken."""


def make(rng: random.Random, flavour: str, place: Place) -> bytes:
    """One chunk."""
    makers, weights = MAKERS[flavour]
    return rng.choices(makers, weights)[0](rng, place)
