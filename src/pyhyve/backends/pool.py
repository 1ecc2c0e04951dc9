"""A small pool of threads for calls that block: a disk's reads and writes.

A job is a function that returns 0 or an errno, and ``done`` that is told of it, in the pool's thread. A thread is
started when a job finds none idle, up to the pool's size; all of them end with ``close``.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable

Done = Callable[[int], None]
"""Told 0 or the errno of what went wrong."""


class WorkerPool:
    """Runs jobs in up to ``size`` threads called ``name``, the oldest job first."""

    def __init__(self, name: str, size: int = 8) -> None:
        self._name = name
        self._size = size
        self._jobs: deque[tuple[Callable[[], int], Done]] = deque()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._rest = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._busy = 0
        self._closed = False

    def submit(self, job: Callable[[], int], done: Done) -> None:
        """Run ``job``, then ``done`` with its result. Never calls either in the caller's thread, but on a closed pool
        ``done(ECANCELED)``."""
        with self._lock:
            if not self._closed:
                self._jobs.append((job, done))
                if self._idle >= len(self._jobs) or len(self._threads) == self._size:
                    self._work.notify()
                else:
                    self._start_thread()
                return
        done(errno.ECANCELED)

    def drain(self) -> None:
        """Wait until no job waits or runs. Not from a ``done``."""
        with self._lock:
            self._rest.wait_for(lambda: not self._jobs and not self._busy)

    def close(self) -> None:
        """Finish every job, then end the threads. Idempotent. Not from a ``done``."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._jobs:
                    if self._closed:
                        return
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                job, done = self._jobs.popleft()
                self._busy += 1
            try:
                self._run(job, done)
            finally:
                with self._lock:
                    self._busy -= 1
                    if not self._busy and not self._jobs:
                        self._rest.notify_all()

    @staticmethod
    def _run(job: Callable[[], int], done: Done) -> None:
        try:
            result = job()
        except OSError as error:
            result = error.errno or errno.EIO
        done(result)
