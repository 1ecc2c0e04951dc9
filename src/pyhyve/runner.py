"""Running a machine for a command: its name, signals, the process title, and the line that says how it ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from pyhyve.config import Config
from pyhyve.control.session import Session
from pyhyve.errors import Status
from pyhyve.machine import Machine
from pyhyve.messages import complain
from pyhyve.threads import name_thread

ENDINGS: dict[int, str] = {
    Status.RESET: "the guest reset the machine",
    Status.POWER_OFF: "the machine is powered off",
    Status.HALTED: "the guest halted",
    Status.TRIPLE_FAULT: "the guest ended in a triple fault",
}


class _Signals:
    """SIGTERM and SIGINT from before a machine is built until after it has closed."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self.ended_by: int | None = None
        self._pressed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_args: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        machine = self.machine
        if machine is None or machine.status is not None:
            # Nothing runs yet, or no longer: unwind, which gives everything back.
            raise SystemExit(128 + number)
        # The interrupted code may hold a lock that the button or the end needs: act from the loop.
        machine.loop.call_soon_threadsafe(self._press if number == signal.SIGTERM else self._end, machine, number)

    def _press(self, machine: Machine, number: int) -> None:
        if not self._pressed and machine.power_button():
            self._pressed = True
            complain("bhyve: SIGTERM: pressed the power button; a second one ends the machine at once")
        else:
            self._end(machine, number)

    def _end(self, machine: Machine, number: int) -> None:
        self.ended_by = number
        machine.vcpus.end(128 + number)


def run_machine(config: Config, announce: Callable[[str], None] | None = None) -> int:
    """Build a machine, run it to its end, and return the status for the process.

    ``announce`` is told which backend was chosen and how to leave. Raises a ``PyhyveError`` if it cannot be built.
    """
    with _Signals() as signals, Session(config) as session:
        with Machine(config, loaded=session.guest) as machine:
            if announce is not None:
                announce(f"running on {machine.backend_reason}")
                if sys.stdin is not None and sys.stdin.isatty() and config.get("lpc.com1.path") == "stdio":
                    announce("leave with Ctrl-] q")
            signals.machine = machine
            name_thread(machine.name)
            session.start(machine)
            machine.start()
            status = machine.wait()
            session.stop(status)
        if machine.message:
            print(f"bhyve: {machine.message}", file=sys.stderr)
        elif signals.ended_by is not None:
            print(f"bhyve: ended by {signal.Signals(signals.ended_by).name}", file=sys.stderr)
        elif announce is not None and status in ENDINGS:
            announce(ENDINGS[status])
    return status
