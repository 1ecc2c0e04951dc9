"""Frames as a guest would make and read them, and a card without a guest that collects packets."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Callable

from pyhyve.backends.net import NetBackend
from pyhyve.backends.net import frames as f
from pyhyve.loop import EventLoop

PATIENCE = 20.0
MAC = bytes.fromhex("589cfc000001")
BROADCAST = b"\xff" * 6


def ethernet(payload: bytes, kind: int = f.IPV4, to: bytes = BROADCAST) -> bytes:
    return to + MAC + struct.pack(">H", kind) + payload


def ipv4(protocol: int, source: str, destination: str, body: bytes, identification: int = 7) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), identification, 0, 64, protocol, 0) + addresses
    return head[:10] + struct.pack(">H", f.fold_checksum(head)) + head[12:] + body


def udp(source: str, sport: int, destination: str, dport: int, data: bytes) -> bytes:
    return ipv4(f.UDP, source, destination, struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data)


def tcp(
    source: str, sport: int, destination: str, dport: int, *,
    seq: int, ack: int = 0, flags: int, options: bytes = b"", data: bytes = b"", window: int = 64000,
) -> bytes:  # fmt: skip
    """A datagram with a complete checksum."""
    offset = (20 + len(options)) // 4 << 4
    segment = struct.pack(">HHIIBBHHH", sport, dport, seq, ack, offset, flags, window, 0, 0) + options + data
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">II", len(segment), f.TCP)
    checksum = f.fold_checksum(pseudo + segment)
    return ipv4(f.TCP, source, destination, segment[:16] + struct.pack(">H", checksum) + segment[18:])


def tcp_is_sound(frame: bytes) -> bool:
    """Whether lengths and checksums of an Ethernet frame with TCP over IPv4 are right."""
    layout = f.tcp_layout(frame)
    if layout is None:
        return False
    total = struct.unpack_from(">H", frame, layout.network + 2)[0]
    whole = f.pseudo_sum(frame, layout) + f.ones_sum(frame[layout.transport :])
    return (
        total == len(frame) - layout.network
        and f.ones_sum(frame[layout.network : layout.transport]) == 0xFFFF
        and whole % 0xFFFF == 0
    )


class Card:
    """Starts a backend and keeps what it says."""

    def __init__(self, backend: NetBackend) -> None:
        self.backend = backend
        self.packets: queue.Queue[bytes] = queue.Queue()
        self.links: queue.Queue[bool] = queue.Queue()
        self.writable = threading.Event()
        backend.start(self._receive, self.writable.set, self.links.put)

    def _receive(self, pair: int, packets: list[bytes]) -> None:
        for packet in packets:
            self.packets.put(packet)

    def send(self, frame: bytes, header: bytes = f.PLAIN) -> bool:
        return self.backend.send(header, [frame[:20], memoryview(frame)[20:]])

    def packet(self, wanted: Callable[[bytes], object] = lambda frame: True) -> tuple[f.Header, bytes]:
        """The next packet whose frame is wanted; others are thrown away."""
        deadline = time.monotonic() + PATIENCE
        while True:
            packet = self.packets.get(timeout=max(deadline - time.monotonic(), 0))
            if wanted(packet[f.HEADER_SIZE :]):
                return f.Header.parse(packet), packet[f.HEADER_SIZE :]

    def frame(self, wanted: Callable[[bytes], object] = lambda frame: True) -> bytes:
        return self.packet(wanted)[1]


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def close(self) -> None:
        self.loop.stop()
        self._thread.join()
        self.loop.close()

    def settle(self) -> None:
        """Wait until the loop has done what it was asked to."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(PATIENCE)
