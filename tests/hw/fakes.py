"""Stand-ins for the machine around a chip: a clock that a test moves, and interrupt lines that remember."""

from __future__ import annotations

from collections.abc import Callable

from pyhyve.bus.irq import IrqRouter


class FakeTimer:
    def __init__(self, clock: FakeClock, callback: Callable[[], None]) -> None:
        self.clock = clock
        self.callback = callback
        self.deadline: int | None = None

    def arm_at(self, deadline_ns: int) -> None:
        self.deadline = deadline_ns

    def arm_in(self, delay_ns: int) -> None:
        self.deadline = self.clock.now + delay_ns

    def cancel(self) -> None:
        self.deadline = None


class FakeClock:
    """Time stands still until ``advance``, which fires the timers on the way at their deadlines."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.timers: list[FakeTimer] = []

    def now_ns(self) -> int:
        return self.now

    def timer(self, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self, callback)
        self.timers.append(timer)
        return timer

    def advance(self, ns: int) -> None:
        end = self.now + ns
        while True:
            due = [t for t in self.timers if t.deadline is not None and t.deadline <= end]
            if not due:
                break
            timer = min(due, key=lambda t: t.deadline)
            self.now = max(self.now, timer.deadline)
            timer.deadline = None
            timer.callback()
        self.now = end


class Lines:
    """An interrupt router that records every change of every GSI."""

    def __init__(self) -> None:
        self.events: list[tuple[int, bool]] = []
        self.router = IrqRouter(lambda gsi, level: self.events.append((gsi, level)))

    def level(self, gsi: int) -> bool:
        return self.router.level(gsi)

    def edges(self, gsi: int) -> int:
        """How often ``gsi`` has become active."""
        return self.events.count((gsi, True))


class FakeChar:
    def __init__(self) -> None:
        self.sent = bytearray()
        self.paused = False
        self.on_input: Callable[[bytes], None] | None = None

    def start(self, on_input: Callable[[bytes], None]) -> None:
        self.on_input = on_input

    def write(self, data: bytes) -> None:
        self.sent += data

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
