"""Random blobs and states, deterministic by seed.

A blob is a list of *items*, each one instruction. Memory operands go where they mostly do not fault: the generator
knows which registers still hold pointers into the blob's slot, or small numbers. Where it is wrong, or wants to be, the
case ends with a fault, which is compared like everything else.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from tests.vmm.soft.native import evex, layout
from tests.vmm.soft.native.forms import Form, all_forms

if TYPE_CHECKING:
    from tests.vmm.soft.native.probe import Encoding

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

# Registers written without being named
_IMPLICIT = {
    **dict.fromkeys(("mul", "div", "idiv", "cwd", "cmpxchg8b"), {RAX, RDX}),
    **dict.fromkeys(("cmpxchg", "cbw", "lahf", "fnstsw", "fmisc", "xlat", "lods"), {RAX}),
    **dict.fromkeys(("movs", "cmps"), {RSI, RDI, RCX}),
    **dict.fromkeys(("stos", "scas"), {RDI, RCX}),
    "lods": {RAX, RSI, RCX},
    "pcmpstr": {RCX},
    "enter": {RSP, RBP},
    "leave": {RSP, RBP},
    "imul": {RAX, RDX},
}
_NOTHING: set[int] = set()


# Registers that ``emit`` sets up
_PREPARED = {"string": {RCX, RSI, RDI}, "maskmov": {RDI}, "xlat": {RBX}, "div": {RDX}}


def implicit(form: Form) -> set[int]:
    """The general registers that a form, or what prepares it, writes without naming them."""
    found = _IMPLICIT.get(form.name, _NOTHING) | _PREPARED.get(form.kind, _NOTHING)
    return found | {RAX} if form.accumulator else found


_SIGNED_8 = (0, 1, -1, 2, 7, 0x7F, -0x80, 8, 15, 16, 31, 32, 33, 63, 64)
_FLAG_BITS = (0x1, 0x4, 0x10, 0x40, 0x80, 0x800)


@dataclass(slots=True)
class Item:
    """One instruction. Items keep their number when others are taken away, so that jumps still find their targets."""

    number: int
    data: bytes
    form: Form | None = None
    fix: tuple[str, int, int, int] | None = None
    """A field to fill in when addresses are known: "rip", "abs" or "jump"; its place; its width; the offset in the
    slot, or the number of the item jumped to."""


@dataclass(slots=True)
class State:
    """What a case starts with. Registers whose bit is in ``pointers`` are offsets in the slot."""

    registers: list[int]
    pointers: int
    flags: int
    fs_base: int
    gs_base: int
    xstate: bytes


@dataclass(slots=True)
class Blob:
    items: list[Item]
    states: list[State] = field(default_factory=list)
    slot: int = 0
    address: int = 0

    def code(self) -> bytes:
        """The machine code, with a jump to the end."""
        offsets, at = [], 0
        for item in self.items:
            offsets.append(at)
            at += len(item.data)
        code = bytearray(b"".join(item.data for item in self.items))
        slot = layout.SLOTS + self.slot * layout.SLOT
        for item, offset in zip(self.items, offsets, strict=True):
            if item.fix is None:
                continue
            kind, place, width, value = item.fix
            end = self.address + offset + len(item.data)
            if kind == "jump":
                value = next((o for i, o in zip(self.items, offsets, strict=True) if i.number >= value), at)
                value += self.address - end
            else:
                value += slot - (end if kind == "rip" else 0)
            code[offset + place : offset + place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        return bytes(code) + b"\xe9" + struct.pack("<i", layout.DONE - (self.address + at + 5))

    def form_at(self, address: int) -> Form | None:
        """The form of the instruction at an address."""
        at = self.address
        for item in self.items:
            if at == address:
                return item.form
            at += len(item.data)
        return None

    def record(self, state: State) -> bytes:
        slot = layout.SLOTS + self.slot * layout.SLOT
        values = [
            (value + slot if state.pointers >> n & 1 else value) & 0xFFFF_FFFF_FFFF_FFFF
            for n, value in enumerate(state.registers)
        ]
        head = struct.pack("<20Q32x", *values, state.flags, self.address, state.fs_base, state.gs_base)
        return (head + state.xstate).ljust(layout.RECORD, b"\0")


# --- values -----------------------------------------------------------------------------------------------------------


def _pools() -> tuple[list[int], list[bytes], bytes]:
    """General register values, XSAVE images, and memory, the same in every run."""
    rng = random.Random("pools")
    words = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
             0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF]  # fmt: skip
    for _ in range(2000):
        bits = rng.choice((8, 16, 32, 64, 64, 64))
        word = rng.getrandbits(bits)
        words.append(word if rng.random() < 0.7 else -word & 0xFFFF_FFFF_FFFF_FFFF)
    return words, [_image(rng) for _ in range(400)], _memory(rng)


_SINGLES = (0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x00000001,
            0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x4F000000, 0x40490FDB, 0x3EAAAAAB)  # fmt: skip
_DOUBLES = (0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000,
            0x7FF8000000000000, 0x7FF0000000000001, 1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x7FEFFFFFFFFFFFFF,
            0x41E0000000000000, 0x43E0000000000000, 0x400921FB54442D18)  # fmt: skip


def _vector(rng: random.Random) -> bytes:
    """16 bytes: integers, or floating-point numbers of one size."""
    kind = rng.random()
    if kind < 0.35:
        return rng.randbytes(16)
    if kind < 0.6:
        return struct.pack("<4I", *(rng.choice(_SINGLES) if rng.random() < 0.4 else _single(rng) for _ in range(4)))
    if kind < 0.85:
        return struct.pack("<2Q", *(rng.choice(_DOUBLES) if rng.random() < 0.4 else _double(rng) for _ in range(2)))
    if kind < 0.95:
        return struct.pack("<4i", *(rng.randrange(-64, 64) for _ in range(4)))
    return bytes([rng.choice((0, 0xFF))] * 16)


def _single(rng: random.Random) -> int:
    return rng.getrandbits(1) << 31 | rng.randrange(90, 165) << 23 | rng.getrandbits(23)


def _double(rng: random.Random) -> int:
    return rng.getrandbits(1) << 63 | rng.randrange(980, 1080) << 52 | rng.getrandbits(52)


def _extended(rng: random.Random) -> bytes:
    """An x87 register: normal numbers mostly; zeros, infinities, NaNs, denormals and what is none of these."""
    kind = rng.random()
    sign = rng.getrandbits(1) << 15
    if kind < 0.6:
        return struct.pack("<QH", 1 << 63 | rng.getrandbits(63), sign | rng.randrange(16383 - 80, 16383 + 80))
    if kind < 0.7:
        return struct.pack("<QH", 0, sign)
    if kind < 0.8:
        return struct.pack("<QH", 1 << 63 | rng.choice((0, 1, 1 << 62, rng.getrandbits(63))), sign | 0x7FFF)
    if kind < 0.85:
        return struct.pack("<QH", rng.getrandbits(63), sign)
    if kind < 0.93:
        return rng.randbytes(10)
    return rng.randbytes(8) + b"\xff\xff"  # an MMX register


def _image(rng: random.Random) -> bytes:
    control, status, tags, mxcsr = 0x37F, 0, 0xFF, 0x1F80
    if rng.random() < 0.4:
        control = 0x7F | rng.getrandbits(2) << 10 | rng.choice((0, 2, 3)) << 8
    if rng.random() < 0.04:
        control &= ~(1 << rng.randrange(6))
    if rng.random() < 0.6:
        status = rng.randrange(8) << 11 | rng.getrandbits(3) << 8 | rng.getrandbits(1) << 14
        tags = rng.getrandbits(8) if rng.random() < 0.7 else 0
    if rng.random() < 0.1:
        status |= rng.getrandbits(6) & control
    if rng.random() < 0.4:
        mxcsr |= rng.getrandbits(2) << 13 | rng.getrandbits(1) << 15 | rng.getrandbits(1) << 6
    if rng.random() < 0.2:
        mxcsr |= rng.getrandbits(6)
    if rng.random() < 0.03:
        mxcsr &= ~(1 << rng.randrange(7, 13) | 0x3F)
    head = struct.pack("<HHBxHQQII", control, status, tags, 0, 0, 0, mxcsr, 0x2FFFF)
    x87 = b"".join(_extended(rng) + bytes(6) for _ in range(8))
    sse = b"".join(_vector(rng) for _ in range(16))
    avx = b"".join(_vector(rng) for _ in range(16))
    image = bytearray(head + x87 + sse + bytes(96) + struct.pack("<Q56x", layout.XSTATE_MASK) + avx)
    if layout.HAS_AVX512:
        image += bytes(layout.XSTATE_SIZE - len(image))
        image[layout.OPMASK_AT : layout.OPMASK_AT + 64] = b"".join(_mask(rng) for _ in range(8))
        image[layout.ZMM_HIGH_AT : layout.ZMM_HIGH_AT + 512] = b"".join(_vector(rng) for _ in range(32))
        image[layout.ZMM_16_AT : layout.ZMM_16_AT + 1024] = b"".join(_vector(rng) for _ in range(64))
    return bytes(image)


def _mask(rng: random.Random) -> bytes:
    """An opmask register: all lanes, none, few, many, or a stretch of them."""
    kind = rng.random()
    bits = rng.getrandbits(64)
    if kind < 0.1:
        bits = 0
    elif kind < 0.2:
        bits = (1 << 64) - 1
    elif kind < 0.35:
        bits &= rng.getrandbits(64) & rng.getrandbits(64) & rng.getrandbits(64)
    elif kind < 0.45:
        bits = 1 << rng.randrange(64)
    elif kind < 0.6:
        bits = (1 << rng.randrange(1, 64)) - 1
    elif kind < 0.7:
        bits = ~((1 << rng.randrange(1, 16)) - 1)
    return struct.pack("<Q", bits & (1 << 64) - 1)


PLAIN_IMAGE = (
    struct.pack("<HHBxHQQII", 0x37F, 0, 0, 0, 0, 0, 0x1F80, 0x2FFFF) + bytes(480) + struct.pack("<Q", layout.XSTATE_MASK)
).ljust(layout.XSTATE_SIZE, b"\0")
"""An XSAVE image of the initial state."""

MEMORY_POOL = 4 << 20


def _memory(rng: random.Random) -> bytes:
    chunks = [_vector(rng) for _ in range(3000)] + [_extended(rng) + bytes(6) for _ in range(300)]
    some = b"".join(rng.choices(chunks, k=1 << 14))
    return some * (MEMORY_POOL // len(some)) + some * (layout.BLOBS * layout.SLOT // len(some))


@cache
def pools() -> tuple[list[int], list[bytes], bytes]:
    return _pools()


# --- blobs ------------------------------------------------------------------------------------------------------------


class Generator:
    """Blobs by seed."""

    def __init__(self, seed: int, encodings: dict[Form, list[Encoding]]) -> None:
        """``encodings``: how VEX forms may be encoded; those that are not there are left out."""
        self.rng = random.Random(seed)
        self.encodings = encodings
        by_name: dict[str, list[Form]] = {}
        self.forms = [form for form in all_forms() if not form.vex or form in encodings]
        for form in self.forms:
            by_name.setdefault(("V" if form.vex else "E" if form.evex else "") + form.name, []).append(form)
        self.integer = [form for form in self.forms if not (form.vex or form.evex or form.vector_reg or form.kind)]
        # Half of the choices go by name, for forms of instructions with few of them to have their turn too.
        self.names = list(by_name.values())
        self.words, self.images, _ = pools()

    # The registers of the blob being made: which hold pointers into the slot, which small numbers; which must stay.
    pointers: set[int]
    smalls: set[int]
    avoid: set[int]
    items: list[Item]
    vectors_known: bool
    gather: tuple[int, int] | None
    stored_at: tuple[int, int]
    """Base register and displacement of the last memory operand that had them."""

    def blob(self, forms: list[Form] | None = None) -> Blob:
        """A blob with its states. With ``forms``, of these only."""
        rng = self.rng
        self.pointers = {RSP, *rng.sample((RBX, RBP, RSI, RDI, 8, 9, 10, 11, 12, 13, 14, 15), rng.randrange(2, 6))}
        self.smalls = {rng.randrange(16), rng.randrange(16)} - self.pointers
        self.avoid = set()
        self.items = []
        self.vectors_known = True
        self.gather = None
        pointers, smalls = set(self.pointers), set(self.smalls)
        length = rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 12))
        while len(self.items) < length:
            if forms is None and rng.random() < 0.12:
                rng.choice(_CONSTRUCTS)(self)
            else:
                self.instruction(forms)
        blob = Blob(self.items)
        blob.states = [self.state(pointers, smalls) for _ in range(rng.choice((2, 4, 6)))]
        return blob

    def state(self, pointers: set[int], smalls: set[int]) -> State:
        rng = self.rng
        registers = rng.choices(self.words, k=16)
        mask = 0
        for n in pointers:
            registers[n] = self.place(n == RSP)
            mask |= 1 << n
        for n in smalls:
            registers[n] = rng.choice((0, 0, 1, 2, 8, 16, 16, 32, 48, -16, -32, -1))
        flags = 2 | (0x400 if rng.random() < 0.08 else 0)
        bits = rng.getrandbits(6)
        for n, bit in enumerate(_FLAG_BITS):
            if bits >> n & 1:
                flags |= bit
        image = rng.choice(self.images)
        if self.gather is not None:
            image = self.indices(image)
        fs, gs = rng.choice(((0, 0), (16, 64), (-32, 48), (3, 5)))
        return State(registers, mask, flags, fs & 0xFFFF_FFFF_FFFF_FFFF, gs & 0xFFFF_FFFF_FFFF_FFFF, image)

    def indices(self, image: bytes) -> bytes:
        """The image with small numbers in the register that a gather takes its indices from."""
        assert self.gather is not None
        register, width = self.gather
        changed = bytearray(image)
        for at, size in layout.vector_parts(register):
            for lane in range(0, size, width):
                value = self.rng.randrange(-40, 40)
                changed[at + lane : at + lane + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        return bytes(changed)

    def place(self, stack: bool = False) -> int:
        """An offset in the slot: the border of its two pages, somewhere inside, at times one of the outer borders.

        For a stack it is well inside.
        """
        rng = self.rng
        kind = rng.random()
        if kind < 0.45:
            at = 0x2000
        elif kind < 0.88:
            at = rng.randrange(0x1100, 0x2F00, 64)
        elif kind < 0.94:
            at = 0x3000
        elif kind < 0.97:
            at = 0x1000
        else:
            at = 0x4000
        if stack:
            at = min(max(at, 0x1100), 0x2F00)
            return at + rng.choice((0, 0, 0, 8, 8, 16, 24, -8, 4, 1, 3))
        return at if rng.random() < 0.8 else at + rng.randrange(-40, 40)

    # One instruction

    def instruction(self, forms: list[Form] | None = None) -> None:
        rng = self.rng
        for _ in range(20):
            if forms is not None:
                form = rng.choice(forms)
            elif rng.random() < 0.5:
                form = rng.choice(self.forms)
            else:
                form = rng.choice(rng.choice(self.names))
            if self.avoid and implicit(form) & self.avoid:
                continue
            if form.kind == "gather" and not self.vectors_known:
                continue
            break
        self.emit(form)

    def emit(self, form: Form) -> None:
        rng = self.rng
        form.count += 1
        kind = form.kind
        if kind == "string":
            self.prepare_string(form)
        elif kind == "div" and rng.random() < 0.7:
            self.add(b"\x31\xd2" if rng.random() < 0.5 else b"\xba\x01\x00\x00\x00")  # xor edx, edx; mov edx, 1
            self.spoil({RDX})
        elif kind == "maskmov":
            self.set_pointer(RDI, inside=True)  # whether bytes that are masked out may fault is the processor's choice
        elif kind == "xlat" and RBX not in self.pointers:
            self.set_pointer(RBX)
        elif form.name == "leave" and RBP not in self.pointers and rng.random() < 0.9:
            self.set_pointer(RBP)
        pp = form.pp[0] if form.mandatory or len(form.pp) == 1 or rng.random() < 0.9 else rng.choice(form.pp)
        if kind == "string":
            pp = rng.choice(form.pp)
        if form.evex is not None:
            data, fix, written = evex.encode(self, form)
        else:
            data, fix, written = self.vex(form) if form.vex else self.legacy(form, pp)
        if form.kind == "x87 pointers":
            data += self.clear_pointers(form.name, b"\x66" in data[: data.index(form.opcode)])
        self.items.append(Item(len(self.items), data, form, fix))
        if form.vector_reg:
            self.vectors_known = False
        written |= _IMPLICIT.get(form.name, _NOTHING)
        if form.accumulator:
            written.add(RAX)
        if form.name in ("pop", "push", "pushf", "push_fs", "push_gs", "enter"):
            written -= {RSP}
        self.spoil(written)
        if form.name == "enter":
            self.pointers.add(RBP)

    def legacy(self, form: Form, pp: int) -> tuple[bytes, tuple[str, int, int, int] | None, set[int]]:
        rng = self.rng
        wide = rng.random() < (0.45 if form.wide else 0.04) and form.kind != "x87 pointers"
        prefixes = []
        rex = 8 if wide else 0
        half = pp == 1
        if pp >= 2:
            prefixes.append(b"\xf3" if pp == 2 else b"\xf2")
        if (not form.mandatory and pp != 1 and form.sized and rng.random() < 0.22) or (
            form.mandatory and pp >= 2 and form.sized and rng.random() < 0.2
        ):
            half = True
        if half:
            prefixes.append(b"\x66")
        fix = None
        written: set[int] = set()
        tail = b""
        low_bytes = set()  # byte registers 4 to 7 that need a REX prefix, or must not have one
        opcode = form.opcode
        reg = rng.randrange(8) if form.reg is None else form.reg
        if form.modrm:
            if form.reg is None and (form.gpr_reg or form.vector_reg):
                reg = self.gpr("reg" in form.writes, form.gpr_reg) if form.gpr_reg else rng.randrange(16)
                if form.gpr_reg == "b" and 4 <= reg < 8:
                    low_bytes.add(reg)
                if "reg" in form.writes:
                    written.add(reg)
            if reg & 8:
                rex |= 4
            if form.memory:
                prefix, bits, tail, fix = self.operand(form, reg & 7, form.mem_size * 2 if wide else form.mem_size)
                prefixes += prefix
                rex |= bits
            else:
                rm = self.gpr("rm" in form.writes, form.gpr_rm) if form.gpr_rm else rng.randrange(16)
                if 0xD8 <= opcode <= 0xDF and form.map == 0:
                    rm &= 7
                if form.gpr_rm == "b" and 4 <= rm < 8:
                    low_bytes.add(rm)
                if "rm" in form.writes:
                    written.add(rm)
                rex |= rm >> 3
                tail = bytes([0xC0 | (reg & 7) << 3 | rm & 7])
        elif form.gpr_opcode:
            rm = self.gpr("opcode" in form.writes, form.gpr_opcode)
            if form.gpr_opcode == "b" and 4 <= rm < 8:
                low_bytes.add(rm)
            if "opcode" in form.writes:
                written.add(rm)
            rex |= rm >> 3
            opcode = opcode & 0xF8 | rm & 7
        elif form.kind == "moffs":
            offset = self.place() + rng.randrange(-8, 8)
            width = 8
            if rng.random() < 0.1:
                prefixes.append(b"\x67")
                width = 4
            tail, fix = bytes(width), ("abs", 0, width, offset)
        if form.lock and rng.random() < 0.25:
            prefixes.append(b"\xf0")
        elif rng.random() < 0.03:
            prefixes.append(rng.choice((b"\x26", b"\x2e", b"\x36", b"\x3e", b"\x67" if form.memory else b"\x2e")))
        if len(prefixes) > 1:
            rng.shuffle(prefixes)
        if rex or (low_bytes and rng.random() < 0.5) or rng.random() < 0.03:
            prefixes.append(bytes([0x40 | rex]))
        elif low_bytes:  # AH, CH, DH, BH
            written = {n - 4 if n in low_bytes else n for n in written}
        head = b"".join(prefixes) + (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[form.map] + bytes([opcode])
        if form.immediate:
            size = {"b": 1, "w": 2, "z": 2 if half and not wide else 4, "v": 8 if wide else 2 if half else 4}[
                form.immediate
            ]
            tail += self.immediate(form, size)
        if rng.random() < 0.005:  # as long as may be, or longer
            head = b"\x2e" * (rng.choice((15, 15, 16, 17)) - len(head + tail)) + head
        if fix is not None:
            fix = (fix[0], fix[1] + len(head), fix[2], fix[3])
        return head + tail, fix, written

    def immediate(self, form: Form, size: int) -> bytes:
        rng = self.rng
        if form.kind == "enter":
            return struct.pack("<HB", rng.randrange(0, 0x60, 8), rng.choice((0, 0, 0, 1, 2, 3)))
        value = rng.choice(_SIGNED_8) if rng.random() < 0.4 else rng.getrandbits(8 * size)
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def vex(self, form: Form) -> tuple[bytes, tuple[str, int, int, int] | None, set[int]]:
        rng = self.rng
        written: set[int] = set()
        encoding = rng.choice(self.encodings[form])
        wide, long = encoding.wide, encoding.long
        general = form.gpr_reg or form.gpr_vvvv
        vvvv = rng.randrange(16) if encoding.free else 0
        reg = rng.randrange(16) if form.reg is None else form.reg
        if form.gpr_vvvv:
            vvvv = self.gpr("vvvv" in form.writes)
            if "vvvv" in form.writes:
                written.add(vvvv)
        if form.gpr_reg:
            reg = self.gpr("reg" in form.writes, form.gpr_reg)
            if "reg" in form.writes:
                written.add(reg)
        bits, tail, fix, prefixes = 0, b"", None, b""
        if form.modrm:
            if form.memory:
                size = form.mem_size * (2 if (general and wide) or (long and not general) else 1)
                prefix, bits, tail, fix = self.operand(form, reg & 7, size)
                prefixes = b"".join(prefix)
            else:
                rm = self.gpr("rm" in form.writes, form.gpr_rm) if form.gpr_rm else rng.randrange(16)
                bits = rm >> 3
                if "rm" in form.writes:
                    written.add(rm)
                tail = bytes([0xC0 | (reg & 7) << 3 | rm & 7])
        last = (~vvvv & 15) << 3 | long << 2 | form.pp[0]
        if form.map == 1 and not bits & 3 and not wide and rng.random() < 0.5:
            head = bytes([0xC5, (0 if reg & 8 else 0x80) | last, form.opcode])
        else:
            second = (0 if reg & 8 else 0x80) | (0 if bits & 2 else 0x40) | (0 if bits & 1 else 0x20) | form.map
            head = bytes([0xC4, second, wide << 7 | last, form.opcode])
        head = prefixes + head
        if form.immediate:
            tail += self.immediate(form, 1)
        if fix is not None:
            fix = (fix[0], fix[1] + len(head), fix[2], fix[3])
        return head + tail, fix, written

    def gpr(self, written: bool, size: str = "") -> int:
        """A general register; if it is written, rather not one that is of use, and none that must stay."""
        rng = self.rng
        n = rng.randrange(16)
        if written:
            while (
                n in self.avoid
                or (n in self.pointers and rng.random() < 0.8)
                or (n == RSP and rng.random() < 0.7)
                or (size == "b" and 4 <= n < 8 and n - 4 in self.avoid)
            ):
                n = rng.randrange(16)
        return n

    def operand(
        self, form: Form, reg: int, size: int
    ) -> tuple[list[bytes], int, bytes, tuple[str, int, int, int] | None]:
        """A memory operand: prefixes, REX.X and .B, ModRM with what follows, and what is to be filled in."""
        rng = self.rng
        prefixes = []
        if form.kind == "gather":
            return self.gather_operand(form, reg)
        aligned = form.aligned and rng.random() < 0.93
        plain = form.kind == "x87 pointers"
        kind = rng.random()
        if kind < 0.05 and not plain:
            prefixes.append(b"\x64" if rng.random() < 0.5 else b"\x65")
        if rng.random() < 0.05:
            prefixes.append(b"\x67")
        pointers = [n for n in self.pointers if n != RSP or rng.random() < 0.3]
        if (not pointers or kind > 0.88) and not plain:
            offset = self.place() + self.displacement(size, aligned)
            if kind > 0.94:
                return prefixes, 0, bytes([reg << 3 | 5, 0, 0, 0, 0]), ("rip", 1, 4, offset)
            index, scale = 4, rng.randrange(4)
            if self.smalls and rng.random() < 0.5:
                index = rng.choice(list(self.smalls))
            sib = scale << 6 | (index & 7) << 3 | 5
            return prefixes, index >> 3 << 1, bytes([reg << 3 | 4, sib, 0, 0, 0, 0]), ("abs", 2, 4, offset)
        base = rng.choice(pointers or [RSP])
        bits = base >> 3
        disp = self.displacement(size, aligned)
        mod = 2
        if disp == 0 and base & 7 != 5 and rng.random() < 0.8:
            mod = 0
        elif -128 <= disp < 128 and rng.random() < 0.85:
            mod = 1
        index = 4
        if self.smalls and not plain and rng.random() < 0.35 and not (aligned and rng.random() < 0.8):
            index = rng.choice(list(self.smalls))
            if index == RSP:
                index = 4
        sib = b""
        rm = base & 7
        if index != 4 or rm == 4 or rng.random() < 0.04:
            scale = rng.randrange(4)
            sib = bytes([scale << 6 | (index & 7) << 3 | rm])
            bits |= index >> 3 << 1
            rm = 4
        tail = bytes([mod << 6 | reg << 3 | rm]) + sib
        if mod:
            width = 1 if mod == 1 else 4
            tail += (disp & (1 << 8 * width) - 1).to_bytes(width, "little")
        self.stored_at = base, disp
        return prefixes, bits, tail, None

    def displacement(self, size: int, aligned: bool) -> int:
        rng = self.rng
        if aligned:
            return 64 * rng.randrange(-4, 4) if size > 16 else 16 * rng.randrange(-16, 16)
        kind = rng.random()
        if kind < 0.25:
            return 0
        if kind < 0.6:
            return -rng.randrange(1, size + 2)
        if kind < 0.95:
            return rng.randrange(-128, 128)
        return rng.randrange(-0x400, 0x400)

    def gather_operand(self, form: Form, reg: int) -> tuple[list[bytes], int, bytes, None]:
        rng = self.rng
        if self.gather is None:
            self.gather = (rng.randrange(16), 8 if form.opcode & 1 else 4)
        index = self.gather[0] & 15 if rng.random() < 0.97 else rng.randrange(16)
        base = rng.choice(list(self.pointers))
        disp = rng.randrange(-128, 128)
        tail = bytes([0x40 | reg << 3 | 4, rng.randrange(4) << 6 | (index & 7) << 3 | base & 7, disp & 0xFF])
        return [], index >> 3 << 1 | base >> 3, tail, None

    def clear_pointers(self, name: str, half: bool) -> bytes:
        """Instructions that zero what FNSTENV, FNSAVE or FXSAVE stored about where the last x87 instruction was."""
        code = b""
        base, disp = self.stored_at
        fields = ((6, 2), (8, 8), (16, 8)) if name == "fxsave" else ((12, 4), (16, 8), (24, 4))
        if name != "fxsave" and half:
            fields = ((6, 2), (8, 4), (12, 2))
        for offset, size in fields:
            rex = (8 if size == 8 else 0) | base >> 3
            head = (b"\x66" if size == 2 else b"") + (bytes([0x40 | rex]) if rex else b"") + b"\xc7"
            sib = b"\x24" if base & 7 == 4 else b""
            code += head + bytes([0x80 | base & 7]) + sib + struct.pack("<i", disp + offset) + bytes(min(size, 4))
        return code

    # Around instructions

    def add(self, data: bytes, fix: tuple[str, int, int, int] | None = None) -> None:
        self.items.append(Item(len(self.items), data, None, fix))

    def spoil(self, registers: set[int]) -> None:
        self.pointers -= registers
        self.smalls -= registers

    def set_small(self, register: int, value: int) -> None:
        """mov r32, imm32"""
        self.add((b"\x41" if register & 8 else b"") + bytes([0xB8 | register & 7]) + struct.pack("<I", value))
        self.spoil({register})

    def set_pointer(self, register: int, inside: bool = False) -> None:
        rex = b"\x41" if register & 8 else b""
        fix = ("abs", len(rex) + 1, 4, self.place(stack=inside))
        self.add(rex + bytes([0xB8 | register & 7]) + bytes(4), fix)
        self.spoil({register})
        self.pointers.add(register)

    def prepare_string(self, form: Form) -> None:
        rng = self.rng
        if RCX not in self.smalls and rng.random() < 0.97:
            self.set_small(RCX, rng.choice((0, 1, 2, 3, 5, 8, 17, 40, 70)))
        for register in (RSI, RDI):
            uses = register == RSI if form.name == "lods" else register == RDI or form.name in ("movs", "cmps")
            if uses and register not in self.pointers and rng.random() < 0.97:
                self.set_pointer(register)

    # Control flow

    def branch(self, opcode: int, target: int, near: bool) -> None:
        """A jump to item ``target``: jcc by its condition, or 0x10 jmp, 0x11 call."""
        if opcode == 0x11:
            self.add(b"\xe8" + bytes(4), ("jump", 1, 4, target))
        elif opcode == 0x10:
            self.add(b"\xe9" + bytes(4) if near else b"\xeb\x00", ("jump", 1, 4 if near else 1, target))
        elif near:
            self.add(bytes([0x0F, 0x80 | opcode]) + bytes(4), ("jump", 2, 4, target))
        else:
            self.add(bytes([0x70 | opcode, 0]), ("jump", 1, 1, target))

    def skip(self) -> None:
        """A jump over a few instructions."""
        rng = self.rng
        place = len(self.items)
        self.branch(rng.randrange(17), 0, rng.random() < 0.5)
        if rng.random() < 0.15:
            self.items[place].data = (b"\x67" if rng.random() < 0.3 else b"") + b"\xe3\x00"
            self.items[place].fix = ("jump", len(self.items[place].data) - 1, 1, 0)
        for _ in range(rng.randrange(1, 4)):
            self.instruction()
        self.aim(place, len(self.items))

    def aim(self, place: int, target: int) -> None:
        fix = self.items[place].fix
        assert fix is not None
        self.items[place].fix = (*fix[:3], target)

    def counted(self) -> None:
        """A loop that ends: LOOP, or a register counted down."""
        rng = self.rng
        if self.avoid:
            return
        counter = RCX if rng.random() < 0.6 else self.gpr(True)
        if counter == RSP:
            return
        self.set_small(counter, rng.randrange(1, 6))
        self.avoid = {counter}
        top = len(self.items)
        for _ in range(rng.randrange(1, 4)):
            self.instruction()
        self.avoid = set()
        if counter == RCX and rng.random() < 0.8:
            data = (b"\x67" if rng.random() < 0.2 else b"") + bytes([rng.choice((0xE0, 0xE1, 0xE2, 0xE2)), 0])
            self.add(data, ("jump", len(data) - 1, 1, top))
        else:
            self.add(bytes([0x48 | counter >> 3, 0xFF, 0xC8 | counter & 7]))  # dec
            self.branch(5, top, rng.random() < 0.5)

    def walk(self) -> None:
        """A loop through memory by steps: over the end of a page, and into what cannot be reached."""
        rng = self.rng
        if self.avoid:
            return
        base, counter = rng.sample([n for n in range(16) if n != RSP], 2)
        self.set_pointer(base)
        self.set_small(counter, rng.randrange(2, 80))
        self.avoid = {base, counter}
        top = len(self.items)
        for _ in range(rng.randrange(1, 4)):
            self.near(base, counter if rng.random() < 0.4 else None)
            if rng.random() < 0.3:
                self.instruction(self.integer)
        step = rng.choice((1, 3, 4, 8, 8, 16, 64, 100, 200, 300, 1024)) * rng.choice((1, -1))
        rex = bytes([0x48 | base >> 3])
        if rng.random() < 0.7:
            self.add(rex + bytes([0x81, 0xC0 | base & 7]) + struct.pack("<i", step))
        else:
            sib = b"\x24" if base & 7 == 4 else b""
            rex = bytes([0x48 | base >> 3 << 2 | base >> 3])
            self.add(rex + bytes([0x8D, 0x80 | (base & 7) << 3 | base & 7]) + sib + struct.pack("<i", step))
        self.add(bytes([0x48 | counter >> 3, 0xFF, 0xC8 | counter & 7]))  # dec
        self.branch(5, top, rng.random() < 0.5)
        self.avoid = set()
        self.spoil({base, counter})

    def call(self) -> None:
        """A subroutine behind a jump over it."""
        rng = self.rng
        if RSP not in self.pointers:
            return
        keep, self.avoid = self.avoid, self.avoid | {RSP}
        call = len(self.items)
        self.branch(0x11, 0, True)
        for _ in range(rng.randrange(2)):
            self.instruction()
        over = len(self.items)
        self.branch(0x10, 0, rng.random() < 0.5)
        self.aim(call, len(self.items))
        for _ in range(rng.randrange(3)):
            self.balanced()
        self.add(b"\xc2\x08\x00" if rng.random() < 0.2 else b"\xf3\xc3" if rng.random() < 0.1 else b"\xc3")
        self.aim(over, len(self.items))
        self.avoid = keep

    def balanced(self) -> None:
        """An instruction that leaves the stack pointer where it is."""
        for _ in range(10):
            form = self.rng.choice(self.forms)
            if (
                not form.name.startswith(("push", "pop", "enter", "leave"))
                and not (implicit(form) & self.avoid)
                and form.kind != "gather"
            ):
                self.emit(form)
                return

    def indirect(self) -> None:
        """A jump by a register, by memory or by RET to where it would go anyway, over an instruction or not."""
        rng = self.rng
        register = self.gpr(True)
        if register == RSP or register in self.avoid:
            return
        r, b = register >> 3 << 2, register >> 3
        lea = len(self.items)
        self.add(bytes([0x48 | r, 0x8D, 5 | (register & 7) << 3, 0, 0, 0, 0]), ("jump", 3, 4, 0))
        self.spoil({register})
        rex = b"\x41" if b else b""
        kind = rng.random()
        if kind < 0.35 or RSP not in self.pointers:
            self.add(rex + bytes([0xFF, 0xE0 | register & 7]))
        elif kind < 0.5:
            self.add(rex + bytes([0xFF, 0xD0 | register & 7]))
        elif kind < 0.7:
            self.add(rex + bytes([0x50 | register & 7]))
            self.add(b"\xc3")
        else:
            self.add(rex + bytes([0x50 | register & 7]))
            self.add(b"\xff" + (b"\x24\x24" if rng.random() < 0.5 else b"\x14\x24"))  # jmp or call [rsp]
        if rng.random() < 0.5:
            self.instruction()
        self.aim(lea, len(self.items))
        if register == RDI:
            self.set_small(RDI, 0)  # or a REP STOS would write over all the code behind it

    def around(self) -> None:
        """An instruction between accesses by a register, which it may change, by name or not. RAX to RDX are likeliest."""
        rng = self.rng
        base = rng.choice((RAX, RCX, RDX, RBX, self.gpr(True)))
        if base == RSP or base in self.avoid:
            return
        if base not in self.pointers:
            self.set_pointer(base, inside=True)
        self.near(base)
        self.instruction(self.integer if rng.random() < 0.8 else None)
        self.near(base)

    def near(self, base: int, index: int | None = None) -> None:
        """A load or a store close to where a register points, or two together."""
        rng = self.rng
        reg = rng.choice([n for n in range(16) if n != RSP and n != base and n not in self.avoid])
        opcode = 0x8B if rng.random() < 0.5 else 0x89
        rex = 0x48 | reg >> 3 << 2 | base >> 3
        sib = b"\x24" if base & 7 == 4 else b""
        modrm = 0x40 | (reg & 7) << 3 | base & 7
        if index is not None:
            rex |= index >> 3 << 1
            sib = bytes([rng.randrange(4) << 6 | (index & 7) << 3 | base & 7])
            modrm = 0x44 | (reg & 7) << 3
        self.add(bytes([rex, opcode, modrm]) + sib + bytes([rng.randrange(64)]))
        if opcode == 0x8B:
            self.spoil({reg})

    def set_flags(self) -> None:
        """PUSH of a number and POPF: the flags that a user may change, but TF, AC and NT."""
        rng = self.rng
        value = 2 | rng.getrandbits(32) & 0xAD5 | rng.choice((0, 0, 0, 0x400, 0x200000))
        self.add(b"\x68" + struct.pack("<I", value))
        self.add(b"\x9d")

    def saved(self) -> None:
        """XSAVE or XSAVEC, an instruction that may change registers, and XRSTOR: images alike to the bit.

        Without x87 pointers, which are the host's own. XSAVEOPT leaves out what the processor thinks it may.
        """
        rng = self.rng
        if self.avoid & {RAX, RDX, RBX}:
            return
        self.add(b"\xdb\xe3")  # fninit
        self.add(b"\xbb" + bytes(4), ("abs", 1, 4, rng.randrange(0x1000, 0x3000 - layout.XSTATE_SIZE, 64)))
        self.spoil({RAX, RBX, RDX})
        keep, self.avoid = self.avoid, self.avoid | {RAX, RBX, RDX}
        self.components()
        self.add(rng.choice((b"\x48\x0f\xae\x23", b"\x48\x0f\xc7\x23")))
        if rng.random() < 0.7:
            self.balanced()
        self.components()
        self.add(b"\x48\x0f\xae\x2b")
        self.avoid = keep
        self.pointers.add(RBX)
        self.vectors_known = False

    def components(self) -> None:
        """EDX:EAX: which state components."""
        rng = self.rng
        mask = layout.XSTATE_MASK if rng.random() < 0.4 else rng.getrandbits(8)
        self.add(b"\xb8" + struct.pack("<I", mask))
        self.add(b"\x31\xd2" if rng.random() < 0.8 else b"\xba\xff\xff\xff\x7f")

    def carry_over(self) -> None:
        """Flags that stay alive across memory accesses."""
        for name in ("add", "mov", self.rng.choice(("adc", "setb", "cmovae", "rcl", "sbb", "jb"))):
            forms = [form for form in self.forms if form.name == name]
            if forms:
                self.emit(self.rng.choice(forms))


_CONSTRUCTS = (
    *(Generator.skip,) * 4,
    *(Generator.counted,) * 3,
    *(Generator.walk,) * 3,
    *(Generator.call,) * 2,
    *(Generator.indirect,) * 2,
    *(Generator.around,) * 4,
    Generator.set_flags,
    Generator.saved,
    Generator.carry_over,
)
