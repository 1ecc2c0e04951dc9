"""A worker for cases with several vCPUs: ``hunt`` feeds it as it feeds ``worker``.

Two to four vCPUs of one machine run random code from the same pages, in modes of their own, while they write that code,
one another's page tables and descriptors, and send IPIs of every kind through the local APIC's page and its MSRs. From
outside come device writes, kicks, pauses, MSIs, NMIs and changes of the memory map; the code cache is small, so that
it is flushed all the time. The threads are those of ``VcpuSet``, so that starting and stopping vCPUs is tried as well.
A vCPU that comes to an end begins again, until the machine is told to end; then all threads must end.

Nothing here can be repeated exactly: a seed gives the same guest, not the same interleaving.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import random
import sys
import threading
import time

import pyhyve.vcpu
from pyhyve.errors import BackendError
from pyhyve.vcpu import Platform, Vcpu, Verdict
from pyhyve.vcpu_set import VcpuSet
from pyhyve.vmm import cpuid, exits
from pyhyve.vmm.api import ApicMode, Capability, CpuidEntry
from pyhyve.vmm.registers import Reg
from pyhyve.vmm.soft import engine
from tests.vmm.soft.fuzz import instructions, world
from tests.vmm.soft.fuzz.cases import MODES, Case, Spec, build
from tests.vmm.soft.fuzz.instructions import Place, load
from tests.vmm.soft.fuzz.worker import host_damage, prepare

RUN_FOR = 0.05
PATIENCE = 6.0
"""Seconds in which every thread must end."""
SMALL_CACHE = 0x30000
"""Bytes of a code cache that is full after some tens of blocks."""
APIC_PAGES = (0xFEE00000, 0x800000)
"""Where the local APIC lies without paging or in long mode, and in the cases' page tables (cases._page_tables)."""
ICR_LOW, ICR_HIGH, SVR = 0x300, 0x310, 0xF0


# Code


def handlers(bits: int) -> bytes:
    """What goes on behind most of an instruction that faults; interrupts end with an EOI or without."""
    slots = []
    for vector in range(256):
        if vector >= 32:
            eoi = b"\xc7\x04\x25\xb0\x00\xe0\xfe" if bits == 64 else b"\xc7\x05\xb0\x00\xe0\xfe"
            body = (eoi + bytes(4)) * (vector & 1 and bits != 16)
        elif vector in (8, 10, 11, 12, 13, 14, 17):
            body = {64: b"\x48\x83\xc4\x08\x48\x83\x04\x24\x03", 32: b"\x83\xc4\x04\x83\x04\x24\x03"}.get(bits, b"")
        else:
            body = {64: b"\x48\x83\x04\x24\x01", 32: b"\x83\x04\x24\x01"}.get(bits, b"")
        slots.append((body + (b"\x48\xcf" if bits == 64 else b"\xcf")).ljust(16, b"\xf4"))
    return b"".join(slots)


def init_and_start(rng: random.Random, place: Place) -> bytes:
    """INIT and, soon behind it, a start-up IPI for the same processor: some twice, some to all others."""
    whom = rng.choice((0, 0, 0, 0xC0000))
    destination = rng.randrange(4)
    first = 0x4500 | whom
    second = 0x4600 | whom | (world.CODE >> 12) + rng.randrange(4)
    page = rng.choice(APIC_PAGES) if rng.random() < 0.6 else 0
    commands = rng.choice(((first, second), (first, second, second), (first, second, first, second), (second, first)))
    return b"".join(_command(rng, place, page, command, destination) for command in commands)


def ipi(rng: random.Random, place: Place) -> bytes:
    """An IPI of any kind, by page or MSR."""
    mode = rng.choice((0, 0, 1, 4, 4, 5, 5, 6, 6, rng.randrange(8)))
    vector = rng.choice((world.CODE >> 12, (world.CODE >> 12) + 1, rng.randrange(256)))
    command = vector | mode << 8 | rng.choice((0, 0, 0x40000, 0x80000, 0xC0000)) | rng.choice((0, 0x800))
    command |= rng.choice((0x4000, 0x4000, 0xC000, 0x8000, 0))
    destination = rng.choice((0, 1, 2, 3, 1, 0xFF, rng.randrange(256)))
    return _command(rng, place, rng.choice(APIC_PAGES) if rng.random() < 0.6 else 0, command, destination)


def _command(rng: random.Random, place: Place, page: int, command: int, destination: int) -> bytes:
    """Write the interrupt command register, by its page or, without one, as an MSR."""
    if page == 0:
        code = load(rng, place, 1, 0x830) + load(rng, place, 0, command) + load(rng, place, 2, destination)
        return code + b"\x0f\x30"
    store = (b"\x67\x66" if place.bits == 16 else b"") + b"\xc7\x03"
    code = load(rng, place, 3, page + ICR_HIGH) + store + (destination << 24).to_bytes(4, "little")
    return code + load(rng, place, 3, page + ICR_LOW) + store + command.to_bytes(4, "little")


def cross_code(rng: random.Random, place: Place) -> bytes:
    """A store into the code of all."""
    prefix = b"\x67" if place.bits == 16 else b""
    target = place.targets[0] & ~0xFFF | rng.randrange(world.CODE_SIZE)
    code = load(rng, place, 3, target) + load(rng, place, 0, rng.choice((0x90909090, 0xFEEB, rng.getrandbits(32))))
    return code + rng.choice((b"", b"\xf0")) + prefix + rng.choice((b"\x01\x03", b"\x87\x03", b"\x30\x03", b"\x10\x03"))


def across_pages(rng: random.Random, place: Place) -> bytes:
    """A locked access over the border of two pages, code among them."""
    prefix = b"\x67" if place.bits == 16 else b""
    start = (
        rng.choice((place.targets[0] & ~0xFFF, place.targets[3])) + 0x1000 * rng.randrange(1, 4) - rng.randrange(1, 4)
    )
    operation = rng.choice(
        (b"\xf0\x01\x03", b"\x87\x03", b"\xf0\x0f\xc1\x03", b"\xf0\x0f\xb1\x03", b"\xf0\x0f\xc7\x0b")
    )
    return load(rng, place, 3, start) + prefix + operation


def another_mode(rng: random.Random, place: Place) -> bytes:
    """What makes code run in another mode, so that there are more modes than slots: AC, IOPL, TS."""
    flags = load(rng, place, 0, rng.choice((0, 0x40000)) | rng.choice((0, 0x1000, 0x3000)) | 2) + b"\x50\x9d"
    task_switched = load(rng, place, 0, 0x80000011 | rng.choice((0, 8, 2, 10, 0x10000))) + b"\x0f\x22\xc0"
    return rng.choice((flags, flags, task_switched if place.bits == 64 else flags, b"\x0f\x06"))


def back(rng: random.Random, place: Place) -> bytes:
    """A jump to what came before."""
    return bytes([rng.choice((0x74, 0x75, 0x72, 0x78, 0xEB, 0xE2)), rng.randrange(0x80, 0x100)])


_MAKERS = (init_and_start, ipi, cross_code, across_pages, another_mode, back, instructions.invalidation)
_WEIGHTS = (2, 4, 4, 3, 2, 2, 2)
_FLAVOURS = ("table", "self", "strings", "mixed")


def code_of(rng: random.Random, case: Case, start: int) -> bytes:
    """Chunks of several flavours from linear address ``start`` on, and a jump back to the first."""
    bits = MODES[case.mode]
    base = world.CODE if case.mode in ("real", "v86") else 0
    shift = case.registers[Reg.RIP] & ~0x7FFFFFFF if bits == 64 else 0
    targets = (world.CODE, start, world.HANDLERS, world.DATA, world.STACKS + 0x4000, 0xBFFF0, world.PT)
    image = b""
    for _ in range(rng.randint(4, 20)):
        place = Place(bits, start + len(image) + shift - base, start + 0x400, tuple(
            target + shift - base for target in targets), (8, 0x10, 0x2B, 0x1B, 0x48))  # fmt: skip
        if rng.random() < 0.75:
            image += rng.choices(_MAKERS, _WEIGHTS)[0](rng, place)
        else:
            image += instructions.make(rng, rng.choice(_FLAVOURS), place)
    distance = -(len(image) + (3 if bits == 16 else 5))
    return image + b"\xe9" + (distance & 0xFFFFFFFF).to_bytes(4, "little")[: 2 if bits == 16 else 4]


# The machine


class Nowhere:
    """A bus on which every access is answered, with anything."""

    def __init__(self, rng: random.Random, absent: float = 0.0) -> None:
        self.rng = rng
        self.absent = absent

    def read(self, address: int, size: int = 8, /) -> int | None:
        return None if self.rng.random() < self.absent else self.rng.getrandbits(8 * size)

    def write(self, address: int, size: int, value: int = 0, /) -> bool:
        return self.rng.random() >= self.absent


class Crowd:
    """One case."""

    def __init__(self, seed: int, memory: world.FencedMemory, table: list[CpuidEntry]) -> None:
        self.rng = random.Random(f"{seed} crowd")
        self.memory = memory
        self.problems: list[str] = []
        self.count = self.rng.randint(2, 4)
        self.ends = 0
        self.over = threading.Event()
        self.rom = True
        rng = self.rng
        engine.CODE_SIZE = rng.choice((SMALL_CACHE, SMALL_CACHE, 1 << 20))
        self.machine = engine.SoftHypervisor().create("crowd", memory, self.count)
        self.machine.set_cpuid(table or cpuid.shape(self.machine.supported_cpuid(), cpuid.Topology(cores=4)))
        self.machine.map_memory(world.LOW_SIZE, world.ROM_SIZE, memory.rom_offset, readonly=True)
        self.vcpus = VcpuSet(self.over.set)
        self.cases = self.make_cases(seed)
        self.modes = [case.mode for case in self.cases]
        for gpa, data in self.cases[0].pages.items():
            memory.write(gpa, data)
        code = bytearray(self.cases[0].pages[world.CODE])
        for index, case in enumerate(self.cases):
            start = world.CODE + 0x1000 * index + rng.choice((0, 0, 0xF00, rng.randrange(0x1000)))
            image = code_of(rng, case, start)[: world.CODE + world.CODE_SIZE - start]
            code[start - world.CODE : start - world.CODE + len(image)] = image
            old = case.registers[Reg.RIP]
            base = world.CODE if case.mode in ("real", "v86") else 0
            case.registers[Reg.RIP] = (old & ~0x7FFFFFFF if MODES[case.mode] == 64 else 0) + start - base
        memory.write(world.CODE, bytes(code))
        platform = Platform(
            Nowhere(rng), Nowhere(rng), Nowhere(rng, 0.5), acknowledge=self.acknowledge, open_bus=((0, 1 << 64),)
        )
        for index, case in enumerate(self.cases):
            cpu = self.machine.create_vcpu(index)
            vcpu = Vcpu(cpu, self.vcpus, platform)
            vcpu.handlers[exits.Suspended] = lambda _exit, index=index: self.again(index)
            vcpu.handlers[exits.EntryFailed] = lambda exit_, index=index: self.failed(exit_, index)
            self.vcpus.vcpus.append(vcpu)
            if index:
                cpu.start(world.CODE >> 12)
            prepare(case, memory, cpu)
            cpu.set_apic_mode(rng.choice((ApicMode.XAPIC, ApicMode.XAPIC, ApicMode.X2APIC)))
            page = bytearray(cpu.get_lapic())
            page[SVR : SVR + 4] = (0x1FF).to_bytes(4, "little")
            cpu.set_lapic(bytes(page))
            cpu.set_capability(Capability.HLT_EXIT, rng.random() < 0.9)
        for gpa, data in self.cases[0].pages.items():  # as ``prepare`` wrote those of the others
            if gpa != world.CODE:
                memory.write(gpa, data)
        memory.write(world.CODE, bytes(code))

    def make_cases(self, seed: int) -> list[Case]:
        """A state for each vCPU, mostly in the mode of the first."""
        tame: tuple[str, ...] = ("wild", "entries", "descriptors", "handlers", "offset", "step")
        if self.rng.random() < 0.7:
            tame += ("points", "breakpoints")
        if self.rng.random() < 0.25:
            tame = ()
        cases = [build(Spec(seed * 64, tame))]
        if tame:
            cases[0].pages[world.HANDLERS] = handlers(64 if cases[0].mode == "compat" else MODES[cases[0].mode])
        number = 0
        while len(cases) < self.count:
            number += 1
            case = build(Spec(seed * 64 + number % 64, tame))
            if case.mode == cases[0].mode or self.rng.random() < 0.1 or number > 40:
                case.step = case.step and self.rng.random() < 0.2
                cases.append(case)
        return cases

    def acknowledge(self) -> int:
        self.machine.set_extint(False)
        return self.rng.randrange(256)

    def again(self, index: int) -> Verdict:
        """The vCPU, in whose thread this is, begins again."""
        self.ends += 1
        if self.vcpus.outcome is None:
            case = self.cases[index]
            cpu = self.vcpus.vcpus[index].cpu
            for name, segment in case.segments.items():
                cpu.set_segment(name, segment)
            for kind, table in case.tables.items():
                cpu.set_table(kind, table)
            cpu.set_registers(case.registers)
        return Verdict.CONTINUE

    def failed(self, exit_: exits.EntryFailed, index: int) -> Verdict:
        """Running outside memory is the guest's fault; anything else is ours."""
        if exit_.exit_reason or exit_.inst_error or self.memory.contains(exit_.qualification):
            self.problems.append(f"EntryFailed: {exit_.detail} (reason {exit_.exit_reason}, rip {exit_.rip:#x})")
        return self.again(index)

    def run(self) -> str:
        """Run it; what went wrong, or nothing."""
        with self.vcpus._changed:  # or the first starts the second before it is added
            for index in range(self.count):
                self.vcpus.add(index)
        deadline = time.monotonic() + RUN_FOR
        try:
            while time.monotonic() < deadline and not self.over.is_set():
                self.disturb()
        except BackendError:
            if self.vcpus.outcome is None:
                raise
            # The guest has stopped every vCPU by INIT, which ends the machine.
        self.vcpus.end(0)
        try:
            self.vcpus.join(PATIENCE)
        except BackendError as error:
            self.problems.append(f"hang: {error}")
            faulthandler.dump_traceback()
        if self.vcpus.message:
            self.problems.append(f"the machine failed: {self.vcpus.message}")
        return "; ".join(self.problems)

    def disturb(self) -> None:
        """One thing that comes from outside."""
        rng = self.rng
        kind = rng.randrange(12)
        cpu = self.vcpus.vcpus[rng.randrange(self.count)].cpu
        if kind < 4:
            gpa = rng.choice((world.CODE + rng.randrange(world.CODE_SIZE - 64), world.PT + rng.randrange(0xFF0)))
            self.memory.write(gpa, rng.choice((b"\xeb\xfe", b"\x90\x90\x90", rng.randbytes(8), b"\xf4")))
            self.machine.memory_written(gpa, 8)
        elif kind == 4:
            self.machine.send_msi(0xFEE00000 | rng.randrange(5) << 12, rng.randrange(0x10000))
        elif kind == 5:
            cpu.inject_nmi()
        elif kind == 6:
            cpu.kick()
        elif kind == 7:
            self.machine.set_extint(rng.random() < 0.7)
        elif kind == 8:
            with self.vcpus.held():
                cpu.get_registers((Reg.RIP, Reg.RFLAGS))
        elif kind == 9:
            self.vcpus.pause()
            self.vcpus.resume()
        elif kind == 10:
            if self.rom:
                self.machine.unmap_memory(world.LOW_SIZE)
            else:
                self.machine.map_memory(world.LOW_SIZE, world.ROM_SIZE, self.memory.rom_offset, readonly=True)
            self.rom = not self.rom
        else:
            time.sleep(0.001)


def run(seed: int, secret: bytes) -> dict[str, object]:
    """Run the case of a seed."""
    memory = world.FencedMemory(secret)
    crowd = Crowd(seed, memory, [])
    problem = crowd.run()
    if problem.startswith("hang"):
        return {"seed": seed, "problem": problem, "exits": [], "mode": crowd.modes[0]}
    crowd.machine.close()
    problem = problem or memory.damage() or host_damage()
    stats = crowd.machine.stats()
    ends = ["flushed"] * bool(stats["code_flushes"]) + ["invalidated"] * bool(stats["invalidated"])
    result = {"seed": seed, "problem": problem, "exits": ends + ["restarted"] * crowd.ends, "mode": crowd.modes[0]}
    del crowd
    gc.collect()  # a machine is all cycles, and its vCPUs have megabytes of tables
    memory.close()
    return result


def main() -> None:
    """Answer lines until there are no more."""
    faulthandler.enable()
    pyhyve.vcpu.complain = lambda text: None
    secret = random.SystemRandom().randbytes(16)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line)["seed"], secret)), flush=True)


if __name__ == "__main__":
    main()
