"""The ``monitor`` commands of gdb (packet qRcmd): what a debugger's own commands cannot show of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from pyhyve.debug.gdb.space import Space
from pyhyve.debug.pagewalk import walk
from pyhyve.errors import PyhyveError
from pyhyve.lifecycle import Stateful
from pyhyve.memory import GuestMemory
from pyhyve.vcpu import VcpuSet
from pyhyve.vmm.api import VirtualCpu
from pyhyve.vmm.exits import SuspendReason
from pyhyve.vmm.registers import CONTROL, DEBUG, GENERAL, Reg, SegmentName

_LAPIC_ID, _LAPIC_TPR, _LAPIC_SVR, _LAPIC_ISR, _LAPIC_IRR = 0x20, 0x80, 0xF0, 0x100, 0x200  # SDM Vol. 3A table 11-1
_BYTES_SHOWN = 64


class Debuggee(Protocol):
    """What the monitor needs of a ``Machine``."""

    vcpus: VcpuSet
    memory: GuestMemory
    parts: dict[str, Stateful]

    def stats(self) -> dict[str, float]: ...

    def power(self, reason: SuspendReason) -> None: ...


@dataclass(frozen=True, slots=True)
class _Command:
    usage: str
    help: str
    run: Callable[[list[str], int], Iterator[str]]


class Monitor:
    """The table of commands, on a machine whose vCPUs rest."""

    def __init__(self, machine: Debuggee, space: Space) -> None:
        self._machine = machine
        self._space = space
        self._commands = {
            "help": _Command("", "this list", self._help),
            "registers": _Command("[CPU|all]", "every register of a vCPU", self._registers),
            "walk": _Command("ADDRESS", "the page walk of a virtual address", self._walk),
            "phys": _Command("[on|off]", "whether memory commands take physical addresses", self._phys),
            "devices": _Command("", "the parts of the machine that have state", self._devices),
            "device": _Command("NAME", "the state of one of them", self._device),
            "interrupts": _Command("", "the local APICs, and the interrupt controllers", self._interrupts),
            "exits": _Command("", "how often each vCPU left the guest, and why", self._exits),
            "reset": _Command("", "reset the machine: bhyve ends with status 0", self._reset),
            "power-off": _Command("", "power it off: bhyve ends with status 1", self._power_off),
        }
        self._commands["translate"] = self._commands["walk"]

    def run(self, line: str, current: int) -> str:
        """The output of a command; ``current`` is the vCPU that the debugger looks at."""
        try:
            name, *arguments = shlex.split(line) or ["help"]
            command = self._commands.get(name)
            if command is None:
                return f"no command '{name}'; try 'monitor help'\n"
            return "".join(f"{text}\n" for text in command.run(arguments, current))
        except (PyhyveError, ValueError, IndexError) as error:
            return f"{str(error) or 'that makes no sense'}\n"

    def _help(self, _arguments: list[str], _current: int) -> Iterator[str]:
        for name, command in self._commands.items():
            yield f"{name + ' ' + command.usage:<24}{command.help}"

    def _cpus(self, arguments: list[str], current: int) -> list[VirtualCpu]:
        cpus = [vcpu.cpu for vcpu in self._machine.vcpus.vcpus]
        if arguments == ["all"]:
            return cpus
        index = int(arguments[0]) if arguments else current
        if not 0 <= index < len(cpus):
            raise PyhyveError(f"no vCPU {index}: there are {len(cpus)}, from 0 on")
        return [cpus[index]]

    def _registers(self, arguments: list[str], current: int) -> Iterator[str]:
        for cpu in self._cpus(arguments, current):
            yield f"vcpu {cpu.index}"
            names = (*GENERAL, Reg.RIP, Reg.RFLAGS, *CONTROL, *DEBUG)
            values = cpu.get_registers(names)
            for at in range(0, len(names), 4):
                yield "  ".join(f"{name:>6} {values[name]:016x}" for name in names[at : at + 4])
            for segment_name in SegmentName:
                s = cpu.get_segment(segment_name)
                yield f"{segment_name:>6} {s.selector:04x} base {s.base:016x} limit {s.limit:08x} access {s.access:05x}"
            for table_name in ("gdtr", "idtr"):
                t = cpu.get_table(table_name)
                yield f"{table_name:>6}      base {t.base:016x} limit {t.limit:08x}"

    def _walk(self, arguments: list[str], current: int) -> Iterator[str]:
        if len(arguments) != 1:
            raise PyhyveError("which address?")
        gva = int(arguments[0], 0) % (1 << 64)
        state = self._cpus([], current)[0].get_registers((Reg.CR0, Reg.CR3, Reg.CR4, Reg.EFER))
        found = walk(self._read, state[Reg.CR0], state[Reg.CR3], state[Reg.CR4], state[Reg.EFER], gva)
        yield f"virtual {gva:#x}: {found.paging}, CR3 {state[Reg.CR3]:#x}"
        for entry in found.entries:
            yield f"{entry.name:>6} at {entry.gpa:#014x}: {entry.value:#018x}  {entry.flags}"
        if found.gpa is None:
            yield "not mapped"
        else:
            pages = f" in a page of {_size(found.size)}" if found.entries else ""
            yield f"physical {found.gpa:#x}{pages}{'' if self._machine.memory.contains(found.gpa) else ', not RAM'}"

    def _read(self, gpa: int, size: int) -> int | None:
        memory = self._machine.memory
        return memory.read_uint(gpa, size) if memory.contains(gpa, size) else None

    def _phys(self, arguments: list[str], _current: int) -> Iterator[str]:
        if arguments and arguments[0] not in ("on", "off"):
            raise PyhyveError("phys on, or phys off")
        if arguments:
            self._space.physical = arguments[0] == "on"
        yield f"memory addresses are {'guest-physical' if self._space.physical else 'guest-virtual'}"

    def _devices(self, _arguments: list[str], _current: int) -> Iterator[str]:
        for name, part in self._machine.parts.items():
            yield f"{name:<10}{type(part).__name__}"

    def _device(self, arguments: list[str], _current: int) -> Iterator[str]:
        name = arguments[0] if arguments else ""
        part = self._machine.parts.get(name)
        if part is None:
            raise PyhyveError(f"no device '{name}': {', '.join(self._machine.parts)}")
        yield from pretty(part.save())

    def _interrupts(self, _arguments: list[str], _current: int) -> Iterator[str]:
        for cpu in self._cpus(["all"], 0):
            page = cpu.get_lapic()
            words = [int.from_bytes(page[at : at + 4], "little") for at in (_LAPIC_ID, _LAPIC_TPR, _LAPIC_SVR)]
            yield "vcpu {}: local APIC id {:#x} tpr {:#x} svr {:#x}".format(cpu.index, *words)
            for name, at in (("requested", _LAPIC_IRR), ("in service", _LAPIC_ISR)):
                vectors = [n for n in range(256) if page[at + 16 * (n // 32) + n % 32 // 8] >> n % 8 & 1]
                yield f"  {name}: {' '.join(f'{n:#x}' for n in vectors) or 'none'}"
        for name in ("pic", "ioapic"):
            part = self._machine.parts.get(name)
            if part is not None:
                yield f"{name}:"
                yield from (f"  {line}" for line in pretty(part.save()))

    def _exits(self, _arguments: list[str], _current: int) -> Iterator[str]:
        for name, value in self._machine.stats().items():
            if value:
                yield f"{name:<36}{value:>16.12g}"

    def _reset(self, _arguments: list[str], _current: int) -> Iterator[str]:
        self._machine.power(SuspendReason.RESET)
        yield "the machine is reset"

    def _power_off(self, _arguments: list[str], _current: int) -> Iterator[str]:
        self._machine.power(SuspendReason.POWER_OFF)
        yield "the machine is powered off"


def pretty(state: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A saved state, a line a value."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name.lstrip('_')}:"
            yield from pretty(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                yield f"{indent}{name.lstrip('_')}[{number}]:"
                yield from pretty(item, indent + "  ")
        else:
            yield f"{indent}{name.lstrip('_')}: {_plain(value)}"


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else f"{value:#x}"
    if isinstance(value, bytes):
        more = f" ... ({len(value)} bytes)" if len(value) > _BYTES_SHOWN else ""
        return value[:_BYTES_SHOWN].hex(" ") + more
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)


def _size(size: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"
