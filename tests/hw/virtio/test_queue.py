"""Chains that go back together: the driver, which runs at the same time, finds none of them or all."""

from __future__ import annotations

import pytest

from pyhyve.hw.virtio.queue import Chain, Layout, PackedQueue, SplitQueue
from pyhyve.memory import GuestMemory

RING = Layout(8, 0x1000, 0x2000, 0x3000)


class Watched:
    """The words of a ring, and the order in which they are written."""

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.written: list[int] = []

    def __getitem__(self, place: int) -> int:
        return int(self.words[place])

    def __setitem__(self, place: int, value: int) -> None:
        self.written.append(place)
        self.words[place] = value


@pytest.fixture
def memory():
    memory = GuestMemory(1 << 20)
    yield memory
    memory.close()


def test_a_split_rings_index_moves_once_over_all_of_them(memory):
    ring = SplitQueue(memory, RING, event_index=False)
    ring._used_words = watched = Watched(ring._used_words)
    ring.in_flight = 3
    ring.push_together([(Chain(ring, number, 1, [], [], []), 0) for number in (5, 3, 7)])
    assert watched.written == [1]
    assert memory.unpack(RING.device, "<HH") == (0, 3)
    assert [memory.unpack(RING.device + 4 + 8 * at, "<II") for at in range(3)] == [(5, 0), (3, 0), (7, 0)]
    assert ring.in_flight == 0


def test_a_packed_rings_first_descriptor_is_marked_last(memory):
    ring = PackedQueue(memory, RING, event_index=False)
    ring._words = watched = Watched(ring._words)
    ring.in_flight, ring.next_used = 3, 6
    ring.push_together([(Chain(ring, number, 1, [], [], []), 0) for number in (5, 3, 7)])
    flags = [8 * descriptor + 7 for descriptor in (6, 7, 0)]
    assert watched.written == [flags[1], flags[2], flags[0]]
    # Used: both flags equal to the wrap counter, which turns over behind the last entry (virtio 1.2 §2.8.1).
    assert [watched[place] >> 7 & 1 for place in flags] == [1, 1, 0]
    assert [watched[place] >> 15 for place in flags] == [1, 1, 0]
    assert [memory.unpack(RING.descriptors + 16 * at + 12, "<H") for at in (6, 7, 0)] == [(5,), (3,), (7,)]
    assert (ring.next_used, ring.used_wrap, ring.in_flight) == (1, 0, 0)
