"""Packets out of bytes, however these are cut and whatever they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.debug.gdb.framing import PACKET_SIZE, Framer, Packet, Sign, escape, frame, unescape


def feed(*pieces):
    framer = Framer()
    return [found for piece in pieces for found in framer.feed(piece)]


def test_a_packet_may_come_in_pieces():
    assert feed(b"$m10", b"00,4#", b"8", b"e") == [Packet(b"m1000,4")]


def test_several_may_come_at_once():
    assert feed(b"+$?#3f$g#67-\x03") == [Sign.ACK, Packet(b"?"), Packet(b"g"), Sign.NAK, Sign.INTERRUPT]


@pytest.mark.parametrize("checksum", [b"40", b"zz", b"-1", b" 3", b"0x"])
def test_a_wrong_checksum_is_told(checksum):
    assert feed(b"$?#" + checksum + b"$?#3f") == [Sign.BROKEN, Packet(b"?")]


def test_a_packet_that_breaks_off_does_not_spoil_the_next():
    assert feed(b"$m1000,", b"$?#3f") == [Packet(b"?")]


def test_an_interrupt_inside_a_packet_is_data():
    assert feed(frame(b"X0,1:\x03")) == [Packet(b"X0,1:\x03")]


def test_a_packet_that_is_too_long_is_dropped_up_to_its_end():
    huge = b"$" + b"m" * (PACKET_SIZE + 1000)
    assert feed(huge, b"m" * 100, b"#00", b"$?#3f") == [Sign.BROKEN, Packet(b"?")]
    framer = Framer()
    for _ in range(100):
        assert not list(framer.feed(huge[1:] if framer._skipping else huge))
    assert len(framer._buffer) <= PACKET_SIZE + 2, "it keeps no more than one packet's worth"


def test_the_longest_packet_passes():
    body = b"m" * PACKET_SIZE
    assert feed(frame(body)) == [Packet(body)]


@given(st.binary(max_size=200))
def test_binary_data_survives_the_way(data):
    (packet,) = feed(frame(b"X" + escape(data)))
    assert unescape(packet.data[1:]) == data


@given(st.lists(st.binary(max_size=30)))
def test_garbage_before_a_packet_only_costs_itself(pieces):
    # a packet's worth of an unfinished one may stand before it
    found = feed(*pieces, b"#00", b"$?#3f")
    assert found[-1] == Packet(b"?")
