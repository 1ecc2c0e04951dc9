"""What the compared scenarios have met: exceptions by vector and mode, descriptors by type and by what became of them.

A descriptor counts as *loaded* where a segment register has it after the step and had another before, as *gone
through* where the step delivered an event or interrupt through it in the IDT, and as *refused* where an exception names
it in its error code (SDM Vol. 3A 6.13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.vmm.soft.bochs.ground import COMPAT, GDT, IDT, LONG, REAL
from tests.vmm.soft.bochs.scenarios import Scenario
from tests.vmm.soft.bochs.state import UNUSABLE_BIT, Outcome

VECTORS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS",
    13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM",
}  # fmt: skip
SYSTEM = {
    1: "TSS16", 2: "LDT", 3: "TSS16 busy", 4: "call gate 16", 5: "task gate", 6: "interrupt gate 16", 7: "trap gate 16",
    9: "TSS", 11: "TSS busy", 12: "call gate", 14: "interrupt gate", 15: "trap gate",
}  # fmt: skip
_S, _CODE, _CONFORMING, _WRITABLE = 0x10, 8, 4, 2
_EXT, _IN_IDT, _IN_LDT = 1, 2, 4
_SELECTOR_ERRORS = (10, 11, 12, 13)


def kind(access: int) -> str:
    """The type of a descriptor, from its byte of access rights."""
    if not access & _S:
        return SYSTEM.get(access & 15, f"reserved {access & 15}")
    if access & _CODE:
        return ("conforming " if access & _CONFORMING else "") + ("code" if access & _WRITABLE else "code, execute-only")
    return ("expand-down " if access & _CONFORMING else "") + ("data" if access & _WRITABLE else "data, read-only")


def exceptions(case: Scenario, theirs: Outcome) -> Iterator[str]:
    """``#GP in long`` and so on, for each event of the step."""
    for vector, _ in theirs.events:
        yield f"{VECTORS.get(vector, vector)} in {case.mode}"


def descriptors(case: Scenario, theirs: Outcome) -> Iterator[str]:
    """``call gate refused`` and so on."""
    if case.mode == REAL:
        return
    for name, after in theirs.state.segments.items() if theirs.end == "step" else ():
        if after != case.state.segments[name] and not after[3] & UNUSABLE_BIT:
            yield f"{kind(after[3])} loaded"
    for vector, error in theirs.events:
        if vector in _SELECTOR_ERRORS and error & 0xFFF8 and not error & _IN_LDT:
            table = IDT if error & _IN_IDT else GDT
            # the error code of a gate holds its vector, whatever its size
            size = 16 if table == IDT and case.mode in (LONG, COMPAT) else 8
            at = (error >> 3) * size + 5
            page = case.state.pages[table]
            if at < len(page):
                yield f"{kind(page[at])} refused"
        elif theirs.end == "step":
            size = 16 if case.mode in (LONG, COMPAT) else 8
            yield f"{kind(case.state.pages[IDT][vector * size + 5])} gone through"


def table(counts: Counter[str]) -> str:
    """The counts, a line each, most frequent first."""
    return "\n".join(f"  {count:8} {name}" for name, count in counts.most_common())


def missing(exceptions_seen: Counter[str]) -> list[str]:
    """Exceptions that no scenario has met in any mode."""
    seen = {name.partition(" ")[0] for name in exceptions_seen}
    return [name for name in VECTORS.values() if name not in seen]
