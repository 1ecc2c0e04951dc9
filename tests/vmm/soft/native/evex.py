"""Encoding EVEX instructions for ``generate``: masks, zeroing, broadcasts, rounding, thirty-two registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vmm.soft.native.forms import EvexRow, Form

if TYPE_CHECKING:
    from tests.vmm.soft.native.generate import Generator

Fix = tuple[str, int, int, int] | None

_SPOILED = [(0, bit) for bit in range(3, 8)] + [(1, bit) for bit in range(2, 8)] + [(2, bit) for bit in range(8)]


def operand_size(size: str, length: int, wide: int) -> int:
    """Bytes of a memory operand of this letter."""
    vector = 16 << length
    if size == "dup":
        return 8 if length == 0 else vector
    fixed = {"o": 16, "d": 4, "q": 8, "b": 1, "w": 2, "d8": 32, "d1": 1, "d2": 2, "y": 8 if wide else 4}
    return fixed[size] if size in fixed else vector // {"x": 1, "h": 2, "f": 4, "e": 8}[size]


def element_size(row: EvexRow) -> int:
    element = row.row.element
    return {"": 0, "n": 0, "y": 8 if row.wide else 4}.get(element) or int(element if element.isdigit() else 0)


def encode(generator: Generator, form: Form) -> tuple[bytes, Fix, set[int]]:
    """Bytes, what is to be filled in, and the general registers written."""
    rng, row = generator.rng, form.evex
    assert row is not None
    length = rng.choice([n for n in range(3) if row.row.lengths >> n & 1])
    control = 0
    if form.memory:
        control = int(row.broadcast and rng.random() < 0.35)
    elif (row.row.has("er") or row.row.has("sae")) and rng.random() < 0.35:
        control, length = 1, rng.randrange(4)
    mask = rng.randrange(1, 8) if row.row.element and rng.random() < 0.7 else 0
    if form.kind == "gather":
        mask = rng.randrange(1, 8)
    zero = int(mask and not form.mem_write and not row.to_mask and not row.row.has("nz") and rng.random() < 0.4)
    vvvv = rng.randrange(32) if row.vvvv else 0
    written: set[int] = set()
    reg = rng.randrange(8) if row.to_mask else rng.randrange(32) if form.reg is None else form.reg
    if form.gpr_reg:
        reg = generator.gpr("reg" in form.writes, form.gpr_reg)
        if "reg" in form.writes:
            written.add(reg)
    prefixes, fix = b"", None
    if form.kind == "gather":
        high, low, tail, vvvv = vsib(generator, form, row, reg)
    elif form.memory:
        size = (8 if row.wide else 4) if control else operand_size(row.operand, length, row.wide)
        prefix, bits, tail, fix = generator.operand(form, reg & 7, size)
        prefixes = b"".join(prefix)
        unit = size
        if row.row.has("packed"):
            unit = element_size(row)
        if tail[0] >> 6 == 1:
            tail = compress(tail, unit)
        high, low = bits >> 1 & 1, bits & 1
    else:
        rm = generator.gpr("rm" in form.writes, form.gpr_rm) if form.gpr_rm else rng.randrange(32)
        if "rm" in form.writes:
            written.add(rm)
        high, low = rm >> 4, rm >> 3 & 1
        tail = bytes([0xC0 | (reg & 7) << 3 | rm & 7])
    payload = [
        (~reg >> 3 & 1) << 7 | (1 - high) << 6 | (1 - low) << 5 | (~reg >> 4 & 1) << 4 | form.map,
        row.wide << 7 | (~vvvv & 15) << 3 | 4 | form.pp[0],
        zero << 7 | length << 5 | control << 4 | (~vvvv >> 4 & 1) << 3 | mask,
    ]
    if rng.random() < 0.03:
        # Mostly undefined then. Not the map or pp: what comes next would be another instruction's.
        number, bit = rng.choice(_SPOILED)
        payload[number] ^= 1 << bit
    head = prefixes + bytes([0x62, *payload, form.opcode])
    if form.immediate:
        tail += generator.immediate(form, 1)
    if fix is not None:
        fix = (fix[0], fix[1] + len(head), fix[2], fix[3])
    return head + tail, fix, written


def compress(tail: bytes, unit: int) -> bytes:
    """A displacement of one byte in units of ``unit`` bytes, or of four if it is no multiple."""
    place = 2 if tail[0] & 7 == 4 else 1
    value = int.from_bytes(tail[place : place + 1], "little", signed=True)
    if value % unit == 0:
        return tail[:place] + (value // unit).to_bytes(1, "little", signed=True)
    return bytes([tail[0] ^ 0xC0]) + tail[1:place] + value.to_bytes(4, "little", signed=True)


def vsib(generator: Generator, form: Form, row: EvexRow, reg: int) -> tuple[int, int, bytes, int]:
    """A memory operand with a vector of indices: X, B, ModRM and what follows, and vvvv for V'."""
    rng = generator.rng
    if generator.gather is None:
        generator.gather = (rng.randrange(32), 8 if form.opcode & 1 else 4)
    index = generator.gather[0] if rng.random() < 0.97 else rng.randrange(32)
    base = rng.choice(list(generator.pointers))
    tail = bytes([0x40 | (reg & 7) << 3 | 4, rng.randrange(4) << 6 | (index & 7) << 3 | base & 7, rng.randrange(-16, 16) & 0xFF])
    return index >> 3 & 1, base >> 3, tail, index & 16
