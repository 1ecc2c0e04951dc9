"""What a receiver does that a sender has left undone: checksums, and cutting long TCP segments into short ones.

Documents: virtio 1.2 §5.1.6 (``struct virtio_net_hdr``); RFC 1071 (the Internet checksum), RFC 791 and RFC 8200 (IP),
RFC 9293 (TCP). A packet here is a header of 12 bytes and an Ethernet frame; frames come from guests and other
processes, so every offset is checked, and what makes no sense is ``None``, to be dropped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from pyhyve.backends.net import Buffer, Offload

HEADER_SIZE: Final = 12
ETHERNET: Final = 14
MAX_FRAME: Final = ETHERNET + 4 + 65535
_LAYOUT = struct.Struct("<BBHHHHH")

MIN_SEGMENT: Final = 32
"""No path is so narrow that TCP would cut finer; a guest that asks for it only keeps us busy."""

PLAIN: Final = bytes(HEADER_SIZE)
"""The header of a frame that is complete."""

IPV4, IPV6, VLAN = 0x0800, 0x86DD, 0x8100
TCP, UDP = 6, 17
TCP_CHECKSUM: Final = 16
FIN, PSH, CWR = 0x01, 0x08, 0x80


class Flag(IntFlag):
    NEEDS_CSUM = 1
    DATA_VALID = 2


class Gso(IntEnum):
    NONE = 0
    TCPV4 = 1
    TCPV6 = 4


GSO_ECN = 0x80


@dataclass(slots=True)
class Header:
    """``struct virtio_net_hdr``."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    @classmethod
    def parse(cls, data: Buffer) -> Header:
        """From the first 12 bytes of ``data``."""
        return cls(*_LAYOUT.unpack_from(data))

    def pack(self) -> bytes:
        """The 12 bytes."""
        return _LAYOUT.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size,
            self.csum_start, self.csum_offset, self.num_buffers,
        )  # fmt: skip


def ones_sum(data: Buffer) -> int:
    """The ones' complement sum of the 16-bit words of ``data`` (RFC 1071).

    2**16 is 1 modulo 65535, so the sum of a number's 16-bit digits is the number itself, modulo 65535.
    """
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number % 0xFFFF or (0xFFFF if number else 0)


def fold_checksum(data: Buffer) -> int:
    """The checksum to put where ``data`` had zero, or a pseudo-header's sum. Never zero: in UDP that means none."""
    return ~ones_sum(data) & 0xFFFF or 0xFFFF


def complete(header: Buffer, frame: bytearray, accepts: Offload) -> list[bytes] | None:
    """The packets for a receiver that ``accepts`` some offloads. ``frame`` may be changed.

    None if header and frame do not fit together.
    """
    fields = Header.parse(header)
    needs = fields.flags & Flag.NEEDS_CSUM
    kind = fields.gso_type & ~GSO_ECN
    offload = _GSO_OFFLOAD.get(kind)
    if needs and fields.csum_start + fields.csum_offset + 2 > len(frame):
        return None
    if kind == Gso.NONE:
        if needs and not accepts & Offload.CSUM:
            put_checksum(frame, fields.csum_start, fields.csum_offset)
            return [PLAIN + frame]
        plain = fields.pack() if needs else (DATA_VALID if fields.flags & Flag.DATA_VALID else PLAIN)
        return [plain + frame]
    if offload is None or not needs:
        return None
    wanted = offload | Offload.CSUM | (Offload.ECN if fields.gso_type & GSO_ECN else 0)
    if wanted & ~accepts:
        segments = segment(fields, frame)
        return None if segments is None else [PLAIN + part for part in segments]
    return [fields.pack() + frame]


DATA_VALID: Final = Header(flags=Flag.DATA_VALID).pack()
_GSO_OFFLOAD: dict[int, Offload] = {Gso.TCPV4: Offload.TSO4, Gso.TCPV6: Offload.TSO6}


def put_checksum(frame: bytearray, start: int, offset: int) -> None:
    """Complete the checksum that covers ``frame`` from ``start`` and lies ``offset`` further (in the frame)."""
    value = fold_checksum(memoryview(frame)[start:])
    frame[start + offset : start + offset + 2] = value.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the headers of a TCP segment in a frame are."""

    network: int
    version: int
    transport: int
    payload: int


def tcp_layout(frame: Buffer) -> Layout | None:
    """The headers of a TCP segment; None if the frame is none, or a fragment, or IPv6 with extension headers."""
    network = ETHERNET
    if len(frame) < network + 40:
        return None
    kind = frame[12] << 8 | frame[13]
    if kind == VLAN:
        network += 4
        kind = frame[16] << 8 | frame[17]
    if kind == IPV4 and frame[network] >> 4 == 4:
        version, transport = 4, network + (frame[network] & 15) * 4
        fragment = (frame[network + 6] & 0x3F) << 8 | frame[network + 7]
        if transport < network + 20 or frame[network + 9] != TCP or fragment:
            return None
    elif kind == IPV6 and frame[network] >> 4 == 6 and frame[network + 6] == TCP:
        version, transport = 6, network + 40
    else:
        return None
    if len(frame) < transport + 20:
        return None
    payload = transport + (frame[transport + 12] >> 4) * 4
    if payload < transport + 20 or payload > len(frame):
        return None
    return Layout(network, version, transport, payload)


def set_length(frame: bytearray, layout: Layout) -> None:
    """Make the IP header say how long the frame is, with a right checksum of its own."""
    network = layout.network
    if layout.version == 4:
        struct.pack_into(">H", frame, network + 2, len(frame) - network)
        struct.pack_into(">H", frame, network + 10, 0)
        struct.pack_into(">H", frame, network + 10, fold_checksum(memoryview(frame)[network : layout.transport]))
    else:
        struct.pack_into(">H", frame, network + 4, len(frame) - network - 40)


def pseudo_sum(frame: Buffer, layout: Layout) -> int:
    """The sum of TCP's pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1)."""
    network, view = layout.network, memoryview(frame)
    addresses = view[network + 12 : network + 20] if layout.version == 4 else view[network + 8 : network + 40]
    return ones_sum(bytes(addresses) + struct.pack(">II", len(frame) - layout.transport, TCP))


def segment(fields: Header, frame: bytearray) -> list[bytes] | None:
    """The short frames of a long TCP segment, complete. None if it is not what its header says."""
    layout = tcp_layout(frame)
    size = fields.gso_size
    if layout is None or size < MIN_SEGMENT:
        return None
    if (fields.csum_start, fields.csum_offset) != (layout.transport, TCP_CHECKSUM):
        return None
    if layout.version != (4 if fields.gso_type & ~GSO_ECN == Gso.TCPV4 else 6) or len(frame) > MAX_FRAME:
        return None
    head = frame[: layout.payload]
    identification = head[layout.network + 4] << 8 | head[layout.network + 5]
    (sequence,) = struct.unpack_from(">I", head, layout.transport + 4)
    flags = head[layout.transport + 13]
    payload = memoryview(frame)[layout.payload :]
    parts: list[bytes] = []
    for number, start in enumerate(range(0, max(len(payload), 1), size)):
        part = head + payload[start : start + size]
        last = start + size >= len(payload)
        if layout.version == 4:
            struct.pack_into(">H", part, layout.network + 4, identification + number & 0xFFFF)
        set_length(part, layout)
        struct.pack_into(">I", part, layout.transport + 4, sequence + start & 0xFFFFFFFF)
        part[layout.transport + 13] = flags & ~(CWR if number else 0) & ~(0 if last else FIN | PSH)
        struct.pack_into(">H", part, layout.transport + TCP_CHECKSUM, pseudo_sum(part, layout))
        put_checksum(part, layout.transport, TCP_CHECKSUM)
        parts.append(bytes(part))
    return parts


def fragment(frame: bytes, mtu: int) -> list[bytes]:
    """The fragments of an IPv4 datagram that is too long for ``mtu`` (RFC 791 §3.2); nothing of any other frame."""
    head = bytearray(frame[: ETHERNET + 20])
    if len(head) < ETHERNET + 20 or frame[12] << 8 | frame[13] != IPV4 or head[ETHERNET] != 0x45:
        return []
    body = memoryview(frame)[len(head) :]
    size = (mtu - 20) & ~7
    layout = Layout(ETHERNET, 4, len(head), len(head))
    parts: list[bytes] = []
    for start in range(0, len(body), size):
        part = head + body[start : start + size]
        more = 0x2000 if start + size < len(body) else 0
        struct.pack_into(">H", part, ETHERNET + 6, start // 8 | more)
        set_length(part, layout)
        parts.append(bytes(part))
    return parts
