"""``smp``: what a second vCPU is worth to a guest's programs.

Two programs that only compute should take no longer together on two vCPUs than one of them takes alone; work cut in
halves should take half the time. The same in QEMU, with a host thread for each vCPU. It takes a host with two CPUs that
are not busy with anything else; a note says for what part of the time our threads were ready and had to wait for one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.machines import Context, ours, qemu_linux
from benchmarks.measure import Result, alternate

# A subshell, since the shell at the prompt would talk about its jobs.
ONE = "sha256sum /tmp/data >/dev/null"
TWO = "(sha256sum /tmp/data >/dev/null & sha256sum /tmp/data >/dev/null & wait)"
HALVES = "(gzip -c /tmp/half >/dev/null & gzip -c /tmp/half >/dev/null & wait)"
SIZE_MB, QUICK_MB = 32, 8
COPIES, QUICK_COPIES = 3, 1


def run_smp(context: Context) -> Iterator[Result]:
    """Two busy programs over one, on two vCPUs; and two vCPUs over one, for a compression in two halves."""
    image, qemu = context.image, context.qemu
    megabytes, copies = (QUICK_MB, QUICK_COPIES) if context.quick else (SIZE_MB, COPIES)
    with ExitStack() as stack:

        def guest(argv: list[str]) -> Console:
            console = stack.enter_context(Console(argv))
            console.expect(PROMPT)
            console.time("dmesg -n 1")  # the kernel's late messages would stand between a command's lines
            console.time(f"dd if=/dev/zero of=/tmp/data bs=1M count={megabytes} 2>/dev/null")
            console.time(f"cat {'/bin/busybox ' * copies}>/tmp/half")
            return console

        mine = [guest(ours(image.kernel, image.initrd, cpus=cpus)) for cpus in (2, 1)]
        peer = [guest(qemu_linux(qemu, image, cpus=cpus)) for cpus in (2, 1)] if qemu else []

        def busy(guests: list[Console]) -> float:
            return guests[0].time(TWO)[0] / guests[0].time(ONE)[0]

        def compression(guests: list[Console]) -> float:
            return guests[1].time(HALVES)[0] / guests[0].time(HALVES)[0]

        def compare(measure: Callable[[list[Console]], float]) -> tuple[tuple[list[float], list[float]], str]:
            waits = []

            def noted() -> float:
                start, before = time.monotonic(), waited(mine)
                found = measure(mine)
                waits.append((waited(mine) - before) / (time.monotonic() - start))
                return found

            found = alternate(context.runs, noted, (lambda: measure(peer)) if qemu else None)
            return found, f"waited for a host CPU for {100 * statistics.median(waits):.0f} % of the time"

        found, note = compare(busy)
        yield Result("2 vCPUs: two busy programs over one", "×", *found, limit=1.1, note=note)
        found, note = compare(compression)
        yield Result("2 vCPUs over 1: gzip in two halves", "×", *found, least=1.7, note=note)


def waited(consoles: list[Console]) -> float:
    """Seconds that the threads of these processes were ready to run, but had no CPU (the second field of schedstat)."""
    tasks = (task for console in consoles for task in Path(f"/proc/{console.process.pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
