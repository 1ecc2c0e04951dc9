"""Feeds workers with cases and makes what goes wrong smaller."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.vmm.soft.fuzz.cases import ASPECTS, Spec, build
from tests.vmm.soft.oracle import same_modules

SILENCE = 15.0
"""Seconds without an answer after which a worker counts as hung: the kick comes after hundredths of one."""
CASES_A_WORKER = 3000
WORKER = "tests.vmm.soft.fuzz.worker"
CROWD = "tests.vmm.soft.fuzz.crowd"
"""The modules that run cases: on one vCPU, and on several."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that went wrong: the smallest one found, what happened, and what the worker said at its death."""

    spec: Spec
    problem: str
    words: str = ""
    module: str = WORKER

    def report(self) -> str:
        """All that is needed to look into it."""
        spec = json.dumps({"seed": self.spec.seed, "off": list(self.spec.off), "keep": self.spec.keep})
        again = f"echo '{spec}' | python -m {self.module}"
        state = build(self.spec).describe() if self.module == WORKER else ""
        return f"{self.problem}\n  {again}\n{state}\n{self.words}"


@dataclass(slots=True)
class Tally:
    """How far a hunt came."""

    cases: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


class Worker:
    """A worker process."""

    def __init__(self, module: str = WORKER) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=same_modules(),
        )  # fmt: skip
        self.ran = 0

    def run(self, spec: Spec) -> tuple[str, dict[str, object]]:
        """Run a case: what went wrong (empty: nothing) and the worker's answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ran += 1
        line = ""
        try:
            self.process.stdin.write(json.dumps({"seed": spec.seed, "off": spec.off, "keep": spec.keep}) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], SILENCE)
            if not ready:
                return "hang: no kick ends it", {}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            code = self.process.wait(SILENCE)
            return f"crash: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}", {}
        answer: dict[str, object] = json.loads(line)
        return str(answer["problem"]), answer

    def words(self) -> str:
        """The end of what it wrote on standard error."""
        self.errors.seek(0)
        return self.errors.read()[-3000:]

    def close(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def hunt(
    seed: int,
    seconds: float,
    *,
    most: int = 1,
    module: str = WORKER,
    shrink_seconds: float = 60,
    say: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Run the cases from ``seed`` on, until the time is over or ``most`` findings are made.

    Only cases of one vCPU are made smaller: those of several do not go wrong in the same way twice.
    """
    tally = Tally()
    worker = Worker(module)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and len(tally.findings) < most:
            spec = Spec(seed + tally.cases)
            problem, answer = worker.run(spec)
            tally.cases += 1
            if problem:
                words = worker.words()
                worker.close()
                say(f"seed {spec.seed}: {problem}")
                small = shrink(spec, problem, shrink_seconds) if module == WORKER else spec
                tally.findings.append(Finding(small, problem, words, module))
                say(tally.findings[-1].report())
                worker = Worker(module)
                continue
            tally.modes[str(answer["mode"])] += 1
            ends = answer["exits"]
            assert isinstance(ends, list)
            tally.ends.update(ends)
            if worker.ran >= CASES_A_WORKER:
                worker.close()
                worker = Worker(module)
                say(f"{tally.cases} cases, the last of seed {spec.seed}")
    finally:
        worker.close()
    return tally


def shrink(spec: Spec, problem: str, seconds: float) -> Spec:
    """The smallest case found that goes wrong in the same way."""
    end = time.monotonic() + seconds
    kind = problem.partition(":")[0]
    state = [Worker()]

    def fails(candidate: Spec) -> bool:
        for _ in range(2):
            found, _ = state[0].run(candidate)
            if found:
                state[0].close()
                state[0] = Worker()
            if found.partition(":")[0] == kind:
                return True
        return False

    try:
        keep = list(range(len(build(spec).chunks)))
        size = max(1, len(keep) // 2)
        while size:
            start = 0
            while start < len(keep) and time.monotonic() < end:
                fewer = keep[:start] + keep[start + size :]
                if fails(replace(spec, keep=tuple(fewer))):
                    keep = fewer
                    spec = replace(spec, keep=tuple(keep))
                else:
                    start += size
            size //= 2
        for aspect in ASPECTS:
            if time.monotonic() < end and fails(replace(spec, off=(*spec.off, aspect))):
                spec = replace(spec, off=(*spec.off, aspect))
    finally:
        state[0].close()
    return spec
