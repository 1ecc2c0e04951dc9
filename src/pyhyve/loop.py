"""The event loop of a machine: file descriptors, timers and calls from other threads, in one thread.

It wraps asyncio (on uvloop where that is installed) and adds what devices need. Timers hang on one ``timerfd``
(timerfd_create(2)): it is precise to the microsecond where an event loop's own timers count milliseconds, and any
thread can arm it with one system call, without waking the loop.

Time is ``time.monotonic_ns()`` everywhere: ``now_ns`` and the deadlines of timers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_NEVER = 1 << 62
_SECOND = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerHandle(Protocol):
    """What a device gets from ``Clock.timer``."""

    def arm_at(self, deadline_ns: int) -> None: ...

    def arm_in(self, delay_ns: int) -> None: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of the event loop that devices with time in them use."""

    def now_ns(self) -> int: ...

    def timer(self, callback: Callable[[], None]) -> TimerHandle: ...


class Timer:
    """Calls ``callback`` in the loop's thread once, at or soon after the deadline. All methods from any thread.

    A cancel or a new deadline that crosses the expiry may come too late: a callback looks at its device's state (under
    the device's lock) before it acts.
    """

    __slots__ = ("_callback", "_loop", "deadline_ns")

    def __init__(self, loop: EventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self.deadline_ns: int | None = None

    def arm_at(self, deadline_ns: int) -> None:
        """Fire at ``deadline_ns`` of the monotonic clock; at once if that has passed. Replaces an earlier deadline."""
        self._loop._arm(self, deadline_ns)

    def arm_in(self, delay_ns: int) -> None:
        """Fire ``delay_ns`` from now."""
        self._loop._arm(self, time.monotonic_ns() + delay_ns)

    def cancel(self) -> None:
        """Do not fire."""
        self._loop._disarm(self)


class EventLoop:
    """One thread's loop. ``run`` is called in the thread that is to be it, usually the main thread."""

    def __init__(self) -> None:
        _occupy_standard_descriptors()
        self._loop = _new_loop()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer_fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._timer_fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create: " + os.strerror(ctypes.get_errno()))
        self._armed: set[Timer] = set()
        self._next_ns = _NEVER
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._stop = False
        self._closed = False
        self._loop.add_reader(self._timer_fd, self._expire)

    # -- the loop itself --

    def run(self) -> None:
        """Serve until ``stop``. A ``stop`` that came first makes it return at once."""
        self._thread = threading.get_ident()
        try:
            with self._lock:
                stopped, self._stop = self._stop, False
            if not stopped:
                self._loop.run_forever()
        finally:
            self._thread = None

    def stop(self) -> None:
        """Make ``run`` return, now or when it is called. From any thread."""
        with self._lock:
            if self._thread is None:
                self._stop = True
                return
        self.call_soon_threadsafe(self._loop.stop)

    def close(self) -> None:
        """Give the descriptors back; ``run`` must have returned. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._timer_fd)
        os.close(self._timer_fd)
        self._loop.close()

    @property
    def running(self) -> bool:
        """Whether some thread is inside ``run``."""
        return self._thread is not None

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` in the loop's thread, soon. From any thread; nothing happens on a closed loop."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)

    # -- descriptors --

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call ``callback`` whenever ``fd`` is readable.

        Raises ``OSError`` for a descriptor that cannot be waited for (a plain file), if called in the loop's thread or
        while the loop does not run.
        """
        self._descriptor(self._loop.add_reader, fd, callback)

    def remove_reader(self, fd: int) -> None:
        """Undo ``add_reader``. Idempotent."""
        self._descriptor(self._loop.remove_reader, fd)

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        """Call ``callback`` whenever ``fd`` is writable."""
        self._descriptor(self._loop.add_writer, fd, callback)

    def remove_writer(self, fd: int) -> None:
        """Undo ``add_writer``. Idempotent."""
        self._descriptor(self._loop.remove_writer, fd)

    def add_signal(self, signum: int, callback: Callable[[], object]) -> bool:
        """Call ``callback`` in the loop when the process gets a signal; False outside the main thread."""
        try:
            self._loop.add_signal_handler(signum, callback)
        except (RuntimeError, ValueError):
            return False
        return True

    def call_in_loop(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function(*args)`` now if this is the loop's thread or the loop does not run, else soon in its thread.

        Calls from one thread keep their order.
        """
        if self._thread is None or self._thread == threading.get_ident():
            function(*args)
        else:
            self.call_soon_threadsafe(function, *args)

    def _descriptor(self, function: Callable[..., object], *args: Any) -> None:
        if not self._closed:
            self.call_in_loop(function, *args)

    # -- timers --

    @staticmethod
    def now_ns() -> int:
        """The clock of timers: ``time.monotonic_ns()``."""
        return time.monotonic_ns()

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer, not armed, that calls ``callback`` in the loop's thread."""
        return Timer(self, callback)

    def _arm(self, timer: Timer, deadline_ns: int) -> None:
        with self._lock:
            timer.deadline_ns = deadline_ns
            self._armed.add(timer)
            if deadline_ns < self._next_ns:
                self._set_timer_fd(deadline_ns)

    def _disarm(self, timer: Timer) -> None:
        # The descriptor may then fire for nothing once; cheaper than setting it again.
        with self._lock:
            timer.deadline_ns = None
            self._armed.discard(timer)

    def _set_timer_fd(self, deadline_ns: int) -> None:
        self._next_ns = deadline_ns
        if self._closed or deadline_ns == _NEVER:
            return
        seconds, rest = divmod(max(deadline_ns, 1), _SECOND)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, rest))
        self._libc.timerfd_settime(self._timer_fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)

    def _expire(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer_fd, 8)
        now = time.monotonic_ns()
        with self._lock:
            due = [t for t in self._armed if t.deadline_ns is not None and t.deadline_ns <= now]
            due.sort(key=lambda t: t.deadline_ns or 0)
            for timer in due:
                timer.deadline_ns = None
            self._armed.difference_update(due)
            waiting = (t.deadline_ns for t in self._armed if t.deadline_ns is not None)
            self._set_timer_fd(min(waiting, default=_NEVER))
        for timer in due:
            timer._callback()


def _occupy_standard_descriptors() -> None:
    """Put /dev/null where descriptors 0 to 2 are closed: libuv aborts if it is given one of these for its own."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
