"""From a seed to a machine state with one instruction to execute."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.vmm.soft.bochs.families import FAMILIES
from tests.vmm.soft.bochs.ground import CODE_SLOT, LONG, PROT16, REAL, SLOTS, V86, Ground
from tests.vmm.soft.bochs.state import State

LAZY = ("alignment", "segmented", "page_walk", "string", "system_segments", "flags")
_DIRECT = (b"\xea", b"\x9a")
PUSHF = b"\x9c"
"""Bochs works flags out when they are needed, and a state read from it has old ones until then: have them needed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A state, its family, its mode and the bytes at its instruction pointer."""

    seed: int
    family: str
    mode: str
    code: bytes
    state: State

    def at_stack(self, size: int) -> int:
        """The value of ``size`` bytes at the top of the stack."""
        at = self.state.registers["rsp"]
        if self.mode != LONG:
            at += self.state.segments["ss"][1]
        image = self.state.pages.get(at & 0xFFFFF000, b"")
        return int.from_bytes(image[at & 0xFFF : (at & 0xFFF) + size], "little")

    def far_selector(self) -> int:
        """Of a far jump or call: the selector."""
        if self.code[-7:-6] in _DIRECT or self.code[-5:-4] in _DIRECT:
            return int.from_bytes(self.code[-2:], "little")
        size = 2 if (self.mode in (PROT16, V86, REAL)) != (b"\x66" in self.code) else 4
        at = self.state.registers["rbx"] + (8 if b"\x48" in self.code else size)
        if self.mode == PROT16:
            at += self.state.segments["ds"][1]
        image = self.state.pages.get(at & 0xFFFFF000, b"")
        return int.from_bytes(image[at & 0xFFF : (at & 0xFFF) + 2], "little")


def scenario(seed: int, slot: int, only: str = "") -> Scenario:
    """The scenario of ``seed``, its code in ``slot`` (of ``SLOTS``); ``only`` names the one family to choose from."""
    rng = random.Random(f"{seed} {only}")
    names = [only] if only else list(FAMILIES)
    name = rng.choices(names, [FAMILIES[name][1] for name in names])[0]
    function, _, modes = FAMILIES[name]
    ground = Ground(rng, slot % SLOTS, modes)
    function(ground)
    if name in LAZY and ground.steps == 1:
        ground.code += PUSHF
        ground.steps = 2
    code = ground.code
    if len(code) > CODE_SLOT:
        raise AssertionError(f"{name}: {code.hex()} does not fit into a slot")
    state = ground.finish()
    state.code[ground.slot] = code.ljust(CODE_SLOT, b"\xf4")  # HLT behind the code ends what is decoded
    return Scenario(seed, name, ground.mode, code, state)
