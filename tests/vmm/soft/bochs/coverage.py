"""What the compared scenarios have met: exceptions by vector and mode, descriptors by type and by what became of them.

A descriptor counts as *loaded* where a segment register has it after the step and had another before, as *gone
through* where the step delivered an event or interrupt through it in the IDT or made a far jump or call through it, and
as *refused* where an exception names it in its error code (SDM Vol. 3A 6.13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.vmm.soft.bochs.ground import COMPAT, GDT, IDT, LONG, REAL, V86
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
SEGMENTS = [prefix + name for prefix in ("", "conforming ") for name in ("code", "code, execute-only")]
SEGMENTS += [prefix + name for prefix in ("", "expand-down ") for name in ("data", "data, read-only")]
GATES = [name for name in SYSTEM.values() if "gate" in name]
DESCRIPTORS = (
    *(f"{name} {how}" for name in (*SEGMENTS, "LDT", "TSS busy", "TSS16 busy") for how in ("loaded", "refused")),
    *(f"{name} {how}" for name in GATES for how in ("gone through", "refused")),
    *(f"{name} refused" for name in ("TSS", "TSS16", *(f"reserved {number}" for number in (0, 8, 10, 13)))),
)
"""What there is to meet; a TSS is busy once it is loaded."""
_S, _CODE, _CONFORMING, _WRITABLE = 0x10, 8, 4, 2
_IN_IDT, _IN_LDT = 2, 4
_OF = 1 << 11
INT3, INTO, INT1 = b"\xcc", b"\xce", b"\xf1"
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
    vectors = [vector for vector, _ in theirs.events]
    if case.family == "interrupt" and case.code in (INT3, INTO) and (asked := _asked_for(case)) is not None:
        vectors.append(asked)
    for vector in vectors:
        yield f"{VECTORS.get(vector, vector)} in {case.mode}"


def _asked_for(case: Scenario) -> int | None:
    """The vector that an INT instruction names."""
    if case.code == INTO and not case.state.registers["rflags"] & _OF:
        return None
    return {INT3: 3, INTO: 4, INT1: 1}.get(case.code, case.code[-1])


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
            yield f"{_gate(case, vector)} gone through"
    if theirs.events or theirs.end != "step":
        return
    if case.family == "interrupt" and (asked := _asked_for(case)) is not None:
        yield f"{_gate(case, asked)} gone through"
    if case.family == "far_transfer" and case.mode != V86:
        selector = case.far_selector()
        name = kind(case.state.pages[GDT][(selector & 0x1F8) + 5]) if not selector & _IN_LDT else ""
        if name in GATES:
            yield f"{name} gone through"


def _gate(case: Scenario, vector: int) -> str:
    size = 16 if case.mode in (LONG, COMPAT) else 8
    return kind(case.state.pages[IDT][vector * size + 5])


def table(counts: Counter[str]) -> str:
    """The counts, a line each, most frequent first."""
    return "\n".join(f"  {count:8} {name}" for name, count in counts.most_common())


def missing(exceptions_seen: Counter[str], descriptors_seen: Counter[str]) -> list[str]:
    """Exceptions that no scenario has met in any mode, and what has become of no descriptor."""
    seen = {name.partition(" ")[0] for name in exceptions_seen} | set(descriptors_seen)
    return [name for name in (*VECTORS.values(), *DESCRIPTORS) if name not in seen]
