"""SYSCALL, SYSENTER, their returns, and SWAPGS.

Documents: Intel SDM Vol. 3A 5.8.7-5.8.8, Vol. 2 for each instruction; AMD APM Vol. 3 where AMD's processors differ:
there SYSCALL works in compatibility mode and SYSENTER does not work in long mode.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.cpuid import cpuid
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, next_rip
from cython.cimports.pyhyve.vmm.soft.modes import update_mode
from cython.cimports.pyhyve.vmm.soft.segments import in_long_mode, protected_mode
from cython.cimports.pyhyve.vmm.soft.state import (
    CR0_PE,
    CS,
    DONE,
    EFER_SCE,
    FLAG_IF,
    FLAG_RF,
    FLAG_VM,
    GS,
    LOW32,
    RCX,
    RDX,
    RSP,
    SS,
    get_rflags,
    gp,
    is_canonical,
    set_rflags,
    ud,
)

def load_flat(segment, selector, access):
    segment.base = 0
    segment.limit = LOW32
    segment.access = access
    segment.selector = selector


def is_amd(s):
    """Does CPUID show an AMD processor, where SYSCALL works in compatibility mode and SYSENTER does not?"""
    i: uint32_t
    for i in range(s.engine.cpuid_count):
        if s.engine.cpuid[i].leaf == 0:
            return s.engine.cpuid[i].ebx == 0x68747541  # "Auth"
    return False


def syscall(s, insn):
    flags: uint64_t
    selector: uint16_t
    if (s.efer & EFER_SCE) == 0 or not in_long_mode(s) or (insn.code_size != 8 and not is_amd(s)):
        return ud(s)
    flags = get_rflags(s) & ~cython.cast(uint64_t, FLAG_RF)
    s.gpr[RCX] = next_rip(s, insn)
    s.gpr[R11] = flags
    set_rflags(s, flags & ~s.sfmask)
    selector = s.star >> 32 & 0xFFFC
    load_flat(cython.address(s.segments[CS]), selector, FLAT_CODE64)
    load_flat(cython.address(s.segments[SS]), selector + 8, FLAT_DATA)
    s.cpl = 0
    s.rip = s.lstar if insn.code_size == 8 else s.cstar
    update_mode(s)
    return DONE


def sysret(s, insn):
    selector: uint16_t = s.star >> 48 & 0xFFFF
    if (s.efer & EFER_SCE) == 0 or insn.code_size != 8:
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    if insn.opsize == 8:
        if not is_canonical(s.gpr[RCX]):
            return gp(s, 0)
        s.rip = s.gpr[RCX]
        load_flat(cython.address(s.segments[CS]), (selector + 16) | 3, FLAT_CODE64 | DPL3)
    else:
        s.rip = s.gpr[RCX] & LOW32
        load_flat(cython.address(s.segments[CS]), selector | 3, FLAT_CODE32 | DPL3)
    load_flat(cython.address(s.segments[SS]), (selector + 8) | 3, FLAT_DATA | DPL3)
    set_rflags(s, s.gpr[R11] & 0x3C7FD7)
    s.cpl = 3
    update_mode(s)
    return DONE


def sysenter(s, insn):
    selector: uint16_t = s.sysenter_cs & 0xFFFC
    if (s.cr0 & CR0_PE) == 0 or selector == 0:
        return gp(s, 0)
    if in_long_mode(s):
        if is_amd(s):
            return ud(s)
        s.gpr[RSP] = s.sysenter_esp
        s.rip = s.sysenter_eip
        load_flat(cython.address(s.segments[CS]), selector, FLAT_CODE64)
    else:
        s.gpr[RSP] = s.sysenter_esp & LOW32
        s.rip = s.sysenter_eip & LOW32
        load_flat(cython.address(s.segments[CS]), selector, FLAT_CODE32)
    load_flat(cython.address(s.segments[SS]), selector + 8, FLAT_DATA)
    set_rflags(s, get_rflags(s) & ~cython.cast(uint64_t, FLAG_VM | FLAG_IF | FLAG_RF))
    s.cpl = 0
    update_mode(s)
    return DONE


def sysexit(s, insn):
    selector: uint16_t = s.sysenter_cs & 0xFFFC
    if selector == 0 or not protected_mode(s) or s.cpl != 0:
        return gp(s, 0)
    if in_long_mode(s) and is_amd(s):
        return ud(s)
    if insn.opsize == 8:
        if not (is_canonical(s.gpr[RCX]) and is_canonical(s.gpr[RDX])):
            return gp(s, 0)
        s.gpr[RSP] = s.gpr[RCX]
        s.rip = s.gpr[RDX]
        selector += 32
        load_flat(cython.address(s.segments[CS]), selector | 3, FLAT_CODE64 | DPL3)
    else:
        s.gpr[RSP] = s.gpr[RCX] & LOW32
        s.rip = s.gpr[RDX] & LOW32
        selector += 16
        load_flat(cython.address(s.segments[CS]), selector | 3, FLAT_CODE32 | DPL3)
    load_flat(cython.address(s.segments[SS]), (selector + 8) | 3, FLAT_DATA | DPL3)
    s.cpl = 3
    update_mode(s)
    return DONE


def swapgs(s, insn):
    base: uint64_t
    if insn.code_size != 8:
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    base = s.segments[GS].base
    s.segments[GS].base = s.kernel_gs_base
    s.kernel_gs_base = base
    return finish(s, insn)


register("syscall", syscall)
register("sysret", sysret)
register("sysenter", sysenter)
register("sysexit", sysexit)
register("swapgs", swapgs)
