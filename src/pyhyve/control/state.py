"""A CPU's registers as plain values, the form of the ``registers`` file and of the control socket.

    {"registers": {"rip": 1048576}, "segments": {"cs": {"selector": 16, ...}}, "tables": {"gdtr": {"base": 0, ...}}}

What arrives in this form was written by somebody else: ``checked`` is the one door for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyhyve.errors import PyhyveError
from pyhyve.vmm.registers import Access, Reg, Segment, SegmentName, Table

if TYPE_CHECKING:
    from pyhyve.loader.entry import EntryState
    from pyhyve.vmm.api import VirtualCpu

Plain = dict[str, dict[str, Any]]

TABLES = ("gdtr", "idtr")
_WIDTHS = {"selector": 16, "base": 64, "limit": 32, "access": 17}
_SEGMENT_FIELDS = ("selector", "base", "limit", "access")
_TABLE_FIELDS = ("base", "limit")

# A processor after reset (SDM Vol. 3A table 10-1): what a loader does not name keeps these values.
_RESET_REGISTERS = {
    Reg.RIP: 0xFFF0,
    Reg.RFLAGS: 2,
    Reg.CR0: 0x60000010,
    Reg.XCR0: 1,
    Reg.DR6: 0xFFFF0FF0,
    Reg.DR7: 0x400,
}
_RESET_CODE = Segment(0xF000, 0xFFFF0000, 0xFFFF, int(Access.PRESENT | Access.S) | 0xB)
_RESET_TASK = Segment(0, 0, 0xFFFF, int(Access.PRESENT) | 0xB)
_RESET_LOCAL = Segment(0, 0, 0xFFFF, int(Access.PRESENT) | 0x2)


class StateError(PyhyveError):
    """Registers that make no sense."""


def reset_state() -> Plain:
    """All registers of a processor after reset."""
    segments = {name: Segment() for name in SegmentName}
    segments.update({SegmentName.CS: _RESET_CODE, SegmentName.TR: _RESET_TASK, SegmentName.LDTR: _RESET_LOCAL})
    return {
        "registers": {reg.value: _RESET_REGISTERS.get(reg, 0) for reg in Reg},
        "segments": {name.value: asdict(value) for name, value in segments.items()},
        "tables": {name: asdict(Table()) for name in TABLES},
    }


def merged(below: Plain, above: Plain) -> Plain:
    """``above`` laid over ``below``."""
    return {
        "registers": {**below.get("registers", {}), **above.get("registers", {})},
        "segments": {**below.get("segments", {}), **above.get("segments", {})},
        "tables": {**below.get("tables", {}), **above.get("tables", {})},
    }


def checked(value: object) -> Plain:
    """``value`` as registers of which each has a name, a type and a range that exists. Raises ``StateError``."""
    groups = _mapping(value, "registers")
    unknown = set(groups) - {"registers", "segments", "tables"}
    if unknown:
        raise StateError(f"registers: there is no group '{min(map(str, unknown))}'")
    plain: Plain = {"registers": {}, "segments": {}, "tables": {}}
    for name, number in _mapping(groups.get("registers", {}), "registers").items():
        if name not in tuple(Reg):
            raise StateError(f"there is no register '{name}'")
        plain["registers"][name] = _number(number, name, 64)
    for group, names, fields in (
        ("segments", tuple(SegmentName), _SEGMENT_FIELDS),
        ("tables", TABLES, _TABLE_FIELDS),
    ):
        for name, parts in _mapping(groups.get(group, {}), group).items():
            if name not in names:
                raise StateError(f"there is no register '{name}'")
            parts = _mapping(parts, str(name))
            if set(parts) != set(fields):
                raise StateError(f"{name}: it needs {', '.join(fields)}")
            plain[group][name] = {part: _number(parts[part], f"{name} {part}", _WIDTHS[part]) for part in fields}
    return plain


def from_entry(entry: EntryState) -> Plain:
    """The registers that a loader left."""
    return {
        "registers": {reg.value: value for reg, value in entry.registers.items()},
        "segments": {name.value: asdict(value) for name, value in entry.segments.items()},
        "tables": {name: asdict(value) for name, value in entry.tables.items()},
    }


def to_entry(plain: Plain, rsdp_pointer: int = 0) -> EntryState:
    """The opposite of ``from_entry``, for registers that are ``checked``."""
    from pyhyve.loader.entry import EntryState

    return EntryState(
        registers={Reg(name): value for name, value in plain["registers"].items()},
        segments={SegmentName(name): Segment(**value) for name, value in plain["segments"].items()},
        tables={name: Table(**value) for name, value in plain["tables"].items()},
        rsdp_pointer=rsdp_pointer,
    )


def read_cpu(cpu: VirtualCpu) -> Plain:
    """All registers of a vCPU that is not inside ``run``."""
    return {
        "registers": {reg.value: value for reg, value in cpu.get_registers(tuple(Reg)).items()},
        "segments": {name.value: asdict(cpu.get_segment(name)) for name in SegmentName},
        "tables": {name: asdict(cpu.get_table(name)) for name in TABLES},
    }


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise StateError(f"{what}: not a set of names and values")
    return value


def _number(value: object, what: str, bits: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise StateError(f"{what}: not a number of {bits} bits")
    return value
