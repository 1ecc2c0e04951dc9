"""The counters of a machine that runs, by their names in ``pyhyve.debug.stats``."""

from __future__ import annotations

from collections import Counter

from benchmarks.measure import BenchmarkError
from pyhyve.control.client import Connection
from pyhyve.control.folder import VmError


def counters(name: str) -> Counter[str]:
    """All of the machine ``name``; ``vcpu.WHAT`` is the sum of all vCPUs' ``vcpuN.WHAT``. Raises ``BenchmarkError``."""
    try:
        with Connection(name) as machine:
            return add_up(machine.call("stats"))
    except VmError as error:
        raise BenchmarkError(str(error)) from None


def add_up(stats: dict[str, int]) -> Counter[str]:
    """What ``stats`` says, and the sums of all vCPUs."""
    found = Counter(stats)
    for name, value in stats.items():
        owner, _, what = name.partition(".")
        if owner.startswith("vcpu"):
            found[f"vcpu.{what}"] += value
    return found
