"""``virtio-blk`` through a driver: requests, outcomes, options."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from pyhyve.hw.virtio.block import Feature, VirtioBlock
from tests.hw.virtio.driver import KINDS, Driver, Kind, Rig

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2
SIZE = 4 << 20
ALL = Feature.FLUSH | Feature.DISCARD | Feature.WRITE_ZEROES | Feature.BLOCK_SIZE | Feature.QUEUES


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


class Disk:
    """A driver of a virtio-blk device."""

    def __init__(self, image: Path, kind: Kind = KINDS[2], features: int = ALL, **options: str) -> None:
        self.rig = Rig("virtio-blk", {"path": str(image), **options})
        device = self.rig.device
        assert isinstance(device, VirtioBlock)
        self.device = device
        self.driver = Driver(self.rig, kind, features & device.features)

    def submit(self, kind: int, sector: int, data: bytes = b"", into: int = 0, queue: int = 0, parts: int = 1) -> tuple:
        """Make a request available; where its answer and its outcome will be."""
        driver = self.driver
        header = driver.buffer(16, struct.pack("<IIQ", kind, 0, sector))
        buffers = [(header, 16, False)]
        step = max(1, len(data) // parts)
        buffers += [
            (driver.buffer(len(data[at : at + step]), data[at : at + step]), len(data[at : at + step]), False)
            for at in range(0, len(data), step)
        ]
        answer = driver.buffer(into) if into else 0
        step = max(1, into // parts)
        buffers += [(answer + at, min(step, into - at), True) for at in range(0, into, step)]
        status = driver.buffer(1, b"\xff")
        buffers.append((status, 1, True))
        return driver.queues[queue].add(buffers), answer, status

    def request(self, kind: int, sector: int, data: bytes = b"", into: int = 0, **how: int) -> tuple[int, bytes]:
        """One request from start to end: outcome and answer."""
        ring = self.driver.queues[how.get("queue", 0)]
        _, answer, status = self.submit(kind, sector, data, into, **how)
        ring.kick()
        used: list = []
        self.rig.loop.serve_until(lambda: used.extend(ring.take()) or used)
        memory = self.rig.memory
        outcome = memory.read_uint(status, 1)
        if into and outcome == OK:
            assert used[0].written == into + 1
        return outcome, memory.read(answer, into) if into else b""


@pytest.fixture(params=KINDS, ids=str)
def disk(request: pytest.FixtureRequest, image: Path) -> Iterator[Disk]:
    disk = Disk(image, request.param)
    yield disk
    disk.rig.close()


@pytest.fixture
def modern(image: Path) -> Iterator[Disk]:
    disk = Disk(image)
    yield disk
    disk.rig.close()


def test_reads_and_writes_reach_the_image(disk: Disk, image: Path) -> None:
    before = image.read_bytes()
    assert disk.request(IN, 0, into=512) == (OK, before[:512])
    assert disk.request(IN, 100, into=65536, parts=4) == (OK, before[51200 : 51200 + 65536])
    data = os.urandom(8192)
    assert disk.request(OUT, 7, data, parts=2) == (OK, b"")
    assert disk.request(FLUSH, 0)[0] == OK
    assert disk.request(IN, 0, into=16384)[1] == before[: 7 * 512] + data + before[7 * 512 + 8192 : 16384]
    assert image.read_bytes()[7 * 512 : 7 * 512 + 8192] == data


def test_many_requests_are_under_way_at_once(disk: Disk, image: Path) -> None:
    content = image.read_bytes()
    ring = disk.driver.queues[0]
    for _ in range(5):
        waiting = {}
        for i in range(40):
            head, answer, status = disk.submit(IN, i * 50, into=4096)
            waiting[head] = (i * 25600, answer, status)
        ring.kick()
        used: list = []
        disk.rig.loop.serve_until(lambda used=used: used.extend(ring.take()) or len(used) == 40)
        for ident in (u.ident for u in used):
            at, answer, status = waiting.pop(ident)
            assert disk.rig.memory.read_uint(status, 1) == OK
            assert disk.rig.memory.read(answer, 4096) == content[at : at + 4096]


def test_the_configuration_tells_the_disk(image: Path) -> None:
    disk = Disk(image, sectorsize="512/4096", queues="3")
    config = disk.driver.config
    assert config(0, 4) * 512 == SIZE
    assert (config(12, 4), config(20, 4), config(24, 1), config(34, 2)) == (254, 512, 3, 3)
    assert (config(36, 4), config(40, 4), config(44, 4)) == (1 << 22, 16, 8)
    assert disk.request(IN, 0, into=512, queue=2)[0] == OK
    disk.rig.close()


def test_the_serial_number(modern: Disk, image: Path) -> None:
    digest = hashlib.md5(str(image).encode()).hexdigest().upper()
    expected = f"BHYVE-{digest[:4]}-{digest[4:8]}-{digest[8:12]}"
    assert modern.request(GET_ID, 0, into=20) == (OK, expected.encode().ljust(20, b"\0"))


def test_a_serial_number_that_was_given(image: Path) -> None:
    disk = Disk(image, ser="S/N 1")
    assert disk.request(GET_ID, 0, into=20) == (OK, b"S/N 1".ljust(20, b"\0"))
    disk.rig.close()


def test_discard_gives_space_back_and_zeroes_are_written(modern: Disk, image: Path) -> None:
    assert modern.request(DISCARD, 0, struct.pack("<QII", 8, 8, 0) + struct.pack("<QII", 800, 80, 0))[0] == OK
    assert modern.request(WRITE_ZEROES, 0, struct.pack("<QII", 2000, 3, 1))[0] == OK
    content = image.read_bytes()
    for first, count in ((8, 8), (800, 80), (2000, 3)):
        assert content[first * 512 : (first + count) * 512] == bytes(count * 512)
    assert content[2003 * 512 : 2004 * 512] != bytes(512)


@pytest.mark.parametrize(
    ("kind", "sector", "data", "into", "outcome"),
    [
        (IN, SIZE // 512, b"", 512, IO_ERROR),
        (IN, SIZE // 512 - 1, b"", 1024, IO_ERROR),
        (IN, (1 << 64) - 1, b"", 512, IO_ERROR),
        (IN, 0, b"", 100, IO_ERROR),
        (OUT, SIZE // 512, bytes(512), 0, IO_ERROR),
        (OUT, 0, bytes(511), 0, IO_ERROR),
        (99, 0, b"", 512, UNSUPPORTED),
        (DISCARD, 0, b"", 0, IO_ERROR),
        (DISCARD, 0, bytes(15), 0, IO_ERROR),
        (DISCARD, 0, struct.pack("<QII", 0, 8, 1), 0, UNSUPPORTED),
        (DISCARD, 0, struct.pack("<QII", SIZE // 512, 8, 0), 0, IO_ERROR),
        (WRITE_ZEROES, 0, struct.pack("<QII", 0, 8, 2), 0, UNSUPPORTED),
        (WRITE_ZEROES, 0, struct.pack("<QII", 0, 0xFFFFFFFF, 0), 0, IO_ERROR),
        (DISCARD, 0, struct.pack("<QII", 0, 1, 0) * 17, 0, IO_ERROR),
    ],
)
def test_requests_that_cannot_be(
    modern: Disk, image: Path, kind: int, sector: int, data: bytes, into: int, outcome: int
):
    before = image.read_bytes()
    assert modern.request(kind, sector, data, into)[0] == outcome
    assert image.read_bytes() == before


def test_chains_that_are_no_requests_come_back(modern: Disk) -> None:
    ring, buffer = modern.driver.queues[0], modern.driver.buffer(64)
    for chain in ([(buffer, 16, False)], [(buffer, 4, False), (buffer, 1, True)], [(buffer, 1, True)]):
        ring.add(chain)
    ring.kick()
    modern.rig.loop.serve()
    assert [used.written for used in ring.take()] == [0, 1, 1]


def test_a_header_in_pieces_is_one_header(modern: Disk, image: Path) -> None:
    driver, memory = modern.driver, modern.rig.memory
    header = driver.buffer(16, struct.pack("<IIQ", OUT, 0, 5))
    data = driver.buffer(512, b"d" * 512)
    status = driver.buffer(1, b"\xff")
    driver.queues[0].add([(header, 7, False), (header + 7, 9, False), (data, 512, False), (status, 1, True)])
    driver.queues[0].kick()
    modern.rig.loop.serve_until(lambda: driver.queues[0].take())
    assert memory.read_uint(status, 1) == OK
    assert image.read_bytes()[2560:3072] == b"d" * 512


def test_a_read_only_disk_says_so_and_refuses(image: Path) -> None:
    disk = Disk(image, ro="true")
    assert disk.device.features & Feature.READ_ONLY
    assert not disk.device.features & (Feature.DISCARD | Feature.WRITE_ZEROES)
    before = image.read_bytes()
    assert disk.request(OUT, 0, bytes(512))[0] == IO_ERROR
    assert disk.request(IN, 0, into=512) == (OK, before[:512])
    assert image.read_bytes() == before
    disk.rig.close()


def test_nodelete_offers_no_discard(image: Path) -> None:
    disk = Disk(image, nodelete="true")
    assert not disk.device.features & Feature.DISCARD
    assert disk.request(DISCARD, 0, struct.pack("<QII", 0, 8, 0))[0] == UNSUPPORTED
    disk.rig.close()


@pytest.mark.parametrize(("features", "flushes"), [(ALL, 0), (ALL & ~Feature.FLUSH, 1)])
def test_a_driver_that_cannot_flush_gets_writes_that_last(image: Path, features: int, flushes: int) -> None:
    disk = Disk(image, features=features)
    seen = []
    flush = disk.device.backend.flush
    disk.device.backend.flush = lambda done: (seen.append(1), flush(done))
    assert disk.request(OUT, 0, bytes(512))[0] == OK
    assert len(seen) == flushes
    disk.rig.close()


def test_a_driver_switches_the_write_cache_off_and_on(image: Path) -> None:
    disk = Disk(image, features=ALL | Feature.CONFIG_WCE)
    seen: list = []
    flush = disk.device.backend.flush
    disk.device.backend.flush = lambda done: (seen.append(1), flush(done))
    place = disk.rig.bars[2].mapped + 0x2000

    def flushes() -> int:
        seen.clear()
        assert disk.request(OUT, 0, bytes(512))[0] == OK
        return len(seen)

    assert (disk.driver.config(32, 1), flushes()) == (1, 0)
    disk.rig.mmio.write(place + 32, 1, 0)
    assert (disk.driver.config(32, 1), len(seen), flushes()) == (0, 1, 1)
    waiting: list = []
    disk.device.backend.flush = waiting.append
    for _ in range(1000):  # one flush at a time, not one each
        disk.rig.mmio.write(place + 32, 1, 0)
    assert len(waiting) == 1
    waiting[0](0)
    assert len(waiting) == 2  # for what came while the first was under way
    waiting[1](0)
    assert len(waiting) == 2
    disk.device.backend.flush = lambda done: (seen.append(1), flush(done))
    disk.rig.mmio.write(place + 32, 1, 1)
    disk.rig.mmio.write(place, 4, 0)  # not the driver's to change
    assert (disk.driver.config(32, 1), disk.driver.config(0, 8), flushes()) == (1, SIZE // 512, 0)
    disk.rig.mmio.write(place + 32, 1, 0)
    disk.driver.status(0)
    assert disk.driver.config(32, 1) == 1
    disk.rig.close()


def test_a_short_read_of_what_the_host_has_in_memory_takes_no_thread(modern: Disk, image: Path) -> None:
    if not modern.device.backend.read_cached(0, [memoryview(bytearray(512))]):
        pytest.skip("this file system does not tell what it has in memory")
    modern.device.backend.readv = lambda offset, buffers, done: pytest.fail("a thread was asked")
    assert modern.request(IN, 9, into=4096) == (OK, image.read_bytes()[9 * 512 : 9 * 512 + 4096])


def test_a_read_that_would_wait_goes_to_a_thread(modern: Disk, image: Path) -> None:
    modern.device.backend.read_cached = lambda offset, buffers: False
    assert modern.request(IN, 9, into=4096) == (OK, image.read_bytes()[9 * 512 : 9 * 512 + 4096])


def test_an_error_of_the_host_is_an_error_of_that_request(modern: Disk) -> None:
    backend = modern.device.backend
    backend.writev = lambda offset, buffers, done: done(errno.ENOSPC)
    assert modern.request(OUT, 0, bytes(512))[0] == IO_ERROR
    assert modern.request(IN, 0, into=512)[0] == OK


def test_a_reset_waits_for_what_is_under_way(modern: Disk) -> None:
    device, done = modern.device, []
    device.backend.read_cached = lambda offset, buffers: False
    device.backend.readv = lambda offset, buffers, finish: done.append((buffers, finish))
    modern.submit(IN, 0, into=512)
    modern.driver.queues[0].kick()
    modern.rig.loop.serve()
    resetting = threading.Thread(target=modern.driver.status, args=(0,))
    resetting.start()
    resetting.join(0.05)
    assert resetting.is_alive()
    done[0][1](0)
    resetting.join(20)
    assert not resetting.is_alive()
    assert modern.driver.queues[0].take() == [] or modern.driver.read_status() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a disk"),
        ({"path": "/nonexistent"}, "/nonexistent"),
        ({"path": "IMAGE", "frob": "1"}, "unknown option 'frob'"),
        ({"path": "IMAGE", "queues": "0"}, "queues=0"),
        ({"path": "IMAGE", "ser": "x" * 21}, "1 to 20 bytes"),
    ],
)
def test_options_that_cannot_be(image: Path, options: dict[str, str], message: str) -> None:
    if options.get("path") == "IMAGE":
        options = {**options, "path": str(image)}
    with pytest.raises(DeviceError, match=message):
        Rig("virtio-blk", options)


def test_the_command_line() -> None:
    parse = registry.find("virtio-blk").parse_options
    assert parse("/a=b.img,ro,sectorsize=512/4096") == {"path": "/a=b.img", "ro": "true", "sectorsize": "512/4096"}
