"""Rings and registers through the eyes of a driver, on a device that turns bytes around."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest

from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bus import PciAddress
from pyhyve.hw.virtio.device import DRAIN_SECONDS, VirtioDevice
from pyhyve.hw.virtio.queue import Chain, Queue
from tests.hw.virtio.driver import KINDS, Driver, DriverQueue, Kind, Rig

NEEDS_RESET = 64


class Mirror(VirtioDevice):
    """Answers each chain with its bytes reversed; keeps them back while ``hold`` is set."""

    device_id, transitional_id, pci_class = 4, 0x1005, (0xFF, 0x00)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        super().__init__(environment, options, queues=[16, 8], features=1 << 5, config=bytes(range(1, 13)))
        self.hold = False
        self.held: list[Chain] = []
        self.resets = 0

    def handle(self, index: int, ring: Queue) -> None:
        while (chain := ring.pop()) is not None:
            if self.hold:
                self.held.append(chain)
            else:
                ring.push(chain, chain.write(chain.read()[::-1]))

    def cancel(self, rings: Sequence[Queue]) -> None:
        for chain in [chain for chain in self.held if chain.queue in rings]:
            chain.queue.forget(chain)
            self.held.remove(chain)

    def device_reset(self) -> None:
        self.resets += 1


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(Mirror)
    yield rig
    rig.close()


@pytest.fixture(params=KINDS, ids=str)
def driver(request: pytest.FixtureRequest, rig: Rig) -> Driver:
    return Driver(rig, request.param)


def exchange(driver: Driver, queue: DriverQueue, data: bytes, parts: int = 1) -> bytes:
    """Hand over ``data`` in ``parts`` pieces, each way, and return the answer."""
    size = len(data) // parts
    buffers = []
    for i in range(parts):
        piece = data[i * size : (i + 1) * size if i < parts - 1 else None]
        buffers.append((driver.buffer(len(piece), piece), len(piece), False))
    into = [(driver.buffer(length), length, True) for _, length, _ in buffers]
    head = queue.add([*buffers, *into])
    queue.kick()
    driver.rig.loop.serve()
    (used,) = queue.take()
    assert (used.ident, used.written) == (head, len(data))
    return b"".join(driver.rig.memory.read(gpa, length) for gpa, length, _ in into)


def test_chains_go_there_and_back_round_and_round_the_ring(driver: Driver) -> None:
    queue = driver.queues[0]
    for turn in range(100):
        data = bytes((turn + i) & 0xFF for i in range(40 + turn))
        assert exchange(driver, queue, data, parts=1 + turn % 3) == data[::-1]


def test_many_chains_at_once_end_in_any_order(driver: Driver) -> None:
    device = driver.rig.device
    assert isinstance(device, Mirror)
    device.hold = True
    queue = driver.queues[1]
    for turn in range(20):
        heads = {}
        for i in range(4):
            gpa = driver.buffer(16)
            heads[queue.add([(driver.buffer(4, bytes([i, turn, 1, 2])), 4, False), (gpa, 16, True)])] = (gpa, i)
        queue.kick()
        driver.rig.loop.serve()
        held, device.held = device.held, []
        assert len(held) == 4
        for chain in (held[2], held[0], held[3], held[1]):
            device.complete(chain, chain.write(chain.read()[::-1]))
        used = queue.take()
        assert [u.written for u in used] == [4] * 4
        assert {u.ident for u in used} == set(heads)
        for gpa, i in heads.values():
            assert driver.rig.memory.read(gpa, 4) == bytes([2, 1, turn, i])


def test_the_driver_is_interrupted_and_acknowledges(driver: Driver) -> None:
    queue, rig = driver.queues[0], driver.rig
    queue.suppress(False)
    exchange(driver, queue, b"hello")
    assert rig.pin
    isr = rig.pio.read(driver.port(19), 1) if driver.kind.legacy else rig.mmio.read(rig.bars[2].mapped + 0x1000, 1)
    assert isr == 1
    assert not rig.pin
    assert rig.pio.read(driver.port(19), 1) == 0


def test_a_driver_that_wants_no_interrupt_gets_none(driver: Driver) -> None:
    queue, rig = driver.queues[0], driver.rig
    for turn in range(40):
        queue.suppress(turn % 2 == 1)
        exchange(driver, queue, b"hello")
        assert rig.pin == (turn % 2 == 0), turn
        rig.pio.read(driver.port(19), 1)


def test_each_queue_has_its_msix_vector(driver: Driver) -> None:
    rig = driver.rig
    driver.use_msix()
    for index in (1, 0):
        driver.queues[index].suppress(False)
        exchange(driver, driver.queues[index], b"x")
    assert rig.messages == [(0xFEE00000, 0x31), (0xFEE00000, 0x30)]
    assert not rig.pin
    rig.device.announce_config()
    assert rig.messages[-1] == (0xFEE00000, 0x32)


def test_a_vector_that_is_not_there_reads_back_as_none(driver: Driver) -> None:
    driver.use_msix()
    if driver.kind.legacy:
        driver.rig.pio.write(driver.port(22), 2, 3)
        assert driver.rig.pio.read(driver.port(22), 2) == 0xFFFF
    else:
        driver.common(16, 2, 3)
        assert driver.common(16, 2) == 0xFFFF


def test_the_device_asks_for_a_notification_when_it_has_seen_everything(driver: Driver) -> None:
    queue = driver.queues[0]
    for _ in range(30):
        queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
        if not driver.kind.indirect:
            assert driver.kind.packed or queue.wants_kick()
        queue.kick()
        driver.rig.loop.serve()
        assert len(queue.take()) == 1


def test_a_notification_is_a_doorbell_and_runs_nothing_by_itself(driver: Driver) -> None:
    queue = driver.queues[0]
    queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
    queue.kick()
    assert queue.take() == []
    driver.rig.loop.serve()
    assert len(queue.take()) == 1


def test_doorbells_move_with_their_bars(driver: Driver) -> None:
    rig = driver.rig
    rig.put(0x10, 4, 0x4000)
    rig.put(0x18, 4, 0xC8000000)
    assert exchange(driver, driver.queues[1], b"moved") == b"devom"
    addresses = {address for _, address, _ in (key for key, value in rig.bells.bells.items() if value)}
    assert addresses == {0x4010, 0xC8003000, 0xC8003004}
    rig.put(4, 2, 4)
    assert not any(rig.bells.bells.values())


def test_a_notification_that_is_no_doorbell_comes_by_its_handler(driver: Driver) -> None:
    rig, queue = driver.rig, driver.queues[1]
    queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
    if driver.kind.legacy:
        rig.pio.write(driver.port(16), 2, 1)
    else:
        rig.write_memory(rig.bars[2].mapped + 0x3004, 4, 1)
    rig.loop.serve()
    assert len(queue.take()) == 1


def test_resetting_in_the_middle_of_a_request_gives_nothing_back(driver: Driver) -> None:
    device = driver.rig.device
    assert isinstance(device, Mirror)
    device.hold = True
    queue = driver.queues[0]
    queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
    queue.kick()
    driver.rig.loop.serve()
    assert len(device.held) == 1
    driver.status(0)
    assert (driver.read_status(), device.held, queue.take()) == (0, [], [])
    queue.kick()
    driver.rig.loop.serve()
    device.hold = False
    again = Driver(driver.rig, driver.kind)
    for part in (queue.avail, queue.used):
        driver.rig.memory.write(part, bytes(0x1000))
    driver.rig.memory.write(queue.desc, bytes(0x100))
    again = Driver(driver.rig, driver.kind)
    assert exchange(again, again.queues[0], b"again") == b"niaga"


def test_one_queue_is_reset_and_set_up_in_another_way(driver: Driver) -> None:
    if driver.kind.legacy:
        pytest.skip("the legacy interface has no such register")
    device, (first, second) = driver.rig.device, (driver.queues[0], driver.queues[1])
    assert isinstance(device, Mirror)

    def reset(index: int) -> None:
        driver.common(22, 2, index)
        driver.common(58, 2, 1)

    reset(0)  # the driver has not accepted the feature
    assert driver.common(28, 2) == 1
    driver.status(0)
    for part in (first, second):
        driver.rig.memory.write(part.desc, bytes(0x10000))
    driver = Driver(driver.rig, driver.kind, 1 << 40)
    first, second = driver.queues[0], driver.queues[1]
    assert exchange(driver, first, b"before") == b"erofeb"
    device.hold = True
    for queue in (first, second):
        queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
        queue.kick()
    driver.rig.loop.serve()
    assert len(device.held) == 2
    reset(0)
    assert (driver.common(58, 2), driver.common(28, 2)) == (0, 0)
    assert [chain.queue for chain in device.held] == [device.queues[1].ring]  # nothing else is disturbed
    assert (driver.common(24, 2), driver.common(26, 2)) == (16, 0xFFFF)
    first.kick()
    driver.rig.loop.serve()
    driver.rig.memory.write(first.desc, bytes(0x10000))
    driver.common(24, 2, 8)
    driver.where = 0x300000
    again = driver._queue(0)
    assert again.size == 8
    device.hold = False
    assert exchange(driver, again, b"after") == b"retfa"
    device.complete(device.held.pop(), 0)
    assert [used.written for used in second.take()] == [0]


def test_a_reset_waits_for_a_queue_that_another_processor_resets(rig: Rig) -> None:
    driver = Driver(rig, Kind(), 1 << 40)
    device, queue = rig.device, driver.queues[0]
    assert isinstance(device, Mirror)
    device.hold = True
    queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
    queue.kick()
    rig.loop.serve()
    working = device.held.pop()  # the host is at it: nothing to cancel
    resets = device.resets
    retired, ended = threading.Event(), []
    device.cancel = lambda rings: retired.set()  # type: ignore[method-assign]

    def processor(name: str, offset: int, size: int, value: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: (driver.common(offset, size, value), ended.append(name)))
        thread.start()
        assert retired.wait(10)
        retired.clear()
        return thread

    driver.common(22, 2, 0)
    threads = [processor("queue", 58, 2, 1), processor("device", 20, 1, 0)]
    with device.lock:  # both wait now: who has retired its rings lets go of the lock only to wait, or having ended
        assert (ended, device.resets) == ([], resets)
    device.complete(working, 0)
    for thread in threads:
        thread.join(10)
    assert (sorted(ended), device.resets) == (["device", "queue"], resets + 1)


def test_saving_waits_for_requests_no_longer_than_they_take(driver: Driver) -> None:
    device, queue = driver.rig.device, driver.queues[0]
    assert isinstance(device, Mirror)
    device.hold = True
    queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
    queue.kick()
    driver.rig.loop.serve()
    with device.lock:  # let go of while saving waits, and not before
        host = threading.Thread(target=lambda: device.complete(device.held.pop(), 0))
        host.start()
        before = time.monotonic()
        device.save()
        assert time.monotonic() - before < DRAIN_SECONDS / 2
        assert device.held == []
    host.join()


def test_the_device_configuration_is_read_and_written(driver: Driver) -> None:
    assert driver.config(0, 4) == 0x04030201
    assert driver.config(11, 1) == 12
    assert driver.config(10, 4) == 0x0C0B
    if driver.kind.legacy:
        driver.rig.pio.write(driver.port(20), 2, 0xABCD)
    else:
        driver.rig.mmio.write(driver.rig.bars[2].mapped + 0x2000, 2, 0xABCD)
    assert driver.config(0, 4) == 0x0403ABCD


def test_saved_in_the_middle_and_restored_elsewhere(driver: Driver) -> None:
    queue = driver.queues[0]
    for _ in range(21):
        exchange(driver, queue, b"some")
    state = driver.rig.bus.save()
    other = Rig(Mirror, memory=driver.rig.memory)
    other.bus.restore(state)
    driver.rig = queue.rig = other
    assert other.device.status == (7 if driver.kind.legacy else 15)
    for _ in range(21):
        assert exchange(driver, queue, b"more") == b"erom"
    other.device.close()


# -- one interface only --


def test_a_transitional_device_says_so(rig: Rig) -> None:
    assert rig.get(0, 4) == 0x1005_1AF4
    assert rig.get(8, 1) == 0
    assert rig.get(0x2C, 4) == 0x0004_1AF4
    assert rig.get(0x3D, 1) == 1
    kinds = []
    offset = rig.get(0x34, 1)
    while offset:
        if rig.get(offset, 1) == 9:
            kinds.append(
                (rig.get(offset + 3, 1), rig.get(offset + 4, 1), rig.get(offset + 8, 4), rig.get(offset + 12, 4))
            )
        offset = rig.get(offset + 1, 1)
    assert kinds == [(1, 2, 0, 60), (2, 2, 0x3000, 8), (3, 2, 0x1000, 1), (4, 2, 0x2000, 12), (5, 0, 0, 0)]


def test_features_that_were_not_offered_are_refused(rig: Rig) -> None:
    driver = Driver(rig, Kind(), features=1 << 5)
    for features in (1 << 6 | 1 << 32, 1 << 5, 1 << 33 | 1 << 32):
        driver.status(0)
        driver.status(3)
        for word in (0, 1):
            driver.common(8, 4, word)
            driver.common(12, 4, features >> 32 * word & 0xFFFFFFFF)
        driver.status(11)
        assert driver.read_status() == 3
    driver.common(8, 4, 1)
    driver.common(12, 4, 1)
    driver.common(8, 4, 0)
    driver.common(12, 4, 1 << 5)
    driver.status(11)
    assert driver.read_status() == 11
    driver.common(12, 4, 0)  # too late
    assert driver.common(12, 4) == 1 << 5


def test_a_queue_keeps_its_place_while_it_is_on(rig: Rig) -> None:
    driver = Driver(rig, Kind())
    driver.common(22, 2, 0)
    before = driver.common(32, 4)
    driver.common(32, 4, 0x1000)
    driver.common(28, 2, 0)
    assert (driver.common(32, 4), driver.common(28, 2)) == (before, 1)
    driver.common(22, 2, 7)
    assert [driver.common(offset, 2) for offset in (24, 28, 30)] == [0, 0, 0]


@pytest.mark.parametrize(("offset", "value"), [(24, 12), (24, 0), (32, 8), (36, 1), (40, 1), (48, 2), (48, 0x7FFFFFF0)])
def test_a_queue_that_cannot_be_stops_the_device(rig: Rig, offset: int, value: int) -> None:
    driver = Driver(rig, Kind(), queues=[])
    driver.common(22, 2, 0)
    for place, address in ((32, 0x1000), (40, 0x2000), (48, 0x3000)):
        driver.common(place, 4, address)
    driver.common(offset, 2 if offset == 24 else 4, value)
    driver.common(28, 2, 1)
    assert (driver.common(28, 2), driver.read_status() & NEEDS_RESET) == (0, NEEDS_RESET)
    driver.status(0)
    assert driver.read_status() == 0


def test_configuration_space_reaches_every_register(rig: Rig) -> None:
    offset = rig.get(0x34, 1)
    while rig.get(offset, 1) != 9 or rig.get(offset + 3, 1) != 5:
        offset = rig.get(offset + 1, 1)
    rig.put(offset + 4, 1, 2)
    rig.put(offset + 8, 4, 20)
    rig.put(offset + 12, 4, 1)
    rig.put(offset + 16, 1, 3)
    assert rig.device.status == 3
    assert rig.get(offset + 16, 1) == 3
    rig.put(offset + 4, 1, 5)  # no such BAR
    rig.put(offset + 16, 1, 0)
    assert rig.device.status == 3


def test_a_modern_driver_needs_bus_mastering_and_is_served_when_it_comes(rig: Rig) -> None:
    driver = Driver(rig, Kind())
    rig.put(4, 2, 3)
    queue = driver.queues[0]
    queue.add([(driver.buffer(4, b"abcd"), 4, False), (driver.buffer(4), 4, True)])
    queue.kick()
    rig.loop.serve()
    assert queue.take() == []
    rig.put(4, 2, 7)
    rig.loop.serve()
    assert len(queue.take()) == 1


def test_with_w_the_device_has_one_msi_vector() -> None:
    rig = Rig(Mirror, msix=False)
    driver = Driver(rig, Kind())
    offset = rig.get(0x34, 1)
    assert rig.get(offset, 1) == 5
    rig.put(offset + 4, 4, 0xFEE00000)
    rig.put(offset + 12, 2, 0x55)
    rig.put(offset + 2, 2, 1)
    exchange(driver, driver.queues[1], b"one")
    assert rig.messages == [(0xFEE00000, 0x55)]
    assert not rig.pin
    assert rig.pio.read(driver.port(19), 1) == 1
    rig.close()


# -- hostile rings --


def break_ring(driver: Driver) -> None:
    """The device has noticed, asks for a reset, and works again after one."""
    rig = driver.rig
    driver.queues[0].kick()
    rig.loop.serve()
    assert driver.read_status() & NEEDS_RESET
    driver.queues[0].kick()
    rig.loop.serve()
    rig.memory.write(0x100000, bytes(0x80000))
    driver = Driver(rig, driver.kind)
    assert not driver.read_status() & NEEDS_RESET
    assert exchange(driver, driver.queues[0], b"works") == b"skrow"


BAD_BUFFERS = {
    "outside memory": [(0x7FFFFFFF000, 16, 0)],
    "over the end of memory": [((8 << 20) - 8, 16, 0)],
    "wrapping around": [(0xFFFFFFFFFFFFFFF8, 16, 0)],
    "readable behind writable": [(0x400000, 16, 2), (0x400000, 16, 0)],
    "a table of no entries": [(0x400000, 0, 4)],
    "a table of part of an entry": [(0x400000, 24, 4)],
    "a table outside memory": [(0x7FFFFFFF000, 32, 4)],
    "a huge table": [(0x400000, 16 * 4096, 4)],
    "a table that goes on": [(0x400000, 16, 4), (0x400000, 16, 0)],
}


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("what", BAD_BUFFERS)
def test_a_descriptor_that_cannot_be_stops_the_device(rig: Rig, packed: bool, what: str) -> None:
    driver = Driver(rig, Kind(packed=packed))
    driver.queues[0]._place(BAD_BUFFERS[what])
    break_ring(driver)


def test_a_loop_of_descriptors_stops_the_device(rig: Rig) -> None:
    driver = Driver(rig, Kind())
    queue = driver.queues[0]
    for i, following in ((0, 1), (1, 2), (2, 0)):
        rig.memory.write(queue.desc + 16 * i, struct.pack("<QIHH", 0x400000, 4, 1, following))
    rig.memory.write(queue.avail, struct.pack("<HHH", 0, 1, 0))
    break_ring(driver)


def test_a_table_at_the_end_of_a_split_chain_is_part_of_it(rig: Rig) -> None:
    driver = Driver(rig, Kind(indirect=True))
    rig.memory.write(0x500000, struct.pack("<QIHHQIHH", 0x400000, 4, 1, 1, 0x400100, 64, 2, 0))
    rig.memory.write(0x400000, b"tail")
    driver.queues[0]._place([(driver.buffer(4, b"head"), 4, 0), (0x500000, 32, 4)])
    driver.queues[0].kick()
    rig.loop.serve()
    assert [used.written for used in driver.queues[0].take()] == [8]
    assert rig.memory.read(0x400100, 8) == b"liatdaeh"


def test_a_table_in_a_table_stops_the_device(rig: Rig) -> None:
    driver = Driver(rig, Kind(indirect=True))
    rig.memory.write(0x500000, struct.pack("<QIHH", 0x500000, 16, 4, 0))
    driver.queues[0]._place([(0x500000, 16, 4)])
    break_ring(driver)


def test_a_loop_in_an_indirect_table_stops_the_device(rig: Rig) -> None:
    driver = Driver(rig, Kind(indirect=True))
    rig.memory.write(0x500000, struct.pack("<QIHHQIHH", 0x400000, 4, 1, 1, 0x400000, 4, 1, 0))
    driver.queues[0]._place([(0x500000, 32, 4)])
    break_ring(driver)


@pytest.mark.parametrize(
    "ring", [struct.pack("<HHH", 0, 1, 16), struct.pack("<HHH", 0, 17, 0), struct.pack("<HHH", 0, 0xFFFF, 0)]
)
def test_an_index_that_cannot_be_stops_the_device(rig: Rig, ring: bytes) -> None:
    driver = Driver(rig, Kind())
    rig.memory.write(driver.queues[0].avail, ring)
    break_ring(driver)


def test_a_packed_chain_that_never_ends_stops_the_device(rig: Rig) -> None:
    driver = Driver(rig, Kind(packed=True))
    for i in range(16):
        rig.memory.write(driver.queues[0].desc + 16 * i, struct.pack("<QIHH", 0x400000, 4, 0, 1 | 1 << 7))
    break_ring(driver)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_more_chains_than_entries_stop_the_device(rig: Rig, packed: bool) -> None:
    device = rig.device
    assert isinstance(device, Mirror)
    device.hold = True
    driver = Driver(rig, Kind(packed=packed))
    queue = driver.queues[0]
    for _ in range(2):
        for _ in range(16):
            queue._place([(0x400000, 4, 2)])
        queue.free = list(range(16))  # which the device has not given back
        queue.kick()
        rig.loop.serve()
    assert driver.read_status() & NEEDS_RESET
    assert len(device.held) == 16
    device.hold = False
    break_ring(driver)


def test_a_slot_of_another_device_is_not_restored(rig: Rig) -> None:
    state = rig.bus.save()
    functions = state["functions"]
    assert isinstance(functions, dict)
    functions[str(PciAddress(0, 4, 0))]["queues"] = []
    with pytest.raises(DeviceError):
        rig.bus.restore(state)
