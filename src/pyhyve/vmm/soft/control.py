"""Control and debug registers, and XCR0.

Documents: Intel SDM Vol. 3A 2.5-2.6 (control registers, XCR0), 4.4.1 (PDPTEs), 10.8.5 (entering IA-32e mode), Vol. 3B 17.2
(debug registers).

Helpers check privilege and operands and then call the ``set_*`` function of the register, which checks its value,
stores it, flushes what is stale and recomputes the mode.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.cpuid import R_EBX, R_ECX, R_EDX, cpuid_row, feature, xsave_extra
from cython.cimports.pyhyve.vmm.soft.debug import debug_update, raise_debug
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, get_gpr, set_gpr
from cython.cimports.pyhyve.vmm.soft.lapic import lapic_get_tpr, lapic_set_tpr
from cython.cimports.pyhyve.vmm.soft.addresses import read_operand, write_operand
from cython.cimports.pyhyve.vmm.soft.physical import PHYSICAL, ram_host
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush
from cython.cimports.pyhyve.vmm.soft.modes import DR6_FIXED, update_mode
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_MCE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_PVI,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    CR4_VME,
    CS,
    DONE,
    EFER_LMA,
    EFER_LME,
    FAULT,
    LOW32,
    MODE_CODE64,
    RAX,
    RCX,
    RDX,
    SEG_L,
    CpuidRow,
    gp,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.xstate import AVX512_STATE, EXTRA_XGETBV

# Control registers


def check_pdptes(s, cr3):
    """MOV that (re)loads CR3 with PAE paging checks the four entries (SDM Vol. 3A 4.4.1)."""
    i: cython.int
    host: uint64_t
    entry: uint64_t
    for i in range(4):
        host = ram_host(s.engine, (cr3 & (LOW32 - 31)) + 8 * i, False)
        if host == 0:
            continue
        entry = cython.cast(cython.pointer[uint64_t], host)[0]
        if entry & 1 and entry & PDPTE_RESERVED:
            return gp(s, 0)
    return DONE


def set_cr0(s, value):
    old: uint64_t = s.cr0
    new: uint64_t = (value & CR0_WRITABLE) | CR0_ET
    efer: uint64_t = s.efer

    if value > LOW32:
        return gp(s, 0)
    if new & CR0_PG and new & CR0_PE == 0:
        return gp(s, 0)
    if new & CR0_NW and new & CR0_CD == 0:
        return gp(s, 0)
    if new & CR0_PG and old & CR0_PG == 0:
        if efer & EFER_LME:
            # Entering IA-32e mode needs PAE, a CS without L, and no 16-bit TSS.
            if s.cr4 & CR4_PAE == 0 or s.segments[CS].access & SEG_L or (s.tr.access & 0xD) == 1:
                return gp(s, 0)
            efer |= EFER_LMA
        elif s.cr4 & CR4_PAE and check_pdptes(s, s.cr3) != DONE:
            return FAULT
    elif new & CR0_PG == 0 and old & CR0_PG:
        if s.mode & MODE_CODE64 or s.cr4 & CR4_PCIDE:
            return gp(s, 0)
        efer &= ~cython.cast(uint64_t, EFER_LMA)

    s.cr0 = new
    s.efer = efer
    if new & CR0_PE == 0:
        s.cpl = 0
    if (old ^ new) & (CR0_PG | CR0_WP | CR0_PE):
        tlb_flush(s, False)
    update_mode(s)
    return DONE


def set_cr3(s, value):
    if s.efer & EFER_LMA:
        if s.cr4 & CR4_PCIDE:
            # "Need not invalidate". The TLBs hold one address space, whose tag does not matter then: they are
            # invalidated all the same (SDM Vol. 3A 4.10.4.1 allows it).
            value &= ~(cython.cast(uint64_t, 1) << 63)
        if value & ~cython.cast(uint64_t, PHYSICAL):
            return gp(s, 0)
    else:
        value &= LOW32
        if s.cr0 & CR0_PG and s.cr4 & CR4_PAE and check_pdptes(s, value) != DONE:
            return FAULT
    s.cr3 = value
    tlb_flush(s, (s.cr4 & CR4_PGE) != 0)
    return DONE


def cr4_allowed(e):
    allowed: uint64_t = CR4_PSE | CR4_PAE | CR4_PCE | CR4_TSD | CR4_DE | CR4_MCE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT
    if feature(e, 1, R_EDX, 1):
        allowed |= CR4_VME | CR4_PVI
    if feature(e, 1, R_ECX, 26):
        allowed |= CR4_OSXSAVE
    if feature(e, 1, R_ECX, 17):
        allowed |= CR4_PCIDE
    if feature(e, 7, R_EBX, 0):
        allowed |= CR4_FSGSBASE
    if feature(e, 7, R_EBX, 7):
        allowed |= CR4_SMEP
    if feature(e, 7, R_EBX, 20):
        allowed |= CR4_SMAP
    if feature(e, 7, R_ECX, 2):
        allowed |= CR4_UMIP
    return allowed


def set_cr4(s, value):
    changed: uint64_t = s.cr4 ^ value
    if value & ~cr4_allowed(s.engine):
        return gp(s, 0)
    if s.efer & EFER_LMA:
        if value & CR4_PAE == 0:
            return gp(s, 0)
    elif s.cr0 & CR0_PG and value & CR4_PAE and changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP):
        if check_pdptes(s, s.cr3) != DONE:
            return FAULT
    if changed & value & CR4_PCIDE and (s.efer & EFER_LMA == 0 or s.cr3 & 0xFFF):
        return gp(s, 0)
    s.cr4 = value
    if changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_PCIDE):
        tlb_flush(s, False)
    update_mode(s)
    return DONE


def mov_from_cr(s, insn):
    size: uint32_t = 8 if s.mode & MODE_CODE64 else 4
    value: uint64_t
    reg: uint8_t = insn.reg
    if reg == 1 or (reg > 4 and reg != 8):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    if reg == 0:
        value = s.cr0
    elif reg == 2:
        value = s.cr2
    elif reg == 3:
        value = s.cr3
    elif reg == 4:
        value = s.cr4
    else:
        value = lapic_get_tpr(s)
    set_gpr(s, insn.rm, value, size)
    return finish(s, insn)


def mov_to_cr(s, insn):
    value: uint64_t = get_gpr(s, insn.rm, 8 if s.mode & MODE_CODE64 else 4)
    status: cython.int = DONE
    reg: uint8_t = insn.reg
    if reg == 1 or (reg > 4 and reg != 8):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    if reg == 0:
        status = set_cr0(s, value)
    elif reg == 2:
        s.cr2 = value
    elif reg == 3:
        status = set_cr3(s, value)
    elif reg == 4:
        status = set_cr4(s, value)
    else:
        if value > 15:
            return gp(s, 0)
        lapic_set_tpr(s, value)
    if status != DONE:
        return status
    return finish(s, insn)


def clts(s, insn):
    if s.cpl != 0:
        return gp(s, 0)
    s.cr0 &= ~cython.cast(uint64_t, CR0_TS)
    update_mode(s)
    return finish(s, insn)


def lmsw(s, insn):
    value: uint64_t = s.gpr[insn.rm]
    status: cython.int
    if s.cpl != 0:
        return gp(s, 0)
    if insn.has_mem:
        status = read_operand(s, insn, 2, cython.address(value))
        if status != DONE:
            return status
    # The low four bits; PE can be set, not cleared.
    value = (s.cr0 & ~cython.cast(uint64_t, 14)) | (value & 15)
    status = set_cr0(s, value)
    if status != DONE:
        return status
    return finish(s, insn)


def smsw(s, insn):
    status: cython.int
    if s.cr4 & CR4_UMIP and s.cpl != 0:
        return gp(s, 0)
    if insn.has_mem:
        status = write_operand(s, insn, 2, s.cr0 & 0xFFFF)
        if status != DONE:
            return status
    else:
        set_gpr(s, insn.rm, s.cr0, insn.opsize)
    return finish(s, insn)


# XCR0


def set_xcr0(s, value):
    row: cython.pointer[CpuidRow] = cpuid_row(s.engine, 0xD, 0)
    allowed: uint64_t = s.engine.xsave_mask
    if row != cython.NULL:
        allowed &= row.eax
    if value & ~allowed or value & 1 == 0 or (value & 6) == 4:
        return gp(s, 0)
    if value & AVX512_STATE and value & (AVX512_STATE | 6) != AVX512_STATE | 6:
        return gp(s, 0)
    s.xcr0 = value
    update_mode(s)
    return DONE


def xgetbv(s, insn):
    index: uint32_t = cython.cast(uint32_t, s.gpr[RCX])
    value: uint64_t
    i: cython.int
    if s.cr4 & CR4_OSXSAVE == 0:
        return ud(s)
    value = s.xcr0
    if index == 1:
        if not xsave_extra(s.engine, EXTRA_XGETBV):
            return gp(s, 0)
        # XINUSE: what XSAVEC finds not to be initial.
        for i in range(512, 576):
            s.bounce[i] = 0
        native.xsavec(cython.address(s.bounce[0]), s.xcr0)
        value = cython.cast(cython.pointer[uint64_t], cython.address(s.bounce[512]))[0] & s.xcr0
    elif index != 0:
        return gp(s, 0)
    s.gpr[RAX] = value & LOW32
    s.gpr[RDX] = value >> 32
    return finish(s, insn)


def xsetbv(s, insn):
    if s.cr4 & CR4_OSXSAVE == 0:
        return ud(s)
    if s.cpl != 0 or cython.cast(uint32_t, s.gpr[RCX]) != 0:
        return gp(s, 0)
    if set_xcr0(s, (s.gpr[RDX] << 32) | (s.gpr[RAX] & LOW32)) != DONE:
        return FAULT
    return finish(s, insn)


# Debug registers


def debug_register(s, insn, number):
    reg: cython.int = insn.reg
    if reg > 7 or ((reg == 4 or reg == 5) and s.cr4 & CR4_DE):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    if s.dr[7] & DR7_GD:
        s.dr[7] &= ~cython.cast(uint64_t, DR7_GD)
        raise_debug(s, DR6_BD)
        return FAULT
    number[0] = reg + 2 if reg == 4 or reg == 5 else reg
    return DONE


def mov_from_dr(s, insn):
    number: cython.int = 0
    if debug_register(s, insn, cython.address(number)) != DONE:
        return FAULT
    set_gpr(s, insn.rm, s.dr[number], 8 if s.mode & MODE_CODE64 else 4)
    return finish(s, insn)


def mov_to_dr(s, insn):
    number: cython.int = 0
    value: uint64_t = get_gpr(s, insn.rm, 8 if s.mode & MODE_CODE64 else 4)
    if debug_register(s, insn, cython.address(number)) != DONE:
        return FAULT
    if number >= 6:
        if value > LOW32:
            return gp(s, 0)
        value = (value & 0xE00F) | DR6_FIXED if number == 6 else (value & (LOW32 - 0xD800)) | 0x400
    s.dr[number] = value
    if number != 6:
        debug_update(s)
    return finish(s, insn)


register("mov_from_cr", mov_from_cr)
register("mov_to_cr", mov_to_cr)
register("clts", clts)
register("lmsw", lmsw)
register("smsw", smsw)
register("xgetbv", xgetbv)
register("xsetbv", xsetbv)
register("mov_from_dr", mov_from_dr)
register("mov_to_dr", mov_to_dr)
