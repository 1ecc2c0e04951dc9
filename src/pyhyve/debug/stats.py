"""The counters of a machine: one flat mapping of stable names to numbers, and what each of them means.

A name is a path: ``vcpu0.inout``, ``device.com1.reads``, ``irq.4.raised``, ``vm.uptime-ns``. ``debug.collect`` gathers
them. ``describe`` says what a name means, ``rates`` what happened between two collections. This module knows nobody, so
that what shows counters of a machine in another process needs none of the machine's code.

Every value grows, but for those whose group is ``state``. Times are in nanoseconds. Where a vCPU's time went:

    guest-ns    in the guest; on the engine with what the engine does for it, on KVM as the host's kernel accounts it
    vmm-ns      at work outside the guest: exits handled in Python, and on KVM the kernel's own part
    wait-ns     ready to run, while the host's CPUs were busy with something else
    halted-ns   asleep: a halted guest, a paused machine, a lock that another thread holds

Asking for them kicks every vCPU of the engine out of the guest once, which counts as ``bogus``.
KVM's counters have the names of the kernel's KVM API documentation (§4.131), with dashes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

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
    "wait-ns": "time ready to run, without a host CPU",
    "halted-ns": "time asleep",
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
    "code-flushes": "times that this vCPU had all translated code dropped",
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
    "invalidated": "blocks dropped because their code was written",
    "code-flushes": "times that all translated code was dropped",
    "tlb-bytes": "what the software TLBs of a vCPU take",
    "tsc-hz": "frequency of the host's time stamp counter",
    "msi-lost": "messages sent where no local APIC listens",
}
_STATE = frozenset({"code-bytes", "data-bytes", "blocks-live", "tlb-bytes", "tsc-hz"})

DEVICE: Mapping[str, str] = {
    "reads": "accesses that read",
    "writes": "accesses that wrote",
    "bytes-read": "bytes read",
    "bytes-written": "bytes written",
}
CHAR: Mapping[str, str] = {"bytes-in": "bytes from the host", "bytes-out": "bytes from the guest"}

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
