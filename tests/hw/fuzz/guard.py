"""What every fuzzer watches while it attacks a device: that nothing is written outside guest memory, that no access
takes long, and that nothing is raised in a thread of the device's."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from pyhyve.memory import GuestMemory

BEHIND = 64 << 10
"""Bytes behind guest memory, in the same mapping, that have to stay as they are."""
LONGEST = 8.0
"""Seconds for one access. Those that wait for the host's disk (a reset) take milliseconds; other programs run too."""
HANG = 120.0
"""Seconds after which a fuzzer that does not get on is stopped, with a traceback of every thread."""


class Guard:
    """Around one run. ``memory`` is made by ``guarded_memory``; None where the device has none."""

    def __init__(self, memory: GuestMemory | None) -> None:
        self.memory = memory
        self.longest = 0.0
        self.failures: list[str] = []
        if memory is not None:
            self._canary = random.Random(7).randbytes(BEHIND)
            memory.write_rom(self._canary)

    def __enter__(self) -> Guard:
        self._hook = threading.excepthook
        threading.excepthook = self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        threading.excepthook = self._hook
        faulthandler.cancel_dump_traceback_later()

    def _failed(self, args: threading.ExceptHookArgs) -> None:
        self.failures.append(f"{args.thread and args.thread.name}: {args.exc_type.__name__}: {args.exc_value}")

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """One access, or a few that belong together."""
        start = time.monotonic()
        yield
        took = time.monotonic() - start
        self.longest = max(self.longest, took)
        assert took < LONGEST, f"an access took {took:.1f} s"

    def check(self) -> None:
        """Nothing of it has happened so far."""
        faulthandler.dump_traceback_later(HANG, exit=True)
        assert self.failures == []
        if self.memory is not None:
            assert os.pread(self.memory.fd, BEHIND, self.memory.rom_offset) == self._canary, "written behind memory"


def guarded_memory(size: int) -> GuestMemory:
    """Guest memory with something behind it."""
    return GuestMemory(size, rom=BEHIND)
