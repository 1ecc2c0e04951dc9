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
    CR4_PVI,
    CR4_SMAP,
    CR4_VME,
    DONE,
    FAULT,
    FLAGS_ARITH,
    FLAG_AC,
    FLAG_ID,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VIF,
    FLAG_VIP,
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


def has_virtual_if(s):
    """IOPL does not let this code at IF: is VIF there for it instead (SDM Vol. 3A 20.3 and 20.4)?"""
    if s.mode & MODE_VM86:
        return (s.cr4 & CR4_VME) != 0
    return s.cpl == 3 and (s.cr4 & CR4_PVI) != 0


def virtual_image(flags):
    """FLAGS as a program in virtual-8086 mode is shown them: IF is VIF, IOPL is 3."""
    flags = (flags & ~cython.cast(uint64_t, FLAG_IF)) | FLAG_IOPL
    return flags | FLAG_IF if flags & FLAG_VIF else flags


def virtual_refused(s, flags):
    """May the program not have these FLAGS? TF, and IF while an interrupt waits (VIP), are its monitor's to deal with."""
    return flags & FLAG_TF or (flags & FLAG_IF and s.flags_system & FLAG_VIP)


def virtual_due(s):
    """Is it an interrupt for the program that waits, which may have it now? Then #GP comes before the next instruction."""
    if s.flags_system & FLAG_VIF == 0 or s.flags_system & FLAG_VIP == 0 or s.cpl != 3 or s.mode & MODE_CODE64:
        return False
    return s.cr4 & CR4_PVI or (s.cr4 & CR4_VME and s.mode & MODE_VM86)


def set_virtual_if(s, on):
    s.flags_system &= ~cython.cast(uint64_t, FLAG_VIF)
    if on:
        s.flags_system |= FLAG_VIF


def cli(s, insn):
    if s.mode & MODE_IOPL_OK == 0:
        if not has_virtual_if(s):
            return gp(s, 0)
        set_virtual_if(s, False)
        return finish(s, insn)
    s.iff = 0
    return finish(s, insn)


def sti(s, insn):
    if s.mode & MODE_IOPL_OK == 0:
        if not has_virtual_if(s) or s.flags_system & FLAG_VIP:
            return gp(s, 0)
        set_virtual_if(s, True)
        return finish(s, insn)
    if s.iff == 0:
        s.iff = 1
        s.inhibit = SHADOW_STI
    return finish(s, insn)


def pushf(s, insn):
    flags: uint64_t = get_rflags(s) & PUSHF_IMAGE
    status: cython.int
    if s.mode & MODE_VM86 and s.mode & MODE_IOPL_OK == 0:
        if not has_virtual_if(s) or insn.opsize != 2:
            return gp(s, 0)
        flags = virtual_image(flags)
    status = push_value(s, flags, insn.opsize)
    if status != DONE:
        return status
    return finish(s, insn)


def popf(s, insn):
    value: uint64_t = 0
    old: uint64_t = get_rflags(s)
    # What software may change in every case: the arithmetic flags, DF, TF and NT; the 32-bit forms AC and ID too.
    mask: uint64_t = FLAGS_ARITH | FLAG_TF | 0x400 | FLAG_NT
    status: cython.int
    virtual: cython.bint = s.mode & MODE_VM86 != 0 and s.mode & MODE_IOPL_OK == 0
    if virtual and (not has_virtual_if(s) or insn.opsize != 2):
        return gp(s, 0)
    status = peek_value(s, 0, insn.opsize, cython.address(value))
    if status != DONE:
        return status
    if virtual and virtual_refused(s, value):
        return gp(s, 0)
    if insn.opsize != 2:
        mask |= FLAG_AC | FLAG_ID
        old &= ~cython.cast(uint64_t, FLAG_RF)
    if s.cpl == 0:
        mask |= FLAG_IOPL
    if s.mode & MODE_IOPL_OK:
        mask |= 0x200
    stack_adjust(s, insn.opsize)
    set_rflags(s, (old & ~mask) | (value & mask))
    if virtual:
        set_virtual_if(s, value & FLAG_IF != 0)
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
