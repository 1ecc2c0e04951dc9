"""``growth``: does a long run slow down, or take more and more of the host?

One Linux guest with two vCPUs does the same mixture round after round, for ``--minutes``: programs, processes,
mappings, files, and code that is made anew all the time, so that the code cache fills and is flushed about once a
round. The host does the same natively behind each round. The first quarter of the rounds is a warm-up. Behind it
nothing may grow:

    time        CPU seconds of a round over the host's own for it, for a busy host slows down both: the median of the
                last quarter of the rounds over that of the second
    memory      resident, without the guest's: in the end over that behind the first quarter
    the rest    threads, file descriptors and mappings of the process, in the same way

It ends with an error if something does, if a round's output is not the host's, or if the cache was not flushed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.boot import own_memory
from benchmarks.console import PROMPT, Console
from benchmarks.counters import counters
from benchmarks.idle import cpu_seconds
from benchmarks.machines import MEMORY_MB, Context, ours
from benchmarks.measure import BenchmarkError, Result, quantity
from benchmarks.suite import PLACE, Cargo, guest_image, pack
from benchmarks.table import native

TIME_LIMIT, MEMORY_LIMIT, COUNT_LIMIT = 1.1, 1.05, 1.05
LEAST_ROUNDS, QUICK_ROUNDS = 12, 4
LINES = 30
"""Rounds that are told of, at most, spread over the time."""
PROGRAMS = (
    "PYTHON 2",
    "bin/sqlite3 :memory: <queries.sql",
    "bin/gzip -n -c <text >out",
    "bin/gzip -dc out | bin/sha256sum",
)
SYSTEM = (
    *("./code fresh 4", "./code replaced 30", "./paging forks 60", "./paging execs 60", "./paging mappings 20"),
    *("./kernel files 100", "./kernel pipes 20", "./kernel signals 50", "./code fresh 4"),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One round, and the process behind it. ``flushes`` of the code cache are counted from the start."""

    seconds: float
    cpu: float
    native: float
    megabytes: float
    code_mb: float
    data_mb: float
    blocks: int
    flushes: int
    threads: int
    descriptors: int
    mappings: int

    def text(self) -> str:
        """The line of the report."""
        times = f"{quantity(self.seconds, 's')}, CPU {quantity(self.cpu, 's')}, native {quantity(self.native, 's')}"
        cache = f"code {self.code_mb:4.1f} + {self.data_mb:4.1f} MB, {self.blocks:6d} blocks, {self.flushes} flushes"
        counts = f"{self.threads} threads, {self.descriptors} files, {self.mappings} mappings"
        return f"{times}  memory {self.megabytes:5.1f} MB  {cache}  {counts}"


def command(cargo: Cargo) -> str:
    """A round: programs on one vCPU, the kernel's work and new code on the other; their output in this order."""
    halves = ("; ".join(half).replace("PYTHON", cargo.python) for half in (PROGRAMS, SYSTEM))
    return "(set -e; ({}) >one & ({}) >two; wait $!; cat one two)".format(*halves)


def run_growth(context: Context) -> Iterator[Result | str]:
    """The rounds, then what has grown. Raises ``BenchmarkError`` if something has."""
    folder = context.folder / "growth"
    folder.mkdir()
    cargo = pack(folder)
    for program in ("gzip", "sqlite3", "sha256sum"):
        if program in cargo.missing:
            raise BenchmarkError(cargo.missing[program])
    image = guest_image(context.image, cargo, context.folder / "growth.initrd")
    line = command(cargo)
    rounds: list[Round] = []
    begin = told = time.monotonic()
    seconds = 0 if context.quick else 60 * context.minutes
    with Console(ours(image.kernel, image.initrd, cpus=2)) as console:
        console.expect(PROMPT)
        console.time("dmesg -n 1")
        console.time(f"cd {PLACE}", prompt=_PROMPT)
        least = QUICK_ROUNDS if context.quick else LEAST_ROUNDS
        while len(rounds) < least or time.monotonic() - begin < seconds:
            rounds.append(_round(console, line, cargo))
            now = time.monotonic()
            if now - told >= seconds / LINES:
                told = now
                yield f"    {now - begin:6.0f} s, round {len(rounds):4d}: {rounds[-1].text()}"
    yield f"    {len(rounds)} rounds in {time.monotonic() - begin:.0f} s, {rounds[-1].flushes} flushes"
    found = verdicts(rounds)
    yield from found
    if context.quick:
        return  # so few rounds say nothing
    grown = [result.what for result in found if not result.kept]
    if grown:
        raise BenchmarkError(f"not kept: {', '.join(grown)}")
    if rounds[-1].flushes < rounds[len(rounds) // 4].flushes + 2:
        raise BenchmarkError("the code cache has not been flushed: this says nothing about flushes")


_PROMPT = f"root@debian:{PLACE}# ".encode()


def _round(console: Console, line: str, cargo: Cargo) -> Round:
    process = Path(f"/proc/{console.process.pid}")
    before = cpu_seconds((process / "stat").read_text())
    seconds, output = console.time(line, prompt=_PROMPT)
    cpu = cpu_seconds((process / "stat").read_text()) - before
    host, expected = native(line, cargo.folder, cpu_time=True)
    if output.replace(b"\r", b"") != expected:
        raise BenchmarkError(f"a round's output is {output!r}; the host's is {expected!r}")
    found = counters("bench2")
    smaps = (process / "smaps").read_text()
    return Round(
        seconds,
        cpu,
        host,
        megabytes=own_memory(smaps, MEMORY_MB),
        code_mb=found["vm.code-bytes"] / (1 << 20),
        data_mb=found["vm.data-bytes"] / (1 << 20),
        blocks=found["vm.blocks-live"],
        flushes=found["vm.code-flushes"],
        threads=len(list((process / "task").iterdir())),
        descriptors=len(list((process / "fd").iterdir())),
        mappings=len((process / "maps").read_text().splitlines()),
    )


def verdicts(rounds: Sequence[Round]) -> list[Result]:
    """What has grown behind the first quarter of ``rounds``, as ratios with their limits."""
    quarter = len(rounds) // 4
    second, last = rounds[quarter : 2 * quarter], rounds[-quarter:]

    def pace(part: Sequence[Round]) -> float:
        return statistics.median(one.cpu / one.native for one in part)

    def grown(of: Callable[[Round], float]) -> list[float]:
        return [of(rounds[-1]) / of(second[0])]

    def medians(of: Callable[[Round], float]) -> str:
        return " and ".join(quantity(statistics.median(map(of, part)), "s") for part in (second, last))

    cpu, host = medians(lambda one: one.cpu), medians(lambda one: one.native)
    memory = f"{second[0].megabytes:.1f} MB and {rounds[-1].megabytes:.1f} MB"
    fastest = " and ".join(quantity(min(one.cpu for one in part), "s") for part in (second, last))
    note = f"rounds of {cpu}, the fastest of {fastest}, the host's own of {host}"
    return [
        Result("time, last quarter over second", "×", [pace(last) / pace(second)], limit=TIME_LIMIT, note=note),
        Result("memory, end over first quarter", "×", grown(lambda r: r.megabytes), limit=MEMORY_LIMIT, note=memory),
        Result("threads", "×", grown(lambda r: r.threads), limit=COUNT_LIMIT, note=f"{rounds[-1].threads} in the end"),
        Result("files", "×", grown(lambda r: r.descriptors), limit=COUNT_LIMIT, note=f"{rounds[-1].descriptors}"),
        Result("mappings", "×", grown(lambda r: r.mappings), limit=COUNT_LIMIT, note=f"{rounds[-1].mappings}"),
    ]
