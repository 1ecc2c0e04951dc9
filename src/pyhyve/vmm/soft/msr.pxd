# Model-specific registers.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    # Masks that Cython would take for Python integers if they stood in the code.
    APIC_BASE_RESET = 0xFEE00800     # enabled at its usual place
    APIC_BSP = 0x100
    APIC_ENABLED = 0x800
    PAT_LOW_RESET = 0x00070406       # the same in both halves

    # Model-specific registers (SDM Vol. 4; AMD APM Vol. 2 appendix A).
    MSR_TSC = 0x10
    MSR_PLATFORM_ID = 0x17
    MSR_APIC_BASE = 0x1B
    MSR_EBL_CR_POWERON = 0x2A
    MSR_SMI_COUNT = 0x34
    MSR_FEATURE_CONTROL = 0x3A
    MSR_TSC_ADJUST = 0x3B
    MSR_BIOS_UPDT_TRIG = 0x79
    MSR_BIOS_SIGN_ID = 0x8B
    MSR_PLATFORM_INFO = 0xCE
    MSR_MTRR_CAP = 0xFE
    MSR_SYSENTER_CS = 0x174
    MSR_SYSENTER_ESP = 0x175
    MSR_SYSENTER_EIP = 0x176
    MSR_MCG_CAP = 0x179
    MSR_MCG_STATUS = 0x17A
    MSR_MISC_ENABLE = 0x1A0
    MSR_DEBUGCTL = 0x1D9
    MSR_LAST_BRANCH_FROM = 0x1DB
    MSR_LAST_INT_TO = 0x1DE
    MSR_MTRR_PHYS_BASE0 = 0x200
    MSR_MTRR_PHYS_MASK7 = 0x20F
    MSR_MTRR_FIX64K = 0x250
    MSR_MTRR_FIX16K_80000 = 0x258
    MSR_MTRR_FIX16K_A0000 = 0x259
    MSR_MTRR_FIX4K_C0000 = 0x268
    MSR_MTRR_FIX4K_F8000 = 0x26F
    MSR_PAT = 0x277
    MSR_MTRR_DEF_TYPE = 0x2FF
    MSR_TSC_DEADLINE = 0x6E0
    MSR_X2APIC = 0x800
    MSR_X2APIC_LAST = 0x8FF
    MSR_XSS = 0xDA0
    MSR_EFER = 0xC0000080
    MSR_STAR = 0xC0000081
    MSR_LSTAR = 0xC0000082
    MSR_CSTAR = 0xC0000083
    MSR_SFMASK = 0xC0000084
    MSR_FS_BASE = 0xC0000100
    MSR_GS_BASE = 0xC0000101
    MSR_KERNEL_GS_BASE = 0xC0000102
    MSR_TSC_AUX = 0xC0000103
    MSR_AMD_SYSCFG = 0xC0010010
    MSR_AMD_HWCR = 0xC0010015
    MSR_AMD_NB_CFG = 0xC001001F
    MSR_AMD_PATCH_LOADER = 0xC0010020
    MSR_AMD_INT_PENDING = 0xC0010055
    MSR_AMD_TSEG_ADDR = 0xC0010112
    MSR_AMD_TSEG_MASK = 0xC0010113
    MSR_AMD_DE_CFG = 0xC0011029

    HWCR_TSC_FREQ_SEL = 0x1000000    # the TSC counts at P0's frequency
    DE_CFG_LFENCE = 2                # LFENCE waits for what is before it
    MTRR_CAP_VALUE = 0x508           # 8 variable ranges, fixed ranges, write combining


# MSR access by number without privilege check: DONE, FAULT (#GP recorded) or LEAVE (unknown: exit filled, or the
# answer used).
cdef int msr_read(CpuState *s, uint32_t index, uint64_t *value) noexcept nogil
cdef int msr_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
cdef int set_efer(CpuState *s, uint64_t value) noexcept nogil
cdef uint64_t guest_tsc(CpuState *s) noexcept nogil
cdef void exit_to(CpuState *s, uint32_t kind, uint64_t address, uint32_t size, uint64_t value) noexcept nogil
cdef int set_base(CpuState *s, int seg, uint64_t value) noexcept nogil

# Used inside this module only.
# Shift the TSC: the local APIC's deadline moves along.
cdef void set_tsc_offset(CpuState *s, uint64_t offset) noexcept nogil
cdef bint memory_type(uint64_t value) noexcept nogil
cdef bint memory_types(uint64_t value, bint pat) noexcept nogil
cdef bint is_mtrr(uint32_t index) noexcept nogil
cdef uint64_t *mtrr_slot(CpuState *s, uint32_t index) noexcept nogil
cdef int mtrr_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
cdef int set_canonical(CpuState *s, uint64_t *where, uint64_t value) noexcept nogil

# Helpers
cdef int rdmsr(CpuState *s, Insn *insn) noexcept nogil
cdef int wrmsr(CpuState *s, Insn *insn) noexcept nogil
