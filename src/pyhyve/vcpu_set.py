"""The vCPUs of a machine and their threads.

Each active vCPU has a thread named ``vcpu N``. ``VcpuSet`` owns them: the active set, start-up of other processors,
pause and resume, what the debugger holds, and the one outcome that the machine ends with. The first outcome wins; every
other vCPU is then kicked out of the guest and its thread ends.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyhyve.errors import BackendError, PyhyveError, Status
from pyhyve.messages import complain, describe
from pyhyve.threads import MAIN_THREAD_SIGNALS, name_thread
from pyhyve.vcpu import Vcpu, Verdict


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
