"""The vCPU loop: run the vCPU until it exits, look the exit up, act on the handler's verdict (bhyve's ``vm_loop``).

An exit goes through ``Vcpu.handlers``, a table keyed by the exit's class; the handler asks a bus or a chip, answers the
backend, and gives a ``Verdict``. The path of a port access is short on purpose:
``run() -> handlers[InOut] -> PioBus -> the device -> answer()``. The thread that runs the loop is ``VcpuSet``'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol

from pyhyve.errors import Status
from pyhyve.messages import complain
from pyhyve.threads import HostTime
from pyhyve.vmm import exits
from pyhyve.vmm.api import Capability, VirtualCpu
from pyhyve.vmm.exits import Exit, SuspendReason
from pyhyve.vmm.registers import Reg

if TYPE_CHECKING:
    from pyhyve.vcpu_set import VcpuSet


class Verdict(Enum):
    """What the loop does after a handler."""

    CONTINUE = auto()
    """Go on behind the instruction; the backend has moved RIP."""
    RESTART = auto()
    """Run the same instruction again; the backend has left RIP alone."""
    SWITCH = auto()
    """Let another vCPU's thread have the host CPU first."""
    RESET = auto()
    POWER_OFF = auto()
    HALT = auto()
    TRIPLE_FAULT = auto()
    ABORT = auto()
    LEAVE = auto()
    """This vCPU is no longer active; the machine goes on."""


_CONTINUE = Verdict.CONTINUE
_RESTART = Verdict.RESTART

STATUS_OF: Mapping[Verdict, Status] = {
    Verdict.RESET: Status.RESET,
    Verdict.POWER_OFF: Status.POWER_OFF,
    Verdict.HALT: Status.HALTED,
    Verdict.TRIPLE_FAULT: Status.TRIPLE_FAULT,
    Verdict.ABORT: Status.ERROR,
}
VERDICT_OF: Mapping[SuspendReason, Verdict] = {
    SuspendReason.RESET: Verdict.RESET,
    SuspendReason.POWER_OFF: Verdict.POWER_OFF,
    SuspendReason.HALT: Verdict.HALT,
    SuspendReason.TRIPLE_FAULT: Verdict.TRIPLE_FAULT,
}
# Numbers of the exits in messages (enum vm_exitcode of bhyve).
EXIT_CODES: Mapping[type[Exit], int] = {
    exits.InOut: 0,
    exits.EntryFailed: 1,
    exits.Bogus: 2,
    exits.RdMsr: 3,
    exits.WrMsr: 4,
    exits.Hlt: 5,
    exits.Mtrap: 6,
    exits.Pause: 7,
    exits.InstEmul: 9,
    exits.InstEmulFailed: 9,
    exits.SpinupAp: 10,
    exits.SpindownCpu: 11,
    exits.IoapicEoi: 13,
    exits.Suspended: 14,
    exits.Debug: 21,
}
GENERAL_PROTECTION = 13
# Exits behind which no instruction is half done in the backend.
_BETWEEN_INSTRUCTIONS = (exits.Bogus, exits.Mtrap, exits.Debug)
@dataclass(slots=True)
class Counters:
    """Exits of one vCPU by kind, under bhyve's names (``bhyvectl --get-stats`` writes them with dashes)."""

    bogus: int = 0
    bogus_switch: int = 0
    hlt: int = 0
    pause: int = 0
    mtrap: int = 0
    inst_emul: int = 0
    cpu_switch_rotate: int = 0
    cpu_switch_direct: int = 0
    io_reset: int = 0
    inout: int = 0
    rdmsr: int = 0
    wrmsr: int = 0
    intack: int = 0
    eoi: int = 0
    debug: int = 0
    spinup_ap: int = 0
    spindown_cpu: int = 0
    suspended: int = 0
    vmx: int = 0

    def named(self) -> dict[str, int]:
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


class Observer(Protocol):
    """Who looks on: told the vCPU, the exit, the answer it got (None: none), when its handling began, and its length.

    Times are those of ``time.monotonic_ns()``. It is called in the vCPU's thread.
    """

    def __call__(self, vcpu: int, exit_: Exit, answer: int | None, start_ns: int, took_ns: int, /) -> None: ...


class Ports(Protocol):
    """What the loop needs of ``bus.pio.PioBus`` and ``bus.mmio.MmioBus``."""

    def read(self, address: int, size: int, /) -> int | None: ...

    def write(self, address: int, size: int, value: int, /) -> bool: ...


class Msrs(Protocol):
    """What the loop needs of ``bus.msr.MsrBus``."""

    def read(self, index: int, /) -> int | None: ...

    def write(self, index: int, value: int, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Platform:
    """What lies around the vCPUs: the buses, the chips that talk to the CPU directly, and the policies.

    ``open_bus`` are ranges of guest-physical addresses (start, end) where reading nothing gives all-ones, as on a
    PCI bus; anywhere else an access that nobody answers ends the machine.
    """

    pio: Ports
    mmio: Ports
    msr: Msrs
    acknowledge: Callable[[], int] | None = None
    eoi: Callable[[int], None] | None = None
    open_bus: tuple[tuple[int, int], ...] = ()
    strict_io: bool = False
    strict_msr: bool = True


class Vcpu:
    """One virtual CPU and its loop."""

    def __init__(self, cpu: VirtualCpu, owner: VcpuSet, platform: Platform) -> None:
        self.cpu = cpu
        self.index = cpu.index
        self.owner = owner
        self.platform = platform
        self.counters = Counters()
        self.on_debug: Callable[[Vcpu, exits.Debug | exits.Mtrap], None] | None = None
        """Told, in this vCPU's thread, of a point that was hit and of a step that is done."""
        self.step_from: int | None = None
        """Where the instruction lies that is single-stepped, None if none is."""
        self.host = HostTime()
        self._known_msrs: set[tuple[bool, int]] = set()
        self._pio_read = platform.pio.read
        self._pio_write = platform.pio.write
        self._answer = cpu.answer
        self.handlers: dict[type[Exit], Callable[[Any], Verdict]] = {
            exits.InOut: self._inout,
            exits.InstEmul: self._inst_emul,
            exits.InstEmulFailed: self._inst_emul_failed,
            exits.RdMsr: self._rdmsr,
            exits.WrMsr: self._wrmsr,
            exits.Hlt: self._hlt,
            exits.Pause: self._pause,
            exits.Mtrap: self._mtrap,
            exits.Bogus: self._bogus,
            exits.IntAck: self._int_ack,
            exits.IoapicEoi: self._ioapic_eoi,
            exits.SpinupAp: self._spinup_ap,
            exits.SpindownCpu: self._spindown_cpu,
            exits.Suspended: self._suspended,
            exits.Debug: self._debug,
            exits.EntryFailed: self._entry_failed,
        }

    def observe(self, observer: Observer, kinds: Collection[type[Exit]]) -> None:
        """Tell ``observer`` of every exit of these kinds when it has been handled. To be called before the start."""
        answer = self._answer
        given: int | None = None

        def answering(value: int) -> None:
            nonlocal given
            given = value
            answer(value)

        def observed(handler: Callable[[Any], Verdict]) -> Callable[[Any], Verdict]:
            def handle(exit_: Exit) -> Verdict:
                nonlocal given
                given = None
                start = time.monotonic_ns()
                verdict = handler(exit_)
                observer(self.index, exit_, given, start, time.monotonic_ns() - start)
                return verdict

            return handle

        self._answer = answering
        for kind in kinds:
            self.handlers[kind] = observed(self.handlers[kind])

    def loop(self) -> Status | None:
        """Run until the machine ends or this vCPU leaves. The status that it ends the machine with, if it does."""
        run = self.cpu.run
        handlers = self.handlers
        owner = self.owner
        while True:
            exit_ = run()
            handler = handlers.get(type(exit_))
            if handler is None:
                code = EXIT_CODES.get(type(exit_), 0xFFFFFFFF)
                complain(f"vm_loop: unexpected exitcode {code:#x}")
                return Status.POWER_OFF
            verdict = handler(exit_)
            if verdict is not _CONTINUE and verdict is not _RESTART:
                if verdict is Verdict.SWITCH:
                    self.counters.cpu_switch_rotate += 1
                    os.sched_yield()
                elif verdict is Verdict.LEAVE:
                    return None
                else:
                    return STATUS_OF[verdict]
            if owner.attention and not self._attend(exit_):
                return None

    def _attend(self, exit_: Exit) -> bool:
        """The machine wants something of this thread; whether the loop goes on."""
        kind = type(exit_)
        if kind is exits.InOut and self.owner.outcome == Status.RESET:
            self.counters.io_reset += 1
        elif self.owner.outcome is None and kind not in _BETWEEN_INSTRUCTIONS:
            # Rest behind the exit's instruction: the backend completes it before it obeys the kick.
            if self.step_from is not None or self.owner.rests(self.index):
                self.cpu.kick()
            return True
        elif kind is exits.Bogus and self.step_from is not None and self._rip() != self.step_from:
            # The stepped instruction left by an exit of its own.
            self._mtrap(exits.Mtrap())
        return self.owner.park(self)

    def _rip(self) -> int:
        return self.cpu.get_registers((Reg.RIP,))[Reg.RIP]

    def step(self, on: bool) -> None:
        """Execute one instruction, then call ``on_debug``. While the vCPU rests."""
        if on != (self.step_from is not None):
            self.cpu.set_capability(Capability.MTRAP_EXIT, on)
        self.step_from = self._rip() if on else None

    def _inout(self, exit_: exits.InOut) -> Verdict:
        self.counters.inout += 1
        if exit_.is_in:
            value = self._pio_read(exit_.port, exit_.size)
            if value is None:
                if self.platform.strict_io:
                    return self._unhandled_port(exit_)
                value = (1 << (8 * exit_.size)) - 1
            self._answer(value)
        elif not self._pio_write(exit_.port, exit_.size, exit_.value) and self.platform.strict_io:
            return self._unhandled_port(exit_)
        return _CONTINUE

    def _unhandled_port(self, exit_: exits.InOut) -> Verdict:
        direction = "in" if exit_.is_in else "out"
        complain(f"Unhandled {direction}{ {1: 'b', 2: 'w', 4: 'l'}[exit_.size] } 0x{exit_.port:04x}")
        return Verdict.ABORT

    def _inst_emul(self, exit_: exits.InstEmul) -> Verdict:
        self.counters.inst_emul += 1
        if exit_.is_write:
            if self.platform.mmio.write(exit_.gpa, exit_.size, exit_.value):
                return _CONTINUE
            value = 0
        else:
            answer = self.platform.mmio.read(exit_.gpa, exit_.size)
            if answer is not None:
                self._answer(answer)
                return _CONTINUE
            value = (1 << (8 * exit_.size)) - 1
        if not any(start <= exit_.gpa < end for start, end in self.platform.open_bus):
            complain(f"Unhandled memory access to {exit_.gpa:#x}")
            return Verdict.ABORT
        if not exit_.is_write:
            self._answer(value)
        return _CONTINUE

    def _inst_emul_failed(self, exit_: exits.InstEmulFailed) -> Verdict:
        complain(f"Failed to emulate instruction at {exit_.rip:#x}" + (f": {exit_.detail}" if exit_.detail else ""))
        return Verdict.ABORT

    def _rdmsr(self, exit_: exits.RdMsr) -> Verdict:
        self.counters.rdmsr += 1
        value = self.platform.msr.read(exit_.index)
        if value is None:
            self._report_msr(True, exit_.index, f"rdmsr to register {exit_.index:#x} on vcpu {self.index}")
            if self.platform.strict_msr:
                self.cpu.inject_exception(GENERAL_PROTECTION, 0)
                return _CONTINUE
            value = 0
        self._answer(value)
        return _CONTINUE

    def _wrmsr(self, exit_: exits.WrMsr) -> Verdict:
        self.counters.wrmsr += 1
        if not self.platform.msr.write(exit_.index, exit_.value):
            text = f"wrmsr to register {exit_.index:#x}({exit_.value:#x}) on vcpu {self.index}"
            self._report_msr(False, exit_.index, text)
            if self.platform.strict_msr:
                self.cpu.inject_exception(GENERAL_PROTECTION, 0)
        return _CONTINUE

    def _report_msr(self, read: bool, index: int, text: str) -> None:
        """Once for each register and direction: a guest that polls one would fill the terminal."""
        if (read, index) not in self._known_msrs:
            self._known_msrs.add((read, index))
            complain(text)

    def _hlt(self, _exit: exits.Hlt) -> Verdict:
        self.counters.hlt += 1
        return _CONTINUE

    def _pause(self, _exit: exits.Pause) -> Verdict:
        self.counters.pause += 1
        return _CONTINUE

    def _mtrap(self, exit_: exits.Mtrap) -> Verdict:
        self.counters.mtrap += 1
        return self._tell_debugger(exit_)

    def _bogus(self, _exit: exits.Bogus) -> Verdict:
        self.counters.bogus += 1
        if self.host.wanted:
            self.host.mark(self.cpu.stats())
        return _RESTART

    def _int_ack(self, _exit: exits.IntAck) -> Verdict:
        self.counters.intack += 1
        if self.platform.acknowledge is None:
            complain(f"vcpu {self.index}: an interrupt acknowledge, but no interrupt controller to answer it")
            return Verdict.ABORT
        self._answer(self.platform.acknowledge())
        return _CONTINUE

    def _ioapic_eoi(self, exit_: exits.IoapicEoi) -> Verdict:
        self.counters.eoi += 1
        if self.platform.eoi is not None:
            self.platform.eoi(exit_.vector)
        return _CONTINUE

    def _spinup_ap(self, exit_: exits.SpinupAp) -> Verdict:
        self.counters.spinup_ap += 1
        self.owner.spin_up(exit_.vcpu, exit_.vector)
        return _CONTINUE

    def _spindown_cpu(self, _exit: exits.SpindownCpu) -> Verdict:
        self.counters.spindown_cpu += 1
        return self.owner.spin_down(self.index)

    def _suspended(self, exit_: exits.Suspended) -> Verdict:
        self.counters.suspended += 1
        return VERDICT_OF[exit_.reason]

    def _debug(self, exit_: exits.Debug) -> Verdict:
        self.counters.debug += 1
        return self._tell_debugger(exit_)

    def _tell_debugger(self, exit_: exits.Debug | exits.Mtrap) -> Verdict:
        if self.on_debug is not None:
            self.on_debug(self, exit_)
        return _RESTART

    def _entry_failed(self, exit_: exits.EntryFailed) -> Verdict:
        self.counters.vmx += 1
        lines = [
            f"vm exit[{self.index}]",
            "\treason\t\tVMX",
            f"\trip\t\t{exit_.rip:#018x}",
            f"\tinst_length\t{exit_.inst_length}",
            f"\tstatus\t\t{exit_.status}",
            f"\texit_reason\t{exit_.exit_reason:#x}",
            f"\tqualification\t{exit_.qualification:#018x}",
            f"\tinst_type\t{exit_.inst_type}",
            f"\tinst_error\t{exit_.inst_error}",
        ]
        if exit_.detail:
            lines.append(f"\tdetail\t\t{exit_.detail}")
        complain("\n".join(lines))
        return Verdict.ABORT
