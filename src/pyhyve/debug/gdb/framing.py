"""Packets of the gdb remote protocol: ``$data#checksum``, escapes, acknowledgements, and Ctrl-C.

Source: "Debugging with GDB", E.1 Overview. The checksum is the sum of the bytes between ``$`` and ``#``, modulo 256. In
binary data ``}`` stands before a byte that is XORed with 0x20. A byte 0x03 between packets is the debugger's interrupt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

PACKET_SIZE = 0x4000
"""The longest packet in either direction, announced in ``qSupported``."""

_ESCAPE = 0x7D
_FLIP = 0x20
_START, _END, _INTERRUPT = ord("$"), ord("#"), 0x03
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Sign(Enum):
    """What stands between packets."""

    ACK = auto()
    NAK = auto()
    INTERRUPT = auto()
    BROKEN = auto()
    """A packet whose checksum is wrong, or that is too long."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet's data, as sent: escapes are still in it."""

    data: bytes


_SIGNS = {ord("+"): Sign.ACK, ord("-"): Sign.NAK, _INTERRUPT: Sign.INTERRUPT}


class Framer:
    """Takes packets out of a stream of bytes, however it is cut. Never holds more than one packet's worth of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False  # inside a packet that is too long

    def feed(self, data: bytes) -> Iterator[Packet | Sign]:
        """The packets and signs that ``data`` completes. To be consumed before the next call."""
        buffer = self._buffer
        buffer += data
        at = 0
        while at < len(buffer):
            if self._skipping:
                at, found = self._skip(at)
                if found is None:
                    break
                yield found
                continue
            byte = buffer[at]
            if byte != _START:
                at += 1
                sign = _SIGNS.get(byte)
                if sign is not None:
                    yield sign
                continue
            end = buffer.find(b"#", at, at + PACKET_SIZE + 2)
            if end < 0 and len(buffer) - at > PACKET_SIZE + 1:
                self._skipping = True
                continue
            if end < 0 or end + 3 > len(buffer):
                break
            body = bytes(buffer[buffer.rfind(b"$", at, end) + 1 : end])  # a packet broken off has no end
            sent = bytes(buffer[end + 1 : end + 3])
            at = end + 3
            good = _HEX.issuperset(sent) and int(sent, 16) == sum(body) & 0xFF
            yield Packet(body) if good else Sign.BROKEN
        del buffer[:at]

    def _skip(self, at: int) -> tuple[int, Sign | None]:
        end = self._buffer.find(b"#", at)
        if end < 0:
            return len(self._buffer), None
        self._skipping = False
        return end + 1, Sign.BROKEN


def frame(body: bytes) -> bytes:
    """``body`` as a packet. It must not hold ``$``, ``#``, ``}`` or ``*`` other than escaped."""
    return b"$%b#%02x" % (body, sum(body) & 0xFF)


def escape(data: bytes) -> bytes:
    """Binary data as it stands in a packet; ``*`` would begin a run-length."""
    out = bytearray()
    for byte in data:
        if byte in b"$#}*":
            out += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            out.append(byte)
    return bytes(out)


def unescape(data: bytes) -> bytes:
    """The binary data of a packet. An escape at the very end is dropped."""
    if _ESCAPE not in data:
        return data
    out = bytearray()
    escaped = False
    for byte in data:
        if escaped:
            out.append(byte ^ _FLIP)
            escaped = False
        elif byte == _ESCAPE:
            escaped = True
        else:
            out.append(byte)
    return bytes(out)
