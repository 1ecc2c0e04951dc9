"""Making a failing blob smaller while it still fails."""

from __future__ import annotations

from dataclasses import replace

from tests.vmm.soft.native.compare import Comparison, Difference
from tests.vmm.soft.native.generate import PLAIN_IMAGE, Blob, State


def shrink(
    comparison: Comparison, difference: Difference, memory: int, batch: list[Blob]
) -> tuple[Difference, list[Blob]]:
    """The smallest case found that differs too, and the blobs of the batch that must run before it, if any must."""

    def attempt(blob: Blob) -> Difference | None:
        if not blob.items or not blob.states:
            return None
        found = comparison.run_survive([blob], memory)
        return found[0] if found and bool(found[0].died) == bool(difference.died) else None

    best = attempt(difference.blob)
    if best is None:
        return _with_others(comparison, difference, memory, batch)
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
    return best, []


def _with_others(comparison: Comparison, difference: Difference, memory: int,
                 batch: list[Blob]) -> tuple[Difference, list[Blob]]:  # fmt: skip
    """A difference that takes other blobs: as few of them as can be found by leaving out more and more."""
    others = [blob for blob in batch if blob is not difference.blob]
    best, size = difference, len(others) // 2
    while size:
        start = 0
        while start < len(others):
            fewer = others[:start] + others[start + size :]
            blobs = [blob for blob in batch if blob is difference.blob or blob in fewer]
            found = [one for one in comparison.run_survive(blobs, memory) if one.blob is difference.blob]
            if found:
                others, best = fewer, found[0]
            else:
                start += size
        size //= 2
    return best, others


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
