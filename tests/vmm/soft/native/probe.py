"""Which VEX encodings the processor has: VEX.W, VEX.L and whether VEX.vvvv names a register, by asking it.

Of W and L the table says nothing, since the engine leaves them to the processor too; a generator that guessed would
make mostly undefined instructions. What the table says of vvvv is compared with this (``test_vex``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.vmm.soft.native import layout
from tests.vmm.soft.native.forms import Form
from tests.vmm.soft.native.generate import PLAIN_IMAGE, RBX, Blob, Item, State
from tests.vmm.soft.native.process import Runner

_COMBINATIONS = [(wide, long, vvvv) for wide in (False, True) for long in (False, True) for vvvv in (5, 0)]


@dataclass(slots=True)
class Encoding:
    """One way to encode a form: VEX.W, VEX.L, and whether vvvv may be other than 1111b."""

    wide: bool
    long: bool
    free: bool


def _code(form: Form, wide: bool, long: bool, vvvv: int) -> bytes:
    reg = 2 if form.reg is None else form.reg
    if not form.modrm:
        tail = b""
    elif form.kind == "gather":
        tail = bytes([reg << 3 | 4, 4 << 3 | RBX])
    elif form.memory:
        tail = bytes([reg << 3 | RBX])
    else:
        tail = bytes([0xC0 | reg << 3 | 1])
    immediate = b"\x00" if form.immediate else b""
    return (
        bytes([0xC4, 0xE0 | form.map, wide << 7 | (~vvvv & 15) << 3 | long << 2 | form.pp[0], form.opcode])
        + tail
        + immediate
    )


def undefined(native: Runner, codes: list[bytes]) -> list[bool]:
    """Whether each of these instructions raises #UD. They run with RBX pointing to memory and all else zero."""
    state = State([0x2000 if n == RBX else 0 for n in range(16)], 1 << RBX, 2, 0, 0, PLAIN_IMAGE)
    found = []
    image, out = native.image, layout.OUT - layout.BASE
    for start in range(0, len(codes), layout.CASES):
        batch = codes[start : start + layout.CASES]
        at, records = layout.CODE, b""
        for code in batch:
            blob = Blob([Item(0, code)], [state], 0, at)
            machine_code = blob.code()
            image[at - layout.BASE : at - layout.BASE + len(machine_code)] = machine_code
            records += blob.record(state)
            at += 32
        image[layout.IN - layout.BASE : layout.IN - layout.BASE + len(records)] = records
        image[out : out + len(records)] = b"\xff" * len(records)
        image[layout.COUNT - layout.BASE : layout.COUNT - layout.BASE + 4] = struct.pack("<I", len(batch))
        native.run()
        for n in range(len(batch)):
            where = out + n * layout.RECORD + layout.VECTOR
            found.append(image[where : where + 8] == struct.pack("<Q", 6))
    return found


def encodings(native: Runner, forms: list[Form]) -> dict[Form, list[Encoding]]:
    """The encodings of every VEX form that the processor has; forms that it has not at all are left out."""
    tried = [(form, *combination) for form in forms if form.vex for combination in _COMBINATIONS]
    bad = undefined(native, [_code(*one) for one in tried])
    found: dict[Form, list[Encoding]] = {}
    for (form, wide, long, vvvv), undefined_here in zip(tried, bad, strict=True):
        if undefined_here:
            continue
        known = found.setdefault(form, [])
        if vvvv:
            known.append(Encoding(wide, long, True))
        elif not any(one.wide == wide and one.long == long for one in known):
            known.append(Encoding(wide, long, False))
    return found
