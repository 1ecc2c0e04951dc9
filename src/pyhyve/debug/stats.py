"""The counters of a machine: one flat mapping of stable names to numbers, and what each of them means.

A name is a path: ``vcpu0.inout``, ``device.com1.reads``, ``irq.4.raised``, ``vm.uptime-ns``. ``collect`` gathers them:
exits are counted by the vCPU loop, accesses by the buses, bytes by the character backends, interrupts by their lines,
and the rest comes from the backend under its own names, with dashes (KVM's are those of the kernel's KVM API
documentation §4.131). ``describe`` says what a name means, ``rates`` what happened between two collections.

Every value grows, but for those whose group is ``state``. Times are in nanoseconds. Where a vCPU's time went:

    halted-ns   its thread was off the host's CPU: a halted guest, a paused machine, another thread in Python
    guest-ns    in the guest; on the engine with what the engine does for it, on KVM as the host's kernel accounts it
    vmm-ns      the rest: exits handled in Python, and on KVM the kernel's own part

The engine tells the time in the guest when the guest is left, so a long stay counts as ``vmm-ns`` until its end.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pyhyve.backends.char import CharBackend
from pyhyve.bus.handler import Traffic
from pyhyve.bus.irq import IrqRouter, MsiPort
from pyhyve.vcpu import HostTime, Vcpu
from pyhyve.vmm.api import VirtualMachine

Stats = dict[str, float]

EXITS: Mapping[str, str] = {
    "inout": "IN and OUT",
    "inst-emul": "accesses to memory-mapped I/O",
    "rdmsr": "RDMSR of a register that the machine answers",
    "wrmsr": "WRMSR to such a register",
    "hlt": "HLT (with -H)",
    "pause": "PAUSE (with -P)",
    "intack": "interrupt vectors taken from the PIC model",
    "eoi": "ends of level-triggered interrupts, for the I/O APIC model",
    "mtrap": "single steps",
    "debug": "breakpoints and watchpoints",
    "bogus": "returns without a reason of the guest's: somebody kicked the vCPU",
    "spinup-ap": "start-up messages to other vCPUs",
    "spindown-cpu": "this vCPU left the active set",
    "suspended": "the machine stopped by itself",
    "vmx": "the backend could not enter the guest",
}
"""Kinds of exits that reach the vCPU loop, as counters of a vCPU; together they are all of them."""

MORE: Mapping[str, str] = {
    "bogus-switch": "bogus exits that gave way to another vCPU",
    "cpu-switch-rotate": "times that this vCPU gave way to the next one",
    "cpu-switch-direct": "times that it gave way to a certain one",
    "io-reset": "resets by a port that this vCPU wrote",
}
"""The other counters of bhyve's vCPU loop."""

TIMES: Mapping[str, str] = {
    "guest-ns": "time in the guest",
    "vmm-ns": "time outside the guest, at work",
    "halted-ns": "time off the host's CPU",
}

BACKEND: Mapping[str, str] = {
    # both
    "exits": "times that the guest was left, those of the backend itself included",
    "interrupts": "interrupts delivered",
    "tlb-flushes": "flushes of the TLB",
    # the engine
    "exceptions": "exceptions delivered",
    "entries": "entries into translated code",
    "lookups": "searches for the block to go on with",
    "chained": "blocks linked to the one before them",
    "helpers": "calls of helpers, for what is not translated",
    "tlb-misses": "memory accesses that the software TLB did not answer",
    "blocks": "blocks translated",
    "block-bytes": "guest bytes in them",
    "instructions-translated": "guest instructions in them",
    "invalidated": "blocks dropped because their code was written",
    "code-flushes": "times that all translated code was dropped",
    "run-ns": "time inside the engine, halted or not",
    "translate-ns": "time it took to translate",
    # KVM
    "halt-exits": "HLT, handled by the kernel",
    "halt-wait-ns": "time that the kernel let the vCPU sleep",
    "io-exits": "IN and OUT, seen by the kernel",
    "mmio-exits": "memory-mapped I/O, seen by the kernel",
    "irq-exits": "interrupts of the host that arrived in the guest",
    "signal-exits": "signals of the host that ended a run",
    "insn-emulation": "instructions emulated by the kernel",
    "nmi-injections": "NMIs delivered",
    "pf-taken": "page faults that the kernel handled",
}
"""Counters of a vCPU that come from the backend; KVM has more."""

MACHINE: Mapping[str, str] = {
    "uptime-ns": "time since the vCPUs were started",
    "code-bytes": "host code made of the guest's",
    "data-bytes": "what the engine keeps about it",
    "blocks-live": "translated blocks there are",
    "code-flushes": "times that all translated code was dropped",
    "tsc-hz": "frequency of the host's time stamp counter",
    "msi-lost": "messages sent where no local APIC listens",
}
_STATE = frozenset({"code-bytes", "data-bytes", "blocks-live", "tsc-hz"})

DEVICE: Mapping[str, str] = {
    "reads": "accesses that read",
    "writes": "accesses that wrote",
    "bytes-read": "bytes read",
    "bytes-written": "bytes written",
}
CHAR: Mapping[str, str] = {"bytes-in": "bytes from the host", "bytes-out": "bytes from the guest"}

_RENAMED = {
    "enters": "entries",
    "slow_accesses": "tlb-misses",
    "irq_injections": "interrupts",
    "tlb_flush": "tlb-flushes",
}
_VCPU = re.compile(r"vcpu(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a counter is: ``group`` is ``exits``, ``time``, ``vcpu``, ``vm``, ``state``, ``device``, ``char`` or
    ``irq``; ``owner`` is the vCPU, device or line that it belongs to, empty for the machine."""

    group: str
    owner: str
    help: str


def describe(name: str) -> Meaning:
    """What ``name`` means. A name that is not known here is the backend's own."""
    own = "counted by the backend"
    found = _VCPU.fullmatch(name)
    if found:
        owner, what = f"vcpu {found[1]}", found[2]
        if what in EXITS:
            return Meaning("exits", owner, EXITS[what])
        if what in TIMES:
            return Meaning("time", owner, TIMES[what])
        return Meaning("vcpu", owner, MORE.get(what) or BACKEND.get(what, own))
    kind, _, rest = name.partition(".")
    owner, _, what = rest.rpartition(".")
    if kind == "device" and what in DEVICE:
        return Meaning("device", owner, DEVICE[what])
    if kind == "char" and what in CHAR:
        return Meaning("char", owner, CHAR[what])
    if kind == "irq" and what == "raised":
        return Meaning("irq", owner, "times that the line was raised")
    if name == "msi.sent":
        return Meaning("irq", "msi", "message-signalled interrupts of devices")
    return Meaning("state" if rest in _STATE else "vm", "", MACHINE.get(rest, own))


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
    machine = vm.stats()
    hz = machine.get("tsc_hz", 0)
    stats: Stats = {"vm.uptime-ns": uptime_ns}
    stats.update((f"vm.{name}", value) for name, value in _named(machine, hz).items())
    for vcpu in vcpus:
        own = {**vcpu.counters.named(), **_named(vcpu.cpu.stats(), hz)}
        own.update(_times(vcpu.host, own.get("run-ns")))
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


def _times(host: HostTime, run_ns: float | None) -> Stats:
    """Where the vCPU's time went, from its thread's accounting. ``run_ns`` is the time inside ``run``, if known."""
    thread = host.thread
    cpu_ns = host.past_cpu_ns + thread_cpu_ns(thread)
    all_ns = host.past_ns + (time.monotonic_ns() - host.since_ns if thread else 0)
    cpu_ns = min(cpu_ns, all_ns)
    if run_ns is None:
        guest_ns = min(thread_guest_ns(thread), cpu_ns)
    else:
        # the thread is inside ``run``, where it may sleep, or at work outside
        guest_ns = cpu_ns - min(max(all_ns - int(run_ns), 0), cpu_ns)
    return {"guest-ns": guest_ns, "vmm-ns": cpu_ns - guest_ns, "halted-ns": all_ns - cpu_ns}


def thread_cpu_ns(thread: int) -> int:
    """Host CPU time of a thread of this process; 0 if there is none of that number."""
    return _field(thread, "schedstat", 0)


def thread_guest_ns(thread: int) -> int:
    """The part of it that KVM spent in the guest, in ticks of the host's clock (proc(5), field 43 of stat)."""
    return _field(thread, "stat", 42 - 2) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def _field(thread: int, file: str, index: int) -> int:
    if not thread:
        return 0
    try:
        with open(f"/proc/self/task/{thread}/{file}", "rb") as source:
            text = source.read()
        # behind the name, which may hold anything; schedstat has none
        return int(text.rpartition(b")")[2].split()[index])
    except (OSError, IndexError, ValueError):
        return 0


def _slug(name: str) -> str:
    """A device's name as one part of a path."""
    return re.sub(r"[^A-Za-z0-9_:-]+", "-", name).strip("-") or "unnamed"


def rates(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What happened a second between two collections, by the machine's own clock; of times, the share."""
    elapsed = (after.get("vm.uptime-ns", 0) - before.get("vm.uptime-ns", 0)) / 1e9
    if elapsed <= 0:
        return {}
    found = {}
    for name, value in after.items():
        if describe(name).group == "state" or name == "vm.uptime-ns":
            continue
        per_second = (value - before.get(name, 0)) / elapsed
        found[name] = per_second / 1e9 if name.endswith("-ns") else per_second
    return found


def owners(names: Collection[str], kind: str) -> list[str]:
    """Whose counters there are of ``kind`` (``vcpu``, ``device``, ``char``, ``irq``): ``0``, ``com1`` …, in order."""
    pattern = re.compile(r"vcpu(\d+)\..+" if kind == "vcpu" else rf"{kind}\.(.+)\.[^.]+")
    found = {match[1] for name in names if (match := pattern.fullmatch(name))}
    return sorted(found, key=lambda owner: (int(owner) if owner.isdigit() else 1 << 32, owner))
