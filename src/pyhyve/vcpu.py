"""The vCPU loop: run the vCPU until it exits, look the exit up, act on the handler's verdict (bhyve's ``vm_loop``).

Each active vCPU has a thread named ``vcpu N``. An exit goes through ``Vcpu.handlers``, a table keyed by the exit's
class; the handler asks a bus or a chip, answers the backend, and gives a ``Verdict``. The path of a port access is
short on purpose: ``run() -> handlers[InOut] -> PioBus -> the device -> answer()``.

``VcpuSet`` owns the threads: the active set, start-up of other processors, pause and resume, and the one outcome that
the machine ends with. The first outcome wins; every other vCPU is then kicked out of the guest and its thread ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from pyhyve.errors import BackendError, PyhyveError, Status
from pyhyve.vmm import exits
from pyhyve.vmm.api import Capability, VirtualCpu
from pyhyve.vmm.exits import Exit, SuspendReason
from pyhyve.vmm.registers import Reg


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
# Signals that the main thread answers; a vCPU thread must not be the one that the kernel picks for them.
MAIN_THREAD_SIGNALS = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCHLD, signal.SIGTSTP}
)


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


@dataclass(slots=True)
class HostTime:
    """The thread that runs a vCPU, as the host's accounting knows it, and the sums of those that did and have ended."""

    thread: int = 0
    """The host's number of the thread, 0 where there is none."""
    since_ns: int = 0
    past_ns: int = 0
    past_cpu_ns: int = 0
    past_wait_ns: int = 0
    counters: Mapping[str, float] = field(default_factory=dict)
    """The backend's counters when the thread last marked, which it does outside the guest, if asked to."""
    counters_ns: int = 0
    """The life of the threads at that moment."""
    marked: threading.Event = field(default_factory=threading.Event)
    wanted: bool = False
    """Whether somebody waits for a mark."""

    def begin(self) -> None:
        """In the new thread."""
        self.since_ns = time.monotonic_ns()
        self.thread = threading.get_native_id()

    def end(self) -> None:
        """In the thread, when it is about to end; once, and before the vCPU can have another thread."""
        if self.thread != threading.get_native_id():
            return
        self.thread = 0
        self.past_ns += time.monotonic_ns() - self.since_ns
        self.past_cpu_ns += time.thread_time_ns()
        self.past_wait_ns += thread_times(threading.get_native_id())[1]

    def mark(self, counters: Mapping[str, float]) -> None:
        """In the thread: keep what the counters are now."""
        self.counters, self.counters_ns = counters, self.past_ns + time.monotonic_ns() - self.since_ns
        self.wanted = False
        self.marked.set()


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


def complain(text: str) -> None:
    """One line for the person who runs the machine. The terminal may be raw, hence the carriage return."""
    end = "\r\n" if sys.stderr.isatty() else "\n"
    sys.stderr.write(text.replace("\n", end) + end)
    sys.stderr.flush()


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


@dataclass(slots=True)
class _Thread:
    vcpu: Vcpu
    thread: threading.Thread
    parked: bool = False


@dataclass(slots=True)
class Outcome:
    """How the machine ended: the status, and the line that says why, if it was not the guest's wish."""

    status: int
    message: str = ""


class VcpuSet:
    """The vCPUs of a machine and their threads.

    ``on_end`` is called once, in whatever thread the end came from, when the outcome is known.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.vcpus: list[Vcpu] = []
        self.attention = False
        """Read by every vCPU after every exit: something is wanted of it."""
        self.traceback = False
        """Print the traceback of an error inside a device."""
        self._on_end = on_end
        self._result: Outcome | None = None
        self.on_rest: Callable[[], None] | None = None
        """Called whenever the last vCPU has come to rest, in any thread, under the set's lock: it must not wait."""
        self._paused = False
        self._free: frozenset[int] | None = None  # the vCPUs that the debugger lets run, None: all
        self._holds = 0
        self._active: dict[int, _Thread] = {}
        self._pins: dict[int, frozenset[int]] = {}
        self._starts: dict[int, int] = {}
        """Vectors of start-up IPIs for vCPUs that are still on their way out."""
        self._changed = threading.Condition()

    @property
    def outcome(self) -> int | None:
        return self._result.status if self._result is not None else None

    @property
    def message(self) -> str:
        return self._result.message if self._result is not None else ""

    @property
    def active(self) -> frozenset[int]:
        """The vCPUs that take part."""
        with self._changed:
            return frozenset(self._active)

    def pin(self, index: int, host_cpus: frozenset[int]) -> None:
        """Run vCPU ``index`` on these host CPUs only; to be called before it starts."""
        self._pins[index] = host_cpus

    def add(self, index: int) -> None:
        """Put a vCPU in the active set and start its thread. Raises ``BackendError`` if it is there already."""
        with self._changed:
            if index in self._active:
                raise BackendError(f"vcpu {index} is already active", Status.ERROR)
            if not 0 <= index < len(self.vcpus):
                raise BackendError(f"vcpu {index} does not exist", Status.ERROR)
            vcpu = self.vcpus[index]
            thread = threading.Thread(target=self._main, args=(vcpu,), name=f"vcpu {index}", daemon=True)
            self._active[index] = _Thread(vcpu, thread)
        thread.start()

    def remove(self, index: int) -> bool:
        """Take a vCPU out of the active set; whether any is left. Raises ``BackendError`` if it was not in it."""
        with self._changed:
            if self._active.pop(index, None) is None:
                raise BackendError(f"vcpu {index} is not active", Status.ERROR)
            self._changed.notify_all()
            self._tell_rest()
            return bool(self._active)

    def spin_up(self, index: int, vector: int) -> None:
        """A guest's INIT-SIPI: start another vCPU in real mode.

        One that still takes part has had its INIT and is on its way out of the active set: it starts when it is there.
        Nobody waits for it here, for it may wait for this vCPU, or be held by a pause.
        """
        if not 0 <= index < len(self.vcpus):
            raise BackendError(f"vcpu {index} does not exist", Status.ERROR)
        with self._changed:
            if index in self._active:
                self._starts[index] = vector
            elif self._result is None:
                self.vcpus[index].cpu.start(vector)
                self.add(index)

    def spin_down(self, index: int) -> Verdict:
        """A vCPU, in whose thread this is, has had an INIT: it leaves, unless a start-up IPI has come behind that."""
        with self._changed:
            vector = self._starts.pop(index, None)
            if vector is None:
                self.vcpus[index].host.end()
                return Verdict.LEAVE if self.remove(index) else Verdict.RESET
            self.vcpus[index].cpu.start(vector)
            return Verdict.CONTINUE

    def end(self, status: int, message: str = "") -> None:
        """The machine ends with ``status``. Only the first call counts. Callable from any thread."""
        with self._changed:
            if self._result is not None:
                return
            self._result = Outcome(status, message)
            self.attention = True
            running = list(self._active.values())
            self._changed.notify_all()
        for entry in running:
            entry.vcpu.cpu.kick()
        self._on_end()

    def fail(self, error: Exception, where: str) -> None:
        """End the machine because of a fault of ours, told in one line. ``where`` is the thread it came up in."""
        if self.traceback:
            complain("".join(traceback.format_exception(error)).rstrip())
        self.end(Status.ERROR, describe(error, where))

    @property
    def paused(self) -> bool:
        """Whether ``pause`` holds the vCPUs."""
        return self._paused

    def pause(self) -> None:
        """Bring every vCPU out of the guest and wait until all of them rest. Not from a vCPU's own thread."""
        with self._changed:
            self._paused = True
            self._wait_for_rest()

    def resume(self) -> None:
        """Undo ``pause``. What the debugger holds stays at rest."""
        with self._changed:
            self._paused = False
            self._let_go()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Every vCPU rests outside the guest while the block runs, whether the machine is paused or not.

        For a look at registers: it nests, and leaves a pause as it was. Not from a vCPU's own thread, nor from one that
        a device may wait for. Raises ``BackendError`` if the machine has ended.
        """
        with self._changed:
            self._holds += 1
        try:
            with self._changed:
                self._wait_for_rest()
                if self._result is not None:
                    raise BackendError("the machine has ended")
            yield
        finally:
            with self._changed:
                self._holds -= 1
                self._let_go()

    def _wait_for_rest(self) -> None:
        self.attention = True
        for entry in self._active.values():
            if not entry.parked:
                entry.vcpu.cpu.kick()
        self._changed.wait_for(lambda: self._result is not None or all(entry.parked for entry in self._active.values()))

    def _let_go(self) -> None:
        self._set_attention()
        self._changed.notify_all()

    def break_in(self) -> None:
        """Bring every vCPU to rest, also one that is started later, and return at once: ``on_rest`` follows.

        It is the debugger's, and independent of ``pause`` and ``held``. From any thread, a vCPU's own too.
        """
        with self._changed:
            self._free = frozenset()
            self._set_attention()
            for entry in self._active.values():
                if not entry.parked and entry.thread is not threading.current_thread():
                    entry.vcpu.cpu.kick()
            self._tell_rest()

    def release(self, indices: Iterable[int] | None = None) -> None:
        """Undo ``break_in`` for these vCPUs (None: all, and those that are started later)."""
        with self._changed:
            self._free = None if indices is None else frozenset(indices)
            self._let_go()

    def rests(self, index: int) -> bool:
        """Whether a vCPU is to rest."""
        free = self._free
        return self._paused or self._holds > 0 or (free is not None and index not in free)

    def at_rest(self) -> bool:
        """Whether no vCPU runs and none will until ``release`` or ``resume``."""
        with self._changed:
            return all(entry.parked and self.rests(index) for index, entry in self._active.items())

    def _set_attention(self) -> None:
        stepping = any(vcpu.step_from is not None for vcpu in self.vcpus)
        wanted = self._paused or self._holds > 0 or self._free is not None
        self.attention = wanted or stepping or self._result is not None

    def _tell_rest(self) -> None:
        if self.on_rest is not None and all(entry.parked for entry in self._active.values()):
            self.on_rest()

    def park(self, vcpu: Vcpu) -> bool:
        """In a vCPU's thread: rest while the machine wants it. Whether to go on running the guest."""
        with self._changed:
            entry = self._active.get(vcpu.index)
            if entry is not None and self._result is None and self.rests(vcpu.index):
                entry.parked = True
                self._changed.notify_all()
                self._tell_rest()
                self._changed.wait_for(lambda: self._result is not None or not self.rests(vcpu.index))
                entry.parked = False
            return self._result is None

    def join(self, timeout: float = 10.0) -> None:
        """Wait for the threads to end, after ``end``."""
        with self._changed:
            entries = list(self._active.values())
        for entry in entries:
            if entry.thread is not threading.current_thread() and entry.thread.ident is not None:
                entry.thread.join(timeout)
                if entry.thread.is_alive():
                    raise BackendError(f"vcpu {entry.vcpu.index} does not leave the guest", Status.ERROR)

    def _main(self, vcpu: Vcpu) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_THREAD_SIGNALS)
        vcpu.host.begin()
        try:
            self._settle(vcpu)
            if self.attention and not self.park(vcpu):
                return
            status = vcpu.loop()
        except PyhyveError as error:
            self.end(Status.ERROR, str(error))
        except Exception as error:  # a fault of ours in a device: one line, and the machine ends
            self.fail(error, f"vcpu {vcpu.index}")
        else:
            if status is not None:
                self.end(status)
        finally:
            vcpu.host.end()

    def _settle(self, vcpu: Vcpu) -> None:
        """Name the host thread and put it on its host CPU."""
        name_thread(f"vcpu {vcpu.index}")
        host_cpus = self._pins.get(vcpu.index)
        if host_cpus is not None:
            try:
                os.sched_setaffinity(0, host_cpus)
            except (OSError, ValueError) as error:
                where = ",".join(map(str, sorted(host_cpus)))
                reason = error.strerror if isinstance(error, OSError) else error
                raise BackendError(f"cannot pin vcpu {vcpu.index} to host CPU {where}: {reason}") from None


def name_thread(name: str) -> None:
    """Show ``name`` for the calling thread in ps and top (15 bytes at most)."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "wb") as file:
            file.write(name.encode()[:15])
    except OSError:
        pass  # cosmetic


def thread_times(thread: int) -> tuple[int, int]:
    """How long a thread of ours ran on the host's CPUs, and how long it was ready but had to wait, in nanoseconds.

    Both are 0 for a thread that is not there.
    """
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
            ran, waited, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    return ran, waited


def describe(error: BaseException, where: str) -> str:
    """An unexpected error in one line, with the place in our code where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    text = str(error).splitlines()[0] if str(error) else "no text"
    return f"{where}: a device failed{place}: {type(error).__name__}: {text}"
