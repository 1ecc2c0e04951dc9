"""What ``VirtualCpu.run()`` returns: one frozen dataclass for each kind of exit.

The kinds are bhyve's (``enum vm_exitcode``), decoded. An exit that wants a value from the machine (IN, RDMSR, an MMIO
read, an interrupt acknowledge) gets it through ``VirtualCpu.answer(value)`` before the next ``run()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Exit:
    """Base of all exits."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class InOut(Exit):
    """IN, OUT, INS or OUTS of one element. ``value`` is what OUT writes; an IN wants an answer.

    ``size`` is 1, 2 or 4 bytes. A REP form comes as one exit an element, with ``string`` set.
    """

    port: int
    size: int
    is_in: bool
    value: int = 0
    string: bool = False


@dataclass(frozen=True, slots=True)
class RdMsr(Exit):
    """RDMSR of a register that the backend does not know; wants an answer, or ``inject_exception(13, 0)``."""

    index: int


@dataclass(frozen=True, slots=True)
class WrMsr(Exit):
    """WRMSR to a register that the backend does not know."""

    index: int
    value: int


@dataclass(frozen=True, slots=True)
class InstEmul(Exit):
    """An access of 1 to 8 bytes to guest-physical memory that is not RAM; a read wants an answer."""

    gpa: int
    size: int
    is_write: bool
    value: int = 0


@dataclass(frozen=True, slots=True)
class InstEmulFailed(Exit):
    """The backend could not decode an instruction that touches device memory. ``detail`` says more, for people."""

    rip: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Hlt(Exit):
    """HLT, if ``Capability.HLT_EXIT`` is on. The next ``run()`` sleeps until an event arrives."""


@dataclass(frozen=True, slots=True)
class Pause(Exit):
    """PAUSE, if ``Capability.PAUSE_EXIT`` is on."""


@dataclass(frozen=True, slots=True)
class Mtrap(Exit):
    """One instruction was executed under ``Capability.MTRAP_EXIT`` (single step)."""


@dataclass(frozen=True, slots=True)
class SpinupAp(Exit):
    """INIT-SIPI for vCPU ``vcpu`` with start-up ``vector``: it starts at CS base ``vector << 12``, IP 0."""

    vcpu: int
    vector: int


@dataclass(frozen=True, slots=True)
class SpindownCpu(Exit):
    """This vCPU left the active set (HLT with interrupts off)."""


class SuspendReason(Enum):
    RESET = "reset"
    POWER_OFF = "power-off"
    HALT = "halt"
    TRIPLE_FAULT = "triple fault"


@dataclass(frozen=True, slots=True)
class Suspended(Exit):
    """The virtual machine stopped by itself."""

    reason: SuspendReason


@dataclass(frozen=True, slots=True)
class Debug(Exit):
    """A point of the debugger was hit (``VirtualCpu.set_points``).

    ``rip`` is that of the next instruction. ``watch`` is the address of the watchpoint, None for a breakpoint.
    """

    rip: int
    watch: int | None = None


@dataclass(frozen=True, slots=True)
class Bogus(Exit):
    """``run()`` came back for no reason of the guest's: a ``kick()``."""


@dataclass(frozen=True, slots=True)
class IntAck(Exit):
    """The CPU takes an external interrupt from the PIC: answer with the vector (backends without ``pic``)."""


@dataclass(frozen=True, slots=True)
class IoapicEoi(Exit):
    """End of a level-triggered interrupt ``vector``, for the I/O APIC model (backends without ``ioapic``)."""

    vector: int


@dataclass(frozen=True, slots=True)
class EntryFailed(Exit):
    """The backend could not enter the guest: the fields of bhyve's VMX exit, as far as the backend knows them."""

    rip: int
    inst_length: int
    status: int
    exit_reason: int
    qualification: int
    inst_type: int
    inst_error: int
    detail: str = ""
