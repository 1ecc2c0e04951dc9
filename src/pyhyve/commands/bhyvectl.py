"""``bhyvectl``: looks into a named machine and steers it, as bhyvectl(8) does.

A running machine is asked on its control socket. Of one that is only loaded, registers and memory come from its folder.
What is written is in bhyvectl's words and columns, for the scripts that read them.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyhyve.errors import PyhyveError, Status, UsageError

HIGH_BASE = 4 << 30
# In bhyvectl's order of printing.
REGISTERS = (
    "efer cr0 cr2 cr3 cr4 dr0 dr1 dr2 dr3 dr6 dr7 rsp rip rax rbx rcx rdx rsi rdi rbp "
    "r8 r9 r10 r11 r12 r13 r14 r15 rflags"
).split()
SEGMENTS = ("ds", "es", "fs", "gs", "ss", "cs", "tr", "ldtr")
SELECTORS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
TABLES = ("gdtr", "idtr")

_FLAGS = (
    *("create", "destroy", "suspend", "resume", "inject-nmi", "force-reset", "force-poweroff"),
    *("get-all", "get-stats", "get-exit-stats", "get-lowmem", "get-highmem", "get-x2apic-state"),
    *("get-active-cpus", "get-suspended-cpus", "get-cpu-topology"),
    *(f"get-{name}" for name in (*REGISTERS, *SELECTORS)),
    *(f"{verb}-desc-{name}" for verb in ("get", "set") for name in (*SEGMENTS, *TABLES)),
)
_VALUES = (
    *("vm", "cpu", "desc-base", "desc-limit", "desc-access", "set-x2apic-state"),
    *(f"set-{name}" for name in (*REGISTERS, *SELECTORS)),
)
_GETS_REGISTERS = {"get-all", "get-x2apic-state", *(f for f in _FLAGS if f.startswith("get-desc-"))} | {
    f"get-{name}" for name in (*REGISTERS, *SELECTORS)
}


class Usage(Exception):
    """Print the usage text and end with status 1."""


def usage() -> str:
    """Every option, a line each, as bhyvectl prints them."""
    lines = ["Usage: bhyvectl --vm=<vmname>", "       [--cpu=<vcpu_number>]"]
    lines += [f"       [--{name}]" for name in _FLAGS]
    lines += [f"       [--{name}=<value>]" for name in _VALUES[2:]]
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str]) -> dict[str, str]:
    """Options and their values, empty for flags. Raises ``Usage``, or ``UsageError`` for a value that is wrong."""
    if any(word.startswith("--suspend=") for word in argv):
        raise UsageError("--suspend=FILE would save a snapshot, which is not available; --suspend stops the vCPUs")
    try:
        found, words = getopt.gnu_getopt(list(argv), "", [*_FLAGS, *(f"{name}=" for name in _VALUES)])
    except getopt.GetoptError as error:
        print(f"bhyvectl: {error}", file=sys.stderr)
        raise Usage from None
    options = {name.removeprefix("--"): value for name, value in found}
    if words or "vm" not in options:
        raise Usage
    for name, value in options.items():
        if value and name != "vm":
            number(name, value)
    return options


def number(name: str, text: str) -> int:
    """A value as strtoul(3) reads it: decimal, 0x and a leading 0 for octal."""
    try:
        value = int(text, 8) if len(text) > 1 and text.startswith("0") and text.isdigit() else int(text, 0)
    except ValueError:
        raise UsageError(f"--{name}: '{text}' is not a number") from None
    if not 0 <= value < 1 << 64:
        raise UsageError(f"--{name}: {text} does not fit into 64 bits")
    return value


class Running:
    """A machine that a process runs."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.connection.call(do, **arguments)
        return result

    def registers(self, cpu: int) -> dict[str, Any]:
        return self.call("registers", cpu=cpu)

    def set_registers(self, cpu: int, changes: dict[str, dict[str, Any]]) -> None:
        self.call("set_registers", cpu=cpu, **changes)

    def memory(self) -> tuple[int, int, bool]:
        """Bytes below and above 4 GiB, and whether they are wired."""
        info = self.call("info")
        return info["low_memory"], info["high_memory"], info["wired"]

    def destroy(self) -> None:
        from pyhyve.control.folder import Folder

        folder = Folder(self.connection.name)
        self.call("destroy")
        self.connection.wait_closed()
        if folder.wait_free():  # its process was killed on the way
            Resting(folder.name).destroy()


class Resting:
    """A machine that nobody runs: what is in its folder."""

    def __init__(self, name: str) -> None:
        from pyhyve.control.folder import Folder

        self.folder = Folder(name)

    def call(self, _do: str, **_arguments: Any) -> dict[str, Any]:
        raise UsageError(f"the virtual machine '{self.folder.name}' is not running", Status.POWER_OFF)

    def registers(self, cpu: int) -> dict[str, Any]:
        from pyhyve.control import state

        found = self.folder.read_registers()
        if found is None:
            raise UsageError(f"the virtual machine '{self.folder.name}' has no guest loaded", Status.POWER_OFF)
        if cpu:
            raise UsageError(f"there is no vcpu {cpu} before bhyve runs the machine", Status.POWER_OFF)
        return dict(state.merged(state.reset_state(), found))

    def set_registers(self, cpu: int, changes: dict[str, dict[str, Any]]) -> None:
        from pyhyve.control import state

        with self.folder.claim():
            self.registers(cpu)
            found = self.folder.read_registers() or {}
            self.folder.write_registers(state.checked(state.merged(found, changes)))

    def memory(self) -> tuple[int, int, bool]:
        size = self.folder.memory_size
        low = min(size, 3 << 30)
        return low, size - low, bool(self.folder.settings().get("wired", False))

    def destroy(self) -> None:
        with self.folder.claim():
            self.folder.remove()


def changes(options: Mapping[str, str], now: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the ``--set`` options change, given all registers as they are."""
    found: dict[str, dict[str, Any]] = {"registers": {}, "segments": {}, "tables": {}}
    base, limit, access = (number(n, options.get(n, "0")) for n in ("desc-base", "desc-limit", "desc-access"))
    for name in REGISTERS:
        if f"set-{name}" in options:
            found["registers"][name] = number(name, options[f"set-{name}"])
    for name in SEGMENTS:
        segment = dict(now["segments"][name])
        if f"set-desc-{name}" in options:
            segment.update(base=base, limit=limit, access=access)
        if f"set-{name}" in options:
            segment["selector"] = number(name, options[f"set-{name}"])
        if segment != now["segments"][name]:
            found["segments"][name] = segment
    for name in TABLES:
        if f"set-desc-{name}" in options:
            found["tables"][name] = {"base": base, "limit": limit}
    return found


def register_lines(options: Mapping[str, str], cpu: int, found: Mapping[str, Any]) -> Iterable[str]:
    """The lines of the ``--get`` options, in bhyvectl's columns."""

    def wanted(name: str) -> bool:
        return "get-all" in options or name in options

    for name in REGISTERS:
        if wanted(f"get-{name}"):
            yield f"{name}[{cpu}]{_tabs(name)}0x{found['registers'][name]:016x}"
    for name in SEGMENTS:
        if wanted(f"get-desc-{name}"):
            segment = found["segments"][name]
            numbers = f"0x{segment['base']:016x}/0x{segment['limit']:08x}/0x{segment['access']:08x}"
            yield f"{name} desc[{cpu}]\t{numbers}"
    for name in TABLES:
        if wanted(f"get-desc-{name}"):
            table = found["tables"][name]
            yield f"{name}[{cpu}]\t\t0x{table['base']:016x}/0x{table['limit']:08x}"
    for name in SELECTORS:
        if wanted(f"get-{name}"):
            yield f"{name}[{cpu}]\t\t0x{found['segments'][name]['selector']:04x}"
    if wanted("get-x2apic-state") and "x2apic" in found:
        yield f"x2apic_state[{cpu}]\t{int(found['x2apic'])}"


def _tabs(name: str) -> str:
    return "\t" if name == "rflags" else "\t\t"


def memory_lines(options: Mapping[str, str], low: int, high: int, wired: bool) -> Iterable[str]:
    """``--get-lowmem`` and ``--get-highmem``: where it starts and how many bytes it has."""
    for name, base, size in (("lowmem", 0, low), ("highmem", HIGH_BASE, high)):
        if "get-all" in options or f"get-{name}" in options:
            yield f"{name}\t\t0x{base:016x}/{size}{' wired' if wired else ''}"


def stats_lines(cpu: int, stats: Mapping[str, float]) -> Iterable[str]:
    """The counters of one vCPU, then those of the whole machine."""
    own = f"vcpu{cpu}."
    yield f"vcpu{cpu}"
    for name, value in stats.items():
        if name.startswith(own):
            yield f"{name.removeprefix(own):<40}\t{value:.0f}"
    rest = {name: value for name, value in stats.items() if not name.startswith("vcpu")}
    if rest:
        yield "vm"
    for name, value in rest.items():
        yield f"{name:<40}\t{value:.0f}"


def cpus_line(banner: str, cpus: Sequence[int]) -> str:
    return f"{banner}:\t {', '.join(map(str, cpus)) or '(none)'}"


def carry_out(options: Mapping[str, str], machine: Running | Resting) -> None:
    """Do what is asked, in bhyvectl's order, and print what it gives. Raises ``PyhyveError``."""
    cpu = number("cpu", options.get("cpu", "0"))
    if "suspend" in options:
        machine.call("suspend")
    if any(name.startswith("set-") and name != "set-x2apic-state" for name in options):
        machine.set_registers(cpu, changes(options, machine.registers(cpu)))
    if "set-x2apic-state" in options:
        machine.call("set_x2apic", cpu=cpu, on=number("set-x2apic-state", options["set-x2apic-state"]) != 0)
    if "inject-nmi" in options:
        machine.call("nmi", cpu=cpu)
    lines: list[str] = []
    everything = "get-all" in options
    if everything or "get-lowmem" in options or "get-highmem" in options:
        lines += memory_lines(options, *machine.memory())
    if _GETS_REGISTERS & set(options):
        lines += register_lines(options, cpu, machine.registers(cpu))
    running = isinstance(machine, Running)
    if "get-stats" in options or (everything and running):
        lines += stats_lines(cpu, machine.call("stats"))
    if "get-exit-stats" in options:
        exits = machine.call("exits")
        if str(cpu) not in exits:
            raise UsageError(f"there is no vcpu {cpu}, the machine has {len(exits)}", Status.POWER_OFF)
        lines += [f"vcpu{cpu}", *(f"{name:<40}\t{value}" for name, value in exits[str(cpu)].items())]
    for kind in ("active", "suspended"):
        if f"get-{kind}-cpus" in options or (everything and running):
            lines.append(cpus_line(f"{kind} cpus", machine.call("cpus")[kind]))
    if "get-cpu-topology" in options or (everything and running):
        shape = machine.call("info")["topology"]
        lines.append("cpu_topology:\t" + ", ".join(f"{name}={shape[name]}" for name in ("sockets", "cores", "threads")))
    if lines:
        print("\n".join(lines))
    for option, do in (("resume", "resume"), ("force-reset", "reset"), ("force-poweroff", "power_off")):
        if option in options:
            machine.call(do)
    if "destroy" in options:
        machine.destroy()


def _create(name: str) -> None:
    from pyhyve.control.folder import Folder

    with Folder(name).claim(create=True, exclusive=True) as folder:
        try:
            folder.set(transient=False)
        except BaseException:
            folder.remove()
            raise


def run(argv: Sequence[str]) -> int:
    """Carry out one command line; 0, or 1 with one line on standard error."""
    try:
        options = parse(argv)
        name = options["vm"]
        from pyhyve.control.client import Connection, NotRunning
        from pyhyve.control.folder import NoSuchVm

        if "create" in options:
            _create(name)
        if len(options) > 1 + ("create" in options):
            try:
                with Connection(name) as connection:
                    carry_out(options, Running(connection))
            except NotRunning:
                carry_out(options, Resting(name))
            except NoSuchVm:
                print(f"VM:{name} is not created.", file=sys.stderr)
                return Status.POWER_OFF
    except Usage:
        sys.stderr.write(usage())
        return Status.POWER_OFF
    except PyhyveError as error:
        print(f"bhyvectl: {error}", file=sys.stderr)
        return Status.POWER_OFF
    except KeyboardInterrupt:
        return 128 + 2
    return 0


def main() -> int:
    """The console script."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
