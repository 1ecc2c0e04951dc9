"""A network of the machine's own, behind NAT: addresses by DHCP, names by DNS, TCP and UDP out, no root needed.

libslirp is the router. The guest is 10.0.2.15 by DHCP; the host is 10.0.2.2 (its own loopback too), names are asked at
10.0.2.3. ``hostfwd=proto:hostaddr:hostport-guestaddr:guestport`` (bhyve(8)), several between semicolons, lets
connections in; an address left out is any of the host's, or the guest's 10.0.2.15. ``slirp`` is the same as bhyve has
it: only forwarded ports reach the guest and nothing leaves it, unless ``open`` is given.

A frame from the guest goes into ``slirp_input``, which turns segments into calls on the host's sockets. These sockets
hang in one epoll set, which hangs in the event loop; after every bout of work the library says anew which of them it
waits for, and for how long. Frames to the guest are gathered and delivered at the end of the bout, together.

A guest whose card takes long segments (TSO) gets TCP in pieces of up to 16 KiB: its SYN is changed to say so, and what
comes is marked with the size that the guest asked for.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pyhyve.backends.net import Buffer, Offload, OnReceive, read_mtu
from pyhyve.backends.net import frames as f
from pyhyve.backends.net import libslirp as lib
from pyhyve.config import TRUE
from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

NETWORK, NETMASK = "10.0.2.0", "255.255.255.0"
HOST, NAMESERVER, GUEST = "10.0.2.2", "10.0.2.3", "10.0.2.15"
LIBRARY_MTU: Final = 65520
"""The longest IP packet between the library and us; what is too long for the guest is cut here."""

LONG_SEGMENT: Final = 16 * 1024
"""What a guest that takes long segments is said to take: a quarter of the window, which the library does not scale, so
that some are on their way while the guest works on others."""

ETHERNET_MTU: Final = 1500
BACKLOG: Final = 512
"""Frames that wait for a guest without buffers; more are dropped, as a switch would."""

_FOREVER = (1 << 32) - 1
_EPOLL = {
    lib.Poll.IN: select.EPOLLIN, lib.Poll.OUT: select.EPOLLOUT, lib.Poll.PRI: select.EPOLLPRI,
    lib.Poll.ERR: select.EPOLLERR, lib.Poll.HUP: select.EPOLLHUP,
}  # fmt: skip
_TO_EPOLL = [sum(_EPOLL[bit] for bit in lib.Poll if events & bit) for events in range(32)]
_FROM_EPOLL = {mask: sum(bit for bit in lib.Poll if mask & _EPOLL[bit]) for mask in range(32)}


class Forward:
    """One rule of ``hostfwd``."""

    __slots__ = ("guest", "guest_port", "host", "host_port", "text", "udp")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            outside, _, inside = text.partition("-")
            protocol, self.host, host_port = outside.split(":")
            self.guest, guest_port = inside.split(":")
            self.host_port, self.guest_port = int(host_port), int(guest_port)
            self.udp = ("tcp", "udp").index(protocol) == 1
            for address in (self.host, self.guest):
                socket.inet_pton(socket.AF_INET, address or HOST)
        except (ValueError, OSError):
            raise DeviceError(
                f"invalid hostfwd '{text}': it must be proto:hostaddr:hostport-guestaddr:guestport with IPv4 addresses"
            ) from None
        if not (0 < self.host_port < 65536 and 0 < self.guest_port < 65536):
            raise DeviceError(f"invalid hostfwd '{text}': ports are 1 to 65535")


def open_user(spec: str, options: Mapping[str, str], loop: EventLoop) -> User:
    """The backend ``user`` or ``slirp`` with its options. Raises ``DeviceError``."""
    forwards = [Forward(text) for text in options.get("hostfwd", "").split(";") if text]
    restricted = spec == "slirp" and options.get("open", "").lower() not in TRUE
    return User(loop, forwards, restricted=restricted, mtu=read_mtu(options) or ETHERNET_MTU)


class User:
    """One virtual network with one guest in it."""

    offload = Offload.CSUM | Offload.TSO4
    queues = 1
    link = True

    def __init__(
        self, loop: EventLoop, forwards: Sequence[Forward] = (), *, restricted: bool = False, mtu: int = ETHERNET_MTU
    ) -> None:
        self._lib = lib.library()
        self._loop = loop
        self._accepts = Offload(0)
        self._on_receive: OnReceive | None = None
        self._out: list[bytes] = []
        self._paused = False
        self._events: dict[int, int] = {}  # what the epoll set waits for
        self._asked: list[int] = []  # descriptors by the index that the library knows them by
        self._ready: dict[int, int] = {}
        self._timers: dict[int, tuple[int, int | None]] = {}
        self._deadlines: dict[int, int] = {}
        self._settling = False
        self._wanted: dict[int, int] = {}
        self._segment_size = mtu - 40
        self._mtu = mtu
        self._epoll = select.epoll()
        self._alarm = loop.timer(self._work)
        # kept as long as the library may call them
        self._callbacks = lib.Callbacks(
            lib.SendPacket(self._output), lib.GuestError(_ignore), lib.ClockGetNs(_clock), lib.TimerNew(_no_timer),
            lib.TimerFree(self._timer_free), lib.TimerMod(self._timer_mod), lib.PollFd(self._forget),
            lib.PollFd(self._forget), lib.Notify(self._notify), lib.InitCompleted(_ignore),
            lib.TimerNewOpaque(self._timer_new),
        )  # fmt: skip
        self._add_poll = lib.AddPoll(self._ask)
        self._get_revents = lib.GetRevents(self._answer)
        config = lib.Config(
            version=lib.CONFIG_VERSION, restricted=restricted, in_enabled=True,
            vnetwork=_address(NETWORK), vnetmask=_address(NETMASK), vhost=_address(HOST),
            vdhcp_start=_address(GUEST), vnameserver=_address(NAMESERVER),
            if_mtu=LIBRARY_MTU, if_mru=LIBRARY_MTU,
        )  # fmt: skip
        self._slirp = self._lib.slirp_new(ctypes.byref(config), ctypes.byref(self._callbacks), None)
        if not self._slirp:
            self._epoll.close()
            raise DeviceError("network backend user: libslirp refuses its configuration")
        try:
            for forward in forwards:
                self._forward(forward)
        except BaseException:
            self.close()
            raise

    def _forward(self, rule: Forward) -> None:
        host, guest = (lib.InAddr.of(socket.inet_aton(a)) for a in (rule.host or "0.0.0.0", rule.guest or GUEST))
        if self._lib.slirp_add_hostfwd(self._slirp, rule.udp, host, rule.host_port, guest, rule.guest_port) < 0:
            where = f"{'udp' if rule.udp else 'tcp'} port {rule.host_port} of {rule.host or 'this host'}"
            raise DeviceError(f"hostfwd '{rule.text}': cannot listen at {where}: {_why_not(rule)}")

    # -- the card's side --

    def start(self, on_receive: OnReceive, on_writable: Callable[[], None], on_link: Callable[[bool], None]) -> None:
        """Let the network work. It takes whatever is sent, and its link is always there."""
        self._on_receive = on_receive
        self._loop.add_reader(self._epoll.fileno(), self._work)
        self._loop.call_in_loop(self._settle)

    def send(self, header: bytes, frame: Sequence[Buffer], queue: int = 0) -> bool:
        """Hand a frame to the router."""
        data = bytearray().join(frame)
        if header[:2] != b"\0\0" and not _finish(f.Header.parse(header), data):
            return True
        if len(data) >= f.ETHERNET:
            self._loop.call_in_loop(self._input, data)
        return True

    def set_offload(self, offload: Offload) -> None:
        """What the guest's card takes."""
        self._accepts = offload

    def set_queues(self, pairs: int) -> None:
        """There is one pair."""

    def pause(self) -> None:
        """Read no more from the host's sockets; their senders wait."""
        self._paused = True

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._loop.call_in_loop(self._settle)

    def close(self) -> None:
        """End every connection."""
        if self._slirp:
            slirp, self._slirp = self._slirp, None
            self._alarm.cancel()
            self._loop.remove_reader(self._epoll.fileno())
            self._lib.slirp_cleanup(slirp)
            self._epoll.close()

    def _input(self, frame: bytearray) -> None:
        if not self._slirp:
            return
        if self._accepts & Offload.TSO4:
            self._widen(frame)
        self._lib.slirp_input(self._slirp, bytes(frame), len(frame))
        if not self._settling:
            # once for all frames that the card sends now: what it sends later in this turn of the loop comes first
            self._settling = True
            self._loop.call_soon_threadsafe(self._settle)

    # -- the library's side --

    def _settle(self) -> None:
        """Deliver what came, and wait for what the library waits for now."""
        self._settling = False
        if not self._slirp:
            return
        self._deliver()
        wanted: dict[int, int] = {}
        timeout = ctypes.c_uint32(_FOREVER)
        self._asked.clear()
        self._wanted = wanted
        self._lib.slirp_pollfds_fill(self._slirp, ctypes.byref(timeout), self._add_poll, None)
        known = self._events
        for fd in known.keys() - wanted.keys():
            self._unwatch(fd)
        for fd, events in wanted.items():
            if self._paused:
                events &= ~(select.EPOLLIN | select.EPOLLPRI)
            if known.get(fd) != events:
                self._watch(fd, events)
        now = time.monotonic_ns()
        deadlines = list(self._deadlines.values())
        if timeout.value != _FOREVER:
            deadlines.append(now + max(timeout.value, 1) * 1_000_000)
        if deadlines:
            self._alarm.arm_at(min(deadlines))

    def _work(self) -> None:
        """Sockets are ready, or the library's time has come."""
        if not self._slirp:
            return
        self._ready = {fd: _FROM_EPOLL[mask & 31] for fd, mask in self._epoll.poll(0)}
        self._lib.slirp_pollfds_poll(self._slirp, 0, self._get_revents, None)
        now = time.monotonic_ns()
        for timer in [timer for timer, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[timer]
            self._lib.slirp_handle_timer(self._slirp, *self._timers[timer])
        self._settle()

    def _watch(self, fd: int, events: int) -> None:
        try:
            if fd in self._events:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)  # the library closed it and got the same number again
        except FileExistsError:
            self._epoll.modify(fd, events)
        self._events[fd] = events

    def _unwatch(self, fd: int) -> None:
        del self._events[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed meanwhile

    def _ask(self, fd: int, events: int, opaque: int | None) -> int:
        self._wanted[fd] = self._wanted.get(fd, 0) | _TO_EPOLL[events & 31]
        self._asked.append(fd)
        return len(self._asked) - 1

    def _answer(self, index: int, opaque: int | None) -> int:
        return self._ready.get(self._asked[index], 0) if 0 <= index < len(self._asked) else 0

    def _forget(self, fd: int, opaque: int | None) -> None:
        if fd in self._events:
            self._unwatch(fd)

    def _notify(self, opaque: int | None) -> None:
        self._loop.call_soon_threadsafe(self._settle)

    def _timer_new(self, ident: int, cookie: int | None, opaque: int | None) -> int:
        number = len(self._timers) + 1
        self._timers[number] = (ident, cookie)
        return number

    def _timer_free(self, timer: int | None, opaque: int | None) -> None:
        self._timers.pop(timer or 0, None)
        self._deadlines.pop(timer or 0, None)

    def _timer_mod(self, timer: int | None, expire_ms: int, opaque: int | None) -> None:
        self._deadlines[timer or 0] = expire_ms * 1_000_000

    # -- frames to the guest --

    def _output(self, data: int, length: int, opaque: int | None) -> int:
        if len(self._out) < BACKLOG:
            self._out.append(ctypes.string_at(data, length))
        return length

    def _deliver(self) -> None:
        if self._out and self._on_receive is not None:
            out, self._out = self._out, []
            packets: list[bytes] = []
            for frame in out:
                packets += self._narrow(frame)
            self._on_receive(0, packets)

    def _narrow(self, frame: bytes) -> list[bytes]:
        """The packets that carry a frame of the library's to the guest."""
        complete = f.DATA_VALID if self._accepts & Offload.CSUM else f.PLAIN
        if len(frame) <= self._mtu + f.ETHERNET:
            return [complete + frame]
        layout = f.tcp_layout(frame)
        if layout is None:
            return [complete + part for part in f.fragment(frame, self._mtu)]
        header = f.Header(
            f.Flag.NEEDS_CSUM, f.Gso.TCPV4, layout.payload, self._segment_size, layout.transport, f.TCP_CHECKSUM
        )
        long = bytearray(frame)
        checksum = layout.transport + f.TCP_CHECKSUM
        struct.pack_into(">H", long, checksum, f.pseudo_sum(long, layout))
        return f.complete(header.pack(), long, self._accepts) or []

    def _widen(self, frame: bytearray) -> None:
        """Let the library send long segments on the connection that a SYN of the guest's opens."""
        if len(frame) < f.ETHERNET + 44 or frame[f.ETHERNET + 9] != f.TCP:
            return
        layout = f.tcp_layout(frame)
        if layout is None or layout.version != 4 or not frame[layout.transport + 13] & _SYN:
            return
        option = layout.transport + 20
        while option + 4 <= layout.payload and frame[option] != _END:
            if frame[option] == _NOP:
                option += 1
            elif frame[option] == _MSS and frame[option + 1] == 4:
                (size,) = struct.unpack_from(">H", frame, option + 2)
                self._segment_size = max(size, f.MIN_SEGMENT)
                struct.pack_into(">H", frame, option + 2, LONG_SEGMENT)
                struct.pack_into(">H", frame, layout.transport + f.TCP_CHECKSUM, f.pseudo_sum(frame, layout))
                f.put_checksum(frame, layout.transport, f.TCP_CHECKSUM)
                return
            else:
                option += max(frame[option + 1], 2)


_SYN = 0x02
_END, _NOP, _MSS = 0, 1, 2  # options (RFC 9293 §3.2)


def _finish(header: f.Header, frame: bytearray) -> bool:
    """Do what the guest's card left undone, but leave a long segment in one piece. False if it makes no sense."""
    if header.gso_type != f.Gso.NONE:
        layout = f.tcp_layout(frame)
        if header.gso_type & ~f.GSO_ECN != f.Gso.TCPV4 or layout is None or layout.version != 4:
            return False
        if len(frame) - layout.network > 65535:
            return False
        f.set_length(frame, layout)
        struct.pack_into(">H", frame, layout.transport + f.TCP_CHECKSUM, f.pseudo_sum(frame, layout))
        f.put_checksum(frame, layout.transport, f.TCP_CHECKSUM)
    elif header.flags & f.Flag.NEEDS_CSUM:
        if header.csum_start + header.csum_offset + 2 > len(frame):
            return False
        f.put_checksum(frame, header.csum_start, header.csum_offset)
    return True


def _address(text: str) -> int:
    """An IPv4 address as the library's structures hold it."""
    return int.from_bytes(socket.inet_aton(text), sys.byteorder)


def _why_not(rule: Forward) -> str:
    """What the host says to a socket at the rule's port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if rule.udp else socket.SOCK_STREAM) as probe:
        try:
            probe.bind((rule.host, rule.host_port))
        except OSError as error:
            return str(error.strerror)
    return "it is taken"


def _clock(opaque: int | None) -> int:
    return time.monotonic_ns()


def _no_timer(callback: int | None, cookie: int | None, opaque: int | None) -> None:
    """The library asks for its timers by ``timer_new_opaque``."""


def _ignore(*arguments: object) -> None:
    """Nobody needs to know."""
