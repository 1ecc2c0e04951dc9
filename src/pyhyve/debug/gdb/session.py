"""One debugger's conversation: each packet looked up and answered.

Source: "Debugging with GDB", E.2 "Packets", E.3 "Stop Reply Packets", E.4 "General Query Packets". An unknown packet is
answered with an empty one, which is how a server says so. Errors are ``E`` and two hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyhyve.debug.gdb.control import Action, Control, State, Stop
from pyhyve.debug.gdb.framing import PACKET_SIZE, escape, unescape
from pyhyve.debug.gdb.monitor import Monitor
from pyhyve.debug.gdb.registers import RegisterFile
from pyhyve.debug.gdb.space import NotMapped, Space
from pyhyve.errors import PyhyveError
from pyhyve.vcpu import Vcpu, VcpuSet
from pyhyve.vmm.registers import Reg

BAD_MEMORY, BAD_REQUEST = 0x0E, 0x16  # EFAULT, EINVAL
_CONSOLE_PIECE = 2048
_EXPEDITED = ("rip", "rsp", "rbp")
_FEATURES = (
    f"PacketSize={PACKET_SIZE:x}", "qXfer:features:read+", "qXfer:threads:read+", "vContSupported+", "swbreak+",
    "hwbreak+", "QStartNoAckMode+", "binary-upload+", "qqemu.PhyMemMode+",
)  # fmt: skip


class Refused(Exception):
    """A packet that is answered with an error."""

    def __init__(self, code: int = BAD_REQUEST) -> None:
        super().__init__(code)
        self.code = code


class Line(Protocol):
    """What a session does to its connection."""

    acknowledge: bool
    """Whether packets are still acknowledged."""

    def send(self, body: bytes) -> None:
        """Send a packet."""

    def finish(self) -> None:
        """Close, once everything is sent."""


class Session:
    """Answers the packets of one connection. ``kill`` ends the machine."""

    def __init__(
        self,
        line: Line,
        vcpus: VcpuSet,
        hold: Control,
        space: Space,
        registers: RegisterFile,
        monitor: Monitor,
        kill: Callable[[], None],
    ) -> None:
        self._line = line
        self._vcpus = vcpus.vcpus
        self._set = vcpus
        self._control = hold
        self._space = space
        self._file = registers
        self._monitor = monitor
        self._kill = kill
        self._current = 0  # whose registers and memory
        self._resumed = -1  # who goes on with c and s; -1: all
        self._no_ack = False
        self._reports: set[str] = set()  # "swbreak" and "hwbreak", if the debugger knows them
        self.told = False
        """Whether the debugger waits for a stop reply."""
        self._letters: dict[str, Callable[[bytes], bytes | None]] = {
            "?": self._why, "g": self._read_registers, "G": self._write_registers, "p": self._read_register,
            "P": self._write_register, "m": self._read_memory, "M": self._write_memory, "x": self._read_binary,
            "X": self._write_binary, "Z": self._insert, "z": self._remove, "c": self._continue,
            "C": self._continue_with, "s": self._step, "S": self._step_with, "H": self._select, "T": self._alive,
            "D": self._detach, "k": self._end,
        }  # fmt: skip
        self._words: dict[str, Callable[[bytes], bytes | None]] = {
            "qSupported": self._supported, "QStartNoAckMode": self._stop_acknowledging, "qXfer": self._transfer,
            "qfThreadInfo": self._threads, "qsThreadInfo": _always(b"l"), "qThreadExtraInfo": self._thread_info,
            "qC": self._current_thread, "qAttached": _always(b"1"), "qSymbol": _always(b"OK"),
            "qRcmd": self._command, "vCont?": _always(b"vCont;c;C;s;S;r"), "vCont": self._resume, "vKill": self._end,
            "qqemu.PhyMemMode": self._physical_mode, "Qqemu.PhyMemMode": self._set_physical,
        }  # fmt: skip

    # -- in and out --

    def answer(self, body: bytes) -> None:
        """Answer one packet. The machine is stopped."""
        try:
            reply = self._look_up(body)
        except NotMapped:
            reply = b"E%02x" % BAD_MEMORY
        except Refused as refused:
            reply = b"E%02x" % refused.code
        except (PyhyveError, ValueError, IndexError, KeyError):
            reply = b"E%02x" % BAD_REQUEST
        if reply is not None:
            self._line.send(reply)
        if self._no_ack:
            self._line.acknowledge = False

    def _look_up(self, body: bytes) -> bytes | None:
        letter = chr(body[0]) if body else ""
        if letter not in "qQv" or not letter:
            handler = self._letters.get(letter)
            return handler(body[1:]) if handler is not None else b""
        end = next((i for i, byte in enumerate(body) if byte in b":;,"), len(body))
        handler = self._words.get(body[:end].decode("ascii", "replace"))
        return handler(body[end + 1 :]) if handler is not None else b""

    def report(self, stop: Stop) -> None:
        """The machine stopped."""
        self._current = stop.index
        if self.told:
            self.told = False
            self._line.send(self._stop_reply(stop))

    def ended(self, status: int) -> None:
        """The machine is gone."""
        if self.told:
            self._line.send(b"W%02x" % (status & 0xFF))

    def _stop_reply(self, stop: Stop) -> bytes:
        parts = [f"T{stop.signal:02x}thread:{stop.index + 1:x};"]
        if stop.kind is not None:
            name = ("swbreak", "hwbreak", "watch", "rwatch", "awatch")[stop.kind]
            if stop.kind > 1:
                parts.append(f"{name}:{stop.address:x};")
            elif name in self._reports:
                parts.append(f"{name}:;")
        numbers = [self._file.numbers[name] for name in _EXPEDITED]
        for number, value in zip(numbers, self._file.read_some(self._vcpus[stop.index].cpu, numbers), strict=True):
            parts.append(f"{number:x}:{value.hex()};")
        return "".join(parts).encode()

    def _why(self, _rest: bytes) -> bytes | None:
        return self._stop_reply(self._control.last)

    # -- what the debugger and the server tell of themselves --

    def _supported(self, rest: bytes) -> bytes:
        self._reports = {name for name in ("swbreak", "hwbreak") if f"{name}+".encode() in rest.split(b";")}
        return ";".join(_FEATURES).encode()

    def _stop_acknowledging(self, _rest: bytes) -> bytes:
        self._no_ack = True
        return b"OK"

    def _transfer(self, rest: bytes) -> bytes:
        """qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH."""
        what, action, annex, where = rest.split(b":")
        if action != b"read":
            return b""
        if (what, annex) == (b"features", b"target.xml"):
            text = self._file.description()
        elif (what, annex) == (b"threads", b""):
            text = self._thread_list()
        elif what in (b"features", b"threads"):
            raise Refused(0)
        else:
            return b""
        offset, length = (int(number, 16) for number in where.split(b","))
        data = text.encode()
        piece = data[offset : offset + min(length, PACKET_SIZE // 2)]
        return (b"m" if offset + len(piece) < len(data) else b"l") + escape(piece)

    # -- threads --

    def _thread_list(self) -> str:
        rows = [
            f'<thread id="{v.index + 1:x}" core="{v.index}" name="vcpu {v.index}">{self._state_of(v)}</thread>'
            for v in self._vcpus
        ]
        return "\n".join(['<?xml version="1.0"?>', "<threads>", *rows, "</threads>", ""])

    def _state_of(self, vcpu: Vcpu) -> str:
        return "stopped" if vcpu.index in self._set.active else "not started"

    def _current_thread(self, _rest: bytes) -> bytes:
        return b"QC%x" % (self._current + 1)

    def _threads(self, _rest: bytes) -> bytes:
        return b"m" + b",".join(b"%x" % (vcpu.index + 1) for vcpu in self._vcpus)

    def _thread_info(self, rest: bytes) -> bytes:
        vcpu = self._vcpus[self._thread(rest)]
        return f"vcpu {vcpu.index} [{self._state_of(vcpu)}]".encode().hex().encode()

    def _thread(self, text: bytes) -> int:
        """The vCPU of a thread id; -1 means all, 0 means any: the current one."""
        number = int(text, 16) if text != b"-1" else -1
        if number == -1:
            return -1
        if number == 0:
            return self._current
        if not 1 <= number <= len(self._vcpus):
            raise Refused
        return number - 1

    def _select(self, rest: bytes) -> bytes:
        which, index = rest[:1], self._thread(rest[1:])
        if which == b"g" and index >= 0:
            self._current = index
        elif which == b"c":
            self._resumed = -1 if rest[1:] == b"0" else index
        else:
            raise Refused
        return b"OK"

    def _alive(self, rest: bytes) -> bytes:
        if self._thread(rest) < 0:
            raise Refused
        return b"OK"

    # -- registers --

    def _read_registers(self, _rest: bytes) -> bytes:
        return self._file.read_all(self._vcpus[self._current].cpu).hex().encode()

    def _write_registers(self, rest: bytes) -> bytes:
        self._file.write_all(self._vcpus[self._current].cpu, _from_hex(rest))
        return b"OK"

    def _read_register(self, rest: bytes) -> bytes:
        return self._file.read(self._vcpus[self._current].cpu, _number(rest)).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        self._file.write(self._vcpus[self._current].cpu, _number(number), _from_hex(value))
        return b"OK"

    # -- memory --

    def _read(self, rest: bytes, most: int) -> bytes:
        address, length = (_number(part) for part in rest.split(b","))
        return self._space.read(self._vcpus[self._current].cpu, address, min(length, most))

    def _read_memory(self, rest: bytes) -> bytes:
        return self._read(rest, PACKET_SIZE // 2).hex().encode()

    def _read_binary(self, rest: bytes) -> bytes:
        return b"b" + escape(self._read(rest, PACKET_SIZE // 2 - 1))

    def _write_memory(self, rest: bytes) -> bytes:
        head, _, data = rest.partition(b":")
        return self._write(head, _from_hex(data))

    def _write_binary(self, rest: bytes) -> bytes:
        head, _, data = rest.partition(b":")
        return self._write(head, unescape(data))

    def _write(self, head: bytes, data: bytes) -> bytes:
        address, length = (_number(part) for part in head.split(b","))
        if length != len(data):
            raise Refused
        self._space.write(self._vcpus[self._current].cpu, address, data)
        return b"OK"

    def _physical_mode(self, _rest: bytes) -> bytes:
        return b"1" if self._space.physical else b"0"

    def _set_physical(self, rest: bytes) -> bytes:
        if rest not in (b"0", b"1"):
            raise Refused
        self._space.physical = rest == b"1"
        return b"OK"

    # -- points --

    def _insert(self, rest: bytes) -> bytes:
        # A condition (;X...) was not announced; a debugger that sends one all the same gets an unconditional point.
        kind, address, length = _point(rest)
        try:
            self._control.insert(kind, address, length)
        except KeyError:
            return b""
        return b"OK"

    def _remove(self, rest: bytes) -> bytes:
        self._control.remove(*_point(rest))
        return b"OK"

    # -- going on --

    def _continue(self, rest: bytes) -> None:
        self._go_on(Action(), rest)

    def _continue_with(self, rest: bytes) -> None:
        # No signal reaches a guest: the number only has to make sense.
        signal, _, where = rest.partition(b";")
        _number(signal)
        self._go_on(Action(), where)

    def _step(self, rest: bytes) -> None:
        self._go_on(Action(step=True), rest)

    def _step_with(self, rest: bytes) -> None:
        signal, _, where = rest.partition(b";")
        _number(signal)
        self._go_on(Action(step=True), where)

    def _go_on(self, action: Action, where: bytes) -> None:
        # The plain forms: the others go on when no thread is named.
        everybody = {vcpu.index: Action() for vcpu in self._vcpus} if self._resumed < 0 else {}
        one = self._current if self._resumed < 0 else self._resumed
        if where:
            self._vcpus[one].cpu.set_registers({Reg.RIP: _number(where)})
        self._let_go({**everybody, one: action})

    def _resume(self, rest: bytes) -> None:
        """vCont;ACTION[:THREAD]...: for each thread the leftmost action that names it counts."""
        actions: dict[int, Action] = {}
        for part in rest.split(b";"):
            what, colon, thread = part.partition(b":")
            index = self._thread(thread) if colon else -1
            named = [index] if index >= 0 else [vcpu.index for vcpu in self._vcpus]
            for vcpu in named:
                actions.setdefault(vcpu, _action(what))
        self._let_go(actions)

    def _let_go(self, actions: dict[int, Action]) -> None:
        self._control.resume(actions)
        self.told = True

    def _detach(self, _rest: bytes) -> None:
        self._line.send(b"OK")
        self._line.finish()

    def _end(self, rest: bytes) -> None:
        if rest:  # vKill;PID is answered, k is not
            self._line.send(b"OK")
        self._kill()
        self._line.finish()

    # -- monitor --

    def _command(self, rest: bytes) -> bytes:
        text = self._monitor.run(_from_hex(rest).decode("utf-8", "replace"), self._current)
        data = text.encode()
        for at in range(0, len(data), _CONSOLE_PIECE):
            self._line.send(b"O" + data[at : at + _CONSOLE_PIECE].hex().encode())
        return b"OK"

    @property
    def stopped(self) -> bool:
        """Whether packets can be answered."""
        return self._control.state is State.STOPPED


def _always(reply: bytes) -> Callable[[bytes], bytes]:
    return lambda _rest: reply


def _action(what: bytes) -> Action:
    letter = what[:1]
    if letter in (b"c", b"C"):
        return Action()
    if letter in (b"s", b"S"):
        return Action(step=True)
    if letter == b"r":
        first, last = (_number(part) for part in what[1:].split(b","))
        return Action(step=True, span=(first, last))
    raise Refused


def _point(rest: bytes) -> tuple[int, int, int]:
    kind, address, length = rest.split(b";")[0].split(b",")
    size = _number(length)
    if not 0 < size <= 1 << 16:
        raise Refused
    return _number(kind), _number(address), size


def _number(text: bytes) -> int:
    """A hexadecimal number of up to 64 bits, without a sign or anything else that ``int`` would take."""
    if not 0 < len(text) <= 16 or not text.isalnum():
        raise Refused
    return int(text, 16)


def _from_hex(text: bytes) -> bytes:
    return bytes.fromhex(text.decode("ascii"))
