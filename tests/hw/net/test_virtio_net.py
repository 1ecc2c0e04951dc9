"""The card through the eyes of a driver, with a backend that a test holds in its hands."""

from __future__ import annotations

import random
import struct
import time

import pytest

from pyhyve.backends.net import Offload
from pyhyve.errors import DeviceError
from pyhyve.hw.net import virtio_net
from pyhyve.hw.net.virtio_net import Feature, VirtioNet
from tests.hw.virtio.driver import KINDS, Driver, Kind, Rig

ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN
MINE = bytes.fromhex("589cfc000001")
OTHER = bytes.fromhex("589cfc000002")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
PLAIN = bytes(12)
MODERN = int(Feature.MAC | Feature.STATUS | Feature.CTRL_VQ | Feature.CTRL_RX | Feature.CTRL_MAC_ADDR)
RX, TX = 0, 1


class FakeBackend:
    def __init__(self, offload: Offload = ALL, queues: int = 1) -> None:
        self.offload, self.queues, self.link = offload, queues, True
        self.sent: list[tuple[int, bytes, bytes]] = []
        self.room = 1 << 30
        self.accepts: Offload | None = None
        self.pairs = 1
        self.paused = False
        self.closed = False

    def start(self, on_receive, on_writable, on_link):
        self.receive, self.writable, self.on_link = on_receive, on_writable, on_link

    def send(self, header, frame, queue=0):
        if len(self.sent) >= self.room:
            return False
        self.sent.append((queue, header, b"".join(frame)))
        return True

    def set_offload(self, offload):
        self.accepts = offload

    def set_queues(self, pairs):
        self.pairs = pairs

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def close(self):
        self.closed = True


@pytest.fixture
def backend(monkeypatch):
    made = FakeBackend()
    monkeypatch.setattr(virtio_net, "open_net", lambda options, loop: made)
    return made


@pytest.fixture
def rig(backend):
    rig = Rig("virtio-net", {"mac": "58:9c:fc:0:0:1"})
    yield rig
    rig.close()
    assert backend.closed


@pytest.fixture(params=KINDS, ids=str)
def driver(request, rig):
    return Driver(rig, request.param, MODERN)


@pytest.fixture
def modern(rig):
    return Driver(rig, Kind(event_index=True), MODERN | Feature.MRG_RXBUF)


def frame(to: bytes = MINE, length: int = 60, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return (to + OTHER + tag + b"\x08\0" + bytes(n % 251 for n in range(length)))[:length]


def header_size(driver: Driver) -> int:
    return 10 if driver.kind.legacy else 12


def transmit(driver: Driver, data: bytes, header: bytes = PLAIN, pieces: int = 2, queue: int = TX) -> None:
    whole = header[: header_size(driver)] + data
    step = -(-len(whole) // pieces)
    parts = [whole[i : i + step] for i in range(0, len(whole), step)]
    driver.queues[queue].add([(driver.buffer(len(part), part), len(part), False) for part in parts])
    driver.queues[queue].kick()
    driver.rig.loop.serve()


def give(driver: Driver, *sizes: int, kick: bool = True) -> list[int]:
    """Buffers to receive in, one chain each."""
    places = [driver.buffer(size) for size in sizes]
    for gpa, size in zip(places, sizes, strict=True):
        driver.queues[RX].add([(gpa, size, True)])
    if kick:
        driver.queues[RX].kick()
        driver.rig.loop.serve()
    return places


def received(driver: Driver, places: list[int]) -> list[bytes]:
    return [
        driver.rig.memory.read(gpa, used.written) for gpa, used in zip(places, driver.queues[RX].take(), strict=False)
    ]


def command(driver: Driver, kind: int, number: int, data: bytes, queue: int = 2) -> int:
    ask, answer = driver.buffer(2 + len(data), bytes((kind, number)) + data), driver.buffer(1, b"\x55")
    driver.queues[queue].add([(ask, 2, False), (ask + 2, len(data), False), (answer, 1, True)])
    driver.queues[queue].kick()
    driver.rig.loop.serve()
    assert [used.written for used in driver.queues[queue].take()] == [1]
    return driver.rig.memory.read(answer, 1)[0]


# -- packets --


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_frame_goes_out_however_it_is_laid_out(driver, backend, pieces):
    for turn in range(40):
        transmit(driver, frame(OTHER, 60 + 7 * turn), pieces=pieces)
        assert backend.sent.pop() == (0, PLAIN, frame(OTHER, 60 + 7 * turn))
        assert [used.written for used in driver.queues[TX].take()] == [0]


def test_a_frame_comes_in(driver, backend):
    for turn in range(40):
        places = give(driver, 1700)
        backend.receive(0, [PLAIN + frame(length=60 + 7 * turn)])
        head = PLAIN[:10] if driver.kind.legacy else PLAIN[:10] + b"\1\0"
        assert received(driver, places) == [head + frame(length=60 + 7 * turn)]


def test_one_list_is_one_interrupt(modern, backend):
    modern.use_msix()
    places = give(modern, *[1700] * 20)
    modern.queues[RX].suppress(False)
    modern.rig.messages.clear()
    backend.receive(0, [PLAIN + frame() for _ in range(20)])
    assert len(modern.rig.messages) == 1
    assert len(received(modern, places)) == 20


def test_the_header_reaches_the_other_side_unchanged(modern, backend):
    head = struct.pack("<BBHHHHH", 1, 1, 54, 1460, 34, 16, 0)
    transmit(modern, frame(length=9000), head)
    assert backend.sent == [(0, head, frame(length=9000))]
    places = give(modern, 66000)
    backend.receive(0, [head + frame(length=9000)])
    assert received(modern, places) == [head[:10] + b"\1\0" + frame(length=9000)]


def test_a_long_packet_fills_several_buffers(modern, backend):
    places = give(modern, 1000, 500, 1000, 1000)
    backend.receive(0, [PLAIN + frame(length=2400)])
    parts = received(modern, places)
    assert [len(part) for part in parts] == [1000, 500, 912]
    assert b"".join(parts) == PLAIN[:10] + b"\3\0" + frame(length=2400)


def test_packets_wait_for_buffers_and_the_backend_pauses(driver, backend):
    places = give(driver, 1700)
    frames = [frame(length=60 + n) for n in range(5)]
    backend.receive(0, [PLAIN + each for each in frames])
    assert backend.paused
    assert driver.queues[RX].wants_kick() or driver.kind.event_index
    places += give(driver, 1700, 1700)
    assert backend.paused
    places += give(driver, 1700, 1700, 1700)
    assert not backend.paused
    assert [part[header_size(driver) :] for part in received(driver, places)] == frames


def test_a_packet_waits_until_there_are_enough_buffers_for_all_of_it(modern, backend):
    places = give(modern, 1000)
    backend.receive(0, [PLAIN + frame(length=1500), PLAIN + frame()])
    assert modern.queues[RX].take() == []
    places += give(modern, 1000, 1000)
    assert [len(part) for part in received(modern, places)] == [1000, 512, 72]


def test_buffers_too_small_for_a_packet_drop_it(driver, backend):
    places = give(driver, 100)
    backend.receive(0, [PLAIN + frame(length=500), PLAIN + frame(length=60)])
    assert [part[header_size(driver) :] for part in received(driver, places)] == [frame(length=60)]


def test_a_full_backend_leaves_frames_in_the_queue(driver, backend):
    backend.room = 2
    for length in (60, 61, 62, 63):
        transmit(driver, frame(length=length))
    assert len(driver.queues[TX].take()) == 2
    backend.room = 100
    backend.writable()
    driver.rig.loop.serve()
    assert [len(data) for _, _, data in backend.sent] == [60, 61, 62, 63]
    assert len(driver.queues[TX].take()) == 2


@pytest.mark.parametrize("length", [0, 5, 13, 70_000])
def test_what_is_no_frame_is_given_back_unsent(modern, backend, length):
    transmit(modern, bytes(length), pieces=1)
    assert backend.sent == []
    assert len(modern.queues[TX].take()) == 1


def test_nothing_comes_in_before_the_driver_is_ready(rig, backend):
    backend.receive(0, [PLAIN + frame()] * 5000)
    driver = Driver(rig, Kind(), MODERN)
    places = give(driver, 1700)
    assert received(driver, places) == []


def test_too_many_waiting_packets_are_dropped(modern, backend):
    backend.receive(0, [PLAIN + frame()] * 5000)
    assert len(modern.rig.device._waiting) == virtio_net.WAITING


# -- features and configuration --


def test_the_configuration_says_address_link_and_mtu(backend):
    rig = Rig("virtio-net", {"mac": "58:9c:fc:0:0:1", "mtu": "9000"})
    driver = Driver(rig, Kind(), MODERN | Feature.MTU)
    assert driver.config(0, 4) | driver.config(4, 2) << 32 == int.from_bytes(MINE, "little")
    assert driver.config(6, 2) == 1
    assert driver.config(10, 2) == 9000
    rig.close()


def test_an_address_is_made_of_slot_and_name(backend):
    rigs = [Rig("virtio-net") for _ in range(2)]
    first, second = (rig.device.mac for rig in rigs)
    assert first == second
    assert first.startswith(bytes.fromhex("589cfc"))
    for rig in rigs:
        rig.close()


def test_offloads_offered_are_those_of_the_backend(monkeypatch):
    made = FakeBackend(Offload.CSUM)
    monkeypatch.setattr(virtio_net, "open_net", lambda options, loop: made)
    rig = Rig("virtio-net")
    offered = rig.device.offered(0)
    assert offered & Feature.CSUM
    assert offered & Feature.GUEST_CSUM
    assert not offered & (Feature.HOST_TSO4 | Feature.GUEST_TSO4 | Feature.MQ | Feature.MTU)
    rig.close()


def test_the_backend_is_told_what_the_driver_finishes(rig, backend):
    features = Feature.GUEST_CSUM | Feature.GUEST_TSO4 | Feature.CTRL_GUEST_OFFLOADS
    driver = Driver(rig, Kind(), MODERN | features)
    assert backend.accepts == Offload.CSUM | Offload.TSO4
    assert command(driver, 5, 0, int(Feature.GUEST_CSUM).to_bytes(8, "little")) == 0
    assert backend.accepts == Offload.CSUM
    assert command(driver, 5, 0, int(Feature.GUEST_TSO6).to_bytes(8, "little")) == 1
    driver.status(0)
    assert backend.accepts == Offload(0)


def test_the_link_goes_down_and_the_driver_is_told(modern, backend):
    modern.use_msix()
    backend.on_link(False)
    assert modern.config(6, 2) == 0
    assert (0xFEE00000, 0x33) in modern.rig.messages
    backend.on_link(True)
    assert modern.config(6, 2) == 1


def test_a_legacy_driver_writes_its_address(rig):
    driver = Driver(rig, Kind(legacy=True), MODERN)
    for i, byte in enumerate(OTHER):
        rig.pio.write(driver.port(20 + i), 1, byte)
    rig.pio.write(driver.port(26), 1, 0)
    assert rig.device.mac == OTHER
    assert driver.config(6, 2) == 1


def test_a_modern_driver_does_not(modern):
    modern.rig.mmio.write(modern.rig.bars[2].mapped + 0x2000, 4, 0)
    assert modern.rig.device.mac == MINE
    assert modern.config(0, 4) == int.from_bytes(MINE[:4], "little")


# -- control commands --


def passes(driver: Driver, backend: FakeBackend, data: bytes) -> bool:
    give(driver, 1700)
    backend.receive(0, [PLAIN + data])
    return bool(driver.queues[RX].take())


def test_everything_comes_in_until_the_driver_says_otherwise(modern, backend):
    assert passes(modern, backend, frame(OTHER))
    assert command(modern, 0, 0, b"\0") == 0
    assert not passes(modern, backend, frame(OTHER))
    assert not passes(modern, backend, frame(GROUP))
    assert passes(modern, backend, frame(MINE))
    assert passes(modern, backend, frame(BROADCAST))


@pytest.mark.parametrize(
    ("mode", "to", "comes"),
    [(1, GROUP, True), (2, OTHER, True), (3, GROUP, False), (4, MINE, False), (5, BROADCAST, False)],
)
def test_receive_modes(modern, backend, mode, to, comes):
    command(modern, 0, 0, b"\0")
    assert command(modern, 0, mode, b"\1") == 0
    assert passes(modern, backend, frame(to)) is comes


def test_the_address_tables_let_in_what_they_hold(modern, backend):
    command(modern, 0, 0, b"\0")
    tables = struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + GROUP
    assert command(modern, 1, 0, tables) == 0
    assert passes(modern, backend, frame(OTHER))
    assert passes(modern, backend, frame(GROUP))
    assert command(modern, 1, 0, bytes(8)) == 0
    assert not passes(modern, backend, frame(OTHER))


def test_the_driver_changes_the_address(modern, backend):
    command(modern, 0, 0, b"\0")
    assert command(modern, 1, 1, OTHER) == 0
    assert passes(modern, backend, frame(OTHER))
    assert not passes(modern, backend, frame(MINE))
    modern.status(0)
    assert modern.rig.device.mac == MINE


def test_vlans_are_filtered_once_the_driver_can(rig, backend):
    driver = Driver(rig, Kind(), MODERN | Feature.CTRL_VLAN)
    assert passes(driver, backend, frame())
    assert not passes(driver, backend, frame(vlan=100))
    assert command(driver, 2, 0, struct.pack("<H", 100)) == 0
    assert passes(driver, backend, frame(vlan=100))
    assert command(driver, 2, 1, struct.pack("<H", 100)) == 0
    assert not passes(driver, backend, frame(vlan=100))
    assert command(driver, 2, 0, struct.pack("<H", 4096)) == 1


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (0, 6, b"\1"), (0, 0, b""), (1, 0, b"\1"), (1, 0, b"\xff" * 4), (1, 0, struct.pack("<I", 1) + OTHER),
        (1, 1, OTHER[:5]), (1, 1, GROUP), (2, 0, b"\1"), (2, 2, b"\1\0"), (4, 0, b"\2\0"), (5, 0, bytes(7)),
        (9, 0, b"\0"), (255, 255, b"\xff" * 300),
    ],
)  # fmt: skip
def test_a_command_that_makes_no_sense_is_refused(modern, kind, number, data):
    assert command(modern, kind, number, data) == 1


def test_a_command_without_room_for_the_answer_is_given_back(modern):
    gpa = modern.buffer(3, b"\0\0\0")
    modern.queues[2].add([(gpa, 3, False)])
    modern.queues[2].kick()
    modern.rig.loop.serve()
    assert [used.written for used in modern.queues[2].take()] == [0]
    assert not modern.rig.device.promiscuous


# -- several queues --


@pytest.fixture
def wide(monkeypatch):
    made = FakeBackend(queues=2)
    monkeypatch.setattr(virtio_net, "open_net", lambda options, loop: made)
    rig = Rig("virtio-net")
    yield rig, made
    rig.close()


def test_pairs_of_queues_serve_once_the_driver_asks(wide):
    rig, backend = wide
    driver = Driver(rig, Kind(), MODERN | Feature.MQ)
    assert driver.config(8, 2) == 2
    assert backend.pairs == 1
    assert command(driver, 4, 0, b"\2\0", queue=4) == 0
    assert backend.pairs == 2
    transmit(driver, frame(OTHER), queue=3)
    assert backend.sent[0][0] == 1
    gpa = driver.buffer(1700)
    driver.queues[2].add([(gpa, 1700, True)])
    driver.queues[2].kick()
    rig.loop.serve()
    backend.receive(1, [PLAIN + frame()])
    assert [used.written for used in driver.queues[2].take()] == [72]
    assert command(driver, 4, 0, b"\3\0", queue=4) == 1
    assert command(driver, 4, 0, b"\0\0", queue=4) == 1


def test_a_driver_of_one_pair_has_its_control_queue_third(wide):
    rig, _ = wide
    driver = Driver(rig, Kind(), MODERN)
    assert command(driver, 0, 0, b"\0", queue=2) == 0


# -- options --


@pytest.mark.parametrize(
    ("conf", "options"),
    [
        ("user", {"backend": "user"}),
        ("tap0,mac=58:9c:fc:0:0:1,mtu=9000", {"backend": "tap0", "mac": "58:9c:fc:0:0:1", "mtu": "9000"}),
        ("socket=/run/wire,mtu=1400", {"backend": "socket=/run/wire", "mtu": "1400"}),
        ("user,hostfwd=tcp::80-:80,hostfwd=udp::53-:53", {"backend": "user", "hostfwd": "tcp::80-:80;udp::53-:53"}),
        ("slirp,open", {"backend": "slirp", "open": "true"}),
        ("mac=58:9c:fc:0:0:1", {"mac": "58:9c:fc:0:0:1"}),
        ("", {}),
    ],
)
def test_the_command_lines_options(conf, options):
    assert VirtioNet.parse_options(conf) == options


def test_an_unknown_option_is_refused_with_those_there_are(backend):
    with pytest.raises(DeviceError, match="virtio-net has no option 'colour'; there are backend, hostfwd"):
        Rig("virtio-net", {"backend": "user", "colour": "red"})


# -- lifecycle --


def test_a_saved_card_goes_on_where_it_was(backend):
    rig = Rig("virtio-net", {"mac": "58:9c:fc:0:0:1"})
    driver = Driver(rig, Kind(), MODERN | Feature.GUEST_ANNOUNCE | Feature.CTRL_VLAN | Feature.GUEST_CSUM)
    command(driver, 0, 0, b"\0")
    command(driver, 1, 0, struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + GROUP)
    command(driver, 2, 0, struct.pack("<H", 7))
    places = give(driver, 1700, 1700)
    state = rig.device.save()
    backend.accepts = None
    rig.device.reset()
    rig.device.restore(state)
    assert backend.accepts == Offload.CSUM
    assert driver.config(6, 2) == 3  # link up, announce yourself
    assert command(driver, 3, 0, b"") == 0
    assert driver.config(6, 2) == 1
    backend.receive(0, [PLAIN + frame(GROUP, vlan=7), PLAIN + frame(bytes(6)), PLAIN + frame(OTHER)])
    assert len(received(driver, places)) == 2
    rig.close()


def test_random_rings_packets_and_commands_do_no_harm(backend):
    started = time.monotonic()
    source = random.Random(11)
    rig = Rig("virtio-net", {"mac": "58:9c:fc:0:0:1"})
    everything = rig.device.offered(0) & ~(1 << 28 | 1 << 29)
    for _ in range(60):
        kind = source.choice(KINDS)
        rig.memory.write(0x100000, bytes(0x100000))
        driver = Driver(rig, kind, everything if source.random() < 0.5 else MODERN)
        for _ in range(60):
            queue = driver.queues[source.randrange(3)]
            chosen = source.random()
            if chosen < 0.3:
                rig.memory.write(queue.desc + 16 * source.randrange(queue.size), source.randbytes(16))
            elif chosen < 0.4:
                place = source.choice((queue.avail, queue.used)) + 2 * source.randrange(queue.size)
                rig.memory.write(place, source.randbytes(4))
            elif chosen < 0.7 and len(queue.free) > 4:
                sizes = [source.choice((1, 2, 12, 70, 1700, 66_000)) for _ in range(source.randrange(1, 4))]
                writable = sorted(source.random() < 0.5 for _ in sizes)
                data = bytes((source.randrange(6), source.randrange(3))) + source.randbytes(20)
                queue.add([(driver.buffer(s, data[:s]), s, w) for s, w in zip(sizes, writable, strict=True)])
            else:
                packets = [source.randbytes(12 + source.randrange(14, 9000)) for _ in range(source.randrange(4))]
                backend.receive(source.randrange(2), packets)
            backend.room = len(backend.sent) + source.randrange(4)
            backend.writable()
            queue.kick()
            rig.loop.serve()
        driver.status(0)
    rig.memory.write(0x100000, bytes(0x100000))
    driver = Driver(rig, Kind(), MODERN)
    backend.room = 1 << 30
    transmit(driver, frame(OTHER))
    assert backend.sent[-1][2] == frame(OTHER)
    rig.close()
    assert time.monotonic() - started < 10  # a reset never waited for a chain that was lost
