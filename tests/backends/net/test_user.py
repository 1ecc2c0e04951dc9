"""The network ``user``, spoken to with raw frames as a guest would."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import threading

import pytest

from pyhyve.backends.net import Offload, libslirp, open_net
from pyhyve.backends.net import frames as f
from pyhyve.errors import DeviceError
from tests.backends.net.ether import BROADCAST, MAC, PATIENCE, Card, ethernet, ipv4, tcp, tcp_is_sound, udp

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
GUEST, HOST, NAMES = "10.0.2.15", "10.0.2.2", "10.0.2.3"


@pytest.fixture(scope="module", autouse=True)
def slirp():
    try:
        libslirp.library()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def network(loop):
    opened = []

    def build(**options: str) -> Card:
        card = Card(open_net({"backend": "user", **options}, loop))
        opened.append(card)
        return card

    yield build
    for card in opened:
        loop.call_soon_threadsafe(card.backend.close)


@pytest.fixture
def card(network):
    return network()


def arp_request(address: str) -> bytes:
    body = struct.pack(">HHBBH", 1, f.IPV4, 6, 4, 1) + MAC + socket.inet_aton(GUEST) + bytes(6)
    return ethernet(body + socket.inet_aton(address), 0x0806)


def is_ipv4(protocol: int, source: str):
    packed = socket.inet_aton(source)
    return lambda frame: frame[12:14] == b"\x08\0" and frame[23] == protocol and frame[26:30] == packed


def answer_arp(card: Card) -> bytes:
    """Tell the router where the guest is, by asking it where it is; its address."""
    card.send(arp_request(HOST))
    return card.frame(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")[6:12]


def dhcp(kind: int, *options: bytes) -> bytes:
    message = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0) + bytes(16) + MAC + bytes(202)
    message += b"\x63\x82\x53\x63" + bytes((53, 1, kind)) + b"".join(options) + b"\xff"
    return ethernet(udp("0.0.0.0", 68, "255.255.255.255", 67, message))


def dhcp_options(frame: bytes) -> dict[int, bytes]:
    options, data, at = {}, frame[14 + 28 + 240 :], 0
    while data[at] != 0xFF:
        options[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return options


def test_dhcp_gives_address_router_and_name_server(card):
    card.send(dhcp(1))
    offer = card.frame(is_ipv4(f.UDP, HOST))
    assert offer[58:62] == socket.inet_aton(GUEST)
    options = dhcp_options(offer)
    assert options[53] == b"\2"
    assert options[1] == socket.inet_aton("255.255.255.0")
    assert options[3] == socket.inet_aton(HOST)
    assert options[6] == socket.inet_aton(NAMES)
    card.send(dhcp(3, bytes((50, 4)) + socket.inet_aton(GUEST)))
    assert dhcp_options(card.frame(is_ipv4(f.UDP, HOST)))[53] == b"\5"


def test_the_router_answers_arp_and_ping(card):
    router = answer_arp(card)
    assert router[:1] != b"\xff"
    echo = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"are you there"
    echo = echo[:2] + struct.pack(">H", f.fold_checksum(echo)) + echo[4:]
    card.send(ethernet(ipv4(1, GUEST, HOST, echo), to=router))
    reply = card.frame(is_ipv4(1, HOST))
    assert reply[34] == 0
    assert reply[42:] == b"are you there"


class Connection:
    """A guest's end of a TCP connection: no retransmission, for nothing is lost here."""

    def __init__(self, card: Card, router: bytes, port: int, sport: int = 4000, mss: int = 1460) -> None:
        self.card, self.router, self.port, self.sport = card, router, port, sport
        self.seq, self.ack = 1000, 0
        self.headers: list[f.Header] = []
        self._transmit(SYN, options=struct.pack(">BBH", 2, 4, mss))
        _, frame = self._next(lambda flags: flags & SYN)
        self.seq += 1
        self.ack = struct.unpack_from(">I", frame, 38)[0] + 1
        self._transmit(ACK)

    def _transmit(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        datagram = tcp(
            GUEST, self.sport, HOST, self.port, seq=self.seq, ack=self.ack, flags=flags, data=data, options=options
        )
        self.card.send(ethernet(datagram, to=self.router))

    def _next(self, wanted=lambda flags: True) -> tuple[f.Header, bytes]:
        def mine(frame: bytes) -> bool:
            return is_ipv4(f.TCP, HOST)(frame) and frame[36:38] == struct.pack(">H", self.sport) and wanted(frame[47])

        return self.card.packet(mine)

    def send(self, data: bytes) -> None:
        self._transmit(ACK | PSH, data)
        self.seq += len(data)

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            header, frame = self._next()
            layout = f.tcp_layout(frame)
            payload = frame[layout.payload :]
            if not payload:
                continue
            assert header.gso_type or tcp_is_sound(frame)
            assert struct.unpack_from(">I", frame, 38)[0] == self.ack
            self.headers.append(header)
            self.ack += len(payload)
            data += payload
            self._transmit(ACK)
        return data


@pytest.fixture
def server():
    """A TCP server of the host's, and the connections it has accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def test_the_guest_talks_to_a_server_of_the_host(card, server):
    connection = Connection(card, answer_arp(card), server.getsockname()[1])
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(PATIENCE)
        connection.send(b"from the guest")
        assert accepted.recv(100) == b"from the guest"
        accepted.sendall(b"from the host")
        assert connection.receive(13) == b"from the host"


def download(card: Card, server: socket.socket, data: bytes, mss: int = 1460) -> Connection:
    connection = Connection(card, answer_arp(card), server.getsockname()[1], mss=mss)
    accepted, _ = server.accept()
    with accepted:
        writer = threading.Thread(target=accepted.sendall, args=(data,))
        writer.start()
        assert connection.receive(len(data)) == data
        writer.join()
    return connection


BULK = bytes(n % 251 for n in range(300_000))


def test_a_card_that_takes_no_long_segments_gets_short_ones(card, server):
    connection = download(card, server, BULK)
    assert all(header.pack() == f.PLAIN for header in connection.headers)
    assert len(connection.headers) >= len(BULK) // 1460


def test_a_card_that_takes_long_segments_gets_them_marked_with_its_size(card, server):
    card.backend.set_offload(Offload.CSUM | Offload.TSO4)
    connection = download(card, server, BULK, mss=1200)
    long = [header for header in connection.headers if header.gso_type]
    assert len(connection.headers) < len(BULK) // 1200 // 4
    assert {(h.gso_type, h.gso_size, h.hdr_len, h.csum_start, h.csum_offset) for h in long} == {(1, 1200, 54, 34, 16)}
    assert {h.flags for h in long} == {f.Flag.NEEDS_CSUM}


def test_what_the_guest_left_undone_is_done(card, server):
    router = answer_arp(card)
    connection = Connection(card, router, server.getsockname()[1])
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(PATIENCE)
        data = BULK[:20_000]
        frame = bytearray(
            ethernet(
                tcp(GUEST, 4000, HOST, connection.port, seq=connection.seq, ack=connection.ack, flags=ACK, data=data),
                to=router,
            )
        )
        frame[50:52] = b"\x12\x34"  # no checksum, and a length that the card has to correct
        frame[16:18] = b"\0\0"
        header = f.Header(f.Flag.NEEDS_CSUM, f.Gso.TCPV4, 54, 1460, 34, 16)
        assert card.send(bytes(frame), header.pack())
        received = b""
        while len(received) < len(data):
            received += accepted.recv(65536)
        assert received == data


def test_a_paused_card_stops_the_sender_and_goes_on(card, server, thread):
    card.backend.set_offload(Offload.CSUM | Offload.TSO4)
    connection = Connection(card, answer_arp(card), server.getsockname()[1])
    accepted, _ = server.accept()
    with accepted:
        card.backend.pause()
        thread.settle()
        accepted.setblocking(False)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += accepted.send(BULK)
        except BlockingIOError:
            pass
        assert sent < 64 << 20
        card.backend.resume()
        stream = BULK * (sent // len(BULK) + 1)
        assert connection.receive(sent) == stream[:sent]


def test_a_forwarded_port_leads_into_the_guest(network):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    card = network(hostfwd=f"tcp:127.0.0.1:{port}-:80")
    router = answer_arp(card)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        frame = card.frame(is_ipv4(f.TCP, HOST))
        assert frame[:6] == MAC
        assert struct.unpack_from(">H", frame, 36)[0] == 80
        assert frame[47] == SYN
        sport = struct.unpack_from(">H", frame, 34)[0]
        seq = struct.unpack_from(">I", frame, 38)[0] + 1
        card.send(ethernet(tcp(GUEST, 80, HOST, sport, seq=5, ack=seq, flags=SYN | ACK), to=router))
        assert card.frame(is_ipv4(f.TCP, HOST))[47] == ACK


def test_udp_ports_are_forwarded_to_the_address_given(network):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    card = network(hostfwd=f"udp:127.0.0.1:{port}-10.0.2.77:53")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"question", ("127.0.0.1", port))
        asked = card.frame(lambda frame: frame[12:14] == b"\x08\x06")
        assert asked[38:42] == socket.inet_aton("10.0.2.77")


def test_several_rules_are_parted_by_semicolons(network):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]
    network(hostfwd=";".join(f"tcp:127.0.0.1:{port}-10.0.2.15:{port}" for port in ports))
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()


@pytest.mark.parametrize(
    "rule",
    [
        "tcp",
        "tcp:80-:80",
        "icmp::80-:80",
        "tcp::0-:80",
        "tcp::80-:65536",
        "tcp:localhost:80-:80",
        "tcp::x-:80",
        "tcp::80",
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(network, rule):
    with pytest.raises(DeviceError, match=re.escape(f"invalid hostfwd '{rule}'")):
        network(hostfwd=rule)


def test_a_port_that_is_taken_is_named(network, server):
    port = server.getsockname()[1]
    with pytest.raises(DeviceError, match=f"cannot listen at tcp port {port} of 127.0.0.1: Address already in use"):
        network(hostfwd=f"tcp:127.0.0.1:{port}-:80")


def test_slirp_lets_nothing_out_unless_it_is_open(network, server, loop):
    card = network(backend="slirp")
    router = answer_arp(card)
    datagram = tcp(GUEST, 4000, HOST, server.getsockname()[1], seq=1, flags=SYN)
    card.send(ethernet(datagram, to=router))
    answer_arp(card)  # the router has seen the frame before this
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.accept()
    opened = network(backend="slirp", open="true")
    Connection(opened, answer_arp(opened), server.getsockname()[1])


def test_a_long_datagram_reaches_the_guest_in_fragments(card):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(PATIENCE)
        router = answer_arp(card)
        card.send(ethernet(udp(GUEST, 5000, HOST, echo.getsockname()[1], b"hello"), to=router))
        data, client = echo.recvfrom(100)
        assert data == b"hello"
        echo.sendto(BULK[:4000], client)
        parts = [card.frame(is_ipv4(f.UDP, HOST)) for _ in range(3)]
        assert b"".join(part[34:] for part in parts)[8:] == BULK[:4000]


@pytest.mark.parametrize("length", [0, 1, 13, 14, 33])
def test_frames_too_short_to_be_any_do_no_harm(card, length):
    assert card.send(bytes(length))
    answer_arp(card)


def test_random_frames_do_no_harm(card):
    import random

    source = random.Random(4)
    for _ in range(3000):
        kind = source.choice((f.IPV4, f.IPV6, 0x0806, source.randrange(65536)))
        frame = bytearray(ethernet(source.randbytes(source.randrange(200)), kind, source.choice((MAC, BROADCAST))))
        if len(frame) > 40 and source.random() < 0.7:
            frame[14] = 0x45
            frame[23] = source.choice((f.TCP, f.UDP, 1))
            frame[30:34] = socket.inet_aton(HOST)
            frame[36:38] = b"\0\1"  # no port that anybody listens at
        header = source.choice((f.PLAIN, source.randbytes(12)))
        assert card.send(bytes(frame), header)
    answer_arp(card)


NAME_SERVER = """
import socket, struct, sys, threading
from pyhyve.backends.net import open_net
from tests.backends.net.ether import Card, LoopThread, PATIENCE, ethernet, udp
from tests.backends.net.test_user import answer_arp, is_ipv4, GUEST, NAMES
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.settimeout(PATIENCE)
thread = LoopThread()
card = Card(open_net({"backend": "user"}, thread.loop))
router = answer_arp(card)
card.send(ethernet(udp(GUEST, 4000, NAMES, 53, b"who is who"), to=router))
question, client = server.recvfrom(512)
server.sendto(b"answer to " + question, client)
print(card.frame(is_ipv4(17, NAMES))[42:].decode())
thread.loop.call_soon_threadsafe(card.backend.close)
thread.settle()
thread.close()
"""


def test_names_are_asked_at_the_hosts_name_server(tmp_path):
    """In a network namespace of its own, whose name server the test is."""
    resolver, script = tmp_path / "resolv.conf", tmp_path / "names.py"
    resolver.write_text("nameserver 127.0.0.1\n")
    script.write_text(NAME_SERVER)
    inside = f"mount --bind {resolver} /etc/resolv.conf && ip link set lo up && exec {sys.executable} {script}"
    where = ["unshare", "--map-root-user", "--user", "--mount", "--net", "sh", "-c"]
    try:
        subprocess.run([*where, f"mount --bind {resolver} /etc/resolv.conf && ip link set lo up"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespaces here")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([*where, inside], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stdout == "answer to who is who\n", done.stderr
