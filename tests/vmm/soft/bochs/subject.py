"""The engine, as the thing under test: state in and out through the contract only."""

from __future__ import annotations

from functools import cache

from pyhyve.memory import GuestMemory
from pyhyve.vmm import cpuid, exits
from pyhyve.vmm.api import Capability, CpuidEntry
from pyhyve.vmm.registers import Reg, Segment, SegmentName, Table
from pyhyve.vmm.soft.engine import SoftCpu, SoftHypervisor, SoftMachine
from tests.vmm.soft.bochs.ground import SIZE
from tests.vmm.soft.bochs.state import MSRS, Descriptor, Outcome, State

MOST_STEPS = 200
"""Exits in which an instruction must have completed: repeated string instructions and exceptions take several."""

TF, RF = 0x100, 0x10000

STRAY = ((0x13000, 0x14000), (0x16000, 0x20000), (0x28000, 0x80000), (0xC0000, SIZE))
"""Memory that scenarios leave zero."""


class Subject:
    """A machine of ``size`` bytes, made anew where a case left it with something that cannot be set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hypervisor = SoftHypervisor()
        self.table: list[CpuidEntry] = []
        self.memory = GuestMemory(size)
        self.machine: SoftMachine | None = None
        self.vcpu: SoftCpu | None = None

    def vendor(self) -> str:
        """Whose processor the engine shows its guests."""
        if not self.table:
            self._fresh()
        return cpuid.vendor(self.table)

    def strayed(self) -> bool:
        """Whether memory that no scenario sets has been written; it is cleared then."""
        dirty = False
        for start, end in STRAY:
            clean = _zeros(end - start)
            if self.memory.read(start, end - start) != clean:
                self.memory.write(start, clean)
                dirty = True
        return dirty

    def close(self) -> None:
        """Give everything back."""
        if self.machine is not None:
            self.machine.close()
        self.memory.close()

    def _fresh(self) -> tuple[SoftMachine, SoftCpu]:
        if self.machine is not None:
            self.machine.close()
        self.machine = self.hypervisor.create("subject", self.memory, 1)
        if not self.table:
            self.table = cpuid.shape(self.machine.supported_cpuid(), cpuid.Topology(cores=1))
        self.machine.set_cpuid(self.table)
        self.vcpu = self.machine.create_vcpu(0)
        self.vcpu.set_capability(Capability.MTRAP_EXIT, True)
        self.vcpu.set_capability(Capability.HLT_EXIT, True)
        return self.machine, self.vcpu

    def step(self, before: State) -> Outcome:
        """Set a state and complete its instructions."""
        machine, vcpu = self.machine, self.vcpu
        if machine is None or vcpu is None:
            machine, vcpu = self._fresh()
        for gpa, data in (*before.pages.items(), *before.code.items()):
            self.memory.write(gpa, data)
            machine.memory_written(gpa, len(data))
        put_state(vcpu, before)
        end = self._run(vcpu, before)
        outcome = Outcome(end, self._get(vcpu, before))
        for gpa, data in before.code.items():  # a later case may go astray and come here
            self.memory.write(gpa, bytes(len(data)))
            machine.memory_written(gpa, len(data))
        if end != "step" or before.leaves_traps:
            self._fresh()
        return outcome

    def _run(self, vcpu: SoftCpu, before: State) -> str:
        left = before.steps
        at = before.registers["rip"]
        handled = _deliveries(vcpu)
        for _ in range(MOST_STEPS):
            result = vcpu.run()
            match result:
                case exits.Mtrap():
                    # The way to a handler is a stop, and so is each element of a repeated string instruction, where
                    # RF is set. Bochs stops between elements if TF is set.
                    now = vcpu.get_registers((Reg.RIP, Reg.RFLAGS))
                    repeating = now[Reg.RIP] == at and now[Reg.RFLAGS] & (RF | TF) == RF
                    at = now[Reg.RIP]
                    deliveries = _deliveries(vcpu)
                    if deliveries == handled and not repeating:
                        left -= 1
                    handled = deliveries
                    if left == 0:
                        return "step"
                case exits.Suspended():
                    return "triple"
                case exits.Hlt():
                    return "halt"
                case exits.InOut():
                    return "port"
                case exits.InstEmul() | exits.EntryFailed():
                    return "outside memory"
                case exits.RdMsr() | exits.WrMsr():
                    vcpu.inject_exception(13, 0)
                case _:
                    return f"exit {result}"
        return "no end"

    def _get(self, vcpu: SoftCpu, before: State) -> State:
        names = {name: Reg(name) for name in before.registers if name not in MSRS}
        found = vcpu.get_registers(names.values())
        registers = {name: found[reg] for name, reg in names.items()}
        registers |= {name: vcpu.get_msr(index) for name, index in MSRS.items()}
        segments = {name: _descriptor(vcpu.get_segment(SegmentName(name))) for name in before.segments}
        tables = {}
        for name in before.tables:
            table = vcpu.get_table(name)
            tables[name] = (table.base, table.limit)
        pages = {gpa: self.memory.read(gpa, 4096) for gpa in before.pages}
        return State(registers, segments, tables, pages)


@cache
def _zeros(size: int) -> bytes:
    return bytes(size)


def _deliveries(vcpu: SoftCpu) -> int:
    stats = vcpu.stats()
    return stats["exceptions"] + stats["interrupts"]


def put_state(vcpu: SoftCpu, before: State) -> None:
    """Set registers, then segments, which decide about the privilege level."""
    vcpu.set_registers({Reg(name): value for name, value in before.registers.items() if name not in MSRS})
    for name, index in MSRS.items():
        vcpu.set_msr(index, before.registers[name])
    for name, value in before.segments.items():
        vcpu.set_segment(SegmentName(name), Segment(*value))
    for name, (base, limit) in before.tables.items():
        vcpu.set_table(name, Table(base, limit))


def _descriptor(value: Segment) -> Descriptor:
    return value.selector, value.base, value.limit, value.access
