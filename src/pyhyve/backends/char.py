"""Character backends: the host's side of serial ports and consoles.

``open_char(spec, loop)`` understands ``stdio``, the path of a terminal, and ``tcp=address:port``.

Output is written straight to the descriptor in the caller's thread, a system call a write. What a descriptor does not
take at once waits in a buffer that the event loop empties, in order; when the buffer has grown to ``HIGH_WATER`` the
caller waits for the reader instead. So output is complete however slow its reader is. A reader that has gone away is no
error: from then on output vanishes. Input is read by the event loop and handed to ``on_input`` in the loop's thread.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import signal
import socket
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Protocol

from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

READ_SIZE = 4096
HIGH_WATER = 1 << 20
DRAIN_SECONDS = 30.0
"""How long a close waits for a reader that takes nothing."""

CONNECTION_DRAIN_SECONDS = 2.0
ESCAPE = 0x1D
"""Ctrl-], the default escape key."""

OnInput = Callable[[bytes], None]


@dataclass(slots=True, eq=False)
class CharTraffic:
    """Bytes that came in from the host, and bytes that the guest sent, whether somebody took them or not."""

    bytes_in: int = 0
    bytes_out: int = 0


class CharBackend(Protocol):
    """A two-way stream of bytes on the host."""

    traffic: CharTraffic

    def start(self, on_input: OnInput) -> None:
        """Begin to deliver input, in the loop's thread."""

    def write(self, data: bytes) -> None:
        """Send output, from any thread. Never raises."""

    def pause(self) -> None:
        """Stop reading until ``resume``. What was read already may still be delivered."""

    def resume(self) -> None:
        """Read on."""

    def close(self) -> None:
        """Send what waits, stop, and give everything back. Idempotent."""


def open_char(
    spec: str,
    loop: EventLoop,
    *,
    escape: int | None = ESCAPE,
    on_quit: Callable[[], None] | None = None,
) -> CharBackend:
    """Open the backend that ``spec`` names.

    On a terminal, the byte ``escape`` followed by ``q`` calls ``on_quit`` in the loop's thread, and twice sends it;
    without ``on_quit`` or with ``escape`` None every byte goes to the guest. Raises ``DeviceError`` with one line if
    there is no such backend or it cannot be opened.
    """
    if spec == "stdio":
        return StdioBackend(loop, escape if on_quit is not None else None, on_quit)
    if spec.startswith("tcp="):
        return TcpBackend(spec.removeprefix("tcp="), loop)
    if "nmdm" in spec:
        raise DeviceError(f"'{spec}': null-modem devices exist on FreeBSD only; use a pseudo-terminal or tcp=addr:port")
    if spec.startswith("/"):
        return TtyBackend(spec, loop)
    raise DeviceError(f"unknown character backend '{spec}': use stdio, the path of a terminal, or tcp=addr:port")


class Output:
    """An ordered, complete way out through one descriptor, which is closed by its owner."""

    def __init__(self, fd: int, loop: EventLoop, traffic: CharTraffic | None = None) -> None:
        self._fd = fd
        self._loop = loop
        self._traffic = traffic or CharTraffic()
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._wanted = False  # the loop shall tell when the descriptor takes more
        self._watched = False  # it does; only the loop's thread changes this
        self._gone = False
        self._write_some = _writer(fd)

    def write(self, data: bytes) -> None:
        """Send ``data`` after everything written before."""
        with self._lock:
            self._traffic.bytes_out += len(data)
            if self._gone:
                return
            if self._waiting:
                self._waiting += data
                if len(self._waiting) > HIGH_WATER:
                    self._wait(HIGH_WATER // 2, None)
                return
            sent = self._send(data)
            if sent < len(data) and not self._gone:
                self._waiting += data[sent:]
                self._watch(True)

    def drain(self, seconds: float) -> None:
        """Send everything, waiting as long as the reader takes something every ``seconds``."""
        with self._lock:
            self._wait(0, seconds)
            self._watch(False)

    def discard(self) -> None:
        """Drop what waits and everything from now on."""
        with self._lock:
            self._drop()

    def _send(self, data: bytes | bytearray) -> int:
        """Write what the descriptor takes now."""
        sent = 0
        try:
            while sent < len(data):
                sent += self._write_some(data[sent:] if sent else data)
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
        return sent

    def _watch(self, wanted: bool) -> None:
        if wanted != self._wanted:
            self._wanted = wanted
            self._loop.call_in_loop(self._follow)

    def _follow(self) -> None:
        # In the loop's thread, where a request that was overtaken by the next one finds nothing to do.
        if self._wanted and not self._watched:
            self._loop.add_writer(self._fd, self._writable)
        elif self._watched and not self._wanted:
            self._loop.remove_writer(self._fd)
        self._watched = self._wanted

    def _writable(self) -> None:
        # The lock is somebody's who waits for this reader already: he sends it.
        if self._lock.acquire(blocking=False):
            try:
                del self._waiting[: self._send(self._waiting)]
                if not self._waiting:
                    self._watch(False)
            finally:
                self._lock.release()

    def _wait(self, limit: int, seconds: float | None) -> None:
        """Send until at most ``limit`` bytes wait, or the reader takes none for ``seconds``."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        deadline = None if seconds is None else time.monotonic() + seconds
        while len(self._waiting) > limit and not self._gone:
            poll.poll(100)
            sent = self._send(self._waiting)
            del self._waiting[:sent]
            if deadline is not None and seconds is not None:
                if sent:
                    deadline = time.monotonic() + seconds
                elif time.monotonic() > deadline:
                    self._drop()

    def _drop(self) -> None:
        self._gone = True
        self._waiting.clear()
        self._watch(False)


class Input:
    """A descriptor read by the event loop. Plain files, which cannot be waited for, are read a piece at a time."""

    def __init__(
        self,
        fd: int,
        loop: EventLoop,
        on_input: OnInput,
        on_end: Callable[[], None] | None = None,
        traffic: CharTraffic | None = None,
    ) -> None:
        self._fd = fd
        self._traffic = traffic or CharTraffic()
        self._loop = loop
        self._on_input = on_input
        self._on_end = on_end
        self._lock = threading.Lock()
        self._waitable = _can_block(fd)
        self._reading = False  # wanted
        self._watched = False  # by the loop; only its thread changes this
        self._scheduled = False  # the next piece of a plain file
        self._ended = False
        self.resume()

    def pause(self) -> None:
        """Read no more for now."""
        with self._lock:
            if self._reading:
                self._reading = False
                self._loop.call_in_loop(self._follow)

    def resume(self) -> None:
        """Read on."""
        with self._lock:
            if self._reading or self._ended:
                return
            self._reading = True
            self._loop.call_in_loop(self._follow)

    def stop(self) -> None:
        """Read no more, ever."""
        self._ended = True
        self.pause()

    def _follow(self) -> None:
        wanted = self._reading
        if wanted == self._watched:
            return
        self._watched = wanted
        if not self._waitable:
            self._schedule()
        elif wanted:
            self._loop.add_reader(self._fd, self._readable)
        else:
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # a terminal that hung up
        if data:
            self._traffic.bytes_in += len(data)
            self._on_input(data)
        elif not self._ended:
            self.stop()
            if self._on_end is not None:
                self._on_end()

    def _read_file(self) -> None:
        self._scheduled = False
        if self._reading:
            self._readable()
            self._schedule()

    def _schedule(self) -> None:
        if self._reading and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._read_file)


class RawTerminal:
    """A terminal in raw mode, put back when the process leaves, whichever way it does.

    Output processing stays on, so that messages of the VMM itself still begin at the left margin.
    """

    _FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None
        self._signals: dict[int, Callable[[int, FrameType | None], None]] = {}

    def enter(self) -> None:
        """Go raw, unless the terminal is another process group's now."""
        try:
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                return
        except OSError:
            pass  # not the controlling terminal: nobody else's either
        try:
            attributes = termios.tcgetattr(self._fd)
            if self._saved is None:
                self._saved = list(attributes)
                atexit.register(self.leave)
                self._guard()
            termios.tcsetattr(self._fd, termios.TCSANOW, raw_attributes(attributes))
        except termios.error:
            pass

    def leave(self) -> None:
        """Put the terminal back. Idempotent."""
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        atexit.unregister(self.leave)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._signals.items():
                if signal.getsignal(number) == handler:
                    signal.signal(number, signal.SIG_DFL)
        self._signals.clear()

    def _guard(self) -> None:
        """Signals that would end the process at once first put the terminal back. Handlers of others are left alone."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._FATAL:
            if signal.getsignal(number) is signal.SIG_DFL:
                handler = self._die
                self._signals[number] = handler
                signal.signal(number, handler)

    def _die(self, number: int, frame: FrameType | None) -> None:
        self.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def raw_attributes(attributes: list[Any]) -> list[Any]:
    """cfmakeraw(3), except for output processing."""
    raw = list(attributes)
    raw[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cc = raw[6] = list(raw[6])
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return raw


class EscapeFilter:
    """Takes the escape sequences out of what a user types."""

    def __init__(self, escape: int | None, on_input: OnInput, on_quit: Callable[[], None] | None) -> None:
        self._escape = escape
        self._on_input = on_input
        self._on_quit = on_quit
        self._escaped = False

    def feed(self, data: bytes) -> None:
        """Pass on ``data`` without escape sequences; an unknown one is passed on whole."""
        escape = self._escape
        if escape is None or (not self._escaped and escape not in data):
            self._on_input(data)
            return
        out = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == escape:
                    self._escaped = True
                else:
                    out.append(byte)
                continue
            self._escaped = False
            if byte == escape:
                out.append(byte)
            elif byte in b"qQ":
                if self._on_quit is not None:
                    self._on_quit()
            else:
                out += bytes((escape, byte))
        if out:
            self._on_input(bytes(out))


class StdioBackend:
    """Standard input and output; a terminal in raw mode, with an escape key. Only one port can have them."""

    _taken = threading.Lock()

    def __init__(self, loop: EventLoop, escape: int | None = None, on_quit: Callable[[], None] | None = None) -> None:
        if not self._taken.acquire(blocking=False):
            raise DeviceError("stdio is used by another device already")
        self._loop = loop
        self._on_quit = on_quit
        # A descriptor that was closed when the process started may since be something else's.
        self._in = 0 if sys.__stdin__ is not None and _is_open(0) else None
        out = 1 if sys.__stdout__ is not None and _is_open(1) else None
        self._terminal = RawTerminal(0) if self._in is not None and os.isatty(0) else None
        self._escape = escape if self._terminal is not None else None
        self._own_out = None if out is None else _reopen_nonblocking(out)
        if self._own_out is not None:
            out = self._own_out
        self.traffic = CharTraffic()
        self._output = None if out is None else Output(out, loop, self.traffic)
        self.write = _discard if self._output is None else self._output.write
        self._input: Input | None = None
        self._closed = False

    def start(self, on_input: OnInput) -> None:
        """Go raw and read. Nothing to read, from the start or at some time, is no error."""
        if self._terminal is not None:
            self._terminal.enter()
            self._loop.add_signal(signal.SIGCONT, self._terminal.enter)
        if self._in is not None:
            feed = EscapeFilter(self._escape, on_input, self._on_quit).feed
            self._input = Input(self._in, self._loop, feed, traffic=self.traffic)

    def pause(self) -> None:
        """Stop reading."""
        if self._input is not None:
            self._input.pause()

    def resume(self) -> None:
        """Read on."""
        if self._input is not None:
            self._input.resume()

    def close(self) -> None:
        """Drain, restore the terminal."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._input is not None:
                self._input.stop()
            if self._output is not None:
                self._output.drain(DRAIN_SECONDS)
        finally:
            if self._terminal is not None:
                self._terminal.leave()
            if self._output is not None:
                self._output.discard()
            if self._own_out is not None:
                self._loop.call_in_loop(os.close, self._own_out)
            self._taken.release()


class TtyBackend:
    """A terminal or pseudo-terminal by its path, in raw mode."""

    def __init__(self, path: str, loop: EventLoop) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"cannot open terminal '{path}': {error.strerror}") from None
        if not os.isatty(self._fd):
            os.close(self._fd)
            raise DeviceError(f"'{path}' is not a terminal")
        self._saved = termios.tcgetattr(self._fd)
        termios.tcsetattr(self._fd, termios.TCSANOW, raw_attributes(self._saved))
        self._loop = loop
        self.traffic = CharTraffic()
        self._output = Output(self._fd, loop, self.traffic)
        self.write = self._output.write
        self._input: Input | None = None

    def start(self, on_input: OnInput) -> None:
        """Read."""
        self._input = Input(self._fd, self._loop, on_input, traffic=self.traffic)

    def pause(self) -> None:
        """Stop reading."""
        if self._input is not None:
            self._input.pause()

    def resume(self) -> None:
        """Read on."""
        if self._input is not None:
            self._input.resume()

    def close(self) -> None:
        """Drain for a while, put the terminal's mode back, close it."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._input is not None:
            self._input.stop()
        self._output.drain(CONNECTION_DRAIN_SECONDS)
        self._output.discard()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, self._saved)
        self._loop.call_in_loop(os.close, fd)


class TcpBackend:
    """A listener that serves one connection at a time; others wait in line. Output without a connection vanishes."""

    def __init__(self, address: str, loop: EventLoop) -> None:
        host, separator, port = address.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
            raise DeviceError(f"'tcp={address}' must be tcp=address:port")
        host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
        try:
            family, _, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
            self._listener = socket.create_server(where[:2], family=family, backlog=8)
        except OSError as error:
            # create_server adds the address to the text
            reason = os.strerror(error.errno) if isinstance(error.errno, int) and error.errno > 0 else error.strerror
            raise DeviceError(f"cannot listen on tcp={address}: {reason}") from None
        self._listener.setblocking(False)
        self.traffic = CharTraffic()
        self._loop = loop
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self._output: Output | None = None
        self._input: Input | None = None
        self._on_input: OnInput = _discard
        self._paused = False
        self._closed = False

    @property
    def port(self) -> int:
        """The port it listens on, if 0 was asked for."""
        return int(self._listener.getsockname()[1])

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._client is not None

    def start(self, on_input: OnInput) -> None:
        """Take connections."""
        self._on_input = on_input
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def write(self, data: bytes) -> None:
        """Send to the connection there is."""
        output = self._output
        if output is not None:
            output.write(data)
        else:
            self.traffic.bytes_out += len(data)

    def pause(self) -> None:
        """Stop reading."""
        with self._lock:
            self._paused = True
            if self._input is not None:
                self._input.pause()

    def resume(self) -> None:
        """Read on."""
        with self._lock:
            self._paused = False
            if self._input is not None:
                self._input.resume()

    def close(self) -> None:
        """Drain the connection for a while, close it and the listener."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._listener.fileno())
        self._hang_up(CONNECTION_DRAIN_SECONDS)
        self._loop.call_in_loop(self._listener.close)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.remove_reader(self._listener.fileno())
        with self._lock:
            self._client = client
            self._output = Output(client.fileno(), self._loop, self.traffic)
            self._input = Input(client.fileno(), self._loop, self._on_input, self._end, self.traffic)
            if self._paused:
                self._input.pause()

    def _end(self) -> None:
        self._hang_up(0.0)
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _hang_up(self, seconds: float) -> None:
        with self._lock:
            client, output, reader = self._client, self._output, self._input
            self._client = self._output = self._input = None
        if client is None or output is None or reader is None:
            return
        reader.stop()
        output.drain(seconds)
        output.discard()
        self._loop.call_in_loop(client.close)


def _discard(data: bytes) -> None:
    """Where output goes that has no descriptor, and input before somebody wants it."""


def _writer(fd: int) -> Callable[[bytes | bytearray], int]:
    """A function that writes what ``fd`` takes now, and raises ``BlockingIOError`` if that is nothing."""
    if not os.get_blocking(fd) or not _can_block(fd):
        return partial(os.write, fd)
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        connection = socket.socket(fileno=os.dup(fd))
        return lambda data: connection.send(data, socket.MSG_DONTWAIT)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def write_byte(data: bytes | bytearray) -> int:
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(fd, data[:1])  # one byte never blocks where the descriptor is ready

    return write_byte


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _can_block(fd: int) -> bool:
    """Whether a descriptor can be waited for: not a plain file or a device like /dev/null."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        return False
    with select.epoll() as poll:
        try:
            poll.register(fd, 0)
        except OSError as error:
            return error.errno != errno.EPERM
    return True


def _reopen_nonblocking(fd: int) -> int | None:
    """A non-blocking way to the same pipe or terminal, without making the one shared with other processes so."""
    if not _can_block(fd):
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
