"""``boot`` and ``memory``: Debian's kernel to its shell, where that time goes, and what the VMM takes besides it.

The boots are shared by both. The split comes from one more boot, in a process that tells about itself (``probe``):

    start-up     the process's start to the first run of the vCPU
    translation  inside the engine, making host code of guest code
    execution    inside the engine, running it, with interrupts, page walks and helpers
    exits        outside the engine: exits handled in Python, and getting there and back
    waiting      the vCPU's thread off the CPU: a halted guest, another thread in Python
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.idle import used
from benchmarks.machines import MEMORY_MB, Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, alternate

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)$")


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: seconds to the prompt; the process's CPU time and its memory besides the guest's, in MB, then."""

    seconds: float
    megabytes: float
    cpu: float


def own_memory(smaps: str, guest_mb: int) -> float:
    """Resident memory in MB, in the text of /proc/PID/smaps, without the guest's RAM.

    The guest's RAM is a memfd of ours, or, in QEMU, a private mapping of exactly its size. A page of any other memfd
    counts once, however often it is mapped (the engine's code is mapped twice).
    """
    total = 0
    skip = memfd = False
    for line in smaps.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            name = mapping[2]
            skip, memfd = name.startswith("/memfd:pyhyve-guest"), name.startswith("/memfd:")
            anonymous = mapping[1] == "rw-p" and not name
            continue
        field, _, value = line.partition(":")
        if field == "Size" and anonymous and int(value.split()[0]) == guest_mb << 10:
            skip = True
        if field == ("Pss" if memfd else "Rss") and not skip:
            total += int(value.split()[0])
    return total / 1024


@cache
def boots(context: Context) -> tuple[list[Boot], list[Boot]]:
    """The boots that ``boot`` and ``memory`` look at, ours and QEMU's."""
    image, qemu = context.image, context.qemu

    def boot(argv: list[str]) -> Boot:
        with Console(argv) as console:
            seconds = console.expect(PROMPT) - console.spawned
            cpu = used(console)
            smaps = Path(f"/proc/{console.process.pid}/smaps").read_text()
            return Boot(seconds, own_memory(smaps, MEMORY_MB), cpu)

    mine = ours(image.kernel, image.initrd)
    return alternate(context.runs, lambda: boot(mine), (lambda: boot(qemu_linux(qemu, image))) if qemu else None)


def run_boot(context: Context) -> Iterator[Result]:
    """Start to the shell's prompt, and the phases of it."""
    mine, theirs = boots(context)
    yield Result("start to shell", "s", [b.seconds for b in mine], [b.seconds for b in theirs], ratio_limit=3)
    yield from split_boot(context)


def run_memory(context: Context) -> Iterator[Result]:
    """The VMM's memory beyond the guest's, at the prompt."""
    mine, theirs = boots(context)
    sizes = [b.megabytes for b in mine], [b.megabytes for b in theirs]
    yield Result("the VMM's own memory", "MB", *sizes, limit=150)


def phases(spawned: float, report: Mapping[str, float]) -> dict[str, float]:
    """Seconds a phase, of a process spawned at ``spawned``; ``report`` is what ``probe`` sends."""
    running = report["now"] - report["started"]
    inside = report["vcpu0.run-ns"] / 1e9
    translation = report["vcpu0.translate-ns"] / 1e9
    waiting = min(max(running - report["cpu"], 0), inside)
    return {
        "start-up": report["started"] - spawned,
        "translation": translation,
        "execution": max(inside - translation - waiting, 0),
        "exits": max(running - inside, 0),
        "waiting": waiting,
    }


def split_boot(context: Context) -> Iterator[Result]:
    """One boot in a process that tells where its time went."""
    yield from split(context.image.kernel, context.image.initrd, MEMORY_MB, PROMPT, {})


def split(kernel: Path, initrd: Path, memory_mb: int, until: bytes, more: Mapping[str, str]) -> Iterator[Result]:
    """The phases of one boot up to what the guest says then; ``more`` are variables of the machine."""
    (asked, ask), (answer, told) = os.pipe(), os.pipe()
    argv = [sys.executable, "-m", "benchmarks.probe", "boot", str(kernel), str(initrd), str(memory_mb)]
    argv += [str(asked), str(told), *(f"{name}={value}" for name, value in more.items())]
    try:
        with Console(argv, (asked, told)) as console:
            console.expect(until)
            os.write(ask, b"?")
            report: dict[str, float] = json.loads(os.read(answer, 1 << 16))
            spawned = console.spawned
    finally:
        for fd in (asked, ask, answer, told):
            os.close(fd)
    if "vcpu0.run-ns" not in report:
        raise BenchmarkError("the backend counts no time: the split of a boot needs the engine")
    found = phases(spawned, report)
    total = sum(found.values())
    counts = {name.removeprefix("vcpu0."): f"{value:.0f}" for name, value in report.items()}
    notes = {
        "translation": f"{counts['instructions-translated']} instructions in {counts['blocks']} blocks",
        "exits": f"{counts['inout']} ports, {counts['inst-emul']} mmio",
    }
    for name, seconds in found.items():
        note = f"{100 * seconds / total:.0f} %" + (f", {notes[name]}" if name in notes else "")
        yield Result(f"    of one boot: {name}", "s", [seconds], note=note)
