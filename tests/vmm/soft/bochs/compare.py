"""What must be equal after a step, and what Bochs is known to do differently from the manuals."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.vmm.soft.bochs.ground import GDT, IDT, LONG, PT, PT32, SIZE, STACKS
from tests.vmm.soft.bochs.scenarios import Scenario, scenario
from tests.vmm.soft.bochs.pipes import receive, send
from tests.vmm.soft.bochs.state import UNUSABLE_BIT, Descriptor, Outcome, State
from tests.vmm.soft.bochs.subject import Subject

A, D = 1 << 5, 1 << 6
RF = 1 << 16
CODE_LONG = 1 << 13


class Bochs:
    """The server process."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.vmm.soft.bochs.server", str(SIZE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def begin(self, before: State) -> None:
        """Give Bochs a state to step from."""
        assert self.process.stdin is not None
        send(self.process.stdin.fileno(), before)

    def end(self) -> Outcome:
        """What Bochs made of it."""
        assert self.process.stdout is not None
        try:
            outcome = receive(self.process.stdout.fileno())
        except EOFError:
            raise RuntimeError(f"Bochs died: {self.words()}") from None
        assert isinstance(outcome, Outcome)
        return outcome

    def words(self) -> str:
        """The end of what it said."""
        self.errors.seek(0)
        return self.errors.read()[-2000:]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe is not None:
                pipe.close()


@dataclass(slots=True)
class Difference:
    """A scenario with two outcomes."""

    scenario: Scenario
    lines: list[str]
    mine: Outcome
    theirs: Outcome

    def report(self) -> str:
        """Both states and how to run it again."""
        s, before = self.scenario, self.scenario.state
        head = f"seed {s.seed}: {s.family} in {s.mode}, code {s.code.hex(' ')}; Bochs saw {self.theirs.events}"
        rows = []
        if not self.theirs.state.registers:
            return "\n".join([head, *self.lines])
        for name, value in before.registers.items():
            mine, theirs = self.mine.state.registers[name], self.theirs.state.registers[name]
            rows.append(f"    {name:15} {value:#18x} {mine:#18x} {theirs:#18x}{'' if mine == theirs else '  <'}")
        for name, segment in before.segments.items():
            words = [" ".join(f"{part:x}" for part in which) for which in (segment, self.mine.state.segments[name],
                                                                           self.theirs.state.segments[name])]  # fmt: skip
            rows.append(f"    {name:15} {words[0]:30} {words[1]:30} {words[2]}")
        for name, table in before.tables.items():
            rows.append(f"    {name:15} {table[0]:#x} {table[1]:#x}")
        return "\n".join([head, "    " + "\n    ".join(self.lines), "    before, engine, Bochs:", *rows])


@dataclass(slots=True)
class Tally:
    """How a run went."""

    cases: int = 0
    compared: int = 0
    families: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    words: str = ""


def _visible(value: Descriptor) -> Descriptor | tuple[int]:
    """What of a segment register counts: of an unusable one, the selector."""
    return (value[0],) if value[3] & UNUSABLE_BIT else value


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where Bochs and the engine may differ although the engine is right: ``applies(case, engine's, Bochs's, vendor)``."""

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


def _upper_half(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    upper = int.from_bytes(case.state.pages[GDT][32 * 8 + 8 : 32 * 8 + 16], "little")
    return case.mode == LONG and case.code[-4:-2] in (b"\x0f\x02", b"\x0f\x03") and upper != 0


def _gate_nowhere(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    vectors = {vector for vector, _ in theirs.events}
    if case.family == "interrupt":
        vectors |= {case.code[-1], 1, 3, 4}
    idt = case.state.pages[IDT]
    return case.state.segments["cs"][3] & CODE_LONG != 0 and any(not _canonical(_gate_offset(idt, v)) for v in vectors)


def _gate_offset(idt: bytes, vector: int) -> int:
    low, high = (int.from_bytes(idt[16 * vector + at : 16 * vector + at + 8], "little") for at in (0, 8))
    return low & 0xFFFF | low >> 48 << 16 | (high & 0xFFFFFFFF) << 32


def _branch_nowhere(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> bool:
    near = case.code[:1] in (b"\xc2", b"\xc3") or case.code[:2] in (b"\xff\x13", b"\xff\xe3")
    return case.mode == LONG and near and not _canonical(mine.state.registers["rip"])


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
        "LAR and LSL of a 16-byte descriptor whose upper half is not valid: the manual says nothing; Bochs clears ZF",
        _upper_half,
    ),
    Deviation(
        "A near branch to an address that is not canonical faults behind the branch, as on AMD's processors; Bochs "
        "faults at the branch, as the SDM has it (Vol. 2, RET, CALL, JMP)",
        _branch_nowhere,
    ),
)
"""Seen in random runs; each is a reason not to compare such a case."""


def excused(case: Scenario, mine: Outcome, theirs: Outcome, vendor: str) -> str:
    """The reason why a case cannot be compared, or nothing."""
    return next((known.reason for known in DEVIATIONS if known.applies(case, mine, theirs, vendor)), "")


def differences(case: Scenario, mine: Outcome, theirs: Outcome) -> list[str]:
    """One line for each thing that differs."""
    if mine.end != theirs.end:
        return [f"the engine's end is {mine.end!r}, that of Bochs {theirs.end!r}"]
    if mine.end != "step":
        return []
    a, b = mine.state, _settled(case, mine, theirs)
    lines = []
    for name, value in a.registers.items():
        if value != b.registers[name]:
            lines.append(f"{name}: {value:#x}, Bochs {b.registers[name]:#x}")
    for name, segment in a.segments.items():
        if _visible(segment) != _visible(b.segments[name]):
            lines.append(f"{name}: {_hex(segment)}, Bochs {_hex(b.segments[name])}")
    for name, table in a.tables.items():
        if table != b.tables[name]:
            lines.append(f"{name}: {_hex(table)}, Bochs {_hex(b.tables[name])}")
    for gpa, page in a.pages.items():
        other = b.pages[gpa]
        if page != other:
            lines += _words(case, gpa, page, other)
    return lines


def _settled(case: Scenario, mine: Outcome, theirs: Outcome) -> State:
    """Bochs's state with the engine's values where the manual leaves them open, or Bochs is wrong in them alone."""
    a, b = mine.state, theirs.state
    registers, segments, pages = dict(b.registers), dict(b.segments), dict(b.pages)
    page_fault = any(vector == 14 for vector, _ in theirs.events)
    if page_fault and case.family in ("segment_load", "far_transfer", "far_return", "iret"):
        registers["cr2"] = a.registers["cr2"]  # which part of a far pointer or a frame is read first
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
    if case.code[-2:] == b"\x0f\x07":
        registers["rflags"] &= ~RF  # SYSRET: RFLAGS <- R11 & 3C7FD7h, which has no RF (SDM Vol. 2)
    if len(theirs.events) > 1 and pages[GDT] != a.pages[GDT]:
        # Whether the descriptor of a handler that cannot be entered is marked accessed.
        pages[GDT] = bytes(
            other & ~1 | page & 1 if at % 8 == 5 else other
            for at, (page, other) in enumerate(zip(a.pages[GDT], pages[GDT], strict=True))
        )
        for gpa, size in ((PT, 8), (PT32, 4)):
            at = size * (GDT >> 12)
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


def _words(case: Scenario, gpa: int, page: bytes, other: bytes) -> list[str]:
    before = case.state.pages[gpa]
    lines = []
    for at in range(0, 4096, 8):
        word = slice(at, at + 8)
        if page[word] != other[word]:
            was, engine, bochs = (int.from_bytes(data[word], "little") for data in (before, page, other))
            lines.append(f"memory {gpa + at:#x}: {engine:#018x}, Bochs {bochs:#018x}, before {was:#018x}")
    return lines[:6]


def _hex(values: tuple[int, ...]) -> str:
    return " ".join(f"{value:x}" for value in values)


def run(
    seeds: range, *, only: str = "", most: int = 5, go_on: Callable[[], bool] = lambda: True
) -> Tally:
    """Compare the scenarios of ``seeds`` until ``most`` differ or ``go_on`` says no."""
    tally = Tally()
    subject, bochs = Subject(SIZE), Bochs()
    vendor = subject.vendor()
    try:
        for slot, seed in enumerate(seeds):
            if len(tally.differences) >= most or not go_on():
                break
            case = scenario(seed, slot, only)
            tally.cases += 1
            bochs.begin(case.state)
            mine = subject.step(case.state)
            theirs = bochs.end()
            open_end = {"outside memory", "endless", "no end"} & {mine.end, theirs.end}
            if open_end:
                tally.ends.update(open_end)
                continue
            if subject.strayed():
                bochs.close()
                bochs = Bochs()
                tally.ends["stray write"] += 1
            if excused(case, mine, theirs, vendor):
                tally.ends["known deviation"] += 1
                continue
            tally.compared += 1
            tally.families[case.family] += 1
            tally.ends[theirs.end] += 1
            lines = differences(case, mine, theirs)
            if lines:
                tally.differences.append(Difference(case, lines, mine, theirs))
    finally:
        tally.words = bochs.words()
        bochs.close()
        subject.close()
    return tally
