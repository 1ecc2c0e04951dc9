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
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.machines import MEMORY_MB, Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, alternate

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)$")


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: seconds to the prompt, and the process's memory besides the guest's, in MB, at that moment."""

    seconds: float
    megabytes: float


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
def _boots(runs: int, qemu: str | None, context: _Shared) -> tuple[list[Boot], list[Boot]]:
    image = context.context.image

    def boot(argv: list[str]) -> Boot:
        with Console(argv) as console:
            seconds = console.expect(PROMPT) - console.spawned
            smaps = Path(f"/proc/{console.process.pid}/smaps").read_text()
            return Boot(seconds, own_memory(smaps, MEMORY_MB))

    mine = ours(image.kernel, image.initrd)
    return alternate(runs, lambda: boot(mine), (lambda: boot(qemu_linux(qemu, image))) if qemu else None)
