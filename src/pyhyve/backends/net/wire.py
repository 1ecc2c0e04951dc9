"""A wire to another machine on this host: ``socket=PATH``, a Unix socket between exactly two cards.

Whoever comes first listens at ``PATH``, the second connects; when one goes, the link of the other goes down, and it
waits at the same place for the next. The socket keeps packets apart (``SOCK_SEQPACKET``, unix(7)). Each end begins with
a hello, and says it again when its guest's driver starts: which work its guest finishes. All other messages are
packets (``backends.net``). So a long TCP segment goes from guest to guest in one piece, never cut and never summed; for
a guest that cannot take it, the sender's end cuts it. A slow reader stops the sender: nothing is lost on this wire.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pyhyve.backends.net import Buffer, Offload, OnReceive
from pyhyve.backends.net import frames as f
from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

HELLO: Final = b"pyhyve-net 1\0"
"""Begins with a byte that no virtio-net header has first; a byte of ``Offload`` follows."""

BATCH: Final = 64
LONGEST_PATH: Final = 107
BUFFER: Final = 4 << 20
RETRY_NS: Final = 1_000_000_000
_ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN


class Wire:
    """One end. Raises ``DeviceError`` if ``path`` cannot be used."""

    offload = _ALL
    queues = 1

    def __init__(self, path: str, loop: EventLoop) -> None:
        self.path = path
        self._loop = loop
        self._accepts = Offload(0)
        self._peer_accepts = Offload(0)
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._met = False  # the peer's hello has come
        self._unsent: deque[bytes] = deque()
        self._blocked = False
        self._paused = False
        self._started = False
        self._closed = False
        self._on_receive: OnReceive | None = None
        self._on_writable: Callable[[], None] | None = None
        self._on_link: Callable[[bool], None] | None = None
        self._retry = loop.timer(self._look_again)
        try:
            if not path or len(os.fsencode(path)) > LONGEST_PATH:
                raise OSError(errno.ENAMETOOLONG, f"the path of a socket has 1 to {LONGEST_PATH} bytes")
            self._find_other_end()
        except OSError as error:
            raise DeviceError(f"network backend socket={path}: {error.strerror or error}") from None

    # -- the card's side --

    @property
    def link(self) -> bool:
        """Whether a machine is at the other end."""
        return self._met

    def start(self, on_receive: OnReceive, on_writable: Callable[[], None], on_link: Callable[[bool], None]) -> None:
        """Serve the socket."""
        self._on_receive, self._on_writable, self._on_link = on_receive, on_writable, on_link
        self._started = True
        self._loop.call_in_loop(self._serve)

    def send(self, header: bytes, frame: Sequence[Buffer], queue: int = 0) -> bool:
        """Send a packet, doing first what the other guest does not."""
        peer = self._peer
        if peer is None or not self._met:
            return True
        if self._blocked:
            return False
        try:
            if header[:2] == b"\0\0":
                peer.sendmsg((f.PLAIN, *frame), (), socket.MSG_DONTWAIT)
                return True
            packets = f.complete(header, bytearray().join(frame), self._peer_accepts) or []
        except BlockingIOError:
            self._block()
            return False
        except OSError:
            return True  # it has gone; the loop will see that
        self._unsent.extend(packets)
        self._flush()
        return True

    def set_offload(self, offload: Offload) -> None:
        """Tell the other end what our guest finishes."""
        if offload != self._accepts:
            self._accepts = offload
            self._loop.call_in_loop(self._say_hello)

    def set_queues(self, pairs: int) -> None:
        """There is one pair."""

    def pause(self) -> None:
        """Leave packets in the socket; when it is full, the other guest waits."""
        if not self._paused:
            self._paused = True
            if self._peer is not None:
                self._loop.remove_reader(self._peer.fileno())

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._peer is not None and self._started:
                self._loop.add_reader(self._peer.fileno(), self._readable)

    def close(self) -> None:
        """Hang up, and take the socket's file away if it is ours."""
        if self._closed:
            return
        self._closed = True
        self._retry.cancel()
        self._drop_peer()
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._loop.remove_reader(listener.fileno())
            self._loop.call_in_loop(listener.close)

    # -- two ends that find each other --

    def _find_other_end(self) -> None:
        """Connect, or else listen. Raises ``OSError``."""
        with _locked(os.path.dirname(self.path) or "."):
            end = _socket()
            try:
                end.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                try:
                    self._clear_away()
                    end.bind(self.path)
                    end.listen(1)
                except OSError:
                    end.close()
                    raise
                self._listener = end
            except OSError as error:
                end.close()
                if error.errno != errno.EAGAIN:  # others wait there already
                    raise
                self._retry.arm_in(RETRY_NS)
            else:
                self._peer = end
                self._say_hello()

    def _clear_away(self) -> None:
        """Remove a socket left by a machine that is gone. Raises ``OSError`` for any other file."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket")
            os.unlink(self.path)

    def _look_again(self) -> None:
        if self._closed or self._peer is not None or self._listener is not None:
            return
        try:
            self._find_other_end()
        except OSError:
            self._retry.arm_in(RETRY_NS)
        else:
            self._serve()

    def _serve(self) -> None:
        if self._closed:
            return
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)
        if self._peer is not None and not self._paused:
            self._loop.add_reader(self._peer.fileno(), self._readable)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if self._peer is not None:
            peer.close()  # a wire has two ends
            return
        _prepare(peer)
        self._peer = peer
        self._say_hello()
        self._serve()

    def _say_hello(self) -> None:
        if self._peer is not None:
            self._unsent.append(HELLO + bytes((self._accepts,)))
            self._flush()

    def _hear_hello(self, message: bytes) -> None:
        self._peer_accepts = Offload(message[len(HELLO)]) & _ALL if len(message) > len(HELLO) else Offload(0)
        if not self._met:
            self._met = True
            if self._on_link is not None:
                self._on_link(True)

    def _drop_peer(self) -> None:
        peer, self._peer = self._peer, None
        was_met, self._met = self._met, False
        self._blocked = False
        self._peer_accepts = Offload(0)
        self._unsent.clear()
        if peer is not None:
            self._loop.remove_reader(peer.fileno())
            self._loop.remove_writer(peer.fileno())
            self._loop.call_in_loop(peer.close)
        if was_met and not self._closed:
            if self._on_link is not None:
                self._on_link(False)
            if self._on_writable is not None:
                self._on_writable()

    # -- packets --

    def _readable(self) -> None:
        peer = self._peer
        if peer is None:
            return
        packets: list[bytes] = []
        gone = False
        try:
            while len(packets) < BATCH and not self._paused:
                packet = peer.recv(f.HEADER_SIZE + f.MAX_FRAME + 1)
                if not packet:
                    gone = True
                    break
                if packet.startswith(HELLO):
                    self._hear_hello(packet)
                elif packet.startswith(f.PLAIN):
                    packets.append(packet)
                elif len(packet) >= f.HEADER_SIZE:
                    header, frame = packet[: f.HEADER_SIZE], bytearray(packet[f.HEADER_SIZE :])
                    packets += f.complete(header, frame, self._accepts) or ()
        except BlockingIOError:
            pass
        except OSError:
            gone = True
        packets = [p for p in packets if f.HEADER_SIZE + f.ETHERNET <= len(p) <= f.HEADER_SIZE + f.MAX_FRAME]
        if packets and self._met and self._on_receive is not None:
            self._on_receive(0, packets)
        if gone:
            # at once if the other end has ended; later if it has hung up because its wire has two ends already
            delay = 0 if self._met else RETRY_NS
            self._drop_peer()
            if self._listener is None:
                self._retry.arm_in(delay)

    def _flush(self) -> None:
        peer = self._peer
        if peer is None:
            self._unsent.clear()
            return
        try:
            while self._unsent:
                peer.send(self._unsent[0], socket.MSG_DONTWAIT)
                self._unsent.popleft()
        except BlockingIOError:
            self._block()
        except OSError:
            self._unsent.clear()

    def _block(self) -> None:
        if not self._blocked and self._peer is not None:
            self._blocked = True
            self._loop.add_writer(self._peer.fileno(), self._writable)

    def _writable(self) -> None:
        peer = self._peer
        if peer is None or not self._blocked:
            return
        self._blocked = False
        self._flush()
        if not self._blocked:
            self._loop.remove_writer(peer.fileno())
            if self._on_writable is not None:
                self._on_writable()


def _socket() -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _prepare(end)
    return end


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        end.setsockopt(socket.SOL_SOCKET, option, BUFFER)  # as much of it as the host gives


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep two machines that start together from taking each other's socket away."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
