"""Where a workload's time goes, by kind: translated code, the engine's functions by name, Python, the host's kernel.

A thread looks at the machine's process a few hundred times a second: it stops each thread that is running (ptrace(2)),
reads the instruction pointer, and lets it go on. Addresses in the code cache are translated code or, at its start, the
fixed pieces; others are looked up in the symbols of the file that they were mapped from. The engine's counters, of all
vCPUs together, from before and behind stand beside the samples.
"""

from __future__ import annotations

import bisect
import collections
import ctypes
import functools
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.counters import counters

INTERVAL = 0.002
TOP = 12
STUBS = 0x2000
"""The fixed pieces lie in front of the first block."""

_CONT, _GETREGS, _DETACH, _SEIZE, _INTERRUPT = 7, 12, 17, 0x4206, 0x4207
_WALL = 0x40000000
_RIP = 16
_EVENT_STOP = 128
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)$")
_SHOWN = (
    "entries lookups chained blocks helpers tlb-misses tlb-flushes exceptions interrupts exits translate-ns run-ns"
).split()


class Sampler:
    """Samples ``pid``, a machine named ``name``, from now to ``stop``."""

    def __init__(self, pid: int, name: str) -> None:
        self._pid, self._name = pid, name
        self._samples: collections.Counter[str] = collections.Counter()
        self._addresses: list[int] = []
        self._end = threading.Event()
        self._before = counters(name)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End it and name what was seen."""
        self._end.set()
        self._thread.join()
        after = counters(self._name)
        self._changes = {key: value - self._before[key] for key, value in after.items()}
        places = _Places(self._pid)
        self._samples = collections.Counter(map(places.name, self._addresses))

    def report(self) -> Iterator[str]:
        """The lines: counters, then the places most often seen."""
        sums = self._changes
        yield "        " + "  ".join(
            f"{key} {_short(key, value)}" for key in _SHOWN if (value := sums.get(f"vcpu.{key}", 0))
        )
        total = len(self._addresses) or 1
        seen = [f"{name} {100 * count / total:.1f} %" for name, count in self._samples.most_common(TOP)]
        yield f"        {len(self._addresses)} samples: {', '.join(seen)}"

    def _run(self) -> None:
        tasks = [int(task.name) for task in Path(f"/proc/{self._pid}/task").iterdir()]
        tasks = [task for task in tasks if _libc.ptrace(_SEIZE, task, None, None) == 0]
        registers = (ctypes.c_ulonglong * 32)()
        while not self._end.wait(INTERVAL):
            for task in tasks:
                self._forward_signals(task)
                if not _running(self._pid, task) or _libc.ptrace(_INTERRUPT, task, None, None) != 0:
                    continue
                signal = self._wait(task, 0)
                if signal >= 0:
                    _libc.ptrace(_GETREGS, task, None, registers)
                    self._addresses.append(registers[_RIP])
                    _libc.ptrace(_CONT, task, None, signal)
        for task in tasks:
            self._forward_signals(task)
            if _libc.ptrace(_INTERRUPT, task, None, None) == 0:
                signal = self._wait(task, 0)
                _libc.ptrace(_DETACH, task, None, max(signal, 0))

    def _forward_signals(self, task: int) -> None:
        signal = self._wait(task, os.WNOHANG)
        if signal >= 0:
            _libc.ptrace(_CONT, task, None, signal)

    @staticmethod
    def _wait(task: int, options: int) -> int:
        """The signal that a stopped task shall get when it goes on, 0 for none; -1 if it has not stopped."""
        try:
            found, status = os.waitpid(task, options | _WALL)
        except ChildProcessError:
            return -1
        if found == 0 or not os.WIFSTOPPED(status):
            return -1
        return 0 if status >> 16 == _EVENT_STOP else os.WSTOPSIG(status)


def _running(pid: int, task: int) -> bool:
    try:
        return Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False


def _short(key: str, value: int) -> str:
    if key.endswith("-ns"):
        return f"{value / 1e6:.0f} ms"
    return f"{value / 1e6:.1f}M" if value >= 1e7 else f"{value / 1e3:.0f}k" if value >= 1e4 else str(value)


class _Places:
    """Names for addresses of a process."""

    def __init__(self, pid: int) -> None:
        self._maps = []
        bases: dict[str, int] = {}
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = _MAPPING.match(line)
            assert found
            start, end, path = int(found[1], 16), int(found[2], 16), found[5]
            bases.setdefault(path, start)
            if "x" in found[3]:
                self._maps.append((start, end, path, bases[path]))
        self._starts = [start for start, *_ in self._maps]

    def name(self, address: int) -> str:
        """A function, or what else is there."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._maps[at][1]:
            return "?"
        start, _, path, base = self._maps[at]
        if path.startswith("/memfd:pyhyve-code"):
            return f"(stub {(address - start) & ~31:#x})" if address - start < STUBS else "(code)"
        symbols = _symbols(path)
        found = bisect.bisect_right(symbols, (address - base, "\xff")) - 1
        return symbols[found][1] if found >= 0 else os.path.basename(path) or "?"


@functools.cache
def _symbols(path: str) -> list[tuple[int, str]]:
    """Functions of a file by their offset from where it is loaded; none without nm(1) or symbols."""
    try:
        done = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=False)
    except OSError:
        return []
    found = re.findall(r"^([0-9a-f]+) [tTwW] (\S+)$", done.stdout, re.MULTILINE)
    return sorted((int(address, 16), _readable(symbol)) for address, symbol in found)


def _readable(symbol: str) -> str:
    """``tlb.lookup`` for what Cython makes of it."""
    found = re.match(r"__pyx_f_6pyhyve_3vmm_4soft_(\d+)(\w+)", symbol)
    if not found:
        return symbol
    length = int(found[1])
    return f"{found[2][:length]}.{found[2][length + 1 :].partition('.')[0]}"
