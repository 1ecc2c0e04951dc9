"""``table``: the suite, a line a workload: our guest, QEMU's and the host itself, one after the other.

Both guests are booted once, with one CPU and again with two; then each workload runs in ours, in QEMU's and natively in
turn. All three have to print the same. Times are wall time as the host sees it, from a line before the command to
a line behind it; with ``--cpu`` the CPU time that the machine's process used in between, which other users of the host
disturb less.
"""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import boot, profile
from benchmarks.console import PROMPT, Console
from benchmarks.idle import cpu_seconds
from benchmarks.machines import Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, quantity
from benchmarks.suite import ALL_LINES, GROUPS, PLACE, WORKLOADS, Cargo, Workload, guest_image, pack
from pyhyve.images import GuestImage


@dataclass(slots=True)
class Line:
    """One workload's times: a run, a number each. ``native`` is empty where there is no such thing."""

    group: str
    name: str
    ours: list[float] = field(default_factory=list)
    qemu: list[float] = field(default_factory=list)
    native: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Our median over QEMU's."""
        return statistics.median(self.ours) / statistics.median(self.qemu) if self.qemu else None

    def text(self) -> str:
        """The line of the report."""
        parts = [f"{self.group:<9} {self.name:<10} {quantity(statistics.median(self.ours), 's'):>9}"]
        if self.native:
            native = statistics.median(self.native)
            times = statistics.median(self.ours) / native
            parts.append(f"  native {quantity(native, 's'):>9} × {times:5.2f}")
        else:
            parts.append(" " * 26)
        if self.ratio is not None:
            limit = GROUPS[self.group].limit
            verdict = "kept" if self.ratio <= limit else "NOT KEPT"
            parts.append(f"  qemu {quantity(statistics.median(self.qemu), 's'):>9}  ratio {self.ratio:5.2f}")
            parts.append(f"  [at most {limit:g}: {verdict}; aim {GROUPS[self.group].aim}]")
        return "".join(parts)


def run_table(context: Context) -> Iterator[Result | str]:
    """Every line, those that do not hold again, and the geometric mean."""
    folder = context.folder / "suite"
    folder.mkdir()
    cargo = pack(folder)
    chosen = [w for w in WORKLOADS if not context.only or context.only & {w.name, w.group}]
    for name, why in cargo.missing.items():
        yield f"{name}: skipped, {why}"
    image = guest_image(context.image, cargo, context.folder / "suite.initrd")
    lines = []
    if not context.only or "start" in context.only:
        lines.append(start_line(context))
        yield lines[-1].text()
    for cpus in (1, 2):
        workloads = [w for w in chosen if w.cpus == cpus and w.name not in cargo.missing]
        if workloads:
            for result in _measure(context, cargo, image, workloads, cpus):
                if isinstance(result, Line):
                    lines.append(result)
                    yield result.text()
                else:
                    yield result
    ratios = [line.ratio for line in lines if line.ratio is not None]
    if ratios:
        mean = _mean(ratios)
        verdict = "kept" if mean <= ALL_LINES else "NOT KEPT"
        yield f"geometric mean of {len(ratios)} ratios: {mean:.3f}  [at most {ALL_LINES}: {verdict}]"
        for group in GROUPS.values():
            own = [line.ratio for line in lines if line.group == group.name and line.ratio is not None]
            if own:
                mean = _mean(own)
                verdict = "kept" if mean <= group.limit else "NOT KEPT"
                yield f"    {group.name:<9} mean of {len(own)}: {mean:.2f}  [at most {group.limit:g}: {verdict}]"
        late = [line for line in lines if line.ratio is not None and line.ratio > GROUPS[line.group].limit]
        for line in sorted(late, key=lambda line: -(line.ratio or 0) / GROUPS[line.group].limit):
            yield f"    not kept: {line.group} {line.name}, {line.ratio:.2f} of {GROUPS[line.group].limit:g}"


def _mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def start_line(context: Context) -> Line:
    """Debian's kernel to its shell; the boots are those of ``boot``."""
    mine, theirs = boot.boots(context)
    if context.cpu_time:
        return Line("start", "shell", [b.cpu for b in mine], [b.cpu for b in theirs])
    return Line("start", "shell", [b.seconds for b in mine], [b.seconds for b in theirs])


def _measure(
    context: Context, cargo: Cargo, image: GuestImage, workloads: Sequence[Workload], cpus: int
) -> Iterator[Line | str]:
    with ExitStack() as stack:

        def guest(argv: list[str]) -> Console:
            console = stack.enter_context(Console(argv))
            console.expect(PROMPT)
            console.time("dmesg -n 1")  # the kernel's late messages would stand between a command's lines
            console.time(f"cd {PLACE}", prompt=_PROMPT)
            return console

        mine = guest(ours(image.kernel, image.initrd, cpus=cpus))
        peer = guest(qemu_linux(context.qemu, image, cpus=cpus)) if context.qemu else None
        for workload in workloads:
            command = cargo.command(workload, context.quick)
            line = Line(workload.group, workload.name)
            printed: set[bytes] = set()
            sampler = None
            for run in range(context.runs):
                if context.profile and run == 0:
                    sampler = profile.Sampler(mine.process.pid, "bench" if cpus == 1 else f"bench{cpus}")
                    printed.add(_timed(mine, command, context.cpu_time)[1])
                    sampler.stop()
                for console, times in ((mine, line.ours), (peer, line.qemu)):
                    if console:
                        seconds, output = _timed(console, command, context.cpu_time)
                        times.append(seconds)
                        printed.add(output)
                seconds, output = native(command, cargo.folder, context.cpu_time)
                line.native.append(seconds)
                printed.add(output)
            if len(printed) != 1:
                raise BenchmarkError(f"{workload.name}: not the same everywhere: {sorted(printed)}")
            yield line
            if sampler:
                yield from sampler.report()


_PROMPT = f"root@debian:{PLACE}# ".encode()


def _timed(console: Console, command: str, cpu_time: bool) -> tuple[float, bytes]:
    stat = Path(f"/proc/{console.process.pid}/stat")
    before = cpu_seconds(stat.read_text())
    seconds, output = console.time(command, prompt=_PROMPT)
    if cpu_time:
        seconds = cpu_seconds(stat.read_text()) - before
    return seconds, output.replace(b"\r", b"")


def native(command: str, folder: Path, cpu_time: bool) -> tuple[float, bytes]:
    """The same on the host."""
    used = _children()
    start = time.monotonic()
    done = subprocess.run(["sh", "-c", command], cwd=folder, stdout=subprocess.PIPE, check=False)
    seconds = _children() - used if cpu_time else time.monotonic() - start
    if done.returncode:
        raise BenchmarkError(f"{command}: status {done.returncode} on the host")
    return seconds, done.stdout


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
