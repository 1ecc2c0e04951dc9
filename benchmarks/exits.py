"""``pio`` and ``mmio``: what it takes to leave the guest, ask a device in Python, and go back.

The plain device is one that only keeps a value: what is measured is the way there and back. The real ones show what a
driver meets, next to QEMU's models of the same chips: the scratch register of the UART and the HPET's configuration.
A tiny guest accesses the register in a loop, a write and a read each time round.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache

from benchmarks.console import Console
from benchmarks.machines import Context, ours, qemu_options
from benchmarks.measure import BenchmarkError, Result, alternate
from benchmarks.probe import SCRATCH_GPA, SCRATCH_PORT, STOPWATCH_PORT

UART_SCRATCH = 0x3FF
HPET_CONFIG = 0xFED00010

# rounds of one write and one read
_LOOP_PORT = """
    mov ${port:#x}, %dx
    mov ${rounds}, %ecx
0:  out %al, %dx
    in %dx, %al
    dec %ecx
    jnz 0b
"""
_LOOP_MEMORY = """
    mov ${gpa:#x}, %ebx
    mov ${rounds}, %ecx
    xor %eax, %eax
0:  mov %eax, (%ebx)
    mov (%ebx), %eax
    dec %ecx
    jnz 0b
"""
# Before and after: the stopwatch of the plain device, or a character on the console.
_TIMED = """
    mov ${port:#x}, %dx
    out %al, %dx
    {loop}
    mov ${port:#x}, %dx
    out %al, %dx
"""
_SAID = """
    mov $0x3F8, %dx
    mov $'<', %al
    out %al, %dx
    {loop}
    mov $0x3F8, %dx
    mov $'>', %al
    out %al, %dx
"""


@cache
def _plain(context: Context, name: str, loop: str, exits: int) -> list[float]:
    """Microseconds an exit with the plain device, one value a run."""
    kernel = context.kernel(name, _TIMED.format(port=STOPWATCH_PORT, loop=loop))
    argv = [sys.executable, "-m", "benchmarks.probe", "exits", str(kernel), str(exits)]

    def run() -> float:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the guest of {name} did not end well:\n{done.stderr.strip()}")
        return float(done.stdout) / 1000

    return [run() for _ in range(context.runs)]


@cache
def compare(context: Context, name: str, loop: str, exits: int) -> tuple[list[float], list[float]]:
    """Microseconds for each of ``exits`` things that ``loop`` does, ours and QEMU's."""
    kernel = context.kernel(name, _SAID.format(loop=loop))

    def run(argv: list[str]) -> float:
        with Console(argv) as console:
            start = console.expect(b"<", timeout=30)
            return (console.expect(b">", timeout=120) - start) / exits * 1e6

    qemu = [*qemu_options(context.qemu), "-kernel", str(kernel)] if context.qemu else None
    return alternate(context.runs, lambda: run(ours(kernel)), (lambda: run(qemu)) if qemu else None)


def run_pio(context: Context) -> Iterator[Result]:
    """Port I/O."""
    rounds = 5_000 if context.quick else 50_000
    loop = _LOOP_PORT.format(port=SCRATCH_PORT, rounds=rounds)
    yield Result("port I/O round trip, plain device", "µs", _plain(context, "pio", loop, 2 * rounds), limit=10)
    loop = _LOOP_PORT.format(port=UART_SCRATCH, rounds=rounds)
    yield Result("port I/O round trip, UART scratch register", "µs", *compare(context, "uart", loop, 2 * rounds))


def run_mmio(context: Context) -> Iterator[Result]:
    """Memory-mapped I/O."""
    rounds = 5_000 if context.quick else 50_000
    loop = _LOOP_MEMORY.format(gpa=SCRATCH_GPA, rounds=rounds)
    yield Result("MMIO round trip, plain device", "µs", _plain(context, "mmio", loop, 2 * rounds))
    loop = _LOOP_MEMORY.format(gpa=HPET_CONFIG, rounds=rounds)
    yield Result("MMIO round trip, HPET configuration", "µs", *compare(context, "hpet", loop, 2 * rounds))
