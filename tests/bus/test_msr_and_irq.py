from __future__ import annotations

import pytest

from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.msr import MsrBus


def test_msr_reads_and_writes() -> None:
    bus, written = MsrBus(), []
    bus.register(0x10, lambda: 7, written.append, "tsc")
    bus.register(0x8B, lambda: 1, None, "microcode")
    assert (bus.read(0x10), bus.read(0x11)) == (7, None)
    assert bus.write(0x10, 9)
    assert not bus.write(0x8B, 9), "read-only"
    assert not bus.write(0x11, 9)
    bus.register(0x79, None, written.append, "write-only")
    assert bus.read(0x79) is None
    assert written == [9]
    with pytest.raises(ValueError, match="tsc"):
        bus.register(0x10, lambda: 0, None, "again")


def test_shared_line_is_the_or_of_its_holders() -> None:
    events: list[tuple[int, bool]] = []
    router = IrqRouter(lambda gsi, level: events.append((gsi, level)))
    a, b = router.line(5, "a"), router.line(5, "b")
    a.raise_()
    a.raise_()
    b.raise_()
    a.lower()
    assert events == [(5, True)]
    assert router.level(5)
    b.lower()
    b.lower()
    assert events == [(5, True), (5, False)]


def test_pulse_is_one_edge() -> None:
    events: list[tuple[int, bool]] = []
    router = IrqRouter(lambda gsi, level: events.append((gsi, level)))
    line = router.line(0, "pit")
    line.pulse()
    line.pulse()
    assert events == [(0, True), (0, False)] * 2


def test_released_line_lets_go() -> None:
    events: list[tuple[int, bool]] = []
    router = IrqRouter(lambda gsi, level: events.append((gsi, level)))
    line = router.line(20, "hpet")
    line.raise_()
    router.release(line)
    assert events[-1] == (20, False)
    assert router.lines(20) == []


def test_redeliver_tells_every_level() -> None:
    levels: dict[int, bool] = {}
    router = IrqRouter(levels.__setitem__)
    router.line(9, "sci").raise_()
    levels.clear()
    router.redeliver()
    assert [gsi for gsi, level in levels.items() if level] == [9]
    assert len(levels) == 24


@pytest.mark.parametrize("gsi", [-1, 24])
def test_unknown_gsi_is_refused(gsi: int) -> None:
    with pytest.raises(ValueError):
        IrqRouter(lambda g, level: None).line(gsi, "x")
