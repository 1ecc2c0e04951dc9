"""Control, debug and model-specific registers, CPUID, the time-stamp counter, flags, and the modes that follow from
them.

Documents: Intel SDM Vol. 2 (each instruction), Vol. 3A chapter 2 (control registers), 9.1 (reset state), 10.8.5
(entering IA-32e mode), 11.11 (MTRRs), 17.2 (debug registers), Vol. 4 (model-specific registers); AMD APM Vol. 2 for
AMD's own.

Helpers check privilege and operands and then call the ``set_*`` function of the register, which checks its value,
stores it, flushes what is stale and recomputes the mode. An MSR that is not kept here leaves to the machine with
EXIT_RDMSR or EXIT_WRMSR. CPUID answers from the engine's table, with the bits that change at run time filled in.

``supported_cpuid`` tells what the table may announce (``announce`` decides), ``host_cpuid`` what the host has.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.debug import DEBUGCTL_BTF, DEBUGCTL_LBR, debug_update, raise_debug
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, get_gpr, set_gpr
from cython.cimports.pyhyve.vmm.soft.lapic import (
    lapic_deadline_read,
    lapic_deadline_write,
    lapic_get_tpr,
    lapic_msr_read,
    lapic_msr_write,
    lapic_reset,
    lapic_set_base,
    lapic_set_tpr,
)
from cython.cimports.pyhyve.vmm.soft.mmu import (
    effective_address,
    linear,
    mem_read,
    mem_write,
    ram_host,
    read_operand,
    tlb_flush,
    tlb_flush_page,
    write_operand,
)
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
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
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    CS,
    DONE,
    DS,
    EFER_LMA,
    EFER_LME,
    EFER_AIBRSE,
    EFER_NXE,
    EFER_SCE,
    ES,
    EXIT_HLT,
    EXIT_PAUSE,
    EXIT_RDMSR,
    EXIT_WRMSR,
    FAULT,
    FLAG_AC,
    FLAG_ID,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FLAGS_ARITH,
    FS,
    GS,
    LEAVE,
    LOW32,
    MMU_KERNEL,
    MMU_KERNEL_AC,
    MMU_USER,
    MODE_AC,
    MODE_AVX,
    MODE_AVX512,
    MODE_CODE32,
    MODE_CODE64,
    MODE_CPL0,
    MODE_EM,
    MODE_FLAT,
    MODE_FSGSBASE,
    MODE_IOPL_OK,
    MODE_LMA,
    MODE_MP,
    MODE_PROTECTED,
    MODE_SSE,
    MODE_STACK32,
    MODE_STEP,
    MODE_TS,
    MODE_TSC,
    MODE_USER,
    MODE_VM86,
    RAX,
    RBX,
    RCX,
    RDX,
    RSP,
    SEG_CODE,
    SEG_DB,
    SEG_EXPAND_DOWN,
    SEG_L,
    SEG_PRESENT,
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SHADOW_STI,
    SS,
    CpuidRow,
    Segment,
    get_rflags,
    gp,
    is_canonical,
    set_rflags,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.threads import sched_yield
from cython.cimports.pyhyve.vmm.soft.xstate import AVX512_STATE, xsave_size

from pyhyve.vmm.soft import announce

# Modes


def flat_data(s, seg):
    """A writable, expand-up data segment from 0 to 4 GiB."""
    g: cython.pointer[Segment] = cython.address(s.segments[seg])
    if g.base != 0 or g.limit != LOW32:
        return False
    return (
        g.access & (SEG_UNUSABLE | SEG_PRESENT | SEG_CODE | SEG_EXPAND_DOWN | SEG_WRITABLE)
    ) == SEG_PRESENT | SEG_WRITABLE


def update_mode(s):
    mode: uint32_t = s.mode & MODE_STEP
    cs: cython.pointer[Segment] = cython.address(s.segments[CS])
    protected: cython.bint = (s.cr0 & CR0_PE) != 0 and (s.flags_system & FLAG_VM) == 0

    if s.efer & EFER_LMA:
        mode |= MODE_LMA
    if protected:
        mode |= MODE_PROTECTED
    elif s.cr0 & CR0_PE:
        mode |= MODE_VM86
    if mode & MODE_LMA and protected and cs.access & SEG_L:
        mode |= MODE_CODE64 | MODE_FLAT
    else:
        # Real mode keeps the D bit of the last protected-mode CS; V86 mode has it clear.
        if cs.access & SEG_DB and mode & MODE_VM86 == 0:
            mode |= MODE_CODE32
        if s.segments[SS].access & SEG_DB and mode & MODE_VM86 == 0:
            mode |= MODE_STACK32
        if (
            protected
            and cs.base == 0
            and cs.limit == LOW32
            and (cs.access & (SEG_UNUSABLE | SEG_PRESENT | SEG_CODE | SEG_WRITABLE))
            == SEG_PRESENT | SEG_CODE | SEG_WRITABLE
            and flat_data(s, DS)
            and flat_data(s, ES)
            and flat_data(s, SS)
        ):
            mode |= MODE_FLAT
    if s.cpl == 3:
        mode |= MODE_USER
    elif s.cpl == 0:
        mode |= MODE_CPL0
    if s.cr0 & CR0_TS:
        mode |= MODE_TS
    if s.cr0 & CR0_EM:
        mode |= MODE_EM
    if s.cr0 & CR0_MP:
        mode |= MODE_MP
    if s.cr4 & CR4_OSFXSR:
        mode |= MODE_SSE
    if s.cr4 & CR4_OSXSAVE and (s.xcr0 & 6) == 6:
        mode |= MODE_AVX
        if s.xcr0 & AVX512_STATE == AVX512_STATE:
            mode |= MODE_AVX512
    if s.cr4 & CR4_FSGSBASE:
        mode |= MODE_FSGSBASE
    if s.cpl <= ((s.flags_system >> 12) & 3):
        mode |= MODE_IOPL_OK
    if s.tsc_offset == 0 and (s.cpl == 0 or s.cr4 & CR4_TSD == 0):
        mode |= MODE_TSC
    if s.cpl < 3 and s.cr4 & CR4_SMAP and s.flags_system & FLAG_AC:
        mode |= MODE_AC

    s.mode = mode
    if mode & MODE_USER:
        s.mmu_mode = MMU_USER
    elif mode & MODE_AC:
        s.mmu_mode = MMU_KERNEL_AC
    else:
        s.mmu_mode = MMU_KERNEL


# Reset


def reset_segment(s, seg):
    g: cython.pointer[Segment] = cython.address(s.segments[seg])
    g.selector = 0
    g.base = 0
    g.limit = 0xFFFF
    g.access = 0x93


def reset_cpu(s, init):
    i: cython.int
    row: cython.pointer[CpuidRow] = cpuid_row(s.engine, 1, 0)

    for i in range(16):
        s.gpr[i] = 0
    # RDX tells family, model and stepping.
    s.gpr[RDX] = row.eax if row != cython.NULL else 0x600
    s.rip = 0xFFF0
    s.flags_arith = 0
    s.flags_system = 0
    s.iff = s.df = 0
    s.cpl = 0
    s.inhibit = s.nmi_blocked = s.halted = 0
    s.exc_pending = 0
    s.answered = 0
    s.replay = s.mmio_reads = s.mmio_cursor = 0
    s.bounce_active = 0
    s.step_once = s.trap_after = s.intack_wait = 0

    for i in range(6):
        reset_segment(s, i)
    s.segments[CS].selector = 0xF000
    s.segments[CS].base = 0xFFFF << 16
    s.segments[CS].access = 0x9B
    s.ldtr.selector = s.tr.selector = 0
    s.ldtr.base = s.tr.base = 0
    s.ldtr.limit = s.tr.limit = 0xFFFF
    s.ldtr.access = 0x82
    s.tr.access = 0x8B
    s.gdt_base = s.idt_base = 0
    s.gdt_limit = s.idt_limit = 0xFFFF

    # INIT leaves the cache bits as they are.
    s.cr0 = (s.cr0 & (CR0_CD | CR0_NW) if init else CR0_CD | CR0_NW) | CR0_ET
    s.cr2 = s.cr3 = s.cr4 = s.cr8 = 0
    s.efer = 0
    for i in range(4):
        s.dr[i] = 0
    s.dr[4] = s.dr[5] = 0
    s.dr[6] = DR6_FIXED
    s.dr[7] = 0x400
    s.debugctl = 0
    s.watch_hits = s.passing = s.step_after = 0
    debug_update(s)

    if not init:
        s.xcr0 = 1
        s.star = s.lstar = s.cstar = s.sfmask = s.kernel_gs_base = s.tsc_aux = 0
        s.sysenter_cs = s.sysenter_esp = s.sysenter_eip = 0
        s.pat = (cython.cast(uint64_t, PAT_LOW_RESET) << 32) | PAT_LOW_RESET
        s.apic_base = APIC_BASE_RESET | (APIC_BSP if s.index == 0 else 0)
        s.misc_enable = 1  # fast strings
        s.mtrr_def_type = 0
        s.mcg_status = 0
        s.tsc_offset = s.tsc_adjust = 0
        for i in range(11):
            s.mtrr_fixed[i] = 0
        for i in range(16):
            s.mtrr_var[i] = 0
        # An XSAVE image whose header says "all initial"; FCW as FNINIT leaves it and MXCSR.
        for i in range(4096):
            s.xsave[i] = 0
        s.xsave[0] = 0x7F
        s.xsave[1] = 0x03
        s.xsave[24] = 0x80
        s.xsave[25] = 0x1F

    if s.lapic != cython.NULL:
        lapic_reset(s, init)
    tlb_flush(s, False)
    update_mode(s)


# CPUID


def cpuid_row(e, leaf, subleaf):
    i: uint32_t
    for i in range(e.cpuid_count):
        if e.cpuid[i].leaf == leaf and (e.cpuid[i].any_subleaf or e.cpuid[i].subleaf == subleaf):
            return cython.address(e.cpuid[i])
    return cython.NULL


def feature(e, leaf, reg, bit):
    row: cython.pointer[CpuidRow]
    value: uint32_t
    if e.cpuid_count == 0:
        return True  # no table given yet: everything that the engine carries
    row = cpuid_row(e, leaf, 0)
    if row == cython.NULL:
        return False
    if reg == R_EAX:
        value = row.eax
    elif reg == R_EBX:
        value = row.ebx
    elif reg == R_ECX:
        value = row.ecx
    else:
        value = row.edx
    return (value >> bit) & 1


def cpuid_query(s, leaf, subleaf, regs):
    row: cython.pointer[CpuidRow] = cpuid_row(s.engine, leaf, subleaf)
    threads: uint32_t

    regs[0] = regs[1] = regs[2] = regs[3] = 0
    if row != cython.NULL:
        regs[0] = row.eax
        regs[1] = row.ebx
        regs[2] = row.ecx
        regs[3] = row.edx
    if leaf == 1:
        regs[1] = (regs[1] & 0xFFFFFF) | (s.index << 24)
        regs[2] &= ~(cython.cast(uint32_t, 1) << 27)
        if s.cr4 & CR4_OSXSAVE:
            regs[2] |= cython.cast(uint32_t, 1) << 27
        if s.apic_base & APIC_ENABLED == 0:
            regs[3] &= ~cython.cast(uint32_t, 0x200)
    elif leaf == 0xB or leaf == 0x1F:
        if cpuid_row(s.engine, leaf, 0) != cython.NULL:
            regs[2] = (regs[2] & ~cython.cast(uint32_t, 0xFF)) | (subleaf & 0xFF)
            regs[3] = s.index
    elif leaf == 0xD:
        if row != cython.NULL and subleaf == 0:
            regs[1] = xsave_size(s.xcr0, False)
        elif row != cython.NULL and subleaf == 1 and regs[0] & 2:
            regs[1] = xsave_size(s.xcr0, True)
    elif leaf == LEAF_AMD_TOPOLOGY:
        if row != cython.NULL:
            threads = ((regs[1] >> 8) & 0xFF) + 1
            regs[0] = s.index
            regs[1] = (regs[1] & ~cython.cast(uint32_t, 0xFF)) | ((s.index // threads) & 0xFF)
    elif leaf == LEAF_EXTENDED + 1:
        if s.apic_base & APIC_ENABLED == 0:
            regs[3] &= ~cython.cast(uint32_t, 0x200)


def cpuid(s, insn):
    regs = cython.declare(uint32_t[4])
    cpuid_query(s, cython.cast(uint32_t, s.gpr[RAX]), cython.cast(uint32_t, s.gpr[RCX]), regs)
    s.gpr[RAX] = regs[0]
    s.gpr[RBX] = regs[1]
    s.gpr[RCX] = regs[2]
    s.gpr[RDX] = regs[3]
    return finish(s, insn)


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
        if s.mode & MODE_CODE64:
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
    if feature(e, 1, R_ECX, 26):
        allowed |= CR4_OSXSAVE
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
    s.cr4 = value
    if changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP | CR4_SMAP):
        tlb_flush(s, False)
    update_mode(s)
    return DONE


def set_efer(s, value):
    allowed: uint64_t = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
    changed: uint64_t = s.efer ^ value
    row: cython.pointer[CpuidRow] = cpuid_row(s.engine, 0x8000 << 16 | 0x21, 0)
    if row != cython.NULL and row.eax & 0x100:
        allowed |= EFER_AIBRSE
    if value & ~allowed:
        return gp(s, 0)
    if changed & EFER_LME and s.cr0 & CR0_PG:
        return gp(s, 0)
    # LMA is the processor's own; what software writes there is dropped.
    s.efer = (value & ~cython.cast(uint64_t, EFER_LMA)) | (s.efer & EFER_LMA)
    if changed & EFER_NXE:
        tlb_flush(s, False)
    update_mode(s)
    return DONE


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


# Model-specific registers


def guest_tsc(s):
    return native.rdtsc() + s.tsc_offset


def set_tsc_offset(s, offset):
    s.tsc_offset = offset
    lapic_deadline_write(s, lapic_deadline_read(s))
    update_mode(s)


def memory_type(value):
    """UC, WC, WT, WP, WB: what an MTRR may say."""
    return value == 0 or value == 1 or value == 4 or value == 5 or value == 6


def memory_types(value, pat):
    i: cython.int
    for i in range(8):
        if not memory_type(value & 0xFF) and not (pat and (value & 0xFF) == 7):
            return False
        value >>= 8
    return True


def is_mtrr(index):
    return (
        MSR_MTRR_PHYS_BASE0 <= index <= MSR_MTRR_PHYS_MASK7
        or index == MSR_MTRR_FIX64K
        or index == MSR_MTRR_FIX16K_80000
        or index == MSR_MTRR_FIX16K_A0000
        or MSR_MTRR_FIX4K_C0000 <= index <= MSR_MTRR_FIX4K_F8000
        or index == MSR_MTRR_DEF_TYPE
    )


def mtrr_slot(s, index):
    if index == MSR_MTRR_DEF_TYPE:
        return cython.address(s.mtrr_def_type)
    if index <= MSR_MTRR_PHYS_MASK7:
        return cython.address(s.mtrr_var[index & 15])
    if index == MSR_MTRR_FIX64K:
        return cython.address(s.mtrr_fixed[0])
    if index <= MSR_MTRR_FIX16K_A0000:
        return cython.address(s.mtrr_fixed[1 + (index & 1)])
    return cython.address(s.mtrr_fixed[3 + (index & 7)])


def mtrr_write(s, index, value):
    valid: cython.bint
    if index == MSR_MTRR_DEF_TYPE:
        valid = value & ~cython.cast(uint64_t, 0xCFF) == 0 and memory_type(value & 0xFF)
    elif index > MSR_MTRR_PHYS_MASK7:
        valid = memory_types(value, False)
    elif value & ~cython.cast(uint64_t, PHYSICAL):
        valid = False
    elif index & 1:
        valid = value & 0x7FF == 0
    else:
        valid = value & 0xF00 == 0 and memory_type(value & 0xFF)
    if not valid:
        return gp(s, 0)
    mtrr_slot(s, index)[0] = value
    return DONE


def msr_read(s, index, value):
    if MSR_X2APIC <= index <= MSR_X2APIC_LAST:
        return lapic_msr_read(s, index, value)
    if is_mtrr(index):
        value[0] = mtrr_slot(s, index)[0]
        return DONE
    if index == MSR_EFER:
        value[0] = s.efer
    elif index == MSR_STAR:
        value[0] = s.star
    elif index == MSR_LSTAR:
        value[0] = s.lstar
    elif index == MSR_CSTAR:
        value[0] = s.cstar
    elif index == MSR_SFMASK:
        value[0] = s.sfmask
    elif index == MSR_FS_BASE:
        value[0] = s.segments[FS].base
    elif index == MSR_GS_BASE:
        value[0] = s.segments[GS].base
    elif index == MSR_KERNEL_GS_BASE:
        value[0] = s.kernel_gs_base
    elif index == MSR_TSC_AUX:
        value[0] = s.tsc_aux
    elif index == MSR_TSC:
        value[0] = guest_tsc(s)
    elif index == MSR_TSC_ADJUST:
        value[0] = s.tsc_adjust
    elif index == MSR_TSC_DEADLINE:
        value[0] = lapic_deadline_read(s)
    elif index == MSR_APIC_BASE:
        value[0] = s.apic_base
    elif index == MSR_SYSENTER_CS:
        value[0] = s.sysenter_cs
    elif index == MSR_SYSENTER_ESP:
        value[0] = s.sysenter_esp
    elif index == MSR_SYSENTER_EIP:
        value[0] = s.sysenter_eip
    elif index == MSR_PAT:
        value[0] = s.pat
    elif index == MSR_MTRR_CAP:
        value[0] = MTRR_CAP_VALUE
    elif index == MSR_MISC_ENABLE:
        value[0] = s.misc_enable
    elif index == MSR_MCG_STATUS:
        value[0] = s.mcg_status
    elif index == MSR_DEBUGCTL:
        value[0] = s.debugctl
    elif index == MSR_FEATURE_CONTROL:
        value[0] = 1  # locked, everything off
    elif index == MSR_BIOS_SIGN_ID:
        value[0] = cython.cast(uint64_t, 1) << 32
    elif index == MSR_AMD_HWCR:
        value[0] = HWCR_TSC_FREQ_SEL
    elif index == MSR_AMD_DE_CFG:
        value[0] = DE_CFG_LFENCE
    elif (
        index == MSR_MCG_CAP  # no machine-check banks
        or index == MSR_PLATFORM_ID
        or index == MSR_EBL_CR_POWERON
        or index == MSR_SMI_COUNT
        or index == MSR_PLATFORM_INFO
        or MSR_LAST_BRANCH_FROM <= index <= MSR_LAST_INT_TO
        or index == MSR_AMD_SYSCFG
        or index == MSR_AMD_NB_CFG
        or index == MSR_AMD_INT_PENDING
        or index == MSR_AMD_TSEG_ADDR
        or index == MSR_AMD_TSEG_MASK
    ):
        value[0] = 0
    elif s.answered:
        s.answered = 0
        value[0] = s.answer
    else:
        exit_to(s, EXIT_RDMSR, index, 0, 0)
        return LEAVE
    return DONE


def set_base(s, seg, value):
    if not is_canonical(value):
        return gp(s, 0)
    s.segments[seg].base = value
    return DONE


def set_canonical(s, where, value):
    if not is_canonical(value):
        return gp(s, 0)
    where[0] = value
    return DONE


def msr_write(s, index, value):
    delta: uint64_t
    if MSR_X2APIC <= index <= MSR_X2APIC_LAST:
        return lapic_msr_write(s, index, value)
    if is_mtrr(index):
        return mtrr_write(s, index, value)
    if index == MSR_EFER:
        return set_efer(s, value)
    if index == MSR_STAR:
        s.star = value
    elif index == MSR_LSTAR:
        return set_canonical(s, cython.address(s.lstar), value)
    elif index == MSR_CSTAR:
        return set_canonical(s, cython.address(s.cstar), value)
    elif index == MSR_SFMASK:
        s.sfmask = value & LOW32
    elif index == MSR_FS_BASE:
        return set_base(s, FS, value)
    elif index == MSR_GS_BASE:
        return set_base(s, GS, value)
    elif index == MSR_KERNEL_GS_BASE:
        return set_canonical(s, cython.address(s.kernel_gs_base), value)
    elif index == MSR_TSC_AUX:
        if value > LOW32:
            return gp(s, 0)
        s.tsc_aux = value
    elif index == MSR_TSC:
        delta = value - guest_tsc(s)
        s.tsc_adjust += delta
        set_tsc_offset(s, s.tsc_offset + delta)
    elif index == MSR_TSC_ADJUST:
        delta = value - s.tsc_adjust
        s.tsc_adjust = value
        set_tsc_offset(s, s.tsc_offset + delta)
    elif index == MSR_TSC_DEADLINE:
        return lapic_deadline_write(s, value)
    elif index == MSR_APIC_BASE:
        return lapic_set_base(s, value)
    elif index == MSR_SYSENTER_CS:
        s.sysenter_cs = value & LOW32
    elif index == MSR_SYSENTER_ESP:
        return set_canonical(s, cython.address(s.sysenter_esp), value)
    elif index == MSR_SYSENTER_EIP:
        return set_canonical(s, cython.address(s.sysenter_eip), value)
    elif index == MSR_PAT:
        if not memory_types(value, True):
            return gp(s, 0)
        s.pat = value
    elif index == MSR_MISC_ENABLE:
        s.misc_enable = value
    elif index == MSR_MCG_STATUS:
        s.mcg_status = value & 7
    elif index == MSR_DEBUGCTL:
        # Branch stepping; last-branch records are accepted and not made. The rest is reserved.
        if value & ~cython.cast(uint64_t, DEBUGCTL_BTF | DEBUGCTL_LBR):
            return gp(s, 0)
        s.debugctl = value
    elif (
        index == MSR_BIOS_UPDT_TRIG
        or index == MSR_BIOS_SIGN_ID
        or index == MSR_AMD_PATCH_LOADER
        or index == MSR_AMD_HWCR
        or index == MSR_AMD_DE_CFG
        or index == MSR_AMD_NB_CFG
        or index == MSR_AMD_INT_PENDING
    ):
        pass  # nothing that these switch is there
    elif (
        index == MSR_MTRR_CAP
        or index == MSR_MCG_CAP
        or index == MSR_FEATURE_CONTROL
        or index == MSR_PLATFORM_ID
        or index == MSR_SMI_COUNT
        or index == MSR_PLATFORM_INFO
    ):
        return gp(s, 0)  # read only
    else:
        exit_to(s, EXIT_WRMSR, index, 0, value)
        return LEAVE
    return DONE


def exit_to(s, kind, address, size, value):
    s.exit.kind = kind
    s.exit.address = address
    s.exit.size = size
    s.exit.value = value


def rdmsr(s, insn):
    value: uint64_t = 0
    status: cython.int
    if s.cpl != 0:
        return gp(s, 0)
    status = msr_read(s, cython.cast(uint32_t, s.gpr[RCX]), cython.address(value))
    if status != DONE:
        return status
    s.gpr[RAX] = value & LOW32
    s.gpr[RDX] = value >> 32
    return finish(s, insn)


def wrmsr(s, insn):
    status: cython.int
    if s.cpl != 0:
        return gp(s, 0)
    status = msr_write(s, cython.cast(uint32_t, s.gpr[RCX]), (s.gpr[RDX] << 32) | (s.gpr[RAX] & LOW32))
    if status == FAULT:
        return FAULT
    if status == LEAVE:
        # An exception that the machine injects belongs to this instruction: let it find the way back.
        s.exit.size = insn.length
    finish(s, insn)
    return status


# Time-stamp counter, XCR0


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


def xgetbv(s, insn):
    index: uint32_t = cython.cast(uint32_t, s.gpr[RCX])
    value: uint64_t
    i: cython.int
    row: cython.pointer[CpuidRow]
    if s.cr4 & CR4_OSXSAVE == 0:
        return ud(s)
    value = s.xcr0
    if index == 1:
        row = cpuid_row(s.engine, 0xD, 1)
        if row == cython.NULL or row.eax & 4 == 0:
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
    # CR4.PCIDE cannot be set here, so 0 is the only PCID.
    if kind > 3 or (kind < 2 and pcid != 0) or pcid > 0xFFF or (kind == 0 and not is_canonical(address)):
        return gp(s, 0)
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


register("mov_from_cr", mov_from_cr)
register("mov_to_cr", mov_to_cr)
register("mov_from_dr", mov_from_dr)
register("mov_to_dr", mov_to_dr)
register("clts", clts)
register("lmsw", lmsw)
register("smsw", smsw)
register("rdmsr", rdmsr)
register("wrmsr", wrmsr)
register("cpuid", cpuid)
register("rdtsc", rdtsc)
register("rdpmc", rdpmc)
register("rdpid", rdpid)
register("xgetbv", xgetbv)
register("xsetbv", xsetbv)
register("invlpg", invlpg)
register("invpcid", invpcid)
register("invd", invd)
register("wbinvd", wbinvd)
register("hlt", hlt)
register("monitor", monitor)
register("mwait", mwait)
register("pause", pause)
register("cli", cli)
register("sti", sti)
register("pushf", pushf)
register("popf", popf)
register("stac", stac)
register("clac", clac)
register("rdfsbase", rdfsbase)
register("rdgsbase", rdgsbase)
register("wrfsbase", wrfsbase)
register("wrgsbase", wrgsbase)


# What Python sees


def host_leaf(leaf, subleaf=0):
    """The host's CPUID: (eax, ebx, ecx, edx)."""
    regs = cython.declare(uint32_t[4])
    native.cpuid(leaf, subleaf, regs)
    return regs[0], regs[1], regs[2], regs[3]


def host_tsc():
    """The host's time-stamp counter now."""
    return native.rdtsc()


def host_cpuid():
    """The host's CPUID as rows of (leaf, subleaf or None, eax, ebx, ecx, edx)."""
    return announce.host_rows(host_leaf)


def measure_tsc_hz():
    """The frequency of the host's time-stamp counter."""
    return announce.tsc_frequency(host_leaf, host_tsc)


def supported_cpuid(tsc_hz=0):
    """What the engine announces on this host, as such rows. ``tsc_hz`` 0 means: find out."""
    return announce.supported_rows(host_leaf, native.xgetbv(), tsc_hz or measure_tsc_hz())
