"""RFLAGS as a whole and its system flags: CLI, STI, PUSHF, POPF, STAC, CLAC; and the stack as PUSH and POP see it.

Document: Intel SDM Vol. 2 for each instruction.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.cpuid import R_EBX, feature
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import mem_read, mem_write
from cython.cimports.pyhyve.vmm.soft.addresses import linear
from cython.cimports.pyhyve.vmm.soft.modes import update_mode
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR4_SMAP,
    DONE,
    FAULT,
    FLAGS_ARITH,
    FLAG_AC,
    FLAG_ID,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    LOW32,
    MODE_CODE64,
    MODE_IOPL_OK,
    MODE_STACK32,
    MODE_VM86,
    RSP,
    SHADOW_STI,
    SS,
    get_rflags,
    gp,
    set_rflags,
    ud,
)

# The stack


def stack_size(s):
    if s.mode & MODE_CODE64:
        return 8
    return 4 if s.mode & MODE_STACK32 else 2


def stack_adjust(s, delta):
    set_gpr(s, RSP, s.gpr[RSP] + cython.cast(uint64_t, delta), stack_size(s))


def push_value(s, value, size):
    width: uint32_t = stack_size(s)
    va: uint64_t = 0
    ea: uint64_t = s.gpr[RSP] - size
    status: cython.int
    if width == 4:
        ea &= LOW32
    elif width == 2:
        ea &= 0xFFFF
    if linear(s, SS, ea, size, ACCESS_WRITE, cython.address(va)) != DONE:
        return FAULT
    status = mem_write(s, va, size, s.mmu_mode, value)
    if status != DONE:
        return status
    set_gpr(s, RSP, ea, width)
    return DONE


def peek_value(s, offset, size, value):
    width: uint32_t = stack_size(s)
    va: uint64_t = 0
    ea: uint64_t = s.gpr[RSP] + offset
    if width == 4:
        ea &= LOW32
    elif width == 2:
        ea &= 0xFFFF
    if linear(s, SS, ea, size, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    return mem_read(s, va, size, s.mmu_mode, value)


# Flags


def cli(s, insn):
    if s.mode & MODE_IOPL_OK == 0:
        return gp(s, 0)
    s.iff = 0
    return finish(s, insn)


def sti(s, insn):
    if s.mode & MODE_IOPL_OK == 0:
        return gp(s, 0)
    if s.iff == 0:
        s.iff = 1
        s.inhibit = SHADOW_STI
    return finish(s, insn)


def pushf(s, insn):
    status: cython.int
    if s.mode & MODE_VM86 and s.mode & MODE_IOPL_OK == 0:
        return gp(s, 0)
    status = push_value(s, get_rflags(s) & PUSHF_IMAGE, insn.opsize)
    if status != DONE:
        return status
    return finish(s, insn)


def popf(s, insn):
    value: uint64_t = 0
    old: uint64_t = get_rflags(s)
    # What software may change in every case: the arithmetic flags, DF, TF and NT; the 32-bit forms AC and ID too.
    mask: uint64_t = FLAGS_ARITH | FLAG_TF | 0x400 | FLAG_NT
    status: cython.int
    if s.mode & MODE_VM86 and s.mode & MODE_IOPL_OK == 0:
        return gp(s, 0)
    status = peek_value(s, 0, insn.opsize, cython.address(value))
    if status != DONE:
        return status
    if insn.opsize != 2:
        mask |= FLAG_AC | FLAG_ID
        old &= ~cython.cast(uint64_t, FLAG_RF)
    if s.cpl == 0:
        mask |= FLAG_IOPL
    if s.mode & MODE_IOPL_OK:
        mask |= 0x200
    stack_adjust(s, insn.opsize)
    set_rflags(s, (old & ~mask) | (value & mask))
    update_mode(s)
    return finish(s, insn)


def stac(s, insn):
    if s.cpl != 0 or (s.cr4 & CR4_SMAP == 0 and not feature(s.engine, 7, R_EBX, 20)):
        return ud(s)
    s.flags_system |= FLAG_AC
    update_mode(s)
    return finish(s, insn)


def clac(s, insn):
    if s.cpl != 0 or (s.cr4 & CR4_SMAP == 0 and not feature(s.engine, 7, R_EBX, 20)):
        return ud(s)
    s.flags_system &= ~cython.cast(uint64_t, FLAG_AC)
    update_mode(s)
    return finish(s, insn)


register("cli", cli)
register("sti", sti)
register("pushf", pushf)
register("popf", popf)
register("stac", stac)
register("clac", clac)
