"""Where does translated code go wrong? The same guest runs on the CPU engine in blocks and stepped, and is compared.

A guest is run once with ``Capability.MTRAP_EXIT`` on: every instruction in a block of its own, all flags kept. That run
is the reference. Then it runs in ordinary blocks. At every exit but those for device memory both stopped at the same
instruction, so there registers, vector state and memory must be equal. Where they are not, the guest is run again and
again, the first K instructions stepped and the rest in blocks: a binary search finds a K for which the result is wrong,
while with one more step it is right. The instruction behind those K steps is the one to look at, and so is the block
that begins with it.

What it can do: guests whose course depends on nothing but their memory and the answers to their exits, which are
always the same here. What it cannot: clocks, timers, interrupts, more than one vCPU, and errors that stepping makes
too. An exit for device memory is compared, not the state around it: in blocks the engine tells of such writes a little
later. The one difference that is meant shows as one: arithmetic flags that nobody reads may be stale in the frame of an
exception.

    python -m pyhyve.debug.lockstep IMAGE [--mode long|protected|real] [--org ADDRESS]

IMAGE is a flat binary. It starts at ``--org`` with flat segments and an empty IDT at 0x2000 (real mode: vectors at 0);
in long mode the first 4 GiB are mapped one to one. It ends with an exit to ``--end-port``, HLT or a triple fault.
Statuses: 0 no difference, 1 a difference, 4 it could not be told.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyhyve.debug import blocks
from pyhyve.errors import PyhyveError, Status
from pyhyve.memory import GuestMemory
from pyhyve.vmm import cpuid
from pyhyve.vmm.api import Capability, VirtualCpu, VirtualMachine
from pyhyve.vmm.exits import (
    Bogus,
    EntryFailed,
    Exit,
    Hlt,
    InOut,
    InstEmul,
    IntAck,
    Mtrap,
    RdMsr,
    SpindownCpu,
    Suspended,
)
from pyhyve.vmm.registers import CONTROL, DEBUG, GENERAL, Access, Reg, Segment, SegmentName, Table
from pyhyve.vmm.select import engine

END_PORT = 0xF4
MOST_EXITS = 2000
PATIENCE = 10.0
"""Seconds that a run in blocks may take between two exits."""
_WANTS_ANSWER = (RdMsr, IntAck)
_LAST = (Suspended, Hlt, EntryFailed, SpindownCpu)


class Subject(Protocol):
    """A machine in front of its guest. ``compare`` makes many, which must all be alike."""

    vm: VirtualMachine
    vcpu: VirtualCpu
    memory: GuestMemory

    def close(self) -> None: ...


class Undecided(PyhyveError):
    """The comparison came to no result."""

    status = Status.ERROR


@dataclass(frozen=True, slots=True)
class Point:
    """An exit, and the state there, where that can be compared."""

    steps: int
    exit: Exit
    state: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What was found. ``rip`` and ``gpa`` are those of the instruction to look at."""

    steps: int
    rip: int
    gpa: int | None
    stepped: Point
    run: Point
    changes: list[str]
    block: blocks.Block | None

    def report(self) -> str:
        """For people."""
        where = "nowhere" if self.gpa is None else f"guest-physical {self.gpa:#x}"
        lines = [
            f"differs: the instruction at {self.rip:#x} ({where}), behind {self.steps} steps",
            f"  stepped, the guest comes to {self.stepped.exit}",
            f"  in blocks, to               {self.run.exit}",
            *(f"  {change}" for change in self.changes),
        ]
        out = io.StringIO()
        if self.block is not None:
            blocks.dump([self.block], out)
        return "\n".join([*lines, "", out.getvalue().rstrip()]).rstrip() + "\n"


@dataclass
class Options:
    """What counts as the end, and how the guest's exits are answered."""

    end_port: int = END_PORT
    answer: int = 0
    limit: int = 1_000_000
    memory: bool = True


def state_of(subject: Subject, memory: bool) -> dict[str, object]:
    """Everything of the state that the contract shows, by name."""
    cpu = subject.vcpu
    found: dict[str, object] = {str(k): v for k, v in cpu.get_registers((*GENERAL, Reg.RIP, Reg.RFLAGS)).items()}
    found |= {str(k): v for k, v in cpu.get_registers((*CONTROL, *DEBUG)).items()}
    found |= {str(name): cpu.get_segment(name) for name in SegmentName}
    found |= {name: cpu.get_table(name) for name in ("gdtr", "idtr")}
    # SDM Vol. 1 table 13-1. XSTATE_BV only tells what the processor found in use.
    area = cpu.get_xsave()
    found |= {"x87 control": area[:8].hex(), "mxcsr": struct.unpack_from("<I", area, 24)[0]}
    for n in range(8):
        found[f"st{n}"] = area[32 + 16 * n :][:10].hex()
    for n in range(16):
        found[f"xmm{n}"] = area[160 + 16 * n :][:16].hex()
        found[f"ymm{n} high"] = area[576 + 16 * n :][:16].hex()
    if memory:
        found["memory"] = tuple(zlib.crc32(subject.memory.view(r.gpa, r.size)) for r in subject.memory.regions)
    return found


@dataclass
class _Run:
    """A guest on its way: the first ``stepped`` instructions one by one, the others in blocks."""

    subject: Subject
    options: Options
    stepped: int
    steps: int = 0
    over: bool = False
    rip: int = 0
    gpa: int | None = None
    _stepping: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.subject.vcpu.set_capability(Capability.HLT_EXIT, True)
        self._step(self.stepped > 0)

    def _step(self, on: bool) -> None:
        self._stepping = on
        self.subject.vcpu.set_capability(Capability.MTRAP_EXIT, on)
        if not on:
            cpu = self.subject.vcpu
            self.rip = cpu.get_registers((Reg.RIP,))[Reg.RIP]
            self.gpa = cpu.translate(self.rip + cpu.get_segment(SegmentName.CS).base)

    def next(self) -> Point | None:
        """The next exit of the guest's; None when there are no more steps to do."""
        cpu, options = self.subject.vcpu, self.options
        while True:
            found = self._run()
            if isinstance(found, Mtrap):
                self.steps += 1
                if self.steps == options.limit:
                    return None
                if self.steps == self.stepped:
                    self._step(False)
                continue
            state = None if isinstance(found, InstEmul) else state_of(self.subject, options.memory)
            wants = isinstance(found, (InOut, InstEmul)) and (
                found.is_in if isinstance(found, InOut) else not found.is_write
            )
            if wants or isinstance(found, _WANTS_ANSWER):
                cpu.answer(options.answer)
            self.over = isinstance(found, (*_LAST, Bogus)) or (
                isinstance(found, InOut) and not found.is_in and found.port == options.end_port
            )
            return Point(self.steps, found, state)

    def _run(self) -> Exit:
        cpu = self.subject.vcpu
        if self._stepping:
            while isinstance(found := cpu.run(), Bogus):
                pass
            return found
        watchdog = threading.Timer(PATIENCE, cpu.kick)
        watchdog.daemon = True
        watchdog.start()
        try:
            return cpu.run()
        finally:
            watchdog.cancel()


def _equal(ours: Point, theirs: Point) -> bool:
    if isinstance(ours.exit, EntryFailed) and isinstance(theirs.exit, EntryFailed):
        return ours.exit.rip == theirs.exit.rip  # the rest is the host's
    return ours.exit == theirs.exit and (ours.state == theirs.state or ours.state is None)


@contextmanager
def _started(make: Callable[[], Subject], options: Options, stepped: int) -> Iterator[_Run]:
    subject = make()
    try:
        yield _Run(subject, options, stepped)
    finally:
        subject.close()


def compare(make: Callable[[], Subject], options: Options | None = None) -> Difference | None:
    """The first instruction that translated code gets wrong, or None. ``make`` builds the guest, always the same.

    Raises ``Undecided`` where the guest does not run twice in the same way.
    """
    options = options or Options()
    with _started(make, options, options.limit + 1) as run:
        reference: list[Point] = []
        while not run.over and len(reference) < MOST_EXITS and (point := run.next()) is not None:
            reference.append(point)
        ended = run.over

    def first_wrong(stepped: int, most: int) -> int | None:
        """The number of the first exit, up to ``most``, that is not as in the reference."""
        with _started(make, options, stepped) as run:
            for number, expected in enumerate(reference[: most + 1]):
                point = run.next()
                if point is None or not _equal(expected, point):
                    return number
        return None

    wrong = first_wrong(0, len(reference))
    if wrong is None and not ended:
        raise Undecided(f"no difference at {len(reference)} exits, but the guest came to no end; it was stepped so far")
    if wrong is None:
        return None
    bad, good = 0, reference[wrong].steps + 1
    if first_wrong(good, wrong) is not None:
        raise Undecided("the guest does not do the same twice, or something in it depends on time")
    while good - bad > 1:
        middle = (bad + good) // 2
        if first_wrong(middle, wrong) is None:
            good = middle
        else:
            bad = middle
    return _examine(make, options, bad, wrong)


def _examine(make: Callable[[], Subject], options: Options, stepped: int, wrong: int) -> Difference:
    """Both runs once more, side by side, up to the exit where they differ."""
    with _started(make, options, options.limit + 1) as right, _started(make, options, stepped) as run:
        for _ in range(wrong + 1):
            expected, point = right.next(), run.next()
            if expected is None or point is None or not _equal(expected, point):
                break
        if expected is None or point is None:
            raise Undecided("the guest does not do the same twice, or something in it depends on time")
        changes = _changes(expected, point)
        if options.memory and expected.state is not None and point.state is not None:
            changes += _memory_changes(right.subject.memory, run.subject.memory)
        block = None
        if isinstance(run.subject.vm, blocks.Translator) and run.gpa is not None:
            there = blocks.translated(run.subject.vm, run.gpa, run.gpa)
            block = next((b for b in there if b.gpa == run.gpa and not b.mode & blocks.Mode.STEP), None)
        return Difference(run.steps, run.rip, run.gpa, expected, point, changes, block)


def _changes(right: Point, wrong: Point) -> list[str]:
    if right.state is None or wrong.state is None:
        return []

    def shown(value: object) -> str:
        return f"{value:#x}" if isinstance(value, int) else str(value)

    return [
        f"{name}: {shown(value)} stepped, {shown(wrong.state[name])} in blocks"
        for name, value in right.state.items()
        if name != "memory" and wrong.state[name] != value
    ]


def _memory_changes(right: GuestMemory, wrong: GuestMemory, most: int = 8) -> list[str]:
    found: list[str] = []
    for region in right.regions:
        for gpa in range(region.gpa, region.end, 4096):
            ours, theirs = right.read(gpa, 4096), wrong.read(gpa, 4096)
            if ours == theirs:
                continue
            for at in range(0, 4096, 8):
                if ours[at : at + 8] != theirs[at : at + 8]:
                    if len(found) == most:
                        return [*found, "memory: and more"]
                    words = (int.from_bytes(page[at : at + 8], "little") for page in (ours, theirs))
                    found.append("memory at {:#x}: {:#x} stepped, {:#x} in blocks".format(gpa + at, *words))
    return found


# --- a machine for a flat image ---------------------------------------------------------------------------------------

_GDT, _IDT, _TABLES = 0x1000, 0x2000, 0x4000
_ORIGINS = {"long": 0x10000, "protected": 0x10000, "real": 0x8000}
_STACKS = {"long": 0x80000, "protected": 0x80000, "real": 0x7000}


@dataclass
class Flat:
    """A machine of the engine with a flat image in it, about to execute its first byte."""

    vm: VirtualMachine
    vcpu: VirtualCpu
    memory: GuestMemory

    @classmethod
    def of(cls, image: bytes, mode: str = "long", org: int | None = None, size: int = 4 << 20) -> Flat:
        """Raises a ``PyhyveError`` where the engine cannot run or the image does not fit."""
        origin = _ORIGINS[mode] if org is None else org
        soft = engine()
        memory = GuestMemory(size)
        vm = None
        try:
            memory.write(origin, image)
            vm = soft.create("lockstep", memory, 1)
            vm.set_cpuid(cpuid.shape(vm.supported_cpuid(), cpuid.Topology()))
            flat = cls(vm, vm.create_vcpu(0), memory)
            flat._enter(mode, origin)
        except BaseException:
            if vm is not None:
                vm.close()
            memory.close()
            raise
        return flat

    def close(self) -> None:
        """Give everything back."""
        self.vm.close()
        self.memory.close()

    def _enter(self, mode: str, origin: int) -> None:
        cpu = self.vcpu
        present = int(Access.PRESENT | Access.S)
        code, data = Segment(0, 0, 0xFFFF, present | 0xB), Segment(0, 0, 0xFFFF, present | 3)
        control = {Reg.CR0: 0x10}
        cpu.set_table("idtr", Table(0, 0x3FF))
        if mode != "real":
            width = Access.LONG if mode == "long" else Access.DB
            code = Segment(8, 0, 0xFFFFFFFF, int(code.access | width | Access.GRANULARITY))
            data = Segment(16, 0, 0xFFFFFFFF, int(data.access | Access.DB | Access.GRANULARITY))
            self.memory.write(_GDT, struct.pack("<3Q", 0, 0xAF9B000000FFFF if mode == "long" else 0xCF9B000000FFFF,
                                                0xCF93000000FFFF))  # fmt: skip
            cpu.set_table("gdtr", Table(_GDT, 23))
            cpu.set_table("idtr", Table(_IDT, 0xFFF))
            control = {Reg.CR0: 0x11}
        if mode == "long":
            self._map()
            # PE, ET, NE, WP, PG; PAE, OSFXSR, OSXMMEXCPT; LME, LMA, NXE
            control = {Reg.CR0: 0x80010031, Reg.CR3: _TABLES, Reg.CR4: 0x620, Reg.EFER: 0xD00}
        cpu.set_registers({Reg.RIP: origin, Reg.RSP: _STACKS[mode], Reg.RFLAGS: 2, **control})
        cpu.set_segment(SegmentName.CS, code)
        for name in (SegmentName.DS, SegmentName.ES, SegmentName.SS, SegmentName.FS, SegmentName.GS):
            cpu.set_segment(name, data)

    def _map(self) -> None:
        """The first 4 GiB one to one, in pages of 2 MiB (SDM Vol. 3A §4.5)."""
        self.memory.write_uint(_TABLES, (_TABLES + 0x1000) | 3, 8)
        for gib in range(4):
            directory = _TABLES + 0x2000 + gib * 0x1000
            self.memory.write_uint(_TABLES + 0x1000 + 8 * gib, directory | 3, 8)
            self.memory.write(directory, struct.pack("<512Q", *(gib << 30 | n << 21 | 0x83 for n in range(512))))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""

    def number(text: str) -> int:
        return int(text, 0)

    parser = argparse.ArgumentParser(
        prog="python -m pyhyve.debug.lockstep",
        description="Find the first instruction that translated code gets wrong.",
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a flat binary")
    parser.add_argument("--mode", choices=tuple(_ORIGINS), default="long", help="the mode it starts in (default: long)")
    parser.add_argument("--org", type=number, help="where it lies and starts (default: 0x10000, in real mode 0x8000)")
    parser.add_argument("--end-port", type=number, default=END_PORT, help="an OUT to this port is the end (0xF4)")
    parser.add_argument("--answer", type=number, default=0, help="what ports, devices and unknown MSRs read as (0)")
    parser.add_argument("--limit", type=number, default=1_000_000, help="most instructions to step")
    parser.add_argument("--registers-only", action="store_true", help="do not compare memory")
    args = parser.parse_args(argv)
    options = Options(args.end_port, args.answer, args.limit, not args.registers_only)
    try:
        image = args.image.read_bytes()
        found = compare(lambda: Flat.of(image, args.mode, args.org), options)
    except OSError as error:
        print(f"lockstep: cannot read {args.image}: {error.strerror}", file=sys.stderr)
        return Status.ERROR
    except PyhyveError as error:
        print(f"lockstep: {error}", file=sys.stderr)
        return Status.ERROR
    if found is None:
        print("no difference")
        return 0
    print(found.report(), end="")
    return 1


if __name__ == "__main__":
    sys.exit(main())
