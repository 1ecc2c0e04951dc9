"""What is left of the system instructions: the time-stamp counter, caches and TLB, waiting, FS and GS bases.

Document: Intel SDM Vol. 2 for each instruction.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.cpuid import LEAF_EXTENDED, R_EBX, R_ECX, R_EDX, feature
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, get_gpr, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import mem_read
from cython.cimports.pyhyve.vmm.soft.addresses import effective_address, linear
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush, tlb_flush_page
from cython.cimports.pyhyve.vmm.soft.msr import exit_to, guest_tsc, set_base
from cython.cimports.pyhyve.vmm.soft.state import (
    CR4_PCIDE,
    ACCESS_READ,
    CR4_FSGSBASE,
    CR4_TSD,
    DONE,
    EXIT_HLT,
    EXIT_PAUSE,
    FAULT,
    FS,
    GS,
    LEAVE,
    LOW32,
    MODE_CODE64,
    RAX,
    RCX,
    RDX,
    gp,
    is_canonical,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.threads import sched_yield

# Time-stamp counter


def rdtsc(s, insn):
    """RDTSC (0F 31) and RDTSCP."""
    value: uint64_t
    with_aux: cython.bint = insn.opcode != 0x31
    if with_aux and not feature(s.engine, LEAF_EXTENDED + 1, R_EDX, 27):
        return ud(s)
    if s.cr4 & CR4_TSD and s.cpl != 0:
        return gp(s, 0)
    value = guest_tsc(s)
    s.gpr[RAX] = value & LOW32
    s.gpr[RDX] = value >> 32
    if with_aux:
        s.gpr[RCX] = s.tsc_aux
    return finish(s, insn)


def rdpid(s, insn):
    if not feature(s.engine, 7, R_ECX, 22):
        return ud(s)
    set_gpr(s, insn.rm, s.tsc_aux, 8 if s.mode & MODE_CODE64 else 4)
    return finish(s, insn)


def rdpmc(s, insn):
    return gp(s, 0)  # there are no counters


# TLB and caches


def invlpg(s, insn):
    va: uint64_t
    if s.cpl != 0:
        return gp(s, 0)
    va = effective_address(s, insn)
    if s.mode & MODE_CODE64:
        if insn.segment >= FS:
            va += s.segments[insn.segment].base
        if not is_canonical(va):
            return finish(s, insn)
    else:
        va = (va + s.segments[insn.segment].base) & LOW32
    tlb_flush_page(s, va)
    return finish(s, insn)


def invpcid(s, insn):
    kind: uint64_t = get_gpr(s, insn.reg, 8 if s.mode & MODE_CODE64 else 4)
    va: uint64_t = 0
    pcid: uint64_t = 0
    address: uint64_t = 0
    status: cython.int
    if not feature(s.engine, 7, R_EBX, 10):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    if linear(s, insn.segment, effective_address(s, insn), 16, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    status = mem_read(s, va, 8, s.mmu_mode, cython.address(pcid))
    if status == DONE:
        status = mem_read(s, va + 8, 8, s.mmu_mode, cython.address(address))
    if status != DONE:
        return status
    if kind > 3 or pcid > 0xFFF or (kind == 0 and not is_canonical(address)):
        return gp(s, 0)
    if kind < 2 and pcid != 0 and s.cr4 & CR4_PCIDE == 0:
        return gp(s, 0)
    # The TLBs hold the current address space only, whatever PCIDs are named.
    if kind == 0:
        tlb_flush_page(s, address)
    else:
        tlb_flush(s, kind != 2)
    return finish(s, insn)


def invd(s, insn):
    if s.cpl != 0:
        return gp(s, 0)
    return finish(s, insn)


def wbinvd(s, insn):
    return invd(s, insn)


# Waiting


def hlt(s, insn):
    if s.cpl != 0:
        return gp(s, 0)
    finish(s, insn)
    s.halted = 1
    if s.hlt_exit:
        exit_to(s, EXIT_HLT, 0, 0, 0)
        return LEAVE
    return DONE


def monitor(s, insn):
    if not feature(s.engine, 1, R_ECX, 3) or s.engine.cpuid_count == 0 or s.cpl != 0:
        return ud(s)
    if cython.cast(uint32_t, s.gpr[RCX]) != 0:
        return gp(s, 0)
    return finish(s, insn)


def mwait(s, insn):
    # To wake at once is always allowed.
    return monitor(s, insn)


def pause(s, insn):
    finish(s, insn)
    if s.pause_exit:
        exit_to(s, EXIT_PAUSE, 0, 0, 0)
        return LEAVE
    if s.engine.cpu_count > 1:
        # A guest that waits for another vCPU: that may be waiting for this host CPU.
        s.pauses += 1
        if s.pauses & 31 == 0:
            sched_yield()
    return DONE


# FS and GS bases


def fsgsbase_check(s):
    if s.mode & MODE_CODE64 == 0 or s.cr4 & CR4_FSGSBASE == 0:
        return ud(s)
    return DONE


def rdfsbase(s, insn):
    if fsgsbase_check(s) != DONE:
        return FAULT
    set_gpr(s, insn.rm, s.segments[FS].base, 8 if insn.rex_w else 4)
    return finish(s, insn)


def rdgsbase(s, insn):
    if fsgsbase_check(s) != DONE:
        return FAULT
    set_gpr(s, insn.rm, s.segments[GS].base, 8 if insn.rex_w else 4)
    return finish(s, insn)


def wrfsbase(s, insn):
    if fsgsbase_check(s) != DONE or set_base(s, FS, get_gpr(s, insn.rm, 8 if insn.rex_w else 4)) != DONE:
        return FAULT
    return finish(s, insn)


def wrgsbase(s, insn):
    if fsgsbase_check(s) != DONE or set_base(s, GS, get_gpr(s, insn.rm, 8 if insn.rex_w else 4)) != DONE:
        return FAULT
    return finish(s, insn)


register("rdtsc", rdtsc)
register("rdpid", rdpid)
register("rdpmc", rdpmc)
register("invlpg", invlpg)
register("invpcid", invpcid)
register("invd", invd)
register("wbinvd", wbinvd)
register("hlt", hlt)
register("monitor", monitor)
register("mwait", mwait)
register("pause", pause)
register("rdfsbase", rdfsbase)
register("rdgsbase", rdgsbase)
register("wrfsbase", wrfsbase)
register("wrgsbase", wrgsbase)
