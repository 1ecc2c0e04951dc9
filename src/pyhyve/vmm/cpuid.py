"""The CPUID table that a guest sees, made from what a backend can announce.

Sources: Intel SDM Vol. 2A, CPUID; AMD APM Vol. 3, appendix E. A backend's table is cut down to what this machine has
(no thermal or performance monitoring, no nested virtualization, no MONITOR, no trace, no enclaves), the hypervisor's
signature ``bhyve bhyve `` is put in, KVM's clock is announced, which both backends have, and the leaves that describe
the topology are rewritten for the guest's sockets, cores and threads. The APIC ids, which differ from vCPU to vCPU, are
filled in by ``with_apic_id``.

The local APIC id of a vCPU is its index, so sockets and cores are told apart exactly where cores and threads are
powers of two; other numbers work, but the guest sees cores spread over sockets differently.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pyhyve.errors import ConfigError
from pyhyve.vmm.api import CpuidEntry

SIGNATURE = b"bhyve bhyve "
HYPERVISOR_LEAF = 0x40000000
CLOCK_LEAF = 0x40000100
CLOCK_SIGNATURE = b"KVMKVMKVM\0\0\0"
EXTENDED_LEAF = 0x80000000
EXTENDED_MAX = 0x8000001E


@dataclass(frozen=True, slots=True)
class Topology:
    """How many sockets, cores in a socket and threads in a core the guest has."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.sockets, self.cores, self.threads) < 1:
            raise ConfigError(
                f"CPU topology needs at least one of each: {self.sockets} sockets, {self.cores} cores, "
                f"{self.threads} threads"
            )

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores * self.threads

    @property
    def per_socket(self) -> int:
        return self.cores * self.threads

    @property
    def thread_bits(self) -> int:
        """Bits of an APIC id that number the threads of a core."""
        return (self.threads - 1).bit_length()

    @property
    def socket_shift(self) -> int:
        """Bits of an APIC id below those that number the sockets."""
        return (self.per_socket - 1).bit_length()


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


_U32 = 0xFFFFFFFF

# Leaf 1. What goes: ECX DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, SDBG, xTPR, PDCM, DCA and OSXSAVE (which follows
# CR4); EDX DS, ACPI (thermal), TM, PBE.
_LEAF1_ECX_GONE = _bits(2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 18, 27)
_LEAF1_EDX_GONE = _bits(21, 22, 29, 31)
_LEAF1_ECX_X2APIC = _bits(21)
_LEAF1_ECX_XSAVE = _bits(26)
_LEAF1_ECX_HYPERVISOR = _bits(31)
_LEAF1_EDX_HTT = _bits(28)

# Leaf 6: only ARAT, the APIC timer that never stops.
_LEAF6_EAX_KEPT = _bits(2)

# Leaf 7. What goes: EBX SGX, PQM, MPX, PQE, PT; ECX WAITPKG, OSPKE (which follows CR4), TME, bus-lock detection,
# SGX_LC; EDX hybrid, PCONFIG, arch LBR and AMX (whose state a process must ask Linux for).
_LEAF7_EBX_GONE = _bits(2, 12, 14, 15, 25)
_LEAF7_ECX_GONE = _bits(4, 5, 13, 24, 30)
_LEAF7_EDX_GONE = _bits(15, 18, 19, 22, 24, 25)

# Leaf 0xD: XCR0 bits that go: MPX (3, 4) and AMX (17, 18).
_XCR0_GONE = _bits(3, 4, 17, 18)
_XSAVE_LEGACY = 576  # legacy area and header, SDM Vol. 1 §13.4

# Leaf 0x80000001. What goes: ECX SVM, ExtApicSpace, IBS, SKINIT, WDT, LWP, NodeId, the performance counters
# (23, 24, 28), PTSC and MONITORX.
_EXT1_ECX_GONE = _bits(2, 3, 10, 12, 13, 15, 19, 23, 24, 27, 28, 29)
_EXT1_ECX_CMP_LEGACY = _bits(1)
_EXT1_ECX_TOPOLOGY = _bits(22)

_EXT7_EDX_KEPT = _bits(8)  # invariant TSC

_CLOCK_FEATURES = _bits(3, 24)  # CLOCKSOURCE2, CLOCKSOURCE_STABLE

_KEPT = frozenset(
    {0, 1, 2, 4, 6, 7, 0x15, 0x16}
    | {EXTENDED_LEAF + number for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 0x19, 0x1A, 0x1D, 0x1E, 0x21)}
)
_TOPOLOGY_LEAF = 0xB
_TOPOLOGY_LEAF_V2 = 0x1F
_LEVEL_SMT = 1
_LEVEL_CORE = 2


def _leaf1(entry: CpuidEntry, topology: Topology, x2apic: bool) -> CpuidEntry:
    ecx = entry.ecx & ~_LEAF1_ECX_GONE | _LEAF1_ECX_HYPERVISOR
    edx = entry.edx & ~(_LEAF1_EDX_GONE | _LEAF1_EDX_HTT)
    if not x2apic:
        ecx &= ~_LEAF1_ECX_X2APIC
    if topology.per_socket > 1:
        edx |= _LEAF1_EDX_HTT
    # EBX: APIC id (filled in later), ids in a package, CLFLUSH size, brand.
    ebx = entry.ebx & 0xFFFF | min(1 << topology.socket_shift, 0xFF) << 16
    return replace(entry, ebx=ebx, ecx=ecx, edx=edx)


def _leaf4(entry: CpuidEntry, topology: Topology) -> CpuidEntry:
    """Intel's caches: level 1 and 2 belong to a core, the others to the socket."""
    kind, level = entry.eax & 0x1F, entry.eax >> 5 & 7
    if not kind:
        return entry
    sharing = (1 << (topology.thread_bits if level < 3 else topology.socket_shift)) - 1
    cores = (1 << topology.socket_shift - topology.thread_bits) - 1
    return replace(entry, eax=entry.eax & 0x3FFF | min(sharing, 0xFFF) << 14 | min(cores, 0x3F) << 26)


def _leaf7(entry: CpuidEntry) -> CpuidEntry:
    if entry.subleaf:
        return entry
    return replace(
        entry,
        ebx=entry.ebx & ~_LEAF7_EBX_GONE,
        ecx=entry.ecx & ~_LEAF7_ECX_GONE,
        edx=entry.edx & ~_LEAF7_EDX_GONE,
    )


def _xsave(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    """Leaf 0xD: the state components that stay, and the room that they need."""
    components = {entry.subleaf or 0: entry for entry in entries}
    if 0 not in components:
        return []
    base = components[0]
    xcr0 = base.eax & ~_XCR0_GONE
    kept = [entry for number, entry in components.items() if number >= 2 and not 1 << number & _XCR0_GONE]
    user = [entry for entry in kept if 1 << (entry.subleaf or 0) & (xcr0 | base.edx << 32)]
    room = max([_XSAVE_LEGACY, *(entry.ebx + entry.eax for entry in user)])
    shaped = [replace(base, eax=xcr0, ebx=min(base.ebx, room), ecx=room)]
    if 1 in components:
        shaped.append(components[1])
    return shaped + kept


def _ext1(entry: CpuidEntry, topology: Topology, amd: bool) -> CpuidEntry:
    ecx = entry.ecx & ~(_EXT1_ECX_GONE | _EXT1_ECX_CMP_LEGACY)
    if amd and topology.per_socket > 1:
        ecx |= _EXT1_ECX_CMP_LEGACY
    return replace(entry, ecx=ecx)


def _ext8(entry: CpuidEntry, topology: Topology, amd: bool) -> CpuidEntry:
    # AMD's ECX: threads in the socket minus one, and the bits of an APIC id that number them.
    ecx = topology.per_socket - 1 | topology.socket_shift << 12 if amd else 0
    return replace(entry, ecx=ecx, edx=0)


def _ext1d(entry: CpuidEntry, topology: Topology) -> CpuidEntry:
    """AMD's caches, laid out as leaf 4 but without the number of cores."""
    kind, level = entry.eax & 0x1F, entry.eax >> 5 & 7
    if not kind:
        return entry
    sharing = topology.threads if level < 3 else topology.per_socket
    return replace(entry, eax=entry.eax & 0x3FFF | min(sharing - 1, 0xFFF) << 14)


def _topology_levels(topology: Topology, leaf: int) -> list[CpuidEntry]:
    """Leaf 0xB or 0x1F: threads, cores, and an empty level that ends the list (EDX is filled in later)."""
    return [
        CpuidEntry(leaf, 0, topology.thread_bits, topology.threads, _LEVEL_SMT << 8, 0),
        CpuidEntry(leaf, 1, topology.socket_shift, topology.per_socket, _LEVEL_CORE << 8 | 1, 0),
        CpuidEntry(leaf, 2, 0, 0, 2, 0),
    ]


def _signature() -> CpuidEntry:
    ebx, ecx, edx = struct.unpack("<3I", SIGNATURE)
    return CpuidEntry(HYPERVISOR_LEAF, None, HYPERVISOR_LEAF, ebx, ecx, edx)


def _clock() -> list[CpuidEntry]:
    """KVM's leaves (Linux, Documentation/virt/kvm/x86/cpuid.rst) at the second place where guests look.

    Nothing of KVM's is there but the clock, and that the TSC of all vCPUs is the same.
    """
    ebx, ecx, edx = struct.unpack("<3I", CLOCK_SIGNATURE)
    return [
        CpuidEntry(CLOCK_LEAF, None, CLOCK_LEAF + 1, ebx, ecx, edx),
        CpuidEntry(CLOCK_LEAF + 1, None, _CLOCK_FEATURES, 0, 0, 0),
    ]


def vendor(entries: Iterable[CpuidEntry]) -> str:
    """The CPU vendor's name that leaf 0 spells (``GenuineIntel``, ``AuthenticAMD``), empty without that leaf."""
    for entry in entries:
        if entry.leaf == 0:
            return struct.pack("<3I", entry.ebx, entry.edx, entry.ecx).decode("ascii", "replace")
    return ""


def physical_bits(entries: Iterable[CpuidEntry]) -> int:
    """Bits of a physical address (leaf 0x80000008); 36 without that leaf (SDM Vol. 3A §4.1.4)."""
    return next((entry.eax & 0xFF for entry in entries if entry.leaf == EXTENDED_LEAF + 8), 36)


def xsave_components(entries: Iterable[CpuidEntry]) -> dict[int, int]:
    """The state components of leaf 0xD, from 2 on: number to offset in the standard format (SDM Vol. 1 §13.2)."""
    leaf = {entry.subleaf or 0: entry for entry in entries if entry.leaf == 0xD}
    there = leaf[0].eax if 0 in leaf else 0
    return {number: entry.ebx for number, entry in leaf.items() if number >= 2 and there >> number & 1}


def shape(
    supported: Iterable[CpuidEntry], topology: Topology = Topology(), *, x2apic: bool = True
) -> list[CpuidEntry]:
    """The guest's table, from a backend's ``supported_cpuid()``; give the result to ``set_cpuid()``.

    ``x2apic=False`` takes the x2APIC bit away. APIC ids are left zero for the backend.
    """
    source = list(supported)
    amd = vendor(source) in ("AuthenticAMD", "HygonGenuine")
    rules: dict[int, Callable[[CpuidEntry], CpuidEntry]] = {
        1: lambda entry: _leaf1(entry, topology, x2apic),
        4: lambda entry: _leaf4(entry, topology),
        6: lambda entry: replace(entry, eax=entry.eax & _LEAF6_EAX_KEPT, ebx=0, ecx=0, edx=0),
        7: _leaf7,
        EXTENDED_LEAF + 1: lambda entry: _ext1(entry, topology, amd),
        EXTENDED_LEAF + 7: lambda entry: replace(entry, eax=0, ebx=0, ecx=0, edx=entry.edx & _EXT7_EDX_KEPT),
        EXTENDED_LEAF + 8: lambda entry: _ext8(entry, topology, amd),
        EXTENDED_LEAF + 0x1D: lambda entry: _ext1d(entry, topology),
        EXTENDED_LEAF + 0x1E: lambda entry: replace(entry, eax=0, ebx=topology.threads - 1 << 8, ecx=0, edx=0),
    }
    kept = [entry for entry in source if entry.leaf in _KEPT]
    shaped = [rules[entry.leaf](entry) if entry.leaf in rules else entry for entry in kept]
    if any(entry.leaf == 1 and entry.ecx & _LEAF1_ECX_XSAVE for entry in source):
        shaped += _xsave([entry for entry in source if entry.leaf == 0xD])
    shaped += _topology_levels(topology, _TOPOLOGY_LEAF)
    if not amd:
        shaped += _topology_levels(topology, _TOPOLOGY_LEAF_V2)
    shaped += [_signature(), *_clock()]
    return _with_limits(sorted(shaped, key=lambda entry: (entry.leaf, entry.subleaf or 0)))


def _with_limits(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    """Let leaves 0 and 0x80000000 name the highest leaf that is there."""
    basic = max(entry.leaf for entry in entries if entry.leaf < HYPERVISOR_LEAF)
    extended = max((entry.leaf for entry in entries if entry.leaf >= EXTENDED_LEAF), default=EXTENDED_LEAF)
    limits = {0: basic, EXTENDED_LEAF: extended}
    return [replace(entry, eax=limits[entry.leaf]) if entry.leaf in limits else entry for entry in entries]


def with_apic_id(entries: Iterable[CpuidEntry], apic_id: int) -> list[CpuidEntry]:
    """The table for the vCPU of local APIC id ``apic_id``: leaves 1, 0xB, 0x1F and 0x8000001E tell it."""
    table = list(entries)
    shift = next((entry.eax for entry in table if entry.leaf == _TOPOLOGY_LEAF and not entry.subleaf), 0)
    socket = next((entry.eax for entry in table if entry.leaf == _TOPOLOGY_LEAF and entry.subleaf == 1), 8)
    core = (apic_id & (1 << socket) - 1) >> shift
    return [_tell_apic_id(entry, apic_id, core) for entry in table]


def _tell_apic_id(entry: CpuidEntry, apic_id: int, core: int) -> CpuidEntry:
    if entry.leaf == 1:
        return replace(entry, ebx=entry.ebx & 0xFFFFFF | (apic_id & 0xFF) << 24)
    if entry.leaf in (_TOPOLOGY_LEAF, _TOPOLOGY_LEAF_V2):
        return replace(entry, edx=apic_id)
    if entry.leaf == EXTENDED_MAX:
        return replace(entry, eax=apic_id, ebx=entry.ebx & ~0xFF & _U32 | core & 0xFF)
    return entry
