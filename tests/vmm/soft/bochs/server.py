"""Bochs behind pipes: pickled ``State`` in, pickled ``Outcome`` out, each behind its length in four bytes.

Guest memory is host pages that live as long as the process. Bochs keeps decoded instructions by guest-physical address
and does not see that this module writes memory: code must never change at an address.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import sys
from typing import Any

import bochscpu
import bochscpu._bochscpu as native

from tests.vmm.soft.bochs.pipes import receive, send
from tests.vmm.soft.bochs.state import CONTROL, GENERAL, MSRS, SEGMENTS, UNUSABLE_BIT, Descriptor, Outcome, State

PAGE = 4096
MANY = 12
"""Exceptions after which a case counts as one that comes to no end."""
_REGISTERS = (*GENERAL, *CONTROL, *MSRS)
PRELUDE = 0xBFFF0
"""Where an instruction of this module's own lies: the last slot for code, which scenarios leave alone."""
PAE, PAGING, LMA = 1 << 5, 1 << 31, 1 << 10
EM, TS = 1 << 2, 1 << 3
_SENSITIVE = ("cr0", "cr3", "cr4", "efer")


SPENT = 3
"""Exit status of a child that answered and can serve no more."""
_NOTHING = State({}, {}, {}, {})
_REAL = (0, 0, 0xFFFF, 0x93)
_IDLE = State(
    dict.fromkeys((*GENERAL, *CONTROL, *MSRS), 0) | {"cr0": 0x10, "rflags": 2},
    dict.fromkeys(SEGMENTS, _REAL),
    {"gdtr": (0, 0), "idtr": (0, 0x3FF)},
    {},
)
"""Real mode at address 0, where there are zeros: ADD [BX+SI], AL."""


class Model:
    """One Bochs CPU with its memory."""

    def __init__(self, size: int) -> None:
        self.log = mmap.mmap(-1, PAGE)  # the exceptions of the last step, shared with forked children
        self.session = bochscpu.Session()
        self.session.missing_page_handler = self._missing
        self.host: dict[int, int] = {}
        self.outside = False
        for gpa in range(0, size, PAGE):
            self.host[gpa] = self._insert(gpa)

    def _insert(self, gpa: int) -> int:
        host: int = native.memory.allocate_host_page()
        native.memory.page_insert(gpa, host)
        return host

    def _missing(self, gpa: int) -> None:
        self.outside = True
        ctypes.memset(self._insert(gpa & ~(PAGE - 1)), 0xFF, PAGE)

    def step(self, before: State) -> Outcome:
        """Set a state and complete one instruction, which after an exception is the handler's first."""
        self.outside = False
        for gpa, data in before.pages.items():
            ctypes.memmove(self.host[gpa], data, PAGE)
        for gpa, data in before.code.items():
            ctypes.memmove(self.host[gpa & ~(PAGE - 1)] + gpa % PAGE, data, len(data))
        self._set(before)
        if before.registers["cr4"] & PAE and before.registers["cr0"] & PAGING and not before.registers["efer"] & LMA:
            self._load_directory_pointers(before)
        events: list[tuple[int, int]] = []
        self.log.seek(0)
        self.log.write(bytes(2))
        ends: list[str] = []
        left = [before.steps]

        def stop(session: Any, why: str) -> None:
            ends.append(why)
            session.stop()

        def exception(session: Any, cpu: int, vector: int, error: int) -> None:
            events.append((vector, error))
            self.log.seek(0)
            self.log.write(len(events).to_bytes(2, "little"))
            self.log.seek(8 * len(events))
            self.log.write(vector.to_bytes(4, "little") + (error & 0xFFFFFFFF).to_bytes(4, "little"))
            if len(events) > MANY:
                stop(session, "endless")

        def completed(session: Any, cpu: int, instruction: object) -> None:
            left[0] -= 1
            if left[0] == 0:
                stop(session, "step")

        def again(session: Any, cpu: int, instruction: object) -> None:
            if ends:
                session.stop()

        hook = native.Hook()
        hook.before_execution = again
        hook.after_execution = completed
        hook.exception = exception
        hook.hw_interrupt = lambda session, cpu, vector, selector, rip: events.append((vector, 0))
        hook.reset = lambda session, cpu, kind: stop(session, "triple")
        hook.hlt = lambda session, cpu: stop(session, "halt")
        self.session.run([hook])
        end = ends[0] if ends else "nothing"
        if end == "halt" and any(vector == 8 for vector, _ in events):
            end = "triple"
        if self.outside and end == "step":
            end = "outside memory"
        outcome = Outcome(end, self._get(before), events)
        for gpa, data in before.code.items():  # a later case may go astray and come here
            ctypes.memset(self.host[gpa & ~(PAGE - 1)] + gpa % PAGE, 0, len(data))
        return outcome

    def _fill(self, s: Any, before: State) -> Any:
        for name in _REGISTERS:
            setattr(s, name, before.registers[name])
        s.apic_base = 0xFEE00900
        for name in SEGMENTS:
            setattr(s, name, _segment(before.segments[name]))
        for name, (base, limit) in before.tables.items():
            table = native.GlobalSegment()
            table.base, table.limit = base, limit
            setattr(s, name, table)
        return s

    def last_events(self) -> list[tuple[int, int]]:
        """The exceptions of a child's last step."""
        count = int.from_bytes(self.log[:2], "little")
        words = [int.from_bytes(self.log[at : at + 4], "little") for at in range(8, 8 * count + 8, 4)]
        return list(zip(words[::2], words[1::2], strict=True))

    def _set(self, before: State) -> None:
        s = self._fill(self.session.cpu.state, before)
        # Through a state without paging, so that nothing of the last case's translations stays.
        for name, value in zip(_SENSITIVE, (0x10, 0, 0, 0), strict=True):
            setattr(s, name, value)
        self.session.cpu.state = s
        for name in _SENSITIVE:
            setattr(s, name, before.registers[name])
        self.session.cpu.state = s
        self.session.cpu.state = s

    def _load_directory_pointers(self, before: State) -> None:
        """Have Bochs read the four PDPTEs, which setting a state does not: it does so when MOV CR0 turns paging on."""
        registers = before.registers | {"rip": PRELUDE, "rax": before.registers["cr0"], "rflags": 2, "cr0": 0x11}
        flat = (8, 0, 0xFFFFFFFF, 0xC09B)
        ctypes.memmove(self.host[PRELUDE & ~(PAGE - 1)] + PRELUDE % PAGE, b"\x0f\x22\xc0\xf4", 4)
        self._set(State(registers, before.segments | {"cs": flat, "ss": (16, *flat[1:3], 0xC093)}, before.tables, {}))
        hook = native.Hook()
        hook.after_execution = lambda session, cpu, instruction: session.stop()
        self.session.run([hook])
        self.session.cpu.state = self._fill(self.session.cpu.state, before)

    def _get(self, before: State) -> State:
        s = self.session.cpu.state
        registers = {name: getattr(s, name) for name in _REGISTERS}
        segments = {name: _descriptor(getattr(s, name)) for name in SEGMENTS}
        tables = {name: (getattr(s, name).base, getattr(s, name).limit) for name in before.tables}
        pages = {gpa: ctypes.string_at(self.host[gpa], PAGE) for gpa in before.pages}
        return State(registers, segments, tables, pages)


def _segment(value: Descriptor) -> Any:
    out = native.Segment()
    out.selector, out.base, out.limit = value[:3]
    out.attr = value[3] & 0xFFFF
    out.present = not value[3] & UNUSABLE_BIT
    return out


def _descriptor(value: Any) -> Descriptor:
    return value.selector, value.base, value.limit, value.attr & 0xF0FF | (0 if value.present else UNUSABLE_BIT)


def serve(model: Model, source: int, sink: int) -> None:
    """Answer states until there are no more, or Bochs cannot go on."""
    try:
        while True:
            before = receive(source)
            outcome = model.step(before)
            send(sink, outcome)
            # Bochs keeps to itself that it has seen CR0.TS or EM, and then x87 instructions do nothing
            if outcome.end != "step" or before.leaves_traps or outcome.state.registers["cr0"] & (TS | EM):
                os._exit(SPENT)
    except EOFError:
        os._exit(0)


class Child:
    """A forked process with a Bochs that has run already, so that its memory is its own, and waits to be wanted."""

    def __init__(self, model: Model, source: int, sink: int) -> None:
        wanted, self._go = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(self._go)
            log, model.log = model.log, mmap.mmap(-1, PAGE)
            model.step(_IDLE)
            model.log = log
            if os.read(wanted, 1):
                serve(model, source, sink)
            os._exit(0)
        os.close(wanted)

    def start(self) -> None:
        """Let it serve."""
        os.write(self._go, b"!")

    def wait(self) -> int:
        """Its exit status."""
        os.close(self._go)
        return os.waitpid(self._process, 0)[1]


def main() -> None:
    """Serve from a child, with another one ready: Bochs aborts at some triple faults, and others leave it stopped."""
    source, sink = 0, os.dup(1)
    os.dup2(2, 1)  # what Bochs prints does not belong into the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    model = Model(int(sys.argv[1]))
    child = Child(model, source, sink)
    while True:
        child.start()
        spare = Child(model, source, sink)
        status = child.wait()
        if status == 0:
            os._exit(0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            end = "triple" if number == signal.SIGABRT else signal.Signals(number).name
            send(sink, Outcome(end, _NOTHING, model.last_events()))
        child = spare


if __name__ == "__main__":
    main()
