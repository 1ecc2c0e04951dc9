"""Checksums and cut segments, compared with sums done the slow way."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.backends.net import Offload
from pyhyve.backends.net import frames as f
from tests.backends.net.ether import ethernet, ipv4, tcp, tcp_is_sound, udp

ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN
ACK, PSH, FIN, CWR = 0x10, 0x08, 0x01, 0x80


def slow_sum(data: bytes) -> int:
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=300))
def test_the_sum_is_that_of_rfc_1071(data):
    assert f.ones_sum(data) == slow_sum(data)


def test_the_example_of_rfc_1071_is_right():
    assert f.ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def long_segment(length: int, *, size: int = 1000, flags: int = ACK, ecn: bool = False) -> tuple[bytes, bytearray]:
    """A TCP segment as a guest leaves it: the sum of the pseudo-header in the place of the checksum."""
    datagram = tcp(
        "10.0.2.15", 1, "10.0.2.2", 2, seq=0xFFFFFF00, flags=flags, data=bytes(n % 251 for n in range(length))
    )
    frame = bytearray(ethernet(datagram))
    layout = f.tcp_layout(frame)
    struct.pack_into(">H", frame, layout.transport + 16, f.pseudo_sum(frame, layout))
    kind = f.Gso.TCPV4 | (f.GSO_ECN if ecn else 0)
    return f.Header(f.Flag.NEEDS_CSUM, kind, layout.payload, size, layout.transport, 16).pack(), frame


@given(length=st.integers(0, 9000), size=st.integers(f.MIN_SEGMENT, 3000))
@settings(deadline=None, max_examples=60)
def test_segments_are_sound_and_carry_the_same_bytes(length, size):
    header, frame = long_segment(length, size=size, flags=ACK | PSH | FIN | CWR)
    original = bytes(frame)
    packets = f.complete(header, frame, Offload(0))
    frames = [packet[f.HEADER_SIZE :] for packet in packets]
    assert all(packet.startswith(f.PLAIN) for packet in packets)
    assert all(tcp_is_sound(part) for part in frames)
    assert b"".join(part[54:] for part in frames) == original[54:]
    assert all(len(part) - 54 == size for part in frames[:-1])
    sequences = [struct.unpack_from(">I", part, 38)[0] for part in frames]
    assert sequences == [(0xFFFFFF00 + n * size) & 0xFFFFFFFF for n in range(len(frames))]
    assert [struct.unpack_from(">H", part, 18)[0] for part in frames] == [7 + n for n in range(len(frames))]
    flags = [part[47] for part in frames]
    assert all(not value & (FIN | PSH) for value in flags[:-1])
    assert flags[-1] & (FIN | PSH) == FIN | PSH
    assert flags[0] & CWR
    assert all(not value & CWR for value in flags[1:])


def test_a_receiver_that_cuts_itself_gets_the_segment_whole():
    header, frame = long_segment(5000)
    (packet,) = f.complete(header, bytearray(frame), ALL)
    assert packet == header + frame


def test_congestion_marks_need_a_receiver_that_knows_them():
    header, frame = long_segment(3000, ecn=True)
    assert len(f.complete(header, bytearray(frame), Offload.CSUM | Offload.TSO4)) == 3
    assert len(f.complete(header, bytearray(frame), ALL)) == 1


def test_a_checksum_is_completed_for_a_receiver_that_does_not():
    _, frame = long_segment(100)
    header = f.Header(f.Flag.NEEDS_CSUM, csum_start=34, csum_offset=16).pack()
    (packet,) = f.complete(header, bytearray(frame), Offload(0))
    assert packet.startswith(f.PLAIN)
    assert tcp_is_sound(packet[f.HEADER_SIZE :])
    assert f.complete(header, bytearray(frame), Offload.CSUM) == [header + frame]


@pytest.mark.parametrize(
    "change",
    [
        {"csum_start": 65535}, {"csum_offset": 65535}, {"gso_size": 0}, {"gso_size": 1}, {"gso_type": 3},
        {"gso_type": 4}, {"flags": 0}, {"csum_start": 35}, {"csum_offset": 6}, {"gso_type": 0x7F},
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_drops_the_frame(change):
    header, frame = long_segment(3000)
    fields = f.Header.parse(header)
    for name, value in change.items():
        setattr(fields, name, value)
    assert f.complete(fields.pack(), frame, Offload(0)) is None


def test_ipv6_segments_are_cut_too():
    body = bytes(range(256)) * 10
    head = struct.pack(">IHBB", 6 << 28, 20 + len(body), f.TCP, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"
    segment = struct.pack(">HHIIBBHHH", 1, 2, 5, 6, 5 << 4, ACK, 1000, 0, 0)
    frame = bytearray(ethernet(head + segment + body, f.IPV6))
    header = f.Header(f.Flag.NEEDS_CSUM, f.Gso.TCPV6, 74, 1000, 54, 16).pack()
    packets = f.complete(header, frame, Offload.CSUM)
    parts = [packet[f.HEADER_SIZE :] for packet in packets]
    assert b"".join(part[74:] for part in parts) == body
    for part in parts:
        assert struct.unpack_from(">H", part, 18)[0] == len(part) - 54
        layout = f.tcp_layout(part)
        assert (f.pseudo_sum(part, layout) + f.ones_sum(part[54:])) % 0xFFFF == 0


def test_a_datagram_too_long_for_the_link_comes_in_fragments():
    datagram = udp("10.0.2.2", 1, "10.0.2.15", 2, bytes(n % 253 for n in range(4000)))
    parts = f.fragment(ethernet(datagram), 1500)
    assert [len(part) - 14 for part in parts] == [1500, 1500, 1068]
    assert b"".join(part[34:] for part in parts) == datagram[20:]
    offsets = [struct.unpack_from(">H", part, 20)[0] for part in parts]
    assert offsets == [0x2000, 0x2000 | 185, 370]
    assert all(f.ones_sum(part[14:34]) == 0xFFFF for part in parts)


@given(st.binary(min_size=12, max_size=12), st.binary(max_size=200), st.integers(0, 15))
@settings(deadline=None, max_examples=500)
def test_nonsense_is_dropped_or_passed_and_never_raises(header, frame, accepts):
    f.complete(header, bytearray(frame), Offload(accepts))
    f.tcp_layout(frame)
    f.fragment(frame, 68)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_long_segment_never_raises(data):
    header, frame = long_segment(2000)
    packet = bytearray(header + frame[:100])
    for _ in range(data.draw(st.integers(1, 6))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    rest = packet[12:] + frame[100 : data.draw(st.integers(100, len(frame)))]
    for part in f.complete(bytes(packet[:12]), rest, Offload(0)) or ():
        assert len(part) <= f.HEADER_SIZE + f.MAX_FRAME


def test_a_fragment_has_no_tcp_header_to_cut_at():
    frame = bytearray(ethernet(ipv4(f.TCP, "10.0.2.15", "10.0.2.2", bytes(40))))
    frame[20] |= 0x20
    assert f.tcp_layout(frame) is None
