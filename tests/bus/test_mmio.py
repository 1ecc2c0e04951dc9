from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.bus.mmio import MmioBus


class Ram:
    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.data[offset : offset + size] = value.to_bytes(size, "little")


def test_reads_and_writes_find_their_range() -> None:
    bus, low, high = MmioBus(), Ram(0x10), Ram(0x10)
    bus.register(0x2000, 0x10, high, "high")
    bus.register(0x1000, 0x10, low, "low")
    assert bus.write(0x1008, 8, 0x1122334455667788)
    assert bus.write(0x2000, 1, 0xAA)
    assert bus.read(0x1008, 8) == 0x1122334455667788
    assert bus.read(0x100C, 4) == 0x11223344
    assert bus.read(0x2000, 2) == 0x00AA
    assert bus.read(0x1FFF, 1) is None
    assert not bus.write(0x2010, 4, 0)


def test_access_across_neighbours_is_split() -> None:
    bus, low, high = MmioBus(), Ram(0x10), Ram(0x10)
    bus.register(0x1000, 0x10, low, "low")
    bus.register(0x1010, 0x10, high, "high")
    bus.write(0x100E, 4, 0x44332211)
    assert (low.data[14:], high.data[:2]) == (b"\x11\x22", b"\x33\x44")
    assert bus.read(0x100E, 4) == 0x44332211
    assert bus.read(0x101E, 4) == 0xFFFF0000


def test_unregistered_range_is_gone_although_it_was_the_hint() -> None:
    bus = MmioBus()
    bus.register(0x1000, 0x10, Ram(0x10), "a")
    assert bus.read(0x1000, 4) == 0
    bus.unregister(0x1000)
    assert bus.read(0x1000, 4) is None
    with pytest.raises(KeyError):
        bus.unregister(0x1000)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=20))
def test_ranges_never_overlap_and_each_address_has_its_owner(requests: list[tuple[int, int]]) -> None:
    bus = MmioBus()
    owner: dict[int, str] = {}
    for number, (start, count) in enumerate(requests):
        taken = any(address in owner for address in range(start, start + count))
        if taken:
            with pytest.raises(ValueError):
                bus.register(start, count, Ram(count), str(number))
        else:
            bus.register(start, count, Ram(count), str(number))
            owner.update(dict.fromkeys(range(start, start + count), str(number)))
    for address in range(250):
        found = bus.find(address)
        assert (found.name if found else None) == owner.get(address)
