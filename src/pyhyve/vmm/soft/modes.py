"""The mode that a processor is in, and its state after reset.

Document: Intel SDM Vol. 3A 9.1 (reset state). ``update_mode`` puts everything that the meaning of a code byte depends on
into ``CpuState.mode``.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.cpuid import cpuid_row
from cython.cimports.pyhyve.vmm.soft.debug import debug_update
from cython.cimports.pyhyve.vmm.soft.lapic import lapic_reset
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush
from cython.cimports.pyhyve.vmm.soft.msr import APIC_BASE_RESET, APIC_BSP, PAT_LOW_RESET
from cython.cimports.pyhyve.vmm.soft.state import (
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NW,
    CR0_PE,
    CR0_TS,
    CR4_FSGSBASE,
    CR4_OSFXSR,
    CR4_OSXSAVE,
    CR4_SMAP,
    CR4_TSD,
    CS,
    DS,
    EFER_LMA,
    ES,
    FLAG_AC,
    FLAG_VM,
    FS,
    GS,
    LOW32,
    MMU_KERNEL,
    MMU_KERNEL_AC,
    MMU_USER,
    MODE_AC,
    MODE_ALIGN,
    MODE_AVX,
    MODE_AVX512,
    MODE_CODE32,
    MODE_CODE64,
    MODE_CPL0,
    MODE_CS_PAGES,
    MODE_EM,
    MODE_FLAT,
    MODE_FSGSBASE,
    MODE_FS_OPEN,
    MODE_GS_OPEN,
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
    RDX,
    SEG_CODE,
    SEG_DB,
    SEG_EXPAND_DOWN,
    SEG_L,
    SEG_PRESENT,
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SS,
    CpuidRow,
    Segment,
)
from cython.cimports.pyhyve.vmm.soft.xstate import AVX512_STATE

def open_data(s, seg):
    """A writable, expand-up data segment without a limit."""
    g: cython.pointer[Segment] = cython.address(s.segments[seg])
    if g.limit != LOW32:
        return False
    return (
        g.access & (SEG_UNUSABLE | SEG_PRESENT | SEG_CODE | SEG_EXPAND_DOWN | SEG_WRITABLE)
    ) == SEG_PRESENT | SEG_WRITABLE


def flat_data(s, seg):
    return s.segments[seg].base == 0 and open_data(s, seg)


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
        if cs.base & 0xFFF == 0 and cs.limit == (LOW32 if mode & MODE_CODE32 else 0xFFFF):
            mode |= MODE_CS_PAGES
        # Linux has its per-CPU data in FS; its programs have their threads' in GS.
        if s.cpl < 3:
            if open_data(s, FS):
                mode |= MODE_FS_OPEN
        elif open_data(s, GS):
            mode |= MODE_GS_OPEN
    if s.cpl == 3:
        mode |= MODE_USER
        if s.cr0 & CR0_AM and s.flags_system & FLAG_AC:
            mode |= MODE_ALIGN
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
        s.pv_time = s.pv_wall = 0
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
