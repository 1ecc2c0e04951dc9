"""``work``: what a guest's programs take at the shell, a first look.

Both guests are booted once; each command then runs in both in turn, timed on the host between a line before and
a line behind it. What they print has to be the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.console import PROMPT, Console
from benchmarks.machines import Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, alternate

COMMANDS = {
    "sha256sum, 32 MB": "dd if=/dev/zero bs=1M count=32 2>/dev/null | sha256sum",
    "md5sum, 32 MB": "dd if=/dev/zero bs=1M count=32 2>/dev/null | md5sum",
    "gzip, 6 MB": "cat /bin/busybox /bin/busybox /bin/busybox | gzip -c | md5sum",
    "shell, 20000 additions": "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i",
    "300 processes": "for i in $(seq 300); do /bin/true; done",
    "find over all files, 10 times": "for i in $(seq 10); do find / -xdev -type f; done | wc -l",
    "sort, 20000 lines": "seq 20000 | sort -r | md5sum",
    "awk, 100000 divisions": "awk 'BEGIN { for (i = 1; i <= 100000; i++) s += 1 / i; printf \"%.9f\\n\", s }'",
    "copy 64 MB in memory": "dd if=/dev/zero of=/tmp/x bs=64k count=1024 2>/dev/null; rm /tmp/x",
}
QUICK = ("sha256sum, 32 MB", "shell, 20000 additions", "300 processes")


def run_work(context: Context) -> Iterator[Result]:
    """Each command, and the geometric mean of the ratios."""
    image, qemu = context.image, context.qemu
    with ExitStack() as stack:
        mine = stack.enter_context(Console(ours(image.kernel, image.initrd)))
        peer = stack.enter_context(Console(qemu_linux(qemu, image))) if qemu else None
        for console in filter(None, (mine, peer)):
            console.expect(PROMPT)
            console.time("dmesg -n 1")  # the kernel's late messages would stand between a command's lines
        results = []
        for what in QUICK if context.quick else COMMANDS:
            result = _compare(what, context.runs, mine, peer)
            results.append(result)
            yield result
        ratios = [result.ratio for result in results if result.ratio]
        if ratios:
            yield Result("geometric mean of these ratios", "×", [math.exp(sum(map(math.log, ratios)) / len(ratios))])


def _compare(what: str, runs: int, mine: Console, peer: Console | None) -> Result:
    command = COMMANDS[what]
    first, second = alternate(runs, lambda: mine.time(command), (lambda: peer.time(command)) if peer else None)
    printed = {output for _, output in (*first, *second)}
    if len(printed) > 1:
        raise BenchmarkError(f"{what}: the guests do not agree: {sorted(printed)}")
    return Result(f"    {what}", "s", [seconds for seconds, _ in first], [seconds for seconds, _ in second])
