"""The sockets of the gdb server, in the machine's event loop: one listener, and one debugger at a time.

While the guest runs, a debugger's packets wait: only its interrupt (0x03) is heard. A debugger that is there already
keeps the machine: a second one is shown out. Whatever way a debugger leaves (detach, end of the connection, nonsense),
its points are taken out and the guest runs on.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from typing import Protocol

from pyhyve.config import Config
from pyhyve.debug.gdb.control import SIGTRAP, Control, State, Stop
from pyhyve.debug.gdb.framing import Framer, Packet, Sign, frame
from pyhyve.debug.gdb.monitor import Debuggee, Monitor
from pyhyve.debug.gdb.registers import RegisterFile
from pyhyve.debug.gdb.session import Session
from pyhyve.debug.gdb.space import Space
from pyhyve.errors import BackendError
from pyhyve.loop import EventLoop
from pyhyve.vmm.api import CpuidEntry
from pyhyve.vmm.cpuid import xsave_components
from pyhyve.vmm.exits import SuspendReason

DEFAULT_ADDRESS = "127.0.0.1"
_READ = 1 << 16
_MOST_READS = 32
_MOST_WAITING = 64
"""Packets that may wait while the guest runs."""
_MOST_UNSENT = 1 << 20
"""Bytes that a debugger may leave unread."""


class Machine(Debuggee, Protocol):
    """What the server needs of a machine."""

    loop: EventLoop
    cpuid: list[CpuidEntry]

    @property
    def status(self) -> int | None: ...


class Connection:
    """One debugger's socket: bytes in, bytes out, acknowledgements."""

    def __init__(self, server: GdbServer, client: socket.socket) -> None:
        self._server = server
        self._client = client
        self._loop = server.loop
        self._framer = Framer()
        self._unsent = bytearray()
        self._last = b""
        self._waiting: deque[bytes] = deque()
        self._interrupted = False
        self._finishing = False
        self._open = True
        self.acknowledge = True
        self.session = Session(
            self, server.machine.vcpus, server.control, server.space, server.registers, server.monitor, server.kill
        )
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._loop.add_reader(client.fileno(), self.readable)

    # -- in --

    def readable(self) -> bool:
        """Take in what has come; whether there was any."""
        try:
            data = self._client.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return True
        for found in self._framer.feed(data):
            if not self._open or self._finishing:
                break
            self._take(found)
        return True

    def _take(self, found: Packet | Sign) -> None:
        if isinstance(found, Packet):
            if self.acknowledge:
                self._write(b"+")
            self._waiting.append(found.data)
            self.go_on()
            if len(self._waiting) > _MOST_WAITING:
                self.close()
        elif found is Sign.INTERRUPT:
            self._interrupted = True
            self.go_on()
        elif found is Sign.NAK:
            if self.acknowledge:
                self._write(self._last)
        elif found is Sign.BROKEN and self.acknowledge:
            self._write(b"-")

    def go_on(self) -> None:
        """Answer what waits, as long as the machine is stopped."""
        while self._waiting and self._open and not self._finishing and self.session.stopped:
            self.session.answer(self._waiting.popleft())
        if self._interrupted and self._open:
            # One that comes behind packets that have to wait still is for the guest that these let go.
            running = self._server.control.state is State.RUNNING
            self._interrupted = bool(self._waiting) and not running
            if running:
                self._server.control.interrupt()

    # -- out --

    def send(self, body: bytes) -> None:
        self._last = frame(body)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        if not self._open:
            return
        was_empty = not self._unsent
        self._unsent += data
        if was_empty:
            self._writable()
            if self._unsent and self._open:
                self._loop.add_writer(self._client.fileno(), self._writable)
        elif len(self._unsent) > _MOST_UNSENT:
            self.close()

    def _writable(self) -> None:
        try:
            del self._unsent[: self._client.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self._loop.remove_writer(self._client.fileno())
            if self._finishing:
                self.close()

    def finish(self) -> None:
        self._finishing = True
        if not self._unsent:
            self.close()

    def close(self) -> None:
        """Hang up. The server lets the guest go."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._client.fileno())
        self._loop.remove_writer(self._client.fileno())
        self._client.close()
        self._server.gone(self)


class GdbServer:
    """Listens on ``address``:``port`` for a debugger of ``machine``. Raises ``BackendError`` if it cannot."""

    def __init__(self, machine: Machine, address: str, port: int, *, wait: bool = False) -> None:
        self.machine = machine
        self.loop = machine.loop
        self._closed = False
        self._connection: Connection | None = None
        self.space = Space(machine.memory)
        self.registers = RegisterFile(xsave_components(machine.cpuid))
        self.monitor = Monitor(machine, self.space)
        self.control = Control(machine.vcpus, machine.loop, self._stopped)
        self._listener = listen(address, port)
        if wait:
            self.control.hold_before_start()
        self.loop.add_reader(self._listener.fileno(), self._accept)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        if self._is_there():
            client.close()
            return
        self.space.physical = False
        self._connection = Connection(self, client)
        self.control.interrupt(SIGTRAP)

    def _is_there(self) -> bool:
        """Whether a debugger is connected; the end of the connection may lie in its socket still."""
        for _ in range(_MOST_READS):
            if self._connection is None:
                return False
            if not self._connection.readable():
                break
        return self._connection is not None

    def _stopped(self, stop: Stop) -> None:
        if self._connection is not None:
            self._connection.session.report(stop)
            self._connection.go_on()

    def gone(self, connection: Connection) -> None:
        """The debugger has left."""
        if connection is self._connection:
            self._connection = None
            if not self._closed:
                self.control.leave()

    def kill(self) -> None:
        """The debugger ends the machine."""
        self.machine.power(SuspendReason.POWER_OFF)

    def close(self) -> None:
        """Tell the debugger how the machine ended, and stop listening. Idempotent."""
        if not self._closed:
            self._closed = True
            self.loop.call_in_loop(self._shut)

    def _shut(self) -> None:
        self.loop.remove_reader(self._listener.fileno())
        self._listener.close()
        connection = self._connection
        if connection is not None:
            if self.machine.status is not None:
                connection.session.ended(self.machine.status)
            connection.close()


def listen(address: str, port: int) -> socket.socket:
    """A listening socket. Raises ``BackendError`` with one line."""
    host = address.removeprefix("[").removesuffix("]") or DEFAULT_ADDRESS
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(where[:2], family=family, backlog=4)
    except OSError as error:
        # A name that cannot be looked up has a number below 0 and a text of its own.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise BackendError(f"cannot listen for a debugger on {address}:{port}: {reason}") from None
    listener.setblocking(False)
    return listener


def serve(machine: Machine, config: Config) -> GdbServer:
    """The server that ``gdb.port``, ``gdb.address`` and ``gdb.wait`` ask for."""
    address = config.get("gdb.address") or DEFAULT_ADDRESS
    port = config.get_int("gdb.port", minimum=0, maximum=0xFFFF)
    return GdbServer(machine, address, port, wait=config.get_bool("gdb.wait", False))
