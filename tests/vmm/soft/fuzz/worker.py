"""Runs cases, one JSON line each on standard input, and answers with one JSON line each.

The process is expendable: its parent notices when it dies or does not answer.
"""

from __future__ import annotations

import faulthandler
import json
import math
import random
import resource
import sys
import threading
import time

from pyhyve.vmm import cpuid, exits
from pyhyve.vmm.api import Capability, CpuidEntry
from pyhyve.vmm.soft.engine import SoftCpu, SoftHypervisor, SoftMachine
from tests.vmm.soft.fuzz import world
from tests.vmm.soft.fuzz.cases import Case, Spec, build

KICK_AFTER = 0.03
MOST_EXITS = 200
ENOUGH_MEMORY = 1 << 20
"""Resident KiB that a worker has at most, whatever it ran."""

_EXPECTED = (
    exits.InOut, exits.RdMsr, exits.WrMsr, exits.InstEmul, exits.Hlt, exits.Pause, exits.Mtrap, exits.SpinupAp,
    exits.SpindownCpu, exits.Suspended, exits.Debug, exits.Bogus, exits.IntAck, exits.IoapicEoi, exits.EntryFailed,
)  # fmt: skip
_LAST = (exits.Suspended, exits.EntryFailed, exits.Bogus, exits.SpinupAp, exits.SpindownCpu, exits.Hlt)


class Runner:
    """One hypervisor, one machine a case."""

    def __init__(self) -> None:
        self.hypervisor = SoftHypervisor()
        self.table: list[CpuidEntry] = []
        self.secret = random.SystemRandom().randbytes(16)

    def run(self, spec: Spec) -> dict[str, object]:
        """Run a case; ``problem`` in the result says what went wrong, and is empty where nothing did."""
        case = build(spec)
        memory = world.FencedMemory(self.secret)
        machine = self.hypervisor.create("fuzz", memory, 1)
        if not self.table:
            self.table = cpuid.shape(machine.supported_cpuid(), cpuid.Topology(cores=1))
        try:
            machine.set_cpuid(self.table)
            machine.map_memory(world.LOW_SIZE, world.ROM_SIZE, memory.rom_offset, readonly=True)
            vcpu = machine.create_vcpu(0)
            prepare(case, memory, vcpu)
            problem, ends = self.execute(case, memory, machine, vcpu)
        finally:
            machine.close()
        problem = problem or memory.damage() or host_damage()
        del machine
        memory.close()
        return {"seed": spec.seed, "problem": problem, "exits": ends, "mode": case.mode}

    def execute(
        self, case: Case, memory: world.FencedMemory, machine: SoftMachine, vcpu: SoftCpu
    ) -> tuple[str, list[str]]:
        """Run to an end, a kick or enough exits."""
        rng = random.Random(f"{case.spec.seed} answers")
        done = threading.Event()
        helper = threading.Thread(target=disturb, args=(case, memory, machine, vcpu, done), daemon=True)
        helper.start()
        seen: list[str] = []
        problem = ""
        start = time.monotonic()
        try:
            for _ in range(MOST_EXITS):
                result = vcpu.run()
                seen.append(type(result).__name__)
                problem = judge(result, memory)
                if problem or isinstance(result, _LAST):
                    break
                answer(case, rng, result, memory, machine, vcpu)
        finally:
            done.set()
            helper.join()
        late = time.monotonic() - start
        if late > 2:
            problem = problem or f"{late:.1f} s to come to an end"
        return problem, seen


def prepare(case: Case, memory: world.FencedMemory, vcpu: SoftCpu) -> None:
    """Set the whole state."""
    for gpa, data in case.pages.items():
        memory.write(gpa, data)
    vcpu.set_registers(case.registers)
    for name, segment in case.segments.items():
        vcpu.set_segment(name, segment)
    for name, table in case.tables.items():
        vcpu.set_table(name, table)
    for index, value in case.msrs.items():
        try:
            vcpu.set_msr(index, value)
        except KeyError:
            pass  # a value that the register does not take
    vcpu.set_registers(case.registers)
    if case.xsave is not None:
        vcpu.set_xsave(case.xsave)
    vcpu.set_capability(Capability.HLT_EXIT, case.hlt_exit)
    vcpu.set_capability(Capability.MTRAP_EXIT, case.step)
    vcpu.set_points(case.points)


def disturb(case: Case, memory: world.FencedMemory, machine: SoftMachine, vcpu: SoftCpu, done: threading.Event) -> None:
    """The world outside: a device that writes into the guest's code while it runs, and the kick that ends the case."""
    rng = random.Random(f"{case.spec.seed} thread")
    deadline = time.monotonic() + KICK_AFTER
    while case.thread and time.monotonic() < deadline and not done.is_set():
        gpa = world.CODE + rng.randrange(world.CODE_SIZE - 64)
        memory.write(gpa, rng.choice((b"\xeb\xfe", b"\x90\x90\x90", rng.randbytes(8), b"\xf4")))
        machine.memory_written(gpa, 8)
        if case.events:
            rng.choice((vcpu.inject_nmi, lambda: machine.send_msi(0xFEE00000, 0x20 + rng.randrange(0xE0))))()
        time.sleep(0.0005)
    while not done.wait(max(0.001, deadline - time.monotonic())):
        vcpu.kick()
        deadline = time.monotonic() + 0.5


def judge(result: exits.Exit, memory: world.FencedMemory) -> str:
    """What is wrong with an exit; empty if nothing is."""
    if not isinstance(result, _EXPECTED):
        return f"unexpected exit {result}"
    if isinstance(result, exits.EntryFailed):
        gpa = result.qualification
        is_memory = memory.contains(gpa) or world.LOW_SIZE <= gpa < world.LOW_SIZE + world.ROM_SIZE
        if result.exit_reason or result.inst_error or is_memory:
            return f"EntryFailed: {result.detail} (reason {result.exit_reason}, rip {result.rip:#x})"
    if isinstance(result, exits.InstEmul) and memory.contains(result.gpa):
        return f"an access to memory came out: {result}"
    return ""


def answer(
    case: Case, rng: random.Random, result: exits.Exit, memory: world.FencedMemory, machine: SoftMachine, vcpu: SoftCpu
) -> None:
    """Do what a machine may do at an exit, plausible or not."""
    if isinstance(result, exits.RdMsr | exits.WrMsr) and rng.random() < 0.5:
        vcpu.inject_exception(13, 0)
    elif isinstance(result, exits.InOut | exits.InstEmul | exits.RdMsr | exits.IntAck):
        vcpu.answer(rng.choice((0, rng.getrandbits(64), rng.randrange(256))))
    if isinstance(result, exits.IntAck):
        machine.set_extint(False)
    if isinstance(result, exits.Debug) and rng.random() < 0.2:
        vcpu.set_points(case.points[: rng.randrange(len(case.points) + 1)])
    if not case.events or rng.random() < 0.7:
        return
    kind = rng.randrange(5)
    if kind == 0:
        vcpu.inject_nmi()
    elif kind == 1:
        machine.send_msi(0xFEE00000 | rng.choice((0, 0xFF000)), rng.randrange(0x10000))
    elif kind == 2:
        machine.set_extint(rng.random() < 0.7)
    elif kind == 3:
        gpa = rng.choice((world.CODE, world.PML4, world.PT, world.GDT)) + rng.randrange(0xFF0)
        memory.write(gpa, rng.randbytes(8))
        machine.memory_written(gpa, 8)
    elif not isinstance(result, exits.InOut | exits.InstEmul | exits.IntAck):
        vector = rng.randrange(32)
        vcpu.inject_exception(vector, rng.getrandbits(16) if vector in (8, 10, 11, 12, 13, 14, 17) else None)


def host_damage() -> str:
    """Whether this process computes as before: rounding, x87 precision and exception masks may have leaked."""
    if (0.1 + 0.2, math.sqrt(2.0), 1e-310 / 2, float("1e22") / 3) != (
        0.30000000000000004, 1.4142135623730951, 5e-311, 3.3333333333333335e21,
    ):  # fmt: skip
        return "the host's floating point computes differently now"
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > ENOUGH_MEMORY:
        return "the process keeps growing"
    return ""


def main() -> None:
    """Answer lines until there are no more."""
    faulthandler.enable()
    runner = Runner()
    for line in sys.stdin:
        raw = json.loads(line)
        spec = Spec(raw["seed"], tuple(raw["off"]), None if raw["keep"] is None else tuple(raw["keep"]))
        result = runner.run(spec)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
