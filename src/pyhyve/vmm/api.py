"""The contract between the machine and whatever runs its CPUs: KVM or the engine.

It plays the part of ``vmm.ko`` and ``libvmmapi`` in bhyve. The machine above sees only this module, ``exits`` and
``registers``; nothing outside ``vmm`` knows which backend runs.

Threads: ``VirtualCpu.run`` is called by the vCPU's own thread and drops the GIL while the guest runs. ``kick``,
``inject_nmi`` and every method of ``VirtualMachine`` may be called from any thread. Everything else of a ``VirtualCpu``
is called while that vCPU is not inside ``run``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

from pyhyve.errors import BackendError
from pyhyve.vmm.exits import Exit
from pyhyve.vmm.registers import Reg, Segment, SegmentName, Table
from pyhyve.vmm.startup import start_at_sipi

if TYPE_CHECKING:
    from pyhyve.memory import GuestMemory

MAX_CPUS = 16


class Capability(Enum):
    """What can be asked of a vCPU (``enum vm_cap_type`` of bhyve)."""

    HLT_EXIT = "exit on HLT"
    PAUSE_EXIT = "exit on PAUSE"
    MTRAP_EXIT = "single-step"
    UNRESTRICTED_GUEST = "unrestricted guest"
    ENABLE_INVPCID = "INVPCID"


class Chip(StrEnum):
    """Platform chips that a backend may bring itself."""

    LAPIC = "lapic"
    IOAPIC = "ioapic"
    PIC = "pic"
    PIT = "pit"


class ApicMode(StrEnum):
    XAPIC = "xapic"
    X2APIC = "x2apic"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether this host can run a backend. ``reason`` is one sentence, for people.

    ``accelerated`` is true where the guest's kernel-mode code runs at the speed the backend is made for:
    KVM with vmx or svm; always for the engine.
    """

    usable: bool
    accelerated: bool
    reason: str
    max_cpus: int = MAX_CPUS


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One CPUID result. ``subleaf`` is None where the leaf has no subleaves."""

    leaf: int
    subleaf: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class ClockPort:
    """An I/O port that reads as a counter, so that a backend may answer it without an exit.

    The counter was ``base`` at ``start_ns`` (CLOCK_MONOTONIC) and counts up (``step`` 1) or down (-1) at ``hz``,
    modulo 2 to the power of ``bits``. With ``halves``, byte reads give its low and high byte in turn, the high one
    first if ``high_next``; else only reads of the whole counter are answered.
    """

    hz: int
    start_ns: int
    bits: int
    base: int = 0
    step: int = 1
    halves: bool = False
    high_next: bool = False


class PointKind(Enum):
    """What a debugger's point waits for."""

    EXECUTE = "execute"
    WRITE = "write"
    ACCESS = "access"


@dataclass(frozen=True, slots=True)
class Point:
    """A breakpoint (EXECUTE, length 1), or a watchpoint of ``length`` bytes, at guest-virtual address ``gva``."""

    kind: PointKind
    gva: int
    length: int = 1


class Hypervisor(ABC):
    """A way to run virtual CPUs."""

    name: str

    @abstractmethod
    def probe(self) -> Probe:
        """Say whether this host can run this backend, without side effects."""

    @abstractmethod
    def create(self, name: str, memory: GuestMemory, cpus: int) -> VirtualMachine:
        """Make a virtual machine. Raises ``BackendError`` if the host refuses."""


class VirtualMachine(ABC):
    """Guest-physical memory, vCPUs and interrupt entry of one machine."""

    provides: frozenset[Chip]
    """The platform chips that the backend brings; the machine adds models for the others."""

    @abstractmethod
    def capability(self, cap: Capability) -> bool:
        """Whether the vCPUs of this machine can do ``cap``."""

    @abstractmethod
    def map_memory(self, gpa: int, size: int, offset: int, *, readonly: bool = False) -> None:
        """Map ``size`` bytes of the memory's memfd from ``offset`` at ``gpa`` (all multiples of 4096).

        ``create`` has already mapped every region of its ``GuestMemory``; this is for ROMs and later changes.
        """

    @abstractmethod
    def unmap_memory(self, gpa: int) -> None:
        """Take away the mapping that starts at ``gpa``."""

    @abstractmethod
    def memory_written(self, gpa: int, length: int) -> None:
        """Tell that the VMM wrote guest memory: code translated from there is stale. Cheap where it means nothing."""

    def device_wrote(self) -> None:
        """Tell that hardware may have written guest memory anywhere, by DMA, since the last call.

        Code translated from there is stale. Cheap where it means nothing.
        """
        return None

    def map_host(self, gpa: int, size: int, address: int) -> bool:
        """Let the guest reach ``size`` bytes of this process's memory at ``gpa`` (a device's registers) without exits.

        All are multiples of 4096. False where the backend cannot: accesses exit as before.
        """
        return False

    def unmap_host(self, gpa: int) -> None:
        """Undo a ``map_host`` that returned True."""
        raise BackendError(f"no mapping starts at {gpa:#x}")

    @abstractmethod
    def create_vcpu(self, index: int) -> VirtualCpu:
        """Make vCPU ``index`` (its local APIC id too) in the architectural reset state."""

    @abstractmethod
    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """Give all vCPUs this CPUID table, except the APIC ids, which the backend fills in for each."""

    @abstractmethod
    def supported_cpuid(self) -> list[CpuidEntry]:
        """What the backend can announce to a guest on this host, before the machine shapes it."""

    @abstractmethod
    def set_irq(self, gsi: int, level: bool) -> None:
        """Drive global interrupt line ``gsi`` (0-23) of the backend's PIC and I/O APIC (backends with ``ioapic``)."""

    def make_level(self, irq: int) -> None:
        """Make ISA interrupt ``irq`` level triggered, as firmware leaves it (backends with ``pic``).

        A guest changes that in the ELCR, ports 0x4D0 and 0x4D1, which come with the PIC.
        """
        raise BackendError("this backend brings no PIC")

    def watch_eoi(self, gsi: int, fd: int) -> None:
        """Signal eventfd ``fd`` when the guest has ended an interrupt of line ``gsi`` (backends with ``ioapic``)."""
        raise BackendError("this backend has no interrupt lines")

    @abstractmethod
    def set_extint(self, level: bool) -> None:
        """Drive the INTR line of the machine's own PIC into LINT0 of vCPU 0 (backends without ``pic``)."""

    @abstractmethod
    def send_msi(self, address: int, data: int) -> None:
        """Deliver a message-signalled interrupt (SDM Vol. 3A §11.11). I/O APIC models send theirs this way too.

        Bit 15 of ``data`` is the trigger mode: for a level-triggered vector an ``IoapicEoi`` exit follows the EOI.
        """

    def bind_msi(self, fd: int, address: int, data: int) -> bool:
        """Have signals on eventfd ``fd`` send this message without a thread of the machine, until ``unbind_msi``.

        Called again for another message. False where the backend cannot: the machine reads the eventfd and sends it.
        """
        return False

    def unbind_msi(self, fd: int) -> None:
        """Undo a ``bind_msi`` that returned True."""
        raise BackendError("no message is bound")

    @abstractmethod
    def add_doorbell(self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None) -> None:
        """A guest write of ``size`` bytes at ``address`` signals eventfd ``fd`` and does not exit.

        With ``match``, only a write of that value does.
        """

    @abstractmethod
    def remove_doorbell(self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None) -> None:
        """Undo ``add_doorbell`` called with the same arguments."""

    def clock_port(self, port: int, clock: ClockPort | None) -> int:
        """Answer reads of ``port`` as ``clock`` says (None: let them exit again), where the backend can.

        Returns how many reads the backend has answered there since the last call for that port.
        """
        return 0

    @abstractmethod
    def close(self) -> None:
        """Give everything back. vCPU threads must have ended."""

    def stats(self) -> Mapping[str, float]:
        """The backend's own counters, name to value."""
        return {}


class VirtualCpu(ABC):
    """One virtual CPU."""

    index: int

    @abstractmethod
    def run(self) -> Exit:
        """Run the guest until something needs the machine. Drops the GIL. Sleeps while the vCPU is halted."""

    def start(self, vector: int) -> None:
        """Take the INIT and the start-up IPI of a ``SpinupAp`` exit: ``run`` begins in real mode at ``vector << 12``.

        The vCPU is not inside ``run`` and not to be run before.
        """
        start_at_sipi(self, vector)

    @abstractmethod
    def answer(self, value: int) -> None:
        """The value that the last exit wanted (InOut in, RdMsr, InstEmul read, IntAck)."""

    @abstractmethod
    def kick(self) -> None:
        """Make ``run`` return soon (``Bogus``, if it has nothing else to say). Sticky: a kick before ``run`` counts."""

    @abstractmethod
    def set_capability(self, cap: Capability, on: bool) -> None:
        """Switch a capability. Raises ``BackendError`` if ``VirtualMachine.capability`` denies it."""

    def set_points(self, points: Iterable[Point]) -> None:
        """Replace the debugger's breakpoints and watchpoints on this vCPU. The guest sees nothing of them.

        A ``Debug`` exit comes before the instruction at an EXECUTE point, and behind an instruction that wrote (WRITE)
        or touched (ACCESS) a watched byte. The instruction at RIP is passed over once when the last exit was ``Debug``
        or ``Mtrap`` or RIP was set since, so that a stopped vCPU can go on. Raises ``BackendError`` for more points
        than the backend can hold.
        """
        if list(points):
            raise BackendError("this backend has no breakpoints")

    @abstractmethod
    def set_apic_mode(self, mode: ApicMode) -> None:
        """Put the local APIC in xAPIC or x2APIC mode, enabled, as firmware would have left it."""

    @abstractmethod
    def get_registers(self, names: Iterable[Reg]) -> dict[Reg, int]:
        """Read registers."""

    @abstractmethod
    def set_registers(self, values: Mapping[Reg, int]) -> None:
        """Write registers; those not named keep their values."""

    @abstractmethod
    def get_segment(self, name: SegmentName) -> Segment: ...

    @abstractmethod
    def set_segment(self, name: SegmentName, value: Segment) -> None: ...

    @abstractmethod
    def get_table(self, name: str) -> Table:
        """``name`` is ``"gdtr"`` or ``"idtr"``."""

    @abstractmethod
    def set_table(self, name: str, value: Table) -> None: ...

    @abstractmethod
    def get_msr(self, index: int) -> int:
        """Read a model-specific register. Raises ``KeyError`` where the backend has none of that number."""

    @abstractmethod
    def set_msr(self, index: int, value: int) -> None: ...

    @abstractmethod
    def get_xsave(self) -> bytes:
        """x87, SSE and AVX state in the standard (non-compacted) XSAVE format (SDM Vol. 1 §13.4)."""

    @abstractmethod
    def set_xsave(self, data: bytes) -> None: ...

    @abstractmethod
    def get_lapic(self) -> bytes:
        """The local APIC's register page, 1024 bytes in KVM_GET_LAPIC's layout (one register every 16 bytes)."""

    @abstractmethod
    def set_lapic(self, data: bytes) -> None: ...

    @abstractmethod
    def translate(self, gva: int) -> int | None:
        """Guest-virtual to guest-physical by the vCPU's page tables; None where it is not mapped."""

    @abstractmethod
    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        """Raise an exception before the next instruction. After RdMsr and WrMsr it replaces their completion."""

    @abstractmethod
    def inject_nmi(self) -> None:
        """Raise a non-maskable interrupt. Callable from any thread."""

    def stats(self) -> Mapping[str, float]:
        """The backend's own counters for this vCPU, name to value."""
        return {}
