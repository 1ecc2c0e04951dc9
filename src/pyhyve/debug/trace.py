"""A trace of a running machine: exits, device accesses and interrupts as JSON lines (``-o trace=FILE``).

Nothing of this is there unless it is asked for. ``Trace.attach`` puts observers around the handlers of the vCPUs and in
the way of the interrupt lines; each record becomes a line of text in a buffer at once, in the thread it comes from. The
buffer is written when it has grown to ``CHUNK``, by a timer of the event loop within ``FLUSH_NS``, and at the end.

A file is written to in full. A pipe, FIFO or terminal takes what it takes: the guest never waits for the reader of its
trace, so what is too much for ``BACKLOG`` is left out, and a record says how many were. A disk that is full ends the
trace with one line; the machine goes on. The records are described in docs/inspection.md; ``FIELDS`` is the short form.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields

from pyhyve.bus.irq import Deliver, IrqRouter, MsiPort, SendMsi
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.config import Config
from pyhyve.errors import ConfigError
from pyhyve.loop import EventLoop
from pyhyve.vcpu import Vcpu, complain
from pyhyve.vmm import exits
from pyhyve.vmm.exits import Exit

VERSION = 1
CHUNK = 1 << 16
BACKLOG = 8 << 20
FLUSH_NS = 500_000_000
RETRY_NS = 20_000_000
END_SECONDS = 1.0
"""How long the end of a machine waits for a reader that takes nothing more."""

NAMES: Mapping[type[Exit], str] = {
    exits.InOut: "inout",
    exits.InstEmul: "inst-emul",
    exits.InstEmulFailed: "inst-emul-failed",
    exits.RdMsr: "rdmsr",
    exits.WrMsr: "wrmsr",
    exits.Hlt: "hlt",
    exits.Pause: "pause",
    exits.IntAck: "intack",
    exits.IoapicEoi: "eoi",
    exits.Mtrap: "mtrap",
    exits.Debug: "debug",
    exits.Bogus: "bogus",
    exits.SpinupAp: "spinup-ap",
    exits.SpindownCpu: "spindown-cpu",
    exits.Suspended: "suspended",
    exits.EntryFailed: "vmx",
}
"""What ``exit`` says of each; the counters of ``debug.stats`` have the same names."""

FILTERS: Mapping[str, tuple[type[Exit], ...]] = {
    "inout": (exits.InOut,),
    "mmio": (exits.InstEmul, exits.InstEmulFailed),
    "msr": (exits.RdMsr, exits.WrMsr),
    "hlt": (exits.Hlt,),
    "pause": (exits.Pause,),
    "irq": (exits.IntAck, exits.IoapicEoi),
    "cpu": (
        exits.Mtrap, exits.Debug, exits.Bogus, exits.SpinupAp, exits.SpindownCpu, exits.Suspended, exits.EntryFailed,
    ),
}  # fmt: skip
"""What ``trace_filter`` may name: the kinds of exits; ``irq`` are the interrupt lines and messages too."""

_EXIT = ("t", "vcpu", "exit", "ns")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "trace": ("t", "trace", "name", "backend", "vcpus", "filter", "started"),
    "inout": (*_EXIT, "port", "dir", "size", "value", "device"),
    "inst-emul": (*_EXIT, "gpa", "dir", "size", "value", "device"),
    "inst-emul-failed": (*_EXIT, "rip"),
    "rdmsr": (*_EXIT, "msr", "value"),
    "wrmsr": (*_EXIT, "msr", "value"),
    "hlt": _EXIT,
    "pause": _EXIT,
    "intack": (*_EXIT, "vector"),
    "eoi": (*_EXIT, "vector"),
    "mtrap": _EXIT,
    "debug": (*_EXIT, "rip", "watch"),
    "bogus": _EXIT,
    "spinup-ap": (*_EXIT, "target", "vector"),
    "spindown-cpu": _EXIT,
    "suspended": (*_EXIT, "reason"),
    "vmx": (*_EXIT, *(field.name for field in fields(exits.EntryFailed))),
    "irq": ("t", "irq", "level", "devices"),
    "msi": ("t", "msi", "data"),
    "lost": ("t", "lost"),
}
"""The fields of each record, by kind."""


def kind_of(record: Mapping[str, object]) -> str:
    """Which of ``FIELDS`` a record is. Raises ``ValueError`` for none of them."""
    exit_ = record.get("exit")
    if isinstance(exit_, str) and exit_ in FIELDS:
        return exit_
    for kind in ("irq", "msi", "lost", "trace"):
        if kind in record:
            return kind
    raise ValueError("not a record of a trace")


class Way:
    """Where the lines go: a file in full, anything else as far as it takes them. Raises ``ConfigError``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lost = 0
        """Lines that were left out since the last record about it."""
        self._waiting = bytearray()
        self._owned = path != "-"
        try:
            # A FIFO opened both ways neither waits for its reader nor fails when that goes.
            fifo = self._owned and os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)
            flags = os.O_RDWR | os.O_NONBLOCK if fifo else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o644) if self._owned else 2
            self._whole = stat.S_ISREG(os.fstat(self._fd).st_mode)
        except OSError as error:
            raise ConfigError(f"trace: cannot write '{path}': {error.strerror}") from None
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    @property
    def waits(self) -> bool:
        """Whether something waits for the reader."""
        return bool(self._waiting)

    def write(self, lines: list[str]) -> None:
        """Send lines on. Raises ``OSError`` if there is no way any more."""
        if self._whole:
            data = "".join(lines).encode()
            while data:
                data = data[os.write(self._fd, data) :]
            return
        if len(self._waiting) > BACKLOG:
            self.lost += len(lines)
        else:
            self._waiting += "".join(lines).encode()
        self.push(0)

    def push(self, milliseconds: float) -> None:
        """Give the reader what it takes, waiting so long for it. Raises ``OSError``."""
        while self._waiting and self._poll.poll(milliseconds):
            # as little as a pipe that is ready takes without blocking, whoever else has it open
            try:
                sent = os.write(self._fd, self._waiting[: select.PIPE_BUF])
            except BlockingIOError:
                return
            del self._waiting[:sent]

    def close(self) -> None:
        """Send what waits, as long as somebody takes it. Idempotent."""
        if self._fd < 0:
            return
        try:
            deadline = time.monotonic() + END_SECONDS
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self.push(left * 1000)
        except OSError:
            pass  # nobody left to tell
        finally:
            if self._owned:
                os.close(self._fd)
            self._fd = -1


class Trace:
    """The trace of one machine to ``way``, of the kinds that ``filters`` names. Times count from now."""

    def __init__(self, way: Way, filters: Iterable[str], loop: EventLoop) -> None:
        self._way = way
        self._filters = tuple(filters)
        self._started = time.monotonic_ns()
        self._lines: list[str] = []
        self._size = 0
        self._lock = threading.RLock()
        self._ended = False
        self._armed = False
        self._timer = loop.timer(self._on_timer)
        self._names: dict[str, str] = {}
        self._find_port: Callable[[int], str] = lambda _port: "null"
        self._find_memory: Callable[[int], str] = lambda _gpa: "null"
        self._formats: dict[type[Exit], Callable[..., str]] = {
            exits.InOut: self._inout,
            exits.InstEmul: self._inst_emul,
            exits.InstEmulFailed: lambda e, _: f', "rip": {e.rip}',
            exits.RdMsr: lambda e, answer: f', "msr": {e.index}, "value": {_number(answer)}',
            exits.WrMsr: lambda e, _: f', "msr": {e.index}, "value": {e.value}',
            exits.IntAck: lambda _, answer: f', "vector": {_number(answer)}',
            exits.IoapicEoi: lambda e, _: f', "vector": {e.vector}',
            exits.Debug: lambda e, _: f', "rip": {e.rip}, "watch": {_number(e.watch)}',
            exits.SpinupAp: lambda e, _: f', "target": {e.vcpu}, "vector": {e.vector}',
            exits.Suspended: lambda e, _: f', "reason": {json.dumps(e.reason.value)}',
            exits.EntryFailed: lambda e, _: ", " + json.dumps(asdict(e))[1:-1],
        }

    def begin(self, name: str, backend: str, vcpus: int) -> None:
        """The first record: whose trace this is."""
        head = {"t": 0, "trace": VERSION, "name": name, "backend": backend, "vcpus": vcpus}
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._add(json.dumps({**head, "filter": list(self._filters), "started": started}) + "\n")

    def attach(self, vcpus: Iterable[Vcpu], pio: PioBus, mmio: MmioBus, irq: IrqRouter, msi: MsiPort) -> None:
        """Look on from here on; the vCPUs must not run yet."""

        def find_port(port: int) -> str:
            found = pio.find(port)
            return "null" if found is None else self._quoted(found.name)

        def find_memory(gpa: int) -> str:
            found = mmio.find(gpa)
            return "null" if found is None else self._quoted(found.name)

        self._find_port, self._find_memory = find_port, find_memory
        kinds = [kind for name in self._filters for kind in FILTERS[name]]
        for vcpu in vcpus:
            vcpu.observe(self.exit, kinds)
        if "irq" in self._filters:
            irq.interpose(lambda deliver: self._line(irq, deliver))
            msi.interpose(self._message)

    def exit(self, vcpu: int, exit_: Exit, answer: int | None, start_ns: int, took_ns: int, /) -> None:
        """Record an exit (``vcpu.Observer``)."""
        kind = type(exit_)
        more = self._formats.get(kind)
        text = "" if more is None else more(exit_, answer)
        t = start_ns - self._started
        self._add(f'{{"t": {t}, "vcpu": {vcpu}, "exit": "{NAMES[kind]}"{text}, "ns": {took_ns}}}\n')

    def _inout(self, exit_: exits.InOut, answer: int | None) -> str:
        way, value = ("in", _number(answer)) if exit_.is_in else ("out", exit_.value)
        device = self._find_port(exit_.port)
        return f', "port": {exit_.port}, "dir": "{way}", "size": {exit_.size}, "value": {value}, "device": {device}'

    def _inst_emul(self, exit_: exits.InstEmul, answer: int | None) -> str:
        way, value = ("write", exit_.value) if exit_.is_write else ("read", _number(answer))
        device = self._find_memory(exit_.gpa)
        return f', "gpa": {exit_.gpa}, "dir": "{way}", "size": {exit_.size}, "value": {value}, "device": {device}'

    def _line(self, router: IrqRouter, deliver: Deliver) -> Deliver:
        def traced(gsi: int, level: bool) -> None:
            t = time.monotonic_ns() - self._started
            holders = json.dumps([line.name for line in router.lines(gsi) if line.level])
            self._add(f'{{"t": {t}, "irq": {gsi}, "level": {"true" if level else "false"}, "devices": {holders}}}\n')
            deliver(gsi, level)

        return traced

    def _message(self, deliver: SendMsi) -> SendMsi:
        def traced(address: int, data: int) -> None:
            t = time.monotonic_ns() - self._started
            self._add(f'{{"t": {t}, "msi": {address}, "data": {data}}}\n')
            deliver(address, data)

        return traced

    def _quoted(self, name: str) -> str:
        quoted = self._names.get(name)
        if quoted is None:
            quoted = self._names[name] = json.dumps(name)
        return quoted

    # -- the buffer --

    def _add(self, line: str) -> None:
        with self._lock:
            if self._ended:
                return
            self._lines.append(line)
            self._size += len(line)
            if self._size >= CHUNK:
                self._flush()
            elif not self._armed:
                self._armed = True
                self._timer.arm_in(FLUSH_NS)

    def _on_timer(self) -> None:
        with self._lock:
            self._armed = False
            self._flush()

    def _flush(self) -> None:
        if self._ended:
            return
        lines, self._lines, self._size = self._lines, [], 0
        try:
            if self._way.lost and not self._way.waits:
                t = time.monotonic_ns() - self._started
                lines.insert(0, f'{{"t": {t}, "lost": {self._way.lost}}}\n')
                self._way.lost = 0
            self._way.write(lines)
        except OSError as error:
            self._ended = True
            with contextlib.suppress(OSError):  # the trace may be where complaints go
                complain(f"bhyve: the trace ends here: cannot write '{self._way.path}': {error.strerror}")
            return
        if (self._way.waits or self._way.lost) and not self._armed:
            self._armed = True
            self._timer.arm_in(RETRY_NS)

    def close(self) -> None:
        """Write the rest. Idempotent."""
        self._timer.cancel()
        with self._lock:
            self._flush()
            self._ended = True
        self._way.close()


def _number(value: int | None) -> int | str:
    return "null" if value is None else value


def read_filters(config: Config) -> tuple[str, ...]:
    """The kinds that ``trace_filter`` names; all of them if it is not there. Raises ``ConfigError``."""
    text = config.get("trace_filter")
    if text is None:
        return tuple(FILTERS)
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in found:
        if name not in FILTERS:
            raise ConfigError(f"trace_filter: there is no kind '{name}'; there are {', '.join(FILTERS)}")
    return found


def open_trace(config: Config, loop: EventLoop) -> Trace:
    """The trace that ``trace`` and ``trace_filter`` ask for. Raises ``ConfigError``."""
    filters = read_filters(config)
    path = config.get("trace")
    if not path:
        raise ConfigError("trace_filter says what to trace, but nothing says where to: trace=FILE")
    return Trace(Way(path), filters, loop)
