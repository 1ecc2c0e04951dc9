"""Virtqueues: rings in guest memory through which a driver hands buffers to a device and gets them back.

Document: Virtual I/O Device (VIRTIO) 1.2, §2.7 (split virtqueues) and §2.8 (packed virtqueues).

``pop`` takes the next chain of buffers that the driver made available: memoryviews on guest memory, first those that
the device reads, then those that it writes. ``push`` gives a chain back. Neither copies data. ``wants_interrupt`` says
whether the driver is to be told of what was pushed since it was last asked. What was written to buffers is told to
``GuestMemory.written``, for it may be code; what is written to the rings is not.

Everything in the rings is written by the guest, at any moment, by other CPUs too. A value is read once and checked
before use; the number of chains in flight and the length of a chain are bounded by the size of the ring. What cannot
be is ``RingError``: the device then stops and asks its driver for a reset.

x86 keeps the order of loads and of stores; only a load behind a store to another place may pass it. Where that
matters ``_fence`` stands between them.
"""

from __future__ import annotations

import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyhyve.lifecycle import State, restore_fields, save_fields
from pyhyve.memory import GuestMemory, OutsideMemory

MAXIMUM = 32768
MAX_SEGMENTS = 2048
"""Buffers of one chain, where an indirect table could hold more."""

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
NO_INTERRUPT = NO_NOTIFY = 1
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESCRIPTOR = 0, 1, 2

_ENTRY = 16
_split_descriptor = struct.Struct("<QIHH")  # address, length, flags, next
_packed_descriptor = struct.Struct("<QIHH")  # address, length, id, flags
_used_element = struct.Struct("<II")
_packed_used = struct.Struct("<IH")  # length, id
_event = struct.Struct("<HH")  # offset and wrap counter, flags
_lock = threading.Lock()


class RingError(Exception):
    """The guest wrote something into a ring that cannot be."""


def _fence() -> None:
    """Let no later load be done before an earlier store: taking a lock is an atomic operation, hence a full fence."""
    with _lock:
        pass


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the driver put a queue: guest-physical addresses of its three parts, and the number of entries."""

    size: int
    descriptors: int
    driver: int
    device: int

    @classmethod
    def legacy(cls, size: int, address: int) -> Layout:
        """One contiguous block, as the legacy interface has it (§2.7.2)."""
        driver = address + _ENTRY * size
        device = (driver + 6 + 2 * size + 4095) & ~4095
        return cls(size, address, driver, device)


@dataclass(slots=True, eq=False)
class Chain:
    """Buffers that the driver hands over together."""

    queue: Queue
    ident: int
    """What the driver knows it by."""
    slots: int
    """Entries of a packed ring that it takes."""
    readable: list[memoryview]
    writable: list[memoryview]
    places: list[int]
    """Guest-physical addresses of ``writable``."""

    @property
    def readable_size(self) -> int:
        return sum(map(len, self.readable))

    @property
    def writable_size(self) -> int:
        return sum(map(len, self.writable))

    def read(self, size: int = -1) -> bytes:
        """The first ``size`` bytes of the readable buffers, fewer if there are fewer; all by default."""
        data = b"".join(self.readable)
        return data if size < 0 else data[:size]

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Fill the writable buffers from their start; how much fitted."""
        at = 0
        for buffer in self.writable:
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
            if at == len(data):
                break
        return at


class Queue(ABC):
    """What both kinds of ring have in common. Raises ``RingError`` where the parts do not lie in memory."""

    def __init__(self, memory: GuestMemory, layout: Layout, *, event_index: bool) -> None:
        if not 0 < layout.size <= MAXIMUM:
            raise RingError(f"a queue of {layout.size} entries")
        self.memory = memory
        self.layout = layout
        self.size = layout.size
        self.event_index = event_index
        self.in_flight = 0
        """Chains that the device has and has not pushed."""
        self._low = memory.view(0, memory.low_size)
        self._low_size = memory.low_size
        self._descriptors = self._part(layout.descriptors, _ENTRY * layout.size, 16)

    @abstractmethod
    def pop(self) -> Chain | None:
        """The next chain, or None. Raises ``RingError``."""

    @abstractmethod
    def unpop(self, chain: Chain) -> None:
        """Leave ``chain``, the last one popped and not pushed, for later: the next ``pop`` gives it again."""

    @abstractmethod
    def push(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back with ``written`` bytes of its writable buffers filled."""

    @abstractmethod
    def push_together(self, used: Sequence[tuple[Chain, int]]) -> None:
        """Give several chains back that the driver must see all at once, with the bytes written to each."""

    def forget(self, chain: Chain) -> None:
        """The driver has reset the device: ``chain`` is not given back. The queue is not used any more either."""
        self.in_flight -= 1

    @abstractmethod
    def wants_interrupt(self) -> bool:
        """Whether to interrupt the driver for what was pushed since the last call."""

    @abstractmethod
    def stop_notifications(self) -> None:
        """Tell the driver that the device looks at the ring by itself."""

    @abstractmethod
    def want_notifications(self) -> bool:
        """Ask for a notification at the next chain. True if there is one already, and none may come."""

    @abstractmethod
    def save(self) -> State:
        """How far the device is."""

    @abstractmethod
    def restore(self, state: Mapping[str, object]) -> None:
        """Be as far as a saved queue."""

    def _part(self, gpa: int, length: int, alignment: int) -> memoryview:
        if gpa % alignment:
            raise RingError(f"a part of a queue at {gpa:#x}")
        return self._view(gpa, length)

    def _view(self, gpa: int, length: int) -> memoryview:
        end = gpa + length
        if end <= self._low_size:
            return self._low[gpa:end]
        try:
            return self.memory.view(gpa, length)
        except OutsideMemory as error:
            raise RingError(str(error)) from None

    def _indirect(self, gpa: int, length: int) -> memoryview:
        if length % _ENTRY or not 0 < length <= MAX_SEGMENTS * _ENTRY:
            raise RingError(f"an indirect table of {length} bytes")
        return self._view(gpa, length)

    def _written(self, chain: Chain, written: int) -> None:
        """Data has arrived in memory: code translated from there is stale."""
        start = end = 0  # neighbours are told of together
        for gpa, buffer in zip(chain.places, chain.writable, strict=True):
            if written <= 0:
                break
            length = len(buffer)
            written -= length
            if gpa == end:
                end += length
                continue
            if end > start:
                self.memory.written(start, end - start)
            start, end = gpa, gpa + length
        if end > start:
            self.memory.written(start, end - start)


class SplitQueue(Queue):
    """Descriptor table, available ring and used ring."""

    def __init__(self, memory: GuestMemory, layout: Layout, *, event_index: bool) -> None:
        super().__init__(memory, layout, event_index=event_index)
        size = layout.size
        if size & (size - 1):
            raise RingError(f"a split queue of {size} entries")
        self._avail = self._part(layout.driver, 6 + 2 * size, 2).cast("H")
        used = self._part(layout.device, 6 + 8 * size, 4)
        self._used = used
        self._used_words = used[: 6 + 8 * size].cast("H")
        self._avail_event = 2 + 4 * size  # its place in the words of the used ring
        self.next_avail = 0
        self.next_used = 0
        self.signalled = 0
        self._avail_index = 0  # the driver's index, when it was last read

    def pop(self) -> Chain | None:
        position = self.next_avail
        if position == self._avail_index:
            self._avail_index = index = self._avail[1]
            if position == index:
                return None
            if index - position & 0xFFFF > self.size:
                raise RingError(f"{index - position & 0xFFFF} chains available in a queue of {self.size}")
        if self.in_flight >= self.size:
            raise RingError("more chains than the queue has entries")
        head = self._avail[2 + (position & self.size - 1)]
        chain = self._walk(head)
        self.next_avail = position + 1 & 0xFFFF
        self.in_flight += 1
        return chain

    def _walk(self, head: int) -> Chain:
        table, limit, index = self._descriptors, self.size, head
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        places: list[int] = []
        low, low_size = self._low, self._low_size
        unpack, seen, direct = _split_descriptor.unpack_from, 0, True
        while True:
            if index >= limit or seen >= limit:
                raise RingError(f"descriptor {index} in a table of {limit}, {seen} of the chain before it")
            gpa, length, flags, following = unpack(table, index * 16)
            if flags & INDIRECT:
                if not direct or flags & NEXT:
                    raise RingError("an indirect table inside a chain")
                table, index, seen, direct = self._indirect(gpa, length), 0, 0, False
                limit = length // 16
                continue
            seen += 1
            if length:
                end = gpa + length
                view = low[gpa:end] if end <= low_size else self._view(gpa, length)
                if flags & WRITE:
                    writable.append(view)
                    places.append(gpa)
                elif writable:
                    raise RingError("a readable buffer behind a writable one")
                else:
                    readable.append(view)
            if not flags & NEXT:
                return Chain(self, head, 1, readable, writable, places)
            index = following

    def unpop(self, chain: Chain) -> None:
        self.next_avail = self.next_avail - 1 & 0xFFFF
        self.in_flight -= 1

    def push(self, chain: Chain, written: int) -> None:
        if written:
            self._written(chain, written)
        position = self.next_used
        _used_element.pack_into(self._used, 4 + 8 * (position & self.size - 1), chain.ident, written)
        self.next_used = position = position + 1 & 0xFFFF
        self._used_words[1] = position
        self.in_flight -= 1

    def push_together(self, used: Sequence[tuple[Chain, int]]) -> None:
        position = self.next_used
        for chain, written in used:
            if written:
                self._written(chain, written)
            _used_element.pack_into(self._used, 4 + 8 * (position & self.size - 1), chain.ident, written)
            position = position + 1 & 0xFFFF
        self.next_used = self._used_words[1] = position
        self.in_flight -= len(used)

    def wants_interrupt(self) -> bool:
        _fence()
        new, old = self.next_used, self.signalled
        self.signalled = new
        if new == old:
            return False
        if self.event_index:
            return new - self._avail[2 + self.size] - 1 & 0xFFFF < new - old & 0xFFFF
        return not self._avail[0] & NO_INTERRUPT

    def stop_notifications(self) -> None:
        if not self.event_index:  # with it, the event lies behind and nothing rings
            self._used_words[0] = NO_NOTIFY

    def want_notifications(self) -> bool:
        if self.event_index:
            self._used_words[self._avail_event] = self.next_avail
        else:
            self._used_words[0] = 0
        _fence()
        return self._avail[1] != self.next_avail

    def save(self) -> State:
        return save_fields(self, ("next_avail", "next_used", "signalled"))

    def restore(self, state: Mapping[str, object]) -> None:
        restore_fields(self, ("next_avail", "next_used", "signalled"), state)
        for name in ("next_avail", "next_used", "signalled"):
            setattr(self, name, getattr(self, name) & 0xFFFF)
        self._avail_index = self.next_avail


class PackedQueue(Queue):
    """One ring of descriptors that both sides write, and a word of event suppression for each."""

    def __init__(self, memory: GuestMemory, layout: Layout, *, event_index: bool) -> None:
        super().__init__(memory, layout, event_index=event_index)
        self._words = self._descriptors.cast("H")
        self._driver_event = self._part(layout.driver, 4, 4)
        self._device_event = self._part(layout.device, 4, 4)
        self.next_avail = 0
        self.avail_wrap = 1
        self.next_used = 0
        self.used_wrap = 1
        self.unsignalled = 0  # entries used since the driver was last told
        self._occupied = 0  # entries of the chains in flight

    def _available(self) -> bool:
        flags = self._words[8 * self.next_avail + 7]
        wrap = self.avail_wrap
        return flags >> 7 & 1 == wrap and flags >> 15 != wrap

    def pop(self) -> Chain | None:
        index = self.next_avail
        flags = self._words[8 * index + 7]
        wrap = self.avail_wrap
        if flags >> 7 & 1 != wrap or flags >> 15 == wrap:
            return None
        table, limit = self._descriptors, self.size
        unpack, seen, slots, single = _packed_descriptor.unpack_from, 0, 0, True
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        places: list[int] = []
        last = False
        room = self.size - self._occupied
        while True:
            if seen >= limit:
                raise RingError(f"a chain of more than {limit} descriptors")
            gpa, length, ident_here, flags = unpack(table, index * 16)
            if single:
                slots += 1
                if slots > room:
                    raise RingError("more chains than the queue has entries")
                ident = ident_here
                if flags & INDIRECT:
                    if flags & NEXT or slots > 1:
                        raise RingError("an indirect table inside a chain")
                    table, index, single = self._indirect(gpa, length), 0, False
                    limit = length // 16
                    continue
                last = not flags & NEXT
            else:
                last = seen == limit - 1
            seen += 1
            if length:
                view = self._view(gpa, length)
                if flags & WRITE:
                    writable.append(view)
                    places.append(gpa)
                elif writable:
                    raise RingError("a readable buffer behind a writable one")
                else:
                    readable.append(view)
            if last:
                break
            index += 1
            if single and index == self.size:
                index = 0
        self.next_avail += slots
        if self.next_avail >= self.size:
            self.next_avail -= self.size
            self.avail_wrap ^= 1
        self._occupied += slots
        self.in_flight += 1
        return Chain(self, ident, slots, readable, writable, places)

    def unpop(self, chain: Chain) -> None:
        self.next_avail -= chain.slots
        if self.next_avail < 0:
            self.next_avail += self.size
            self.avail_wrap ^= 1
        self._occupied -= chain.slots
        self.in_flight -= 1

    def push(self, chain: Chain, written: int) -> None:
        index = self.next_used
        self._words[8 * index + 7] = self._take_used(chain, written)

    def push_together(self, used: Sequence[tuple[Chain, int]]) -> None:
        # The driver looks at the first of them: its flags are written when those behind it are there.
        (chain, written), *others = used
        first, flags = self.next_used, self._take_used(chain, written)
        for each, length in others:
            at = self.next_used
            self._words[8 * at + 7] = self._take_used(each, length)
        self._words[8 * first + 7] = flags

    def _take_used(self, chain: Chain, written: int) -> int:
        """Write all of the next used descriptor but its flags, which are the answer."""
        if written:
            self._written(chain, written)
        index = self.next_used
        _packed_used.pack_into(self._descriptors, index * 16 + 8, written, chain.ident)
        flags = AVAIL | USED if self.used_wrap else 0
        self.next_used = index + chain.slots
        if self.next_used >= self.size:
            self.next_used -= self.size
            self.used_wrap ^= 1
        self.unsignalled += chain.slots
        self._occupied -= chain.slots
        self.in_flight -= 1
        return flags | WRITE if written else flags

    def wants_interrupt(self) -> bool:
        _fence()
        used, self.unsignalled = self.unsignalled, 0
        if not used:
            return False
        place, flags = _event.unpack_from(self._driver_event)
        if flags == EVENT_DESCRIPTOR and self.event_index:
            offset = place & 0x7FFF
            if place >> 15 != self.used_wrap:
                offset -= self.size
            return int(self.next_used - offset - 1 & 0xFFFF) < used
        return int(flags) != EVENT_DISABLE

    def stop_notifications(self) -> None:
        _event.pack_into(self._device_event, 0, 0, EVENT_DISABLE)

    def want_notifications(self) -> bool:
        if self.event_index:
            _event.pack_into(self._device_event, 0, self.next_avail | self.avail_wrap << 15, EVENT_DESCRIPTOR)
        else:
            _event.pack_into(self._device_event, 0, 0, EVENT_ENABLE)
        _fence()
        return self._available()

    def save(self) -> State:
        return save_fields(self, ("next_avail", "avail_wrap", "next_used", "used_wrap", "unsignalled"))

    def restore(self, state: Mapping[str, object]) -> None:
        restore_fields(self, ("next_avail", "avail_wrap", "next_used", "used_wrap", "unsignalled"), state)
        self.next_avail %= self.size
        self.next_used %= self.size
        self.avail_wrap &= 1
        self.used_wrap &= 1
