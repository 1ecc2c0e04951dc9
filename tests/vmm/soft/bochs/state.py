"""A machine's state as plain values, so that it can be pickled to where Bochs lives."""

from __future__ import annotations

from dataclasses import dataclass, field

UNUSABLE_BIT = 1 << 16
Descriptor = tuple[int, int, int, int]
"""Selector, base, limit in bytes, access rights (``registers.Access``) of a segment register."""
UNUSABLE: Descriptor = (0, 0, 0, UNUSABLE_BIT)

GENERAL = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())
SEGMENTS = tuple("es cs ss ds fs gs ldtr tr".split())
CONTROL = tuple("rip rflags cr0 cr2 cr3 cr4 efer xcr0 dr0 dr1 dr2 dr3 dr6 dr7".split())
MSRS = {
    "star": 0xC0000081, "lstar": 0xC0000082, "cstar": 0xC0000083, "sfmask": 0xC0000084, "kernel_gs_base": 0xC0000102,
    "sysenter_cs": 0x174, "sysenter_esp": 0x175, "sysenter_eip": 0x176,
}  # fmt: skip


@dataclass(slots=True)
class State:
    """Registers by name; ``pages`` are whole pages of guest-physical memory; ``steps`` instructions are to complete.

    ``leaves_traps`` says that debug traps may be pending afterwards, which no state holds. ``code`` is bytes to put at
    guest-physical addresses where nothing was executed yet.
    """

    registers: dict[str, int]
    segments: dict[str, Descriptor]
    tables: dict[str, tuple[int, int]]
    pages: dict[int, bytes]
    steps: int = 1
    leaves_traps: bool = False
    code: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """A state after one completed instruction, and what happened on the way there.

    ``end`` is ``"step"`` where an instruction completed; ``"triple"`` after a triple fault; anything else says why the
    case cannot be compared. ``events`` are the exceptions met, as far as the model tells.
    """

    end: str
    state: State
    events: list[tuple[int, int]] = field(default_factory=list)
