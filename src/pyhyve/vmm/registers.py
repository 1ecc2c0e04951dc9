"""Register names and groups, as the contract between a vCPU and its users names them.

Sources: Intel SDM Vol. 3A §2 (system registers) and §3.4 (segmentation); the access-rights word of a
segment is the one of the VMCS (SDM Vol. 3C §24.4.1, table "Format of Access Rights").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum


class Reg(StrEnum):
    """A register whose value is one integer of up to 64 bits."""

    RAX = "rax"
    RCX = "rcx"
    RDX = "rdx"
    RBX = "rbx"
    RSP = "rsp"
    RBP = "rbp"
    RSI = "rsi"
    RDI = "rdi"
    R8 = "r8"
    R9 = "r9"
    R10 = "r10"
    R11 = "r11"
    R12 = "r12"
    R13 = "r13"
    R14 = "r14"
    R15 = "r15"
    RIP = "rip"
    RFLAGS = "rflags"
    CR0 = "cr0"
    CR2 = "cr2"
    CR3 = "cr3"
    CR4 = "cr4"
    CR8 = "cr8"
    XCR0 = "xcr0"
    EFER = "efer"
    DR0 = "dr0"
    DR1 = "dr1"
    DR2 = "dr2"
    DR3 = "dr3"
    DR6 = "dr6"
    DR7 = "dr7"


GENERAL: tuple[Reg, ...] = tuple(Reg)[:16]
"""The sixteen general registers, in encoding order (RAX is 0, RSP is 4, R15 is 15)."""

CONTROL: tuple[Reg, ...] = (Reg.CR0, Reg.CR2, Reg.CR3, Reg.CR4, Reg.CR8, Reg.XCR0, Reg.EFER)
DEBUG: tuple[Reg, ...] = (Reg.DR0, Reg.DR1, Reg.DR2, Reg.DR3, Reg.DR6, Reg.DR7)


class SegmentName(StrEnum):
    """A segment register; the first six are in encoding order (ES is 0, GS is 5)."""

    ES = "es"
    CS = "cs"
    SS = "ss"
    DS = "ds"
    FS = "fs"
    GS = "gs"
    LDTR = "ldtr"
    TR = "tr"


class Access(IntFlag):
    """Access rights of a segment: bits 40-55 of its descriptor, and UNUSABLE (SDM Vol. 3C §24.4.1)."""

    TYPE = 0xF
    S = 1 << 4
    DPL = 3 << 5
    PRESENT = 1 << 7
    AVL = 1 << 12
    LONG = 1 << 13
    DB = 1 << 14
    GRANULARITY = 1 << 15
    UNUSABLE = 1 << 16


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part. ``limit`` is in bytes, already scaled by G."""

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    access: int = 0x93


@dataclass(frozen=True, slots=True)
class Table:
    """GDTR or IDTR: linear ``base`` and ``limit`` in bytes minus one."""

    base: int = 0
    limit: int = 0xFFFF
