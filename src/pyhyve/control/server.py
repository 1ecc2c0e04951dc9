"""The control socket of a running machine.

Protocol: lines of JSON on a Unix stream socket. A request is ``{"do": "stats", ...arguments}``, its answer
``{"ok": true, "result": {...}}`` or ``{"ok": false, "error": "why"}``. Requests of one client are answered in order.

The event loop's thread reads, writes, and answers what needs no waiting. What needs the vCPUs to rest is done by one
thread of our own, ``control``: a vCPU on its way out of the guest may be waiting for the loop, to get rid of console
output for instance, so the loop must not wait for it. The kinds of request are the two tables of ``Requests``.

The socket lies in a directory that other users cannot enter; they are refused by their credentials as well
(SO_PEERCRED, unix(7)). A client may send anything: garbage and lines that are too long get an answer and the end of the
connection, half a request waits for its rest, and one that vanishes is forgotten.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyhyve.control import state
from pyhyve.control.folder import VmError
from pyhyve.errors import PyhyveError, Status
from pyhyve.settings import read_topology
from pyhyve.vmm.api import ApicMode
from pyhyve.vmm.exits import SuspendReason
from pyhyve.vmm.registers import Reg, Segment, SegmentName, Table

if TYPE_CHECKING:
    from pyhyve.loop import EventLoop
    from pyhyve.machine import Machine
    from pyhyve.vmm.api import VirtualCpu

LINE_MAX = 1 << 16
CLIENTS_MAX = 32
_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")
_APIC_BASE = 0x1B
_APIC_BASE_X2APIC = 1 << 10

Arguments = Mapping[str, Any]
Handler = Callable[[Arguments], dict[str, Any]]


class BadRequest(PyhyveError):
    """A request that makes no sense."""


def peer_uid(connection: socket.socket) -> int:
    """The user of the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


class Requests:
    """What a client may ask of ``machine``. ``on_destroy`` is called when it asks for the machine's end for good."""

    def __init__(self, machine: Machine, on_destroy: Callable[[], None]) -> None:
        self.machine = machine
        self.on_destroy = on_destroy
        self.started = time.monotonic()
        self.quick: dict[str, Handler] = {
            "info": self._info,
            "stats": self._stats,
            "exits": self._exits,
            "cpus": self._cpus,
            "nmi": self._nmi,
            "reset": lambda _: self._end(SuspendReason.RESET),
            "power_off": lambda _: self._end(SuspendReason.POWER_OFF),
            "power_button": self._power_button,
            "resume": self._resume,
            "destroy": self._destroy,
        }
        """Answered in the loop's thread."""
        self.slow: dict[str, Handler] = {
            "registers": self._registers,
            "set_registers": self._set_registers,
            "suspend": self._suspend,
            "set_x2apic": self._set_x2apic,
        }
        """Answered in a thread that may wait for the vCPUs."""

    # -- quick ones --

    def _info(self, _arguments: Arguments) -> dict[str, Any]:
        machine = self.machine
        return {
            "name": machine.name,
            "pid": os.getpid(),
            "backend": machine.backend,
            "cpus": len(machine.vcpus.vcpus),
            "memory": machine.memory.size,
            "low_memory": machine.memory.low_size,
            "high_memory": machine.memory.high_size,
            "wired": machine.config.get_bool("memory.wired", False),
            "uptime": time.monotonic() - self.started,
            "suspended": machine.vcpus.paused,
            "topology": asdict(read_topology(machine.config)),
        }

    def _stats(self, _arguments: Arguments) -> dict[str, Any]:
        return dict(self.machine.stats())

    def _exits(self, _arguments: Arguments) -> dict[str, Any]:
        return {str(vcpu.index): vcpu.counters.named() for vcpu in self.machine.vcpus.vcpus}

    def _cpus(self, _arguments: Arguments) -> dict[str, Any]:
        active = sorted(self.machine.vcpus.active)
        return {"active": active, "suspended": active if self.machine.vcpus.paused else []}

    def _nmi(self, arguments: Arguments) -> dict[str, Any]:
        self._cpu(arguments).inject_nmi()
        return {}

    def _end(self, reason: SuspendReason) -> dict[str, Any]:
        self.machine.power(reason)
        return {}

    def _power_button(self, _arguments: Arguments) -> dict[str, Any]:
        return {"heard": self.machine.power_button()}

    def _resume(self, _arguments: Arguments) -> dict[str, Any]:
        self.machine.resume()
        return {}

    def _destroy(self, _arguments: Arguments) -> dict[str, Any]:
        self.on_destroy()
        self.machine.vcpus.end(Status.ERROR, "the virtual machine was destroyed")
        return {}

    # -- those that need the vCPUs to rest --

    def _suspend(self, _arguments: Arguments) -> dict[str, Any]:
        self.machine.pause()
        return {}

    def _registers(self, arguments: Arguments) -> dict[str, Any]:
        cpu = self._cpu(arguments)
        with self.machine.vcpus.held():
            found: dict[str, Any] = {**state.read_cpu(cpu)}
            try:
                found["x2apic"] = bool(cpu.get_msr(_APIC_BASE) & _APIC_BASE_X2APIC)
            except (KeyError, PyhyveError):
                pass  # a backend that keeps this register to itself
        return found

    def _set_registers(self, arguments: Arguments) -> dict[str, Any]:
        cpu = self._cpu(arguments)
        wanted = state.checked({group: arguments.get(group, {}) for group in ("registers", "segments", "tables")})
        with self.machine.vcpus.held():
            # control registers first: what a segment may be depends on the mode
            cpu.set_registers({Reg(name): value for name, value in wanted["registers"].items()})
            for name, table in wanted["tables"].items():
                cpu.set_table(name, Table(**table))
            for name, segment in wanted["segments"].items():
                cpu.set_segment(SegmentName(name), Segment(**segment))
        return {}

    def _set_x2apic(self, arguments: Arguments) -> dict[str, Any]:
        cpu = self._cpu(arguments)
        with self.machine.vcpus.held():
            cpu.set_apic_mode(ApicMode.X2APIC if arguments.get("on") else ApicMode.XAPIC)
        return {}

    def _cpu(self, arguments: Arguments) -> VirtualCpu:
        index, vcpus = arguments.get("cpu", 0), self.machine.vcpus.vcpus
        if type(index) is not int or not 0 <= index < len(vcpus):
            raise BadRequest(f"there is no vcpu {index}, the machine has {len(vcpus)}")
        return vcpus[index].cpu


class _Client:
    """One connection: what came in and is not answered yet, and what goes out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        self.received = bytearray()
        self.to_send = bytearray()
        self.waiting = False
        """A request is with the thread; the next line waits for its answer."""
        self.ended = False
        """Nothing more comes; what came is still answered."""
        self.last = False
        """Hang up when everything is sent."""
        self.closed = False


class ControlServer:
    """The socket at ``path``, from now on; ``serve`` answers it. What comes before waits.

    ``peer`` tells who is at the other end of a connection; everybody but ``root`` and our own user is refused.
    """

    def __init__(self, path: Path, *, peer: Callable[[socket.socket], int] = peer_uid) -> None:
        self.path = path
        self._peer = peer
        self._clients: dict[int, _Client] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._loop: EventLoop | None = None
        self._requests: Requests | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            path.unlink(missing_ok=True)  # of a process that was killed
            self._socket.bind(str(path))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise VmError(f"cannot make the control socket {path}: {error.strerror}") from None

    def serve(self, loop: EventLoop, requests: Requests) -> None:
        """Answer from now on, in ``loop``."""
        self._loop, self._requests = loop, requests
        loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Hang up on everybody and take the socket away; the loop must not be running. Idempotent."""
        if self._socket.fileno() < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        for client in list(self._clients.values()):
            self._flush_last(client)
            self._close(client)
        self._socket.close()
        self.path.unlink(missing_ok=True)
        if self._worker is not None:
            self._jobs.put(None)
            self._worker.join()

    # -- connections, in the loop's thread --

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return  # it has gone already
        except OSError:
            self._close_oldest()  # most likely we have no descriptors left: the next try has one
            return
        connection.setblocking(False)
        client = _Client(connection)
        if len(self._clients) >= CLIENTS_MAX:
            self._close_oldest()  # nobody can use up our descriptors
        self._clients[client.fd] = client
        assert self._loop is not None
        self._loop.add_reader(client.fd, lambda: self._readable(client))
        uid = self._peer(connection)
        if uid not in (0, os.geteuid()):
            self._fail(client, f"refused: this machine belongs to user {os.geteuid()}, not {uid}", last=True)

    def _close_oldest(self) -> None:
        if self._clients:
            self._close(next(iter(self._clients.values())))

    def _readable(self, client: _Client) -> None:
        if client.closed:
            return
        try:
            data = client.connection.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        client.ended = not data
        if not client.last:
            client.received += data
            self._advance(client)

    def _advance(self, client: _Client) -> None:
        """Answer the lines that are complete, as long as the client takes the answers."""
        while not (client.closed or client.waiting or client.last or client.to_send):
            line, newline, rest = client.received.partition(b"\n")
            if len(line) > LINE_MAX or (not newline and len(line) == LINE_MAX):
                self._fail(client, f"a request has at most {LINE_MAX} bytes", last=True)
            elif not newline:
                if client.ended:
                    self._close(client)
                break
            else:
                client.received = rest
                self._request(client, bytes(line))
        self._listen(client)

    def _listen(self, client: _Client) -> None:
        """Hear from the client again when it has its answers: what it sends meanwhile stays with the kernel."""
        if client.closed or self._loop is None:
            return
        if client.ended or client.waiting or (client.to_send and len(client.received) > LINE_MAX):
            self._loop.remove_reader(client.fd)
        else:
            self._loop.add_reader(client.fd, lambda: self._readable(client))

    def _request(self, client: _Client, line: bytes) -> None:
        assert self._requests is not None
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            self._fail(client, "a request is one line of JSON", last=True)
            return
        do = request.get("do") if isinstance(request, dict) else None
        if not isinstance(do, str):
            self._fail(client, 'a request is an object with a "do"', last=True)
        elif do in self._requests.quick:
            self._answer(client, _carry_out(self._requests.quick[do], request))
        elif do in self._requests.slow:
            client.waiting = True
            self._hand_over(client, self._requests.slow[do], request)
        else:
            self._fail(client, f"there is no '{do[:40]}'")

    def _hand_over(self, client: _Client, handler: Handler, request: Arguments) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="control", daemon=True)
            self._worker.start()
        loop = self._loop
        assert loop is not None

        def job() -> None:
            answer = _carry_out(handler, request)
            loop.call_soon_threadsafe(self._done, client, answer)

        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _done(self, client: _Client, answer: bytes) -> None:
        client.waiting = False
        self._answer(client, answer)
        self._advance(client)

    def _fail(self, client: _Client, text: str, *, last: bool = False) -> None:
        client.last = client.last or last
        self._answer(client, _line({"ok": False, "error": text}))

    def _answer(self, client: _Client, line: bytes) -> None:
        if not client.closed:
            client.to_send += line
            self._send(client)

    def _send(self, client: _Client) -> None:
        assert self._loop is not None
        if client.closed:
            return
        try:
            sent = client.connection.send(client.to_send) if client.to_send else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(client)
            return
        del client.to_send[:sent]
        if client.to_send:
            self._loop.add_writer(client.fd, lambda: self._writable(client))
        elif client.last:
            self._close(client)

    def _writable(self, client: _Client) -> None:
        if client.closed:
            return
        assert self._loop is not None
        self._loop.remove_writer(client.fd)
        self._send(client)
        self._advance(client)

    def _flush_last(self, client: _Client) -> None:
        """What still fits into the socket at the machine's end."""
        with suppress(OSError):
            if client.to_send:
                client.connection.send(client.to_send)

    def _close(self, client: _Client) -> None:
        if client.closed:
            return
        client.closed = True
        self._clients.pop(client.fd, None)
        if self._loop is not None:
            self._loop.remove_reader(client.fd)
            self._loop.remove_writer(client.fd)
        client.connection.close()


def _carry_out(handler: Handler, request: Arguments) -> bytes:
    """The answer's line. A fault of ours becomes an answer too: it must not take the machine down."""
    try:
        return _line({"ok": True, "result": handler(request)})
    except PyhyveError as error:
        return _line({"ok": False, "error": str(error)})
    except Exception as error:
        return _line({"ok": False, "error": f"{type(error).__name__}: {error}"})


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
