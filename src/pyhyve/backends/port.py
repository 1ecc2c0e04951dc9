"""A Unix socket of the host's that one program at a time connects to: the far end of a guest's serial port.

The machine listens; ``on_open`` tells of a connection and of its end. Bytes go both ways without a copy kept here:
``send`` takes what the socket takes and says how much that was, ``on_room`` tells when it takes more; ``on_data`` gives
what arrived, and ``pause`` leaves the rest in the socket. Everything happens in the event loop's thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Sequence

from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

READ_SIZE = 64 << 10
_LONGEST = 107


class SocketPort:
    """Listens at ``path``. A program that comes while another is connected waits until that one has gone."""

    def __init__(self, path: str, loop: EventLoop) -> None:
        self.path = path
        self.on_open: Callable[[bool], None] = lambda is_open: None
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_room: Callable[[], None] = lambda: None
        self._loop = loop
        self._peer: socket.socket | None = None
        self._reading = True
        self._listener: socket.socket | None = _listen(path)
        loop.add_reader(self._listener.fileno(), self._accept)

    @property
    def is_open(self) -> bool:
        """Whether a program is connected."""
        return self._peer is not None

    def send(self, buffers: Sequence[memoryview | bytes]) -> int:
        """Send what goes at once; ``on_room`` follows if that was not all. Everything goes where nobody listens.

        ``on_open`` may be called from here, where it shows that the peer has gone; ``on_room`` is not.
        """
        total = sum(map(len, buffers))
        if self._peer is None:
            return total
        try:
            sent = self._peer.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop()
            return total
        if sent < total:
            self._loop.add_writer(self._peer.fileno(), self._writable)
        return sent

    def pause(self) -> None:
        """Take nothing from the peer until ``resume``."""
        if self._reading:
            self._reading = False
            if self._peer is not None:
                self._loop.remove_reader(self._peer.fileno())

    def resume(self) -> None:
        """Go on reading."""
        if not self._reading:
            self._reading = True
            if self._peer is not None:
                self._loop.add_reader(self._peer.fileno(), self._readable)

    def close(self) -> None:
        """Close everything and remove the socket. Idempotent."""
        if self._listener is None:
            return
        self.on_open = lambda is_open: None
        self.on_room = lambda: None
        if self._peer is not None:
            self._drop()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        self._peer = peer
        self._loop.remove_reader(self._listener.fileno())
        if self._reading:
            self._loop.add_reader(peer.fileno(), self._readable)
        self.on_open(True)

    def _readable(self) -> None:
        if self._peer is None or not self._reading:
            return
        try:
            data = self._peer.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.on_data(data)
        else:
            self._drop()
            self.on_room()

    def _writable(self) -> None:
        if self._peer is not None:
            self._loop.remove_writer(self._peer.fileno())
            self.on_room()

    def _drop(self) -> None:
        """The peer has gone; the next one may come."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._loop.remove_reader(peer.fileno())
        self._loop.remove_writer(peer.fileno())
        peer.close()
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)
        self.on_open(False)


def _listen(path: str) -> socket.socket:
    """A socket that listens at ``path``; one that a dead process left there is replaced."""
    if len(os.fsencode(path)) > _LONGEST:
        raise DeviceError(f"socket {path}: a path of more than {_LONGEST} bytes")
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise DeviceError(f"socket {path}: there is a file of that name")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                else:
                    raise DeviceError(f"socket {path}: another program listens there")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setblocking(False)
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise DeviceError(f"socket {path}: {error.strerror}") from None
    return listener
