"""Gathers the counters of a machine under the names of ``debug.stats``.

Exits are counted by the vCPU loop, accesses by the buses, bytes by the character backends, interrupts by their lines,
and the rest comes from the backend under its own names. Nothing is counted here, so gathering is all that it costs.

Where a vCPU's time went is told by the host's accounting of its thread (schedstat, documented in
Documentation/scheduler/sched-stats of the kernel) and by how long the thread was inside ``run``. A backend adds that up
when the guest is left, so every vCPU is kicked once: on its way back it marks what its counters are outside the guest.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping

from pyhyve.backends.char import CharBackend
from pyhyve.bus.handler import Traffic
from pyhyve.bus.irq import IrqRouter, MsiPort
from pyhyve.vcpu import HostTime, Vcpu, thread_times
from pyhyve.vmm.api import VirtualMachine

Stats = dict[str, float]

MARK_SECONDS = 0.005
"""How long a collection waits for the vCPUs; one that is suspended does not answer."""

_RUN_TIME = "run_tsc"

_RENAMED = {
    "enters": "entries",
    "slow_accesses": "tlb-misses",
    "irq_injections": "interrupts",
    "tlb_flush": "tlb-flushes",
}

def collect(
    vm: VirtualMachine,
    vcpus: Iterable[Vcpu],
    traffic: Iterable[Mapping[str, Traffic]],
    chars: Mapping[str, CharBackend],
    irq: IrqRouter,
    msi: MsiPort,
    uptime_ns: int,
) -> Stats:
    """All counters of a machine. ``traffic`` is that of each bus, by device; ``uptime_ns`` is 0 before the start."""
    vcpus = list(vcpus)
    _mark(vcpus)
    machine = vm.stats()
    hz = machine.get("tsc_hz", 0)
    stats: Stats = {"vm.uptime-ns": uptime_ns}
    stats.update((f"vm.{name}", value) for name, value in _named(machine, hz).items())
    for vcpu in vcpus:
        own = {**vcpu.counters.named(), **_named(vcpu.cpu.stats(), hz)}
        own.update(_times(vcpu.host, own.get("run-ns"), _named(vcpu.host.counters, hz).get("run-ns", 0)))
        stats.update((f"vcpu{vcpu.index}.{name}", value) for name, value in own.items())
    for bus in traffic:
        for name, counts in list(bus.items()):
            _add_traffic(stats, f"device.{_slug(name)}", counts)
    for name, backend in chars.items():
        stats[f"char.{_slug(name)}.bytes-in"] = backend.traffic.bytes_in
        stats[f"char.{_slug(name)}.bytes-out"] = backend.traffic.bytes_out
    for gsi, count in enumerate(irq.raised):
        if irq.lines(gsi) or count:
            stats[f"irq.{gsi}.raised"] = count
    stats["msi.sent"] = msi.sent
    return stats


def _add_traffic(stats: Stats, prefix: str, counts: Traffic) -> None:
    for what, size_what, by_size in (
        ("reads", "bytes-read", counts.reads),
        ("writes", "bytes-written", counts.writes),
    ):
        # a device with ports and memory of one name is one device
        stats[f"{prefix}.{what}"] = stats.get(f"{prefix}.{what}", 0) + sum(by_size)
        total = sum(size * count for size, count in enumerate(by_size))
        stats[f"{prefix}.{size_what}"] = stats.get(f"{prefix}.{size_what}", 0) + total


def _named(counters: Mapping[str, float], tsc_hz: float) -> Stats:
    """A backend's counters under their names here."""
    found: Stats = {}
    for name, value in counters.items():
        if name.endswith("_tsc"):
            name, value = name.removesuffix("_tsc") + "_ns", int(value * 1e9 / tsc_hz) if tsc_hz else 0
        found[_RENAMED.get(name, name).replace("_", "-")] = value
    return found


def _mark(vcpus: Iterable[Vcpu]) -> None:
    """Have every vCPU mark its counters, where these tell the time inside ``run``; not for long if one cannot."""
    asked = [vcpu for vcpu in vcpus if vcpu.host.thread and _RUN_TIME in vcpu.cpu.stats()]
    for vcpu in asked:
        vcpu.host.marked.clear()
        vcpu.host.wanted = True
        vcpu.cpu.kick()
    deadline = time.monotonic() + MARK_SECONDS
    for vcpu in asked:
        vcpu.host.marked.wait(max(deadline - time.monotonic(), 0))


def _times(host: HostTime, run_ns: float | None, marked_ns: float) -> Stats:
    """Where a vCPU's time went. ``run_ns`` is the time inside ``run``, if known; ``marked_ns`` is that of the mark."""
    thread = host.thread
    cpu_ns, wait_ns = thread_times(thread)
    all_ns = host.past_ns + (time.monotonic_ns() - host.since_ns if thread else 0)
    cpu_ns = min(host.past_cpu_ns + cpu_ns, all_ns)
    wait_ns = min(host.past_wait_ns + wait_ns, all_ns - cpu_ns)
    if run_ns is None:
        guest_ns = min(thread_guest_ns(thread), cpu_ns)
    else:
        outside_ns = host.counters_ns - marked_ns if thread else all_ns - run_ns
        guest_ns = cpu_ns - min(max(int(outside_ns), 0), cpu_ns)
    return {
        "guest-ns": guest_ns,
        "vmm-ns": cpu_ns - guest_ns,
        "wait-ns": wait_ns,
        "halted-ns": all_ns - cpu_ns - wait_ns,
    }


def thread_guest_ns(thread: int) -> int:
    """What KVM spent in the guest of a thread's time, in ticks of the host's clock (proc(5), field 43 of stat)."""
    try:
        with open(f"/proc/self/task/{thread}/stat", "rb") as file:
            # the fields behind the name, which may hold anything, begin with the third
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[43 - 3]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return 0


def _slug(name: str) -> str:
    """A device's name as one part of a path."""
    return re.sub(r"[^A-Za-z0-9_:-]+", "-", name).strip("-") or "unnamed"
