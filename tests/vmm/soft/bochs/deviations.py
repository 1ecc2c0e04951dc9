"""Where Bochs differs from the manuals, and what the manuals leave open.

``excused`` says that a case cannot be compared at all; ``settled`` takes over the engine's values for details in which
either side may be right. Both lists come from random runs in which the manual was then consulted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from tests.vmm.soft.bochs.ground import (
    CODE_SLOT,
    COMPAT,
    GDT,
    HANDLERS,
    HANDLERS_SIZE,
    IDT,
    LDT,
    LONG,
    PT,
    PT32,
    SIZE,
    STACKS,
    TSS,
    TSS2,
)  # fmt: skip
from tests.vmm.soft.bochs.scenarios import Scenario
from tests.vmm.soft.bochs.state import Outcome, State

A, D = 1 << 5, 1 << 6
TF, RF, VM = 1 << 8, 1 << 16, 1 << 17
TASK_SWITCHED = 1 << 3
ARITHMETIC = 0x8D5
CODE_LONG = 1 << 13
LMA = 1 << 10


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where both may differ although the engine is right: ``applies(case, the engine's, Bochs's, vendor)``."""

    reason: str
    applies: Callable[[Scenario, Outcome, Outcome, str], bool]


def _iret_without_stack(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    return case.mode == LONG and case.code in (b"\xcf", b"\x66\xcf")


def _null_stack(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    if case.family not in ("iret", "far_return") or case.mode != LONG or theirs.end != "step":
        return False
    selector = theirs.state.segments["ss"][0]
    return selector & 0xFFFC == 0 and selector & 3 != theirs.state.segments["cs"][0] & 3


def _other_vendor(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    return case.family == "system_call" and vendor != "GenuineIntel" and case.code[-1] in (0x34, 0x35)


def _flags_of_a_repetition(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    return case.family == "string" and bool(theirs.events) and case.code[-2] in (0xA6, 0xA7, 0xAE, 0xAF)


def _in_the_new_task(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    switched = mine.state.registers["cr0"] & ~case.state.registers["cr0"] & TASK_SWITCHED
    return switched != 0 and any(10 <= vector <= 13 for vector, _ in theirs.events)


def _stack_nowhere(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    return case.mode in (LONG, COMPAT) and any(vector == 12 and error for vector, error in theirs.events)


def _accessed_in_vain(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    return case.family != "page_walk" and (14, 3) in theirs.events


def _beyond_64k(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    if case.family != "iret" or theirs.end != "step" or not theirs.state.registers["rflags"] & VM:
        return False
    return case.at_stack(4) > 0xFFFF


def _upper_half(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    upper = int.from_bytes(case.state.pages[GDT][32 * 8 + 8 : 32 * 8 + 16], "little")
    return case.mode == LONG and case.code[-4:-2] in (b"\x0f\x02", b"\x0f\x03") and upper != 0


def _gate_nowhere(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    vectors = {vector for vector, _ in theirs.events}
    if case.family == "interrupt":
        vectors |= {case.code[-1], 1, 3, 4}
    idt = case.state.pages[IDT]
    return case.mode in (LONG, COMPAT) and any(not _canonical(_gate_offset(idt, v)) for v in vectors)


def _gate_offset(idt: bytes, vector: int) -> int:
    low, high = (int.from_bytes(idt[16 * vector + at : 16 * vector + at + 8], "little") for at in (0, 8))
    return low & 0xFFFF | low >> 48 << 16 | (high & 0xFFFFFFFF) << 32


def _branch_nowhere(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    near = case.code[:1] in (b"\xc2", b"\xc3") or case.code[:2] in (b"\xff\x13", b"\xff\xe3")
    return case.mode == LONG and near and not _canonical(mine.state.registers["rip"])


def _masked_trap(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    masked = case.state.registers["sfmask"] & TF != 0
    return case.family == "trap" and b"\x0f\x05" in case.code and masked and (1, 0) in theirs.events


def _call_nowhere(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    return case.family == "far_transfer" and case.mode == LONG and case.code[-1] == 0x1B and (13, 0) in theirs.events


def _narrow_load(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    at = case.code.find(b"\x0f\x00")
    return case.mode == COMPAT and at >= 0 and case.code[at + 2] >> 3 & 7 in (2, 3)


def _canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1FFFF)


DEVIATIONS = (
    Deviation(
        "IRET with a 16- or 32-bit operand pops SS:RSP too where it began in 64-bit mode (SDM Vol. 2, IRET: 'ELSE IF "
        "instruction began in 64-Bit Mode'); Bochs does so only with REX.W",
        _iret_without_stack,
    ),
    Deviation(
        "IRET to CPL 1 or 2 in 64-bit mode with a null SS whose RPL is not the new CPL: #GP(0) (SDM Vol. 2, IRET, "
        "64-bit mode exceptions); Bochs checks no RPL",
        _null_stack,
    ),
    Deviation(
        "SYSENTER and SYSEXIT are undefined in long mode on AMD's processors (APM Vol. 3); Bochs is an Intel processor",
        _other_vendor,
    ),
    Deviation(
        "A gate whose offset is not canonical: #GP before anything is pushed (SDM Vol. 2, INT n, "
        "'INTRA-PRIVILEGE-LEVEL-INTERRUPT': the check precedes the pushes); Bochs pushes first",
        _gate_nowhere,
    ),
    Deviation(
        "SYSCALL with TF set: processors look at TF behind the instruction, so that a system may mask it (IA32_FMASK) "
        "and has no #DB at its entry (Linux, KVM's emulator: 'TF is checked after the instruction completes'); Bochs "
        "looks before",
        _masked_trap,
    ),
    Deviation(
        "CMPS and SCAS that fault after some repetitions: the flags are those from before the instruction (SDM Vol. 2, "
        "REP); Bochs has those of the last comparison",
        _flags_of_a_repetition,
    ),
    Deviation(
        "A fault after the commit point of a task switch: in which order the new task's segments are validated is the "
        "processor's affair (SDM Vol. 3A 7.3, table 7-1), and so is whether its stack is usable by then",
        _in_the_new_task,
    ),
    Deviation(
        "The error code of #SS for an interrupt stack that is not canonical: 0 or EXT (SDM Vol. 2, INT n: "
        "error_code(NewSS, 0, EXT), NewSS being null in long mode); Bochs has the old SS",
        _stack_nowhere,
    ),
    Deviation(
        "A transfer through a descriptor that is not yet accessed and lies in a read-only page faults as a whole; "
        "Bochs has changed stack, CS and flags by then",
        _accessed_in_vain,
    ),
    Deviation(
        "IRET to virtual-8086 mode with an EIP beyond the segment's limit: #GP(0) (SDM Vol. 2, IRET, "
        "RETURN-TO-VIRTUAL-8086-MODE); Bochs cuts EIP",
        _beyond_64k,
    ),
    Deviation(
        "LAR and LSL of a 16-byte descriptor whose upper half is not valid: the manual says nothing; Bochs clears ZF",
        _upper_half,
    ),
    Deviation(
        "A near branch to an address that is not canonical faults behind the branch, as on AMD's processors; Bochs "
        "faults at the branch, as the SDM has it (Vol. 2, RET, CALL, JMP)",
        _branch_nowhere,
    ),
    Deviation(
        "A far CALL to an address that is not canonical: #GP(0) before anything is pushed (SDM Vol. 2, CALL, where the "
        "check precedes the pushes); Bochs pushes first",
        _call_nowhere,
    ),
    Deviation(
        "LLDT and LTR in compatibility mode: descriptors of system segments have 16 bytes in all of IA-32e mode (SDM Vol. "
        "3A 3.5.2); Bochs reads eight outside 64-bit mode",
        _narrow_load,
    ),
)
"""Seen in random runs; each is a reason not to compare such a case."""


def excused(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> str:
    """The reason why a case cannot be compared, or nothing."""
    return next((known.reason for known in DEVIATIONS if known.applies(case, mine, theirs, vendor)), "")


def settled(case: Scenario, mine: Outcome, theirs: Outcome) -> State:
    """Bochs's state with the engine's values where the manual leaves them open, or Bochs is wrong in them alone."""
    a, b = mine.state, theirs.state
    registers, segments, pages = dict(b.registers), dict(b.segments), dict(b.pages)
    page_fault = any(vector == 14 for vector, _ in theirs.events)
    if page_fault and case.family in ("segment_load", "far_transfer", "far_return", "iret", "interrupt"):
        registers["cr2"] = a.registers["cr2"]  # which part of a far pointer, a frame or a stack in a TSS is read first
    if theirs.events and case.code[:1] in (b"\x60", b"\x66", b"\x0f"):
        partial = case.code[:1] == b"\x60" or case.code[:2] in (b"\x66\x60", b"\x0f\x01")
        if partial:  # what PUSHA, SGDT and SIDT have stored before they fault
            pages.update({gpa: page for gpa, page in a.pages.items() if gpa >= STACKS})
    if case.mode == LONG and not a.segments["cs"][3] & CODE_LONG:
        # The upper halves of general registers are undefined once 64-bit mode is left (SDM Vol. 1 3.4.1.1).
        registers["rsp"] |= a.registers["rsp"] & ~0xFFFFFFFF
    if case.state.registers["cr0"] & 1 and not a.registers["cr0"] & 1:
        # The hidden part of CS stays when protected mode is left (SDM Vol. 3A 10.9.2); Bochs makes it data.
        segments["cs"] = *segments["cs"][:3], a.segments["cs"][3]
    if case.family == "trap" and not theirs.events:
        registers["dr6"] = a.registers["dr6"]  # the engine writes it when the trap arises, Bochs when it is delivered
    if (theirs.events or case.family == "trap") and not _known_code(case, a):
        registers["rflags"] = registers["rflags"] & ~ARITHMETIC | a.registers["rflags"] & ARITHMETIC
    if case.code[-2:] == b"\x0f\x07":
        registers["rflags"] &= ~RF  # SYSRET: RFLAGS <- R11 & 3C7FD7h, which has no RF (SDM Vol. 2)
    for table in (GDT, LDT) if theirs.events else ():
        # Whether the descriptor of code that cannot be entered in the end is marked accessed.
        pages[table] = bytes(
            other & ~1 | page & 1 if at % 8 == 5 else other
            for at, (page, other) in enumerate(zip(a.pages[table], pages[table], strict=True))
        )
    if theirs.events:
        for (gpa, size), page in itertools.product(((PT, 8), (PT32, 4)), (GDT, LDT, TSS, TSS2)):
            at = size * (page >> 12)
            mine_entry, entry = a.pages[gpa][at], pages[gpa][at]
            pages[gpa] = pages[gpa][:at] + bytes([entry & ~D | mine_entry & D]) + pages[gpa][at + 1 :]
    if theirs.events and case.family != "page_walk":
        # Which pages a faulting instruction touched before its fault is open: accessed bits of the lowest level.
        for gpa, size in ((PT, 8), (PT32, 4)):
            if pages[gpa] != a.pages[gpa]:
                pages[gpa] = bytes(
                    other & ~A | page & A if at % size == 0 else other
                    for at, (page, other) in enumerate(zip(a.pages[gpa], pages[gpa], strict=True))
                )
    return State(registers, segments, b.tables, pages)


def _known_code(case: Scenario, state: State) -> bool:
    """Whether the last instruction was a handler's NOP or the scenario's own PUSHF: no flags were left to work out."""
    flat = state.registers["efer"] & LMA and state.segments["cs"][3] & CODE_LONG
    base = 0 if flat else state.segments["cs"][1]
    last = (state.registers["rip"] - 1 + base) & (SIZE - 1)
    return HANDLERS <= last < HANDLERS + HANDLERS_SIZE or any(at <= last < at + CODE_SLOT for at in case.state.code)
