"""What must be equal after a step, and what Bochs is known to do differently from the manuals."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.vmm.soft.bochs import coverage
from tests.vmm.soft.bochs.deviations import excused, settled
from tests.vmm.soft.bochs.ground import (
    SIZE,
)
from tests.vmm.soft.bochs.pipes import receive, send
from tests.vmm.soft.bochs.scenarios import Scenario, scenario
from tests.vmm.soft.bochs.state import UNUSABLE_BIT, Descriptor, Outcome, State
from tests.vmm.soft.bochs.subject import Subject
from tests.vmm.soft.oracle import same_modules


def unusable() -> str:
    """Why Bochs cannot be asked here; empty if it can."""
    code = "import os, bochscpu; os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], env=same_modules(), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


class Bochs:
    """The server process."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.vmm.soft.bochs.server", str(SIZE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=same_modules(),
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
            engine, bochs = self.mine.state.registers[name], self.theirs.state.registers[name]
            rows.append(f"    {name:15} {value:#18x} {engine:#18x} {bochs:#18x}{'' if engine == bochs else '  <'}")
        for name, segment in before.segments.items():
            mine, theirs = self.mine.state.segments[name], self.theirs.state.segments[name]
            rows.append(f"    {name:15} {_hex(segment):30} {_hex(mine):30} {_hex(theirs)}")
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
    exceptions: Counter[str] = field(default_factory=Counter)
    descriptors: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    words: str = ""


def _visible(value: Descriptor) -> Descriptor | tuple[int]:
    """What of a segment register counts: of an unusable one, the selector."""
    return (value[0],) if value[3] & UNUSABLE_BIT else value


def differences(case: Scenario, mine: Outcome, theirs: Outcome) -> list[str]:
    """One line for each thing that differs."""
    if mine.end != theirs.end:
        return [f"the engine's end is {mine.end!r}, that of Bochs {theirs.end!r}"]
    if mine.end != "step":
        return []
    a, b = mine.state, settled(case, mine, theirs)
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


def run(seeds: range, *, only: str = "", most: int = 5, go_on: Callable[[], bool] = lambda: True) -> Tally:
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
            tally.exceptions.update(coverage.exceptions(case, theirs))
            tally.descriptors.update(coverage.descriptors(case, theirs))
            lines = differences(case, mine, theirs)
            if lines:
                tally.differences.append(Difference(case, lines, mine, theirs))
    finally:
        tally.words = bochs.words()
        bochs.close()
        subject.close()
    return tally
