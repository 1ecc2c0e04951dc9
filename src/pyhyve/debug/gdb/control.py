"""Who runs and who rests: the debugger's hold on the vCPUs, its points, and where the machine stops.

The machine is in one of three states. *Running*: nobody asks, or the debugger waits for a stop. *Stopping*: something
wants the machine to rest (a vCPU hit a point or finished a step, Ctrl-C, a debugger that arrives or leaves), and the
vCPUs are on their way out of the guest. *Stopped*: all rest, and their state may be touched.

A hit comes in the vCPU's thread, which notes it, makes the others rest and goes to rest itself. Everything else here
runs in the event loop. Several vCPUs may hit something before all rest; one hit is reported, the others wait until the
debugger lets their vCPU go on, and are reported then without running it, as long as their point is still wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from pyhyve.errors import PyhyveError
from pyhyve.loop import EventLoop
from pyhyve.vcpu import Vcpu, VcpuSet
from pyhyve.vmm.api import Point, PointKind
from pyhyve.vmm.exits import Debug, Mtrap
from pyhyve.vmm.registers import Access, Reg, SegmentName

SIGINT, SIGTRAP = 2, 5


class State(Enum):
    RUNNING = auto()
    STOPPING = auto()
    STOPPED = auto()


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the machine stopped. ``point`` is what vCPU ``index`` hit, ``kind`` the type of the debugger's Z packet."""

    index: int
    signal: int
    kind: int | None = None
    address: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """What a vCPU shall do: run, or make one step, or steps as long as RIP is in ``span`` (start, end)."""

    step: bool = False
    span: tuple[int, int] = (0, 0)


_KINDS = {
    0: PointKind.EXECUTE,  # software breakpoint
    1: PointKind.EXECUTE,  # hardware breakpoint
    2: PointKind.WRITE,
    3: PointKind.ACCESS,  # read watchpoint: x86 has none that a write does not trigger
    4: PointKind.ACCESS,
}
MAX_POINTS = 1000


class Control:
    """The debugger's hold on ``vcpus``. ``on_stop`` is called in the loop whenever the machine has stopped."""

    def __init__(self, vcpus: VcpuSet, loop: EventLoop, on_stop: Callable[[Stop], None]) -> None:
        self._vcpus = vcpus
        self._loop = loop
        self._on_stop = on_stop
        self.state = State.RUNNING
        self._hits: dict[int, Debug | Mtrap] = {}
        self._spans: dict[int, tuple[int, int]] = {}
        self._wanted: dict[tuple[int, int, int], Point] = {}  # by Z type, address and length
        self._applied: frozenset[Point] = frozenset()
        self._signal: int | None = None  # what to report if the machine stops for no hit
        self._leaving = False
        self.last = Stop(0, SIGTRAP)
        vcpus.on_rest = self._rested
        for vcpu in vcpus.vcpus:
            vcpu.on_debug = self._hit

    # -- coming to rest --

    def interrupt(self, signal: int = SIGINT) -> None:
        """Stop the machine; ``on_stop`` follows."""
        self._signal = signal
        self.state = State.STOPPING
        self._vcpus.break_in()

    def hold_before_start(self) -> None:
        """Let no vCPU begin before the debugger says so."""
        self._vcpus.break_in()

    def _hit(self, vcpu: Vcpu, exit_: Debug | Mtrap) -> None:
        # In the vCPU's thread.
        if isinstance(exit_, Mtrap):
            first, last = self._spans.get(vcpu.index, (0, 0))
            rip = vcpu.cpu.get_registers((Reg.RIP,))[Reg.RIP]
            if first <= rip < last and not self._vcpus.rests(vcpu.index):
                vcpu.step_from = rip
                return
        self._hits[vcpu.index] = exit_
        self._vcpus.break_in()

    def _rested(self) -> None:
        # In any thread, under the set's lock.
        self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """In the loop: all may be at rest. Finish what the rest was wanted for."""
        if self.state is State.STOPPED or not (self._hits or self._signal is not None or self._leaving):
            return
        if not self._vcpus.at_rest():
            return
        self._end_steps()
        if self._leaving:
            self._leaving = False
            self._forget()
            if self._signal is None:
                self._go()
                return
        self._stop(self._choose())

    def _end_steps(self) -> None:
        self._spans.clear()
        for vcpu in self._vcpus.vcpus:
            vcpu.step(False)

    def _choose(self) -> Stop:
        """The stop to report: a finished step before a point, a point before Ctrl-C."""
        stepped = [index for index, hit in self._hits.items() if isinstance(hit, Mtrap)]
        for index in stepped:
            del self._hits[index]
        signal, self._signal = self._signal, None
        if stepped:
            return Stop(stepped[0], SIGTRAP)
        if self._hits:
            return self._take_hit(next(iter(self._hits)))
        return Stop(self.last.index, SIGTRAP if signal is None else signal)

    def _take_hit(self, index: int) -> Stop:
        hit = self._hits.pop(index)
        key = self._key_of(index, hit)
        if key is None:
            return Stop(index, SIGTRAP)
        return Stop(index, SIGTRAP, key[0], key[1])

    def _key_of(self, index: int, hit: Debug | Mtrap) -> tuple[int, int, int] | None:
        """Which of the debugger's points was hit."""
        if isinstance(hit, Mtrap):
            return None
        execute = hit.watch is None
        where = self._linear(index, hit.rip) if hit.watch is None else hit.watch
        for key, point in self._wanted.items():
            if (point.kind is PointKind.EXECUTE) is execute and point.gva <= where < point.gva + point.length:
                return key
        return None

    def _linear(self, index: int, rip: int) -> int:
        code = self._vcpus.vcpus[index].cpu.get_segment(SegmentName.CS)
        return rip if code.access & Access.LONG else (rip + code.base) & 0xFFFFFFFF

    def _stop(self, stop: Stop) -> None:
        self.state = State.STOPPED
        self.last = stop
        self._on_stop(stop)

    # -- going on --

    def resume(self, actions: Mapping[int, Action]) -> None:
        """Let the vCPUs named in ``actions`` go on, while stopped. Raises ``BackendError`` if a point cannot be set."""
        self._apply()
        for index in [i for i in self._hits if i in actions]:
            hit = self._hits[index]
            rip = self._vcpus.vcpus[index].cpu.get_registers((Reg.RIP,))[Reg.RIP]
            if self._key_of(index, hit) is not None and isinstance(hit, Debug) and rip == hit.rip:
                self._hits = {index: self._hits.pop(index), **self._hits}  # it is told first
                self.state = State.STOPPING
                self._loop.call_soon_threadsafe(self._settle)
                return
            del self._hits[index]
        for index, action in actions.items():
            if action.step:
                self._spans[index] = action.span
                self._vcpus.vcpus[index].step(True)
        self._go(actions)

    def _go(self, actions: Mapping[int, Action] | None = None) -> None:
        self.state = State.RUNNING
        everybody = actions is None or len(actions) == len(self._vcpus.vcpus)
        self._vcpus.release(None if everybody else actions)

    def leave(self) -> None:
        """The debugger is gone: take its points out and let the guest run, now or as soon as all rest."""
        self._signal = None
        if self.state is State.STOPPED:
            self._end_steps()
            self._forget()
            self._go()
        elif self.state is State.STOPPING or self._applied or any(v.step_from is not None for v in self._vcpus.vcpus):
            self.state = State.STOPPING
            self._leaving = True
            self._vcpus.break_in()

    def _forget(self) -> None:
        self._hits.clear()
        self._wanted.clear()
        self._apply()

    # -- points --

    def insert(self, kind: int, address: int, length: int) -> None:
        """Set a point of Z type ``kind``. Raises ``BackendError`` if it cannot be, ``KeyError`` for another type."""
        point = Point(_KINDS[kind], address, length if _KINDS[kind] is not PointKind.EXECUTE else 1)
        key = (kind, address, length)
        if key not in self._wanted and len(self._wanted) >= MAX_POINTS:
            raise PyhyveError(f"more than {MAX_POINTS} breakpoints")
        known = key in self._wanted
        self._wanted[key] = point
        if point in self._applied:
            return
        try:
            self._apply()
        except PyhyveError:
            if not known:
                del self._wanted[key]
            self._apply()
            raise

    def remove(self, kind: int, address: int, length: int) -> None:
        """Take a point away, if it is there; the vCPUs are told when they go on."""
        self._wanted.pop((kind, address, length), None)

    def _apply(self) -> None:
        points = frozenset(self._wanted.values())
        if points != self._applied:
            for vcpu in self._vcpus.vcpus:
                vcpu.cpu.set_points(points)
            self._applied = points
