"""``smp``: what a second vCPU is worth to a guest's programs.

Two programs that only compute should take no longer together on two vCPUs than one of them takes alone; work cut in
halves should take half the time. The same in QEMU, with a host thread for each vCPU. It takes a host with two CPUs that
are not busy with anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

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

        found = alternate(context.runs, lambda: busy(mine), (lambda: busy(peer)) if qemu else None)
        yield Result("2 vCPUs: two busy programs over one", "×", *found, limit=1.1)
        found = alternate(context.runs, lambda: compression(mine), (lambda: compression(peer)) if qemu else None)
        yield Result("2 vCPUs over 1: gzip in two halves", "×", *found, least=1.7)
