"""The threads of the process as the host sees them: their names, their signals, the time they had."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

# Signals that the main thread answers; a vCPU thread must not be the one that the kernel picks for them.
MAIN_THREAD_SIGNALS = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCHLD, signal.SIGTSTP}
)


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
