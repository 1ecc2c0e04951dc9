"""``control``: how long ``bhyvectl`` takes to answer about a machine that runs, from its start to its end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

from benchmarks.console import Console
from benchmarks.machines import Context, command, ours
from benchmarks.measure import BenchmarkError, Result
from benchmarks.startup import FIRST

SPIN = """
1:  jmp 1b
"""


def run_control(context: Context) -> Iterator[Result]:
    """Counters, which the event loop answers, and a register, for which the vCPU has to leave the guest."""
    kernel = context.kernel("spin", FIRST + SPIN)
    with Console(ours(kernel)) as console:
        console.expect(b"!", timeout=30)
        for option in ("--get-stats", "--get-rip"):
            argv = [*command("bhyvectl"), "--vm=bench", option]

            def ask(argv: list[str] = argv) -> float:
                start = time.monotonic()
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise BenchmarkError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
                return time.monotonic() - start

            yield Result(f"bhyvectl {option}, busy guest", "s", [ask() for _ in range(context.runs)], limit=0.2)
