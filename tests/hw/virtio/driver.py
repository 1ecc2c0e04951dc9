"""A virtio driver in Python, for tests: finds a device, sets up rings in memory, hands over buffers."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.hw import registry
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.hw.virtio.device import VirtioDevice
from pyhyve.memory import GuestMemory
from tests.hw.fakes import FakeClock, Lines

MEMORY = 8 << 20
INDIRECT, EVENT_INDEX, VERSION_1, PACKED = 28, 29, 32, 34
NEXT, WRITE, INDIRECT_FLAG = 1, 2, 4
SLOT = 4


class FakeLoop(FakeClock):
    """Descriptors that a test serves by ``serve``."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[int, Callable[[], object]] = {}
        self.writers: dict[int, Callable[[], object]] = {}
        self.soon: deque[Callable[[], object]] = deque()

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        self.writers.pop(fd, None)

    def call_in_loop(self, function: Callable[..., object], *args: object) -> None:
        function(*args)

    def call_soon_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        self.soon.append(partial(function, *args))

    def serve(self, timeout: float = 0) -> bool:
        """Call back for every descriptor that is ready; whether there was one."""
        for _ in range(len(self.soon)):
            self.soon.popleft()()
        reads, writes, _ = select.select(list(self.readers), list(self.writers), [], timeout)
        for fd in reads:
            if fd in self.readers:
                self.readers[fd]()
        for fd in writes:
            if fd in self.writers:
                self.writers[fd]()
        return bool(reads or writes)

    def serve_until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Serve until ``condition`` holds."""
        for _ in range(int(seconds * 100)):
            if condition():
                return
            self.serve(0.01)
        raise AssertionError("it did not happen")


class FakeDoorbells:
    def __init__(self) -> None:
        self.bells: dict[tuple[bool, int, int], list[tuple[int | None, int]]] = {}

    def add_doorbell(self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None) -> None:
        self.bells.setdefault((pio, address, size), []).append((match, fd))

    def remove_doorbell(self, address: int, size: int, fd: int, *, pio: bool = False, match: int | None = None) -> None:
        self.bells[pio, address, size].remove((match, fd))

    def ring(self, pio: bool, address: int, size: int, value: int) -> bool:
        rung = False
        for match, fd in self.bells.get((pio, address, size), ()):
            if match is None or match == value:
                os.eventfd_write(fd, 1)
                rung = True
        return rung


class Rig:
    """A machine with one virtio device in slot 4, made by name or given as a class."""

    def __init__(
        self,
        name: str | type[VirtioDevice],
        options: dict[str, str] | None = None,
        *,
        msix: bool = True,
        memory: GuestMemory | None = None,
    ) -> None:
        self.memory = memory or GuestMemory(MEMORY)
        self.loop = FakeLoop()
        self.lines = Lines()
        self.bells = FakeDoorbells()
        self.pio, self.mmio = PioBus(), MmioBus()
        self.messages: list[tuple[int, int]] = []
        self.interrupted = threading.Event()
        self.environment = Environment(
            loop=self.loop, memory=self.memory, pio=self.pio, mmio=self.mmio, router=self.lines.router,
            send_msi=self._message, doorbells=self.bells, power=lambda reason: None, virtio_msix=msix,
        )  # fmt: skip
        self.bus = PciBus(self.environment, IntxRouting(self.lines.router))
        self.bus.attach()
        made = registry.find(name) if isinstance(name, str) else name
        device: PciFunction = made(self.environment, options or {})
        assert isinstance(device, VirtioDevice)
        self.device = device
        self.bus.add(PciAddress(0, SLOT, 0), device)
        self.config = ECAM_BASE + (SLOT << 15)
        self.bars = {bar.index: bar for bar in device.bars}

    def _message(self, address: int, data: int) -> None:
        self.messages.append((address, data))
        self.interrupted.set()

    def get(self, offset: int, size: int) -> int:
        value = self.mmio.read(self.config + offset, size)
        assert value is not None
        return value

    def put(self, offset: int, size: int, value: int) -> None:
        assert self.mmio.write(self.config + offset, size, value)

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store of the guest's: a doorbell, or an exit."""
        if not self.bells.ring(False, address, size, value):
            self.mmio.write(address, size, value)

    def write_port(self, port: int, size: int, value: int) -> None:
        if not self.bells.ring(True, port, size, value):
            self.pio.write(port, size, value)

    @property
    def pin(self) -> bool:
        return self.lines.level(self.bus.routes()[0].gsi)

    def close(self) -> None:
        self.bus.close()
        self.memory.close()


@dataclass
class Kind:
    """A way to drive a device."""

    legacy: bool = False
    packed: bool = False
    event_index: bool = False
    indirect: bool = False

    def __str__(self) -> str:
        parts = ("legacy" if self.legacy else "modern", "packed" if self.packed else "split")
        return "-".join((*parts, *(name for name in ("event_index", "indirect") if getattr(self, name))))


KINDS = [
    Kind(legacy=True), Kind(legacy=True, event_index=True, indirect=True),
    Kind(), Kind(event_index=True), Kind(indirect=True),
    Kind(packed=True), Kind(packed=True, event_index=True), Kind(packed=True, indirect=True, event_index=True),
]  # fmt: skip


@dataclass
class Used:
    ident: int
    written: int


@dataclass
class DriverQueue:
    """The driver's half of one ring."""

    rig: Rig
    kind: Kind
    size: int
    desc: int
    avail: int
    used: int
    index: int
    next_avail: int = 0
    next_used: int = 0
    avail_wrap: int = 1
    used_wrap: int = 1
    free: list[int] = field(default_factory=list)
    slots: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = list(range(self.size))
        self.table = self.desc + 0x10000  # indirect tables, one a head

    def add(self, buffers: Sequence[tuple[int, int, bool]]) -> int:
        """Make a chain of (address, length, writable) available; what it is known by."""
        memory = self.rig.memory
        if self.kind.indirect and len(buffers) > 1:
            head = self.free[0]
            table = self.table + head * 16 * 64
            for i, (gpa, length, writable) in enumerate(buffers):
                flags = (WRITE if writable else 0) | (NEXT if i < len(buffers) - 1 and not self.kind.packed else 0)
                if self.kind.packed:
                    memory.write(table + 16 * i, struct.pack("<QIHH", gpa, length, 0, flags))
                else:
                    memory.write(table + 16 * i, struct.pack("<QIHH", gpa, length, flags, i + 1))
            return self._place([(table, 16 * len(buffers), INDIRECT_FLAG)])
        return self._place([(gpa, length, WRITE if writable else 0) for gpa, length, writable in buffers])

    def _place(self, entries: list[tuple[int, int, int]]) -> int:
        taken = [self.free.pop(0) for _ in entries]
        head, memory = taken[0], self.rig.memory
        self.slots[head] = taken
        if self.kind.packed:
            first = self.next_avail
            places = []
            for i, (gpa, length, flags) in enumerate(entries):
                flags |= (NEXT if i < len(entries) - 1 else 0) | (1 << 7 if self.avail_wrap else 1 << 15)
                places.append((self.next_avail, struct.pack("<QIHH", gpa, length, head, flags)))
                self.next_avail += 1
                if self.next_avail == self.size:
                    self.next_avail, self.avail_wrap = 0, self.avail_wrap ^ 1
            for place, data in reversed(places):
                memory.write(self.desc + 16 * place, data)
            assert places[0][0] == first
        else:
            for i, (gpa, length, flags) in enumerate(entries):
                following = taken[i + 1] if i + 1 < len(taken) else 0
                flags |= NEXT if i + 1 < len(taken) else 0
                memory.write(self.desc + 16 * taken[i], struct.pack("<QIHH", gpa, length, flags, following))
            memory.write_uint(self.avail + 4 + 2 * (self.next_avail % self.size), head, 2)
            self.next_avail = self.next_avail + 1 & 0xFFFF
            memory.write_uint(self.avail + 2, self.next_avail, 2)
        return head

    def kick(self) -> None:
        """Notify the device."""
        rig = self.rig
        if self.kind.legacy:
            rig.write_port(rig.bars[0].mapped + 16, 2, self.index)
        else:
            rig.write_memory(rig.bars[2].mapped + 0x3000 + 4 * self.index, 2, self.index)

    def wants_kick(self) -> bool:
        """Whether the device asks for a notification of the chain that was just added (§2.7.10, §2.8.10)."""
        memory = self.rig.memory
        if self.kind.packed:
            place, flags = memory.unpack(self.used, "<HH")
            if flags != 2:
                return flags == 0
            last = (self.next_avail - 1) % self.size
            return place & 0x7FFF == last
        if self.kind.event_index:
            return memory.read_uint(self.used + 4 + 8 * self.size, 2) == self.next_avail - 1 & 0xFFFF
        return not memory.read_uint(self.used, 2) & 1

    def suppress(self, on: bool) -> None:
        """Ask for no interrupts, or for one at the next chain."""
        memory = self.rig.memory
        if self.kind.packed:
            if self.kind.event_index and not on:
                memory.write(self.avail, struct.pack("<HH", self.next_used | self.used_wrap << 15, 2))
            else:
                memory.write(self.avail, struct.pack("<HH", 0, int(on)))
        elif self.kind.event_index:
            event = self.next_used - 1 if on else self.next_used
            memory.write_uint(self.avail + 4 + 2 * self.size, event, 2)
        else:
            memory.write_uint(self.avail, int(on), 2)

    def take(self) -> list[Used]:
        """What the device has given back since the last call."""
        memory, got = self.rig.memory, []
        while True:
            if self.kind.packed:
                _, written, ident, flags = memory.unpack(self.desc + 16 * self.next_used, "<QIHH")
                if not (flags >> 7 & 1 == flags >> 15 == self.used_wrap):
                    break
                self.next_used += len(self.slots[ident])
                if self.next_used >= self.size:
                    self.next_used, self.used_wrap = self.next_used - self.size, self.used_wrap ^ 1
            else:
                if memory.read_uint(self.used + 2, 2) == self.next_used:
                    break
                ident, written = memory.unpack(self.used + 4 + 8 * (self.next_used % self.size), "<II")
                self.next_used = self.next_used + 1 & 0xFFFF
            self.free += self.slots.pop(ident)
            got.append(Used(ident, written))
        return got


class Driver:
    """Brings the device of ``rig`` up as a driver does."""

    def __init__(self, rig: Rig, kind: Kind, features: int = 0, *, queues: Sequence[int] | None = None) -> None:
        self.rig = rig
        self.kind = kind
        self.queues: dict[int, DriverQueue] = {}
        self.where = 0x100000
        self.buffers = 0x420000
        rig.put(4, 2, 0x007 if not kind.legacy else 0x003)
        self.status(0)
        self.status(1)
        self.status(3)
        self.features = features
        for bit, wanted in ((INDIRECT, kind.indirect), (EVENT_INDEX, kind.event_index), (PACKED, kind.packed)):
            self.features |= 1 << bit if wanted else 0
        if kind.legacy:
            self.features &= rig.pio.read(self.port(0), 4) or 0
            rig.pio.write(self.port(4), 4, self.features)
        else:
            self.features |= 1 << VERSION_1
            for word in (0, 1):
                self.common(8, 4, word)
                self.common(12, 4, self.features >> 32 * word & 0xFFFFFFFF)
            self.status(11)
            assert self.read_status() == 11
        for index in range(len(rig.device.queues)) if queues is None else queues:
            self.queues[index] = self._queue(index)
        self.status(15 if not kind.legacy else 7)
        rig.loop.serve()

    def port(self, offset: int) -> int:
        return self.rig.bars[0].mapped + offset

    def common(self, offset: int, size: int, value: int | None = None) -> int:
        """Write, or without a value read, the common configuration."""
        address = self.rig.bars[2].mapped + offset
        if value is None:
            return self.rig.mmio.read(address, size) or 0
        self.rig.mmio.write(address, size, value)
        return 0

    def status(self, value: int) -> None:
        if self.kind.legacy:
            self.rig.pio.write(self.port(18), 1, value)
        else:
            self.common(20, 1, value)

    def read_status(self) -> int:
        return self.rig.pio.read(self.port(18), 1) if self.kind.legacy else self.common(20, 1)

    def _queue(self, index: int) -> DriverQueue:
        rig, desc = self.rig, self.where
        self.where += 0x40000
        if self.kind.legacy:
            rig.pio.write(self.port(14), 2, index)
            size = rig.pio.read(self.port(12), 2) or 0
            avail = desc + 16 * size
            used = avail + 6 + 2 * size + 4095 & ~4095
            rig.pio.write(self.port(8), 4, desc >> 12)
        else:
            self.common(22, 2, index)
            size = self.common(24, 2)
            avail, used = desc + 0x8000, desc + 0xC000
            for offset, value in ((32, desc), (40, avail), (48, used)):
                self.common(offset, 4, value & 0xFFFFFFFF)
                self.common(offset + 4, 4, value >> 32)
            self.common(28, 2, 1)
            assert self.common(28, 2) == 1
        return DriverQueue(rig, self.kind, size, desc, avail, used, index)

    def buffer(self, size: int, data: bytes = b"") -> int:
        """A place in guest memory."""
        gpa = self.buffers
        self.buffers += (size + 63) & ~63
        if self.buffers > MEMORY:
            gpa, self.buffers = 0x400000, 0x400000 + ((size + 63) & ~63)
        if data:
            self.rig.memory.write(gpa, data)
        return gpa

    def config(self, offset: int, size: int) -> int:
        """Read the device's configuration."""
        if self.kind.legacy:
            start = 24 if self.rig.device.msix is not None and self.rig.device.msix.enabled else 20
            return self.rig.pio.read(self.port(start + offset), size) or 0
        return self.rig.mmio.read(self.rig.bars[2].mapped + 0x2000 + offset, size) or 0

    def use_msix(self) -> None:
        """One vector a queue, and the last for configuration changes."""
        rig, vectors = self.rig, len(self.rig.device.queues) + 1
        offset = rig.get(0x34, 1)
        while rig.get(offset, 1) != 0x11:
            offset = rig.get(offset + 1, 1)
        rig.put(4, 2, 0x407)
        rig.put(offset + 2, 2, 0x8000)
        for vector in range(vectors):
            for i, value in enumerate((0xFEE00000, 0, 0x30 + vector, 0)):
                rig.mmio.write(rig.bars[1].mapped + 16 * vector + 4 * i, 4, value)
        for index in range(vectors - 1):
            if self.kind.legacy:
                rig.pio.write(self.port(14), 2, index)
                rig.pio.write(self.port(22), 2, index)
            else:
                self.common(22, 2, index)
                self.common(26, 2, index)
        if self.kind.legacy:
            rig.pio.write(self.port(20), 2, vectors - 1)
        else:
            self.common(16, 2, vectors - 1)
