"""``help`` and ``start``: how long it takes until anything happens.

``start`` runs a guest whose first instructions write a character to the serial port, and waits for the character: an
upper bound for the first instruction, by the way of one exit and a pipe. Ours is a multiboot kernel; QEMU's stands in
place of its firmware, so that its first instruction is the machine's first, too.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

from benchmarks.console import Console
from benchmarks.machines import Context, command, ours, qemu_options
from benchmarks.measure import BenchmarkError, Result, alternate

FIRST = """
    mov $0x3F8, %dx
    mov $'!', %al
    out %al, %dx
"""


def run_help(context: Context) -> Iterator[Result]:
    """The time that ``bhyve -h`` takes."""

    def run(argv: list[str]) -> float:
        start = time.monotonic()
        done = subprocess.run(argv, capture_output=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{' '.join(argv)}: status {done.returncode}")
        return time.monotonic() - start

    qemu, mine = context.qemu, [*command("bhyve"), "-h"]
    times = alternate(context.runs, lambda: run(mine), (lambda: run([qemu, "-h"])) if qemu else None)
    yield Result("bhyve -h", "s", *times, limit=0.15)


def run_start(context: Context) -> Iterator[Result]:
    """From the process's start to the guest's first instruction."""

    def run(argv: list[str]) -> float:
        with Console(argv) as console:
            return console.expect(b"!", timeout=30) - console.spawned

    kernel, rom = context.kernel("first", FIRST), context.rom("first.rom", FIRST)
    qemu = [*qemu_options(context.qemu), "-bios", str(rom)] if context.qemu else None
    times = alternate(context.runs, lambda: run(ours(kernel)), (lambda: run(qemu)) if qemu else None)
    yield Result("start to first guest instruction", "s", *times, limit=0.4)
