from __future__ import annotations

import pytest

from pyhyve.bus.pio import PioBus


class Recorder:
    """Reads as offset + 0x10 * size, and remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return offset + 0x10 * size

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))


@pytest.fixture
def bus() -> PioBus:
    return PioBus()


def test_access_goes_to_the_range_with_its_offset(bus: PioBus) -> None:
    device = Recorder()
    bus.register(0x100, 8, device, "a")
    assert bus.read(0x103, 1) == 0x13
    assert bus.write(0x104, 4, 0xDEADBEEF)
    assert device.calls == [(3, 1), (4, 4, 0xDEADBEEF)]


def test_nobody_there(bus: PioBus) -> None:
    assert bus.read(0x100, 1) is None
    assert bus.read(0x100, 4) is None
    assert not bus.write(0x100, 1, 0)
    assert not bus.write(0x100, 2, 0)


def test_access_over_the_end_is_split_in_bytes(bus: PioBus) -> None:
    device = Recorder()
    bus.register(0x100, 2, device, "a")
    assert bus.read(0x101, 2) == 0xFF11
    assert bus.write(0x100, 4, 0x44332211)
    assert device.calls == [(1, 1), (0, 1, 0x11), (1, 1, 0x22)]


def test_access_that_begins_before_a_range_reaches_it(bus: PioBus) -> None:
    device = Recorder()
    bus.register(0x100, 2, device, "a")
    assert bus.read(0xFF, 2) == 0x10FF


def test_access_wider_than_the_device_is_split(bus: PioBus) -> None:
    device = Recorder()
    bus.register(0x100, 8, device, "a", width=1)
    assert bus.read(0x100, 2) == 0x1110
    assert device.calls == [(0, 1), (1, 1)]


def test_whole_range_takes_accesses_past_its_end(bus: PioBus) -> None:
    address, neighbour = Recorder(), Recorder()
    bus.register(0xCF8, 1, address, "a", whole=True)
    bus.register(0xCF9, 1, neighbour, "b")
    bus.write(0xCF8, 4, 0x80000000)
    bus.write(0xCF9, 1, 6)
    assert address.calls == [(0, 4, 0x80000000)]
    assert neighbour.calls == [(0, 1, 6)]


def test_access_at_the_last_port_wraps(bus: PioBus) -> None:
    device = Recorder()
    bus.register(0, 1, device, "a")
    assert bus.read(0xFFFF, 2) == 0x10FF


@pytest.mark.parametrize(("port", "count"), [(0x100, 8), (0xFF, 2), (0x107, 1)])
def test_overlap_is_refused(bus: PioBus, port: int, count: int) -> None:
    bus.register(0x100, 8, Recorder(), "first")
    with pytest.raises(ValueError, match="first"):
        bus.register(port, count, Recorder(), "second")


@pytest.mark.parametrize(("port", "count"), [(0xFFFF, 2), (-1, 1), (0, 0)])
def test_range_outside_the_space_is_refused(bus: PioBus, port: int, count: int) -> None:
    with pytest.raises(ValueError):
        bus.register(port, count, Recorder(), "a")


def test_unregister_frees_the_ports(bus: PioBus) -> None:
    bus.register(0x100, 8, Recorder(), "a")
    bus.unregister(0x100)
    assert bus.read(0x100, 1) is None
    bus.register(0x100, 4, Recorder(), "b")
    assert [r.name for r in bus.ranges()] == ["b"]
    with pytest.raises(KeyError):
        bus.unregister(0x102)


def test_ranges_of_one_handler_share_a_lock(bus: PioBus) -> None:
    one, other = Recorder(), Recorder()
    bus.register(0x100, 1, one, "a")
    bus.register(0x200, 1, one, "b")
    bus.register(0x300, 1, other, "c")
    a, b, c = bus.ranges()
    assert a.lock is b.lock
    assert a.lock is not c.lock
