"""Running batches on both sides and finding what differs."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from tests.vmm.soft.native import engine, host, layout, probe
from tests.vmm.soft.native.forms import all_forms
from tests.vmm.soft.native.generate import MEMORY_POOL, RSP, Blob, pools
from tests.vmm.soft.native.process import Died, Runner

_ARITHMETIC = 0x8D5
_AREAS = frozenset("fxsave fxrstor fnsave frstor fnstenv fldenv".split())
_MEMORY = (12, 13, 14)
_QUADS = struct.Struct("<24Q")
_FLAGS, _VECTOR, _CR2, _RIP = (at // 8 for at in (layout.FLAGS, layout.VECTOR, layout.CR2, layout.FAULT_RIP))
_EMPTY_RECORD = bytes(layout.VECTOR) + struct.pack("<Q", layout.NO_VECTOR) + bytes(layout.RECORD - layout.VECTOR - 8)
_EMPTY = _EMPTY_RECORD * layout.CASES
_OUT, _IN, _CODE = layout.OUT - layout.BASE, layout.IN - layout.BASE, layout.CODE - layout.BASE
_SLOTS, _COUNT = layout.SLOTS - layout.BASE, layout.COUNT - layout.BASE


@dataclass(slots=True)
class Difference:
    """A blob whose results differ, from its state number ``state`` on."""

    blob: Blob
    state: int
    native: bytes = b""
    engine: bytes = b""
    native_memory: bytes = b""
    engine_memory: bytes = b""
    died: str = ""


def same(blob: Blob, native: bytes, ours: bytes) -> bool:
    """Are two records of results the same, as far as they must be?

    At a fault the engine may differ in this: the arithmetic flags that the handler sees, where the instruction would
    have overwritten them all; #PF or #SS for an operand that is both misaligned (#GP natively) and out of reach, or where
    an x87 exception was pending (#MF); which byte out of reach of a large area is the first; and a near return or jump to a non-canonical address has happened when
    the engine finds that nothing can be fetched there.
    """
    if native == ours:
        return True
    if native[layout.VECTOR : layout.VECTOR + 8] == b"\xff" * 8:
        return False
    one, other = list(_QUADS.unpack_from(native)), list(_QUADS.unpack_from(ours))
    form = blob.form_at(one[_RIP])
    for words in (one, other):
        words[_FLAGS] &= ~_ARITHMETIC
        if form is not None and form.name in _AREAS:
            words[_CR2] = 0
    if one[_VECTOR] == other[_VECTOR] == 13 and 1 << 47 <= other[_RIP] < (1 << 64) - (1 << 47) and form is None:
        one[_RIP], one[RSP] = other[_RIP], other[RSP]
    astray = not blob.address <= one[_RIP] < blob.address + len(blob.code())  # it returned into another blob
    if (astray or (form is not None and form.aligned)) and one[_VECTOR] == 13 and other[_VECTOR] in (12, 14):
        one[_VECTOR : _CR2 + 1] = other[_VECTOR : _CR2 + 1]
    if form is not None and one[_VECTOR] == 16 and other[_VECTOR] == 14:
        one[_VECTOR : _CR2 + 1] = other[_VECTOR : _CR2 + 1]
    if one[_VECTOR] == other[_VECTOR] == 1 and one[_RIP] + 1 == other[_RIP]:
        one[_RIP] += 1  # INT1, met on a way astray: a trap, which some software KVMs take for a fault
    if form is not None and form.kind == "string" and one[_VECTOR] in _MEMORY and other[_VECTOR] in _MEMORY:
        one[_VECTOR : _CR2 + 1] = other[_VECTOR : _CR2 + 1]  # which of its two operands comes first
    if form is not None and form.kind == "gather" and not form.evex:
        return one == other  # what is left of the mask has the same signs, but need not be the same
    return one == other and native[_QUADS.size :] == ours[_QUADS.size :]


def pack(blobs: list[Blob], rng: random.Random) -> list[Blob]:
    """Give blobs their slots and addresses; the first of them that fill a batch."""
    at, cases = layout.CODE, 0
    for number, blob in enumerate(blobs):
        length = sum(len(item.data) for item in blob.items) + 5
        kind = rng.random()
        if kind < 0.1:  # across the border of a page
            at = (at + length | 0xFFF) + 1 - rng.randrange(1, length)
        else:
            at += rng.randrange(24) if kind < 0.5 else 64
        cases += len(blob.states)
        if cases > layout.CASES or number == layout.BLOBS or at + length > layout.CODE + layout.CODE_SIZE:
            return blobs[:number]
        blob.slot, blob.address = number, at
        at += length
    return blobs


class Comparison:
    """The two sides. A context manager."""

    def __init__(self) -> None:
        self.native: Runner = host.start()
        self.engine: Runner = engine.start()
        self.encodings = probe.encodings(self.native, list(all_forms()))
        self.cases = self.dropped = 0
        self.faults: dict[int, int] = {}

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *exc: object) -> None:
        self.native.close()
        self.engine.close()

    def run(self, blobs: Iterable[Blob], memory: int) -> list[Difference]:
        """Run blobs that ``pack`` has placed, with memory from that place of the pool. Raises ``Died``."""
        blobs = list(blobs)
        code = bytearray(layout.CODE_SIZE)
        records = []
        for blob in blobs:
            machine_code = blob.code()
            at = blob.address - layout.CODE
            code[at : at + len(machine_code)] = machine_code
            records += [blob.record(state) for state in blob.states]
        joined = b"".join(records)
        contents = pools()[2][memory : memory + layout.BLOBS * layout.SLOT]
        count = struct.pack("<I", len(records))
        results = []
        for side in (self.native, self.engine):
            image = side.image
            image[_CODE : _CODE + len(code)] = code
            image[_IN : _IN + len(joined)] = joined
            image[_OUT : _OUT + len(joined)] = _EMPTY[: len(joined)]
            image[_SLOTS:] = contents
            image[_COUNT : _COUNT + 4] = count
            side.run()
            results.append((image[_OUT : _OUT + len(joined)], image[_SLOTS:]))
        self.cases += len(records)
        return self._compare(blobs, *results[0], *results[1])

    def _compare(self, blobs: list[Blob], native: bytes, native_memory: bytes, ours: bytes,
                 our_memory: bytes) -> list[Difference]:  # fmt: skip
        found = []
        case = 0
        for blob in blobs:
            where = slice(blob.slot * layout.SLOT, (blob.slot + 1) * layout.SLOT)
            memories = native_memory[where], our_memory[where]
            difference = None
            for number in range(len(blob.states)):
                one = native[case : case + layout.RECORD]
                other = ours[case : case + layout.RECORD]
                case += layout.RECORD
                vector = int.from_bytes(one[layout.VECTOR : layout.VECTOR + 8], "little")
                if vector != layout.NO_VECTOR:
                    self.faults[vector] = self.faults.get(vector, 0) + 1
                if difference is None and not same(blob, one, other):
                    difference = Difference(blob, number, one, other, *memories)
            if difference is None and memories[0] != memories[1]:
                difference = Difference(blob, len(blob.states) - 1, one, other, *memories)
            if difference is not None:
                found.append(difference)
        return found

    def restart(self) -> None:
        """Start the side anew that died."""
        if self.engine.process.poll() is not None:
            self.engine.close()
            self.engine = engine.start()
        if self.native.process.poll() is not None:
            self.native.close()
            self.native = host.start()

    def run_survive(self, blobs: list[Blob], memory: int) -> list[Difference]:
        """As ``run``; where a side dies, the blob that does it is found by halving.

        A blob that the native process does not survive, since it overwrites its own return address or loop counter,
        is dropped: it says nothing of the engine.
        """
        try:
            return self.run(blobs, memory)
        except Died as error:
            native = self.native.process.poll() is not None
            self.restart()
            if len(blobs) == 1:
                self.dropped += native
                return [] if native else [Difference(blobs[0], 0, died=str(error))]
            reason = "" if native else str(error)
        middle = len(blobs) // 2
        found = self.run_survive(blobs[:middle], memory)
        if not found or native:
            found += self.run_survive(blobs[middle:], memory)
        if not found and not native:
            return [Difference(blobs[0], 0, died=f"{reason} (not again in halves: it takes the whole batch)")]
        return found


def memory_for(rng: random.Random) -> int:
    """A place in the pool of memory contents."""
    return rng.randrange(0, MEMORY_POOL, 64)
