"""``idle``: what a machine costs its host that has nothing to do.

Both guests wait at their prompts; the CPU time of each process, user and system, is taken over the same seconds. What
the kernel has to do after a boot is over by then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.machines import Context, ours, qemu_linux
from benchmarks.measure import Result

SECONDS, QUICK_SECONDS = 10.0, 3.0
SETTLE = 3.0


def cpu_seconds(stat: str) -> float:
    """User and system time in the text of /proc/PID/stat (proc(5), fields 14 and 15)."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[14 - 3]) + int(fields[15 - 3])) / os.sysconf("SC_CLK_TCK")


def run_idle(context: Context) -> Iterator[Result]:
    """The share of a host CPU, with one vCPU and with two."""
    for cpus in (1, 2):
        yield _idle(context, cpus)


def _idle(context: Context, cpus: int) -> Result:
    image, qemu = context.image, context.qemu
    with ExitStack() as stack:
        consoles = [stack.enter_context(Console(ours(image.kernel, image.initrd, cpus=cpus)))]
        if qemu:
            consoles.append(stack.enter_context(Console(qemu_linux(qemu, image, cpus=cpus))))
        for console in consoles:
            console.expect(PROMPT)
        time.sleep(SETTLE)
        shares: list[list[float]] = [[] for _ in consoles]
        for _ in range(context.runs):
            start, before = time.monotonic(), [used(console) for console in consoles]
            time.sleep(QUICK_SECONDS if context.quick else SECONDS)
            elapsed, after = time.monotonic() - start, [used(console) for console in consoles]
            for found, first, last in zip(shares, before, after, strict=True):
                found.append(100 * (last - first) / elapsed)
    what = f"idle Linux, {cpus} vCPU{'s' if cpus > 1 else ''}, share of a core"
    return Result(what, "%", shares[0], shares[1] if qemu else (), limit=2)


def used(console: Console) -> float:
    """Processor time of the console's process so far, in seconds."""
    return cpu_seconds(Path(f"/proc/{console.process.pid}/stat").read_text())
