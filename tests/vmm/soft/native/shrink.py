"""Making a failing blob smaller while it still fails."""

from __future__ import annotations

import struct
from dataclasses import replace

from tests.vmm.soft.native.compare import Comparison, Difference
from tests.vmm.soft.native.generate import Blob, State

PLAIN_IMAGE = struct.pack("<HHBxHQQII", 0x37F, 0, 0, 0, 0, 0, 0x1F80, 0x2FFFF) + bytes(480) + struct.pack("<Q", 7) + bytes(312)


def shrink(comparison: Comparison, difference: Difference, memory: int) -> Difference:
    """The smallest case found that differs too; the one given where it does not differ by itself."""

    def attempt(blob: Blob) -> Difference | None:
        if not blob.items or not blob.states:
            return None
        found = comparison.run_survive([blob], memory)
        return found[0] if found and bool(found[0].died) == bool(difference.died) else None

    best = attempt(difference.blob)
    if best is None:
        return difference
    blob = best.blob
    for states in ([blob.states[best.state]], blob.states[: best.state + 1]):
        smaller = attempt(replace(blob, states=states))
        if smaller is not None:
            best = smaller
            break
    changed = True
    while changed:
        changed = False
        for n in reversed(range(len(best.blob.items))):
            items = best.blob.items[:n] + best.blob.items[n + 1 :]
            smaller = attempt(replace(best.blob, items=items))
            if smaller is not None:
                best, changed = smaller, True
    if len(best.blob.states) == 1:
        best = _simplify(best, attempt)
    return best


def _simplify(best: Difference, attempt) -> Difference:  # type: ignore[no-untyped-def]
    def simpler(state: State) -> bool:
        nonlocal best
        found = attempt(replace(best.blob, states=[state]))
        if found is not None:
            best = found
        return found is not None

    state = best.blob.states[0]
    simpler(replace(state, xstate=PLAIN_IMAGE))
    for place, length in ((160, 256), (576, 256), (32, 128), (24, 8), (0, 8)):
        state = best.blob.states[0]
        image = state.xstate[:place] + PLAIN_IMAGE[place : place + length] + state.xstate[place + length :]
        if image != state.xstate:
            simpler(replace(state, xstate=image))
    simpler(replace(best.blob.states[0], flags=2))
    simpler(replace(best.blob.states[0], fs_base=0, gs_base=0))
    for n in range(16):
        state = best.blob.states[0]
        registers = list(state.registers)
        registers[n] = 0x2000 if state.pointers >> n & 1 else 0
        if registers != state.registers:
            simpler(replace(state, registers=registers))
    return best
