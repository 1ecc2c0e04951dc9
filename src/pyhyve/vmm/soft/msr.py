"""Model-specific registers.

Documents: Intel SDM Vol. 4, Vol. 3A 11.11 (MTRRs); AMD APM Vol. 2 for AMD's own. An MSR that is not kept here leaves to the
machine with EXIT_RDMSR or EXIT_WRMSR.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.cpuid import cpuid_row, xsave_extra
from cython.cimports.pyhyve.vmm.soft.debug import DEBUGCTL_BTF, DEBUGCTL_LBR
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish
from cython.cimports.pyhyve.vmm.soft.lapic import (
    lapic_deadline_read,
    lapic_deadline_write,
    lapic_msr_read,
    lapic_msr_write,
    lapic_set_base,
)
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush
from cython.cimports.pyhyve.vmm.soft.modes import update_mode
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.physical import PHYSICAL
from cython.cimports.pyhyve.vmm.soft.pvclock import (
    MSR_SYSTEM_TIME,
    MSR_WALL_CLOCK,
    pvclock_announced,
    pvclock_update,
    pvclock_write,
)
from cython.cimports.pyhyve.vmm.soft.state import (
    CR0_PG,
    DONE,
    EFER_AIBRSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    EXIT_RDMSR,
    EXIT_WRMSR,
    FAULT,
    FS,
    GS,
    LEAVE,
    LOW32,
    RAX,
    RCX,
    RDX,
    CpuidRow,
    gp,
    is_canonical,
)
from cython.cimports.pyhyve.vmm.soft.xstate import EXTRA_S

def exit_to(s, kind, address, size, value):
    s.exit.kind = kind
    s.exit.address = address
    s.exit.size = size
    s.exit.value = value


def guest_tsc(s):
    return native.rdtsc() + s.tsc_offset


def set_tsc_offset(s, offset):
    s.tsc_offset = offset
    pvclock_update(s)
    lapic_deadline_write(s, lapic_deadline_read(s))
    update_mode(s)


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
    elif index == MSR_XSS and xsave_extra(s.engine, EXTRA_S):
        value[0] = 0
    elif (index == MSR_SYSTEM_TIME or index == MSR_WALL_CLOCK) and pvclock_announced(s.engine):
        value[0] = s.pv_time if index == MSR_SYSTEM_TIME else s.pv_wall
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
    elif index == MSR_XSS and xsave_extra(s.engine, EXTRA_S):
        return gp(s, 0) if value else DONE  # no supervisor state is there
    elif (index == MSR_SYSTEM_TIME or index == MSR_WALL_CLOCK) and pvclock_announced(s.engine):
        return pvclock_write(s, index, value)
    else:
        exit_to(s, EXIT_WRMSR, index, 0, value)
        return LEAVE
    return DONE


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


register("rdmsr", rdmsr)
register("wrmsr", wrmsr)
