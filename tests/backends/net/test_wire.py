"""Two cards on one wire."""

from __future__ import annotations

import os
import queue
import random
import socket
import struct

import pytest

from pyhyve.backends.net import Offload, open_net
from pyhyve.backends.net import frames as f
from pyhyve.backends.net.wire import HELLO
from pyhyve.errors import DeviceError
from tests.backends.net.ether import PATIENCE, Card, ethernet, tcp, tcp_is_sound

ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN
FRAME = ethernet(bytes(range(100)))


@pytest.fixture
def plug(loop, tmp_path):
    opened = []

    def build() -> Card:
        card = Card(open_net({"backend": f"socket={tmp_path}/wire"}, loop))
        opened.append(card)
        return card

    yield build
    for card in opened:
        card.backend.close()


@pytest.fixture
def pair(plug):
    one, two = plug(), plug()
    assert one.links.get(timeout=PATIENCE)
    assert two.links.get(timeout=PATIENCE)
    return one, two


def say_offload(thread, card: Card, other: Card, offload: Offload) -> None:
    """Set what ``card`` takes, and wait until ``other`` has heard it: what follows on the wire comes behind it."""
    card.backend.set_offload(offload)
    thread.settle()
    assert card.send(FRAME)
    assert other.frame() == FRAME


def test_frames_arrive_whole_and_in_order(pair):
    one, two = pair
    frames = [ethernet(bytes([n]) * (46 + 7 * n)) for n in range(200)]
    for frame in frames:
        assert one.send(frame)
    assert [two.frame() for _ in frames] == frames
    assert two.send(FRAME)
    assert one.frame() == FRAME


def test_a_card_alone_has_no_link_and_what_it_sends_is_gone(plug):
    alone = plug()
    assert not alone.backend.link
    assert alone.send(FRAME)


def long_segment() -> tuple[bytes, bytes]:
    frame = bytearray(ethernet(tcp("10.0.0.1", 1, "10.0.0.2", 2, seq=1, flags=16, data=bytes(9000))))
    struct.pack_into(">H", frame, 50, f.pseudo_sum(frame, f.tcp_layout(frame)))
    return bytes(frame), f.Header(f.Flag.NEEDS_CSUM, f.Gso.TCPV4, 54, 1460, 34, 16).pack()


def test_a_long_segment_goes_whole_to_a_card_that_takes_it(pair, thread):
    one, two = pair
    say_offload(thread, two, one, ALL)
    frame, header = long_segment()
    assert one.send(frame, header)
    assert two.packet() == (f.Header.parse(header), frame)


def test_a_long_segment_is_cut_for_a_card_that_does_not(pair):
    one, two = pair
    frame, header = long_segment()
    assert one.send(frame, header)
    parts = [two.packet() for _ in range(7)]
    assert all(head.pack() == f.PLAIN and tcp_is_sound(part) for head, part in parts)
    assert b"".join(part[54:] for _, part in parts) == bytes(9000)


def test_a_slow_reader_stops_the_sender_and_nothing_is_lost(pair, thread):
    one, two = pair
    two.backend.pause()
    thread.settle()
    sent = 0
    while one.send(ethernet(struct.pack(">I", sent) + bytes(1496))):
        sent += 1
        assert sent < 100_000
    assert not one.send(FRAME)
    two.backend.resume()
    assert one.writable.wait(PATIENCE)
    assert [struct.unpack_from(">I", two.frame(), 14)[0] for _ in range(sent)] == list(range(sent))


def test_the_pieces_of_a_segment_wait_for_a_slow_reader(pair, thread):
    one, two = pair
    two.backend.pause()
    thread.settle()
    frame, header = long_segment()
    sent = 0
    while one.send(frame, header):
        sent += 1
        assert sent < 100_000
    two.backend.resume()
    assert all(tcp_is_sound(two.frame()) for _ in range(7 * sent))


@pytest.mark.parametrize("first", [0, 1])
def test_when_one_end_goes_the_other_waits_for_the_next(pair, plug, first):
    going, staying = pair[first], pair[1 - first]
    going.backend.close()
    assert staying.links.get(timeout=PATIENCE) is False
    assert staying.send(FRAME)
    third = plug()
    assert staying.links.get(timeout=PATIENCE) is True
    assert third.links.get(timeout=PATIENCE) is True
    assert third.send(FRAME)
    assert staying.frame() == FRAME


def test_a_third_card_finds_the_wire_taken_and_gets_its_turn(pair, plug):
    one, two = pair
    third = plug()
    assert one.send(FRAME)
    assert two.frame() == FRAME
    with pytest.raises(queue.Empty):
        third.links.get_nowait()
    two.backend.close()
    assert third.links.get(timeout=PATIENCE) is True


def test_a_socket_left_by_a_machine_that_died_is_replaced(plug, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(f"{tmp_path}/wire")
    plug(), plug().links.get(timeout=PATIENCE)


def test_the_file_goes_with_the_listener(plug, tmp_path):
    card = plug()
    assert (tmp_path / "wire").is_socket()
    card.backend.close()
    assert not (tmp_path / "wire").exists()


def test_a_file_that_is_no_socket_is_left_alone(plug, tmp_path):
    (tmp_path / "wire").write_text("precious")
    with pytest.raises(DeviceError, match="there is a file that is no socket"):
        plug()
    assert (tmp_path / "wire").read_text() == "precious"


@pytest.mark.parametrize("path", ["/nonexistent/wire", "/tmp/" + "x" * 200])
def test_a_place_where_no_socket_can_be_is_refused(loop, path):
    with pytest.raises(DeviceError, match="network backend socket="):
        open_net({"backend": f"socket={path}"}, loop)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(loop, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DeviceError, match="Permission denied"):
        open_net({"backend": f"socket={tmp_path}/wire"}, loop)


def test_a_peer_that_talks_nonsense_does_no_harm(plug, tmp_path):
    card = plug()
    source = random.Random(7)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(f"{tmp_path}/wire")
        peer.sendall(HELLO)
        peer.sendall(HELLO + b"\xff\xff")
        assert card.links.get(timeout=PATIENCE)
        for _ in range(2000):
            head = source.choice((f.PLAIN, source.randbytes(12), HELLO))
            peer.sendall(head + source.randbytes(source.randrange(300)))
        frame, header = long_segment()
        peer.sendall(header + frame)  # our guest takes none: cut here
        peer.sendall(f.PLAIN + bytes(70_000))  # no frame is that long
        peer.sendall(f.PLAIN + FRAME)
        for kept in iter(card.frame, FRAME):
            assert 14 <= len(kept) <= f.MAX_FRAME
    assert card.links.get(timeout=PATIENCE) is False
