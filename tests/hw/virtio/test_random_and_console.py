"""``virtio-rnd`` and ``virtio-console`` through a driver."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from tests.hw.virtio.driver import KINDS, Driver, Kind, Rig

MULTIPORT = 1 << 1
READY, ADD, PORT_READY, OPEN, NAME = 0, 1, 3, 6, 7


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_bytes_fill_the_buffers(kind: Kind) -> None:
    rig = Rig("virtio-rnd")
    driver = Driver(rig, kind)
    ring = driver.queues[0]
    first, second = driver.buffer(100), driver.buffer(60)
    ring.add([(first, 100, True), (second, 60, True)])
    ring.kick()
    rig.loop.serve()
    assert [used.written for used in ring.take()] == [160]
    assert len(set(rig.memory.read(first, 100))) > 20
    assert rig.memory.read(second, 60) != bytes(60)
    ring.add([(0x420000, 200_000, True)])
    ring.kick()
    rig.loop.serve()
    assert [used.written for used in ring.take()] == [1 << 16]
    rig.close()


class Console:
    """A driver of a virtio-console device with the ports ``one`` and ``two``."""

    def __init__(self, folder: Path, kind: Kind = KINDS[3]) -> None:
        self.paths = [folder / "one.sock", folder / "two.sock"]
        options = registry.find("virtio-console").parse_options(f"one={self.paths[0]},two={self.paths[1]}")
        self.rig = Rig("virtio-console", options)
        self.driver = Driver(self.rig, kind, MULTIPORT, queues=range(6))
        self.places: dict[tuple[int, int], int] = {}

    def offer(self, queue: int, size: int = 64, count: int = 1) -> None:
        """Give buffers to receive in."""
        ring = self.driver.queues[queue]
        for _ in range(count):
            gpa = self.driver.buffer(size)
            self.places[queue, ring.add([(gpa, size, True)])] = gpa
        ring.kick()
        self.rig.loop.serve()

    def received(self, queue: int) -> list[bytes]:
        return [
            self.rig.memory.read(self.places.pop((queue, used.ident)), used.written)
            for used in self.driver.queues[queue].take()
        ]

    def send(self, queue: int, data: bytes) -> None:
        self.driver.queues[queue].add([(self.driver.buffer(len(data), data), len(data), False)])
        self.driver.queues[queue].kick()
        self.rig.loop.serve()

    def control(self, port: int, event: int, value: int) -> None:
        self.send(3, struct.pack("<IHH", port, event, value))

    def connect(self, port: int) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.paths[port]))
        peer.settimeout(20)
        self.rig.loop.serve()
        return peer

    @property
    def device_stopped(self) -> bool:
        """Whether it asks for a reset."""
        return bool(self.rig.device.status & 64)

    def start(self) -> list[bytes]:
        self.offer(2, count=20)
        self.control(0, READY, 1)
        self.rig.loop.serve()
        for port in (0, 1):
            self.control(port, PORT_READY, 1)
            self.control(port, OPEN, 1)
        self.rig.loop.serve()
        return self.received(2)


@pytest.fixture(params=KINDS, ids=str)
def console(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path, request.param)
    yield console
    console.rig.close()


def message(port: int, event: int, value: int, more: bytes = b"") -> bytes:
    return struct.pack("<IHH", port, event, value) + more


def test_the_driver_learns_the_ports_and_their_names(console: Console) -> None:
    assert console.start() == [
        message(0, ADD, 1),
        message(1, ADD, 1),
        message(0, NAME, 1, b"one"),
        message(1, NAME, 1, b"two"),
    ]


def test_the_driver_learns_who_is_connected(console: Console) -> None:
    console.start()
    peer = console.connect(1)
    console.rig.loop.serve()
    assert console.received(2) == [message(1, OPEN, 1)]
    peer.close()
    console.rig.loop.serve_until(lambda: console.received(2) == [message(1, OPEN, 0)])


def test_bytes_go_both_ways(console: Console) -> None:
    console.start()
    peer = console.connect(1)
    console.send(5, b"from the guest")
    assert peer.recv(100) == b"from the guest"
    assert [used.written for used in console.driver.queues[5].take()] == [0]
    peer.sendall(b"to the guest")
    console.offer(4, size=7, count=2)
    got: list[bytes] = []
    console.rig.loop.serve_until(lambda: got.extend(console.received(4)) or len(got) == 2)
    assert got == [b"to the ", b"guest"]
    peer.close()


def test_what_the_guest_has_no_buffer_for_waits_in_the_socket(console: Console) -> None:
    console.start()
    peer = console.connect(0)
    data = os.urandom(200_000)
    got = bytearray()
    sent = 0
    peer.setblocking(False)
    while len(got) < len(data):
        if sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(data[sent:])
        console.rig.loop.serve()
        console.offer(0, size=4000, count=4)
        got += b"".join(console.received(0))
    assert bytes(got) == data
    peer.close()


def test_what_arrives_while_nobody_in_the_guest_listens_waits(console: Console) -> None:
    console.start()
    console.control(0, OPEN, 0)
    peer = console.connect(0)
    peer.sendall(b"early")
    console.offer(0)
    console.rig.loop.serve()
    assert console.received(0) == []
    console.control(0, OPEN, 1)
    console.rig.loop.serve()
    assert console.received(0) == [b"early"]
    peer.close()


def test_what_the_socket_does_not_take_waits_in_the_guest(console: Console) -> None:
    console.start()
    peer = console.connect(0)
    data = os.urandom(60_000)
    ring = console.driver.queues[1]
    for _ in range(20):
        ring.add([(console.driver.buffer(len(data), data), len(data), False)])
    ring.kick()
    console.rig.loop.serve()
    given_back = len(ring.take())
    assert given_back < 20
    got = bytearray()
    while len(got) < 20 * len(data):
        got += peer.recv(1 << 16)
        console.rig.loop.serve()
    assert bytes(got) == data * 20
    assert given_back + len(ring.take()) == 20
    peer.close()


def test_nobody_connected_loses_what_the_guest_sends(console: Console) -> None:
    console.start()
    console.send(1, b"lost")
    assert len(console.driver.queues[1].take()) == 1
    peer = console.connect(0)
    console.send(1, b"heard")
    assert peer.recv(100) == b"heard"
    peer.close()


def test_a_reset_forgets_what_was_under_way(console: Console) -> None:
    console.start()
    peer = console.connect(0)
    for _ in range(8):
        console.send(1, bytes(60_000))
    console.driver.status(0)
    assert console.driver.read_status() == 0
    peer.close()
    console.rig.loop.serve()


def test_the_next_program_comes_when_the_first_has_gone(console: Console) -> None:
    console.start()
    first, second = console.connect(0), console.connect(0)
    console.send(1, b"1")
    assert first.recv(10) == b"1"
    first.close()
    told: list[bytes] = []
    console.rig.loop.serve_until(lambda: told.extend(console.received(2)) or len(told) == 3)
    assert told == [message(0, OPEN, 1), message(0, OPEN, 0), message(0, OPEN, 1)]
    console.send(1, b"2")
    assert second.recv(10) == b"2"
    second.close()


def test_a_program_that_dies_while_the_guest_sends_takes_nothing_with_it(console: Console) -> None:
    console.start()
    console.connect(0).close()  # the machine does not know yet
    ring = console.driver.queues[1]
    for _ in range(3):
        ring.add([(console.driver.buffer(100), 100, False)])
    ring.kick()
    console.rig.loop.serve()
    assert len(ring.take()) == 3
    assert not console.device_stopped
    peer = console.connect(0)
    console.send(1, b"for the next one")
    assert peer.recv(100) == b"for the next one"


def test_nonsense_on_the_control_queue_is_survived(console: Console) -> None:
    console.start()
    for data in (b"", b"short", struct.pack("<IHH", 77, PORT_READY, 1), struct.pack("<IHH", 0, 99, 9), bytes(500)):
        if data:
            console.send(3, data)
    peer = console.connect(0)
    console.send(1, b"fine")
    assert peer.recv(10) == b"fine"
    peer.close()


@pytest.mark.parametrize(
    ("conf", "error"),
    [
        ("", "needs a port"),
        ("one", "'one' is no port"),
        ("a=/x,a=/y", "one name"),
        (",".join(f"p{i}=/x{i}" for i in range(17)), "at most 16"),
        ("a=/nonexistent/x", "/nonexistent/x"),
    ],
)
def test_ports_that_cannot_be(conf: str, error: str) -> None:
    with pytest.raises(DeviceError, match=error):
        Rig("virtio-console", registry.find("virtio-console").parse_options(conf))


def test_a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "one.sock"))
    stale.close()
    console = Console(tmp_path)
    with pytest.raises(DeviceError, match="another program listens"):
        Console(tmp_path)
    console.rig.close()
    assert not console.paths[0].exists()
    (tmp_path / "one.sock").write_text("precious")
    with pytest.raises(DeviceError, match="a file of that name"):
        Console(tmp_path)
    assert (tmp_path / "one.sock").read_text() == "precious"
