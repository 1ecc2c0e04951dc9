"""The command: which benchmarks, how often, and their lines as they come."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import (
    boot,
    control,
    costs,
    debian_disk,
    debugger,
    disk,
    exits,
    firmware,
    growth,
    host,
    idle,
    network,
    smp,
    startup,
    table,
    work,
)
from benchmarks.machines import Context
from benchmarks.measure import BenchmarkError, Result

BENCHMARKS: dict[str, tuple[Callable[[Context], Iterator[Result | str]], bool]] = {
    "help": (startup.run_help, False),
    "start": (startup.run_start, False),
    "pio": (exits.run_pio, False),
    "mmio": (exits.run_mmio, False),
    "control": (control.run_control, False),
    "gdb": (debugger.run_gdb, False),
    "boot": (boot.run_boot, True),
    "memory": (boot.run_memory, True),
    "work": (work.run_work, True),
    "idle": (idle.run_idle, True),
    "smp": (smp.run_smp, True),
    "debian": (debian_disk.run_debian, False),
    "table": (table.run_table, True),
    "costs": (costs.run_costs, True),
    "firmware": (firmware.run_firmware, False),
    "disk": (disk.run_disk, True),
    "user": (network.run_user, True),
    "tap": (network.run_tap, True),
    "growth": (growth.run_growth, True),
}
"""By name: what runs it, and whether it needs the Linux guest."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for. 0, or 1 if a benchmark gave no figure, or 130 after Ctrl-C; a limit that is not kept only
    says so."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="pyhyve side by side with QEMU's TCG.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {' '.join(BENCHMARKS)}")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="how often each runs (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="once each, and less of it: to see that it works")
    parser.add_argument("--only", action="append", default=[], metavar="WHAT", help="of table: a workload or a group")
    parser.add_argument("--cpu", action="store_true", help="table: CPU time in place of wall time, for a busy host")
    parser.add_argument("--profile", action="store_true", help="table: where the time of each workload goes")
    parser.add_argument("--minutes", type=float, default=2, metavar="N", help="growth: how long (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark '{name}'; there are {', '.join(BENCHMARKS)}")
    if arguments.runs < 1:
        parser.error("--runs is at least 1")
    names = arguments.names or list(BENCHMARKS)
    with tempfile.TemporaryDirectory(prefix="pyhyve-bench-") as folder:
        os.environ["PYHYVE_RUNTIME_DIR"] = folder  # our machines have names: let them be apart from the user's
        runs = 1 if arguments.quick else arguments.runs
        context = Context(
            *(runs, arguments.quick, host.find_qemu(), Path(folder)),
            *(frozenset(arguments.only), arguments.cpu, arguments.profile, arguments.minutes),
        )
        try:
            return run(context, names)
        except KeyboardInterrupt:
            print("benchmarks: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def run(context: Context, names: Sequence[str]) -> int:
    """The report."""
    status = 0
    guest = None
    if any(BENCHMARKS[name][1] for name in names):
        try:
            guest = context.image.version
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            names = [name for name in names if not BENCHMARKS[name][1]]
            status = 1
    print("\n".join(host.describe(context.qemu, guest)))
    print(f"runs    {context.runs}; a figure is the median, in parentheses the smallest and the largest\n", flush=True)
    for name in names:
        try:
            for result in BENCHMARKS[name][0](context):
                print(result if isinstance(result, str) else result.line(), flush=True)
        except BenchmarkError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
