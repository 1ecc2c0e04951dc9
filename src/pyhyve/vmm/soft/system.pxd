# Control, debug and model-specific registers, CPUID, and what depends on them.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuidRow, CpuState, Engine


cdef enum:
    # Masks that Cython would take for Python integers if they stood in the code.
    U32 = 0xFFFFFFFF
    PHYSICAL = 0x3FFFFFFFFFFF        # MAXPHYADDR is 46
    PDPTE_RESERVED = 0x7FFFC000000001E6
    DR6_FIXED = 0xFFFF0FF0
    CR0_WRITABLE = 0xE005002F        # PE MP EM TS NE WP AM NW CD PG; ET is wired to 1
    PUSHF_IMAGE = 0xFCFFFF           # RFLAGS without VM and RF
    LEAF_HYPERVISOR = 0x40000000
    LEAF_EXTENDED = 0x80000000
    LEAF_AMD_TOPOLOGY = 0x8000001E
    APIC_BASE_RESET = 0xFEE00800     # enabled at its usual place
    APIC_BSP = 0x100
    APIC_ENABLED = 0x800
    PAT_LOW_RESET = 0x00070406       # the same in both halves

    DR6_BD = 0x2000
    DR7_GD = 0x2000

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

    # One CPUID register, as `feature` takes it.
    R_EAX = 0
    R_EBX = 1
    R_ECX = 2
    R_EDX = 3


# Recompute s.mode, s.mmu_mode and s.cpl-dependent bits. Call after any change of CR0, CR4, EFER, XCR0, CS, SS, DS, ES,
# CPL, RFLAGS.{AC,IOPL,VM}, TSC offset. (Sets s.mode only; the engine maps it to s.mode_slot. Leaves MODE_STEP alone.)
cdef void update_mode(CpuState *s) noexcept nogil
# The architectural reset state (SDM Vol. 3A 9.1.1); INIT keeps XSAVE state, MSRs and caches.
cdef void reset_cpu(CpuState *s, bint init) noexcept nogil
# MSR access by number without privilege check: DONE, FAULT (#GP recorded) or LEAVE (unknown: exit filled, or the
# answer used).
cdef int msr_read(CpuState *s, uint32_t index, uint64_t *value) noexcept nogil
cdef int msr_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
cdef int set_cr0(CpuState *s, uint64_t value) noexcept nogil
cdef int set_cr3(CpuState *s, uint64_t value) noexcept nogil
cdef int set_cr4(CpuState *s, uint64_t value) noexcept nogil
cdef int set_efer(CpuState *s, uint64_t value) noexcept nogil
cdef int set_xcr0(CpuState *s, uint64_t value) noexcept nogil
cdef uint64_t guest_tsc(CpuState *s) noexcept nogil
# Shift the TSC: the local APIC's deadline moves along.
cdef void set_tsc_offset(CpuState *s, uint64_t offset) noexcept nogil

# What CPUID answers on this vCPU. (A name of its own: `cpuid` is the helper.)
cdef void cpuid_query(CpuState *s, uint32_t leaf, uint32_t subleaf, uint32_t *regs) noexcept nogil
# Is a feature bit announced?
cdef bint feature(Engine *e, uint32_t leaf, int reg, int bit) noexcept nogil

# The stack as PUSH and POP see it. push_value: check and write `size` bytes, then lower rSP. peek_value: read at
# rSP + offset; the caller raises rSP with stack_adjust once nothing can fail any more.
cdef uint32_t stack_size(CpuState *s) noexcept nogil
cdef void stack_adjust(CpuState *s, int64_t delta) noexcept nogil
cdef int push_value(CpuState *s, uint64_t value, uint32_t size) noexcept nogil
cdef int peek_value(CpuState *s, uint64_t offset, uint32_t size, uint64_t *value) noexcept nogil
cdef void exit_to(CpuState *s, uint32_t kind, uint64_t address, uint32_t size, uint64_t value) noexcept nogil

# Used inside this module only.
cdef bint flat_data(CpuState *s, int seg) noexcept nogil
cdef void reset_segment(CpuState *s, int seg) noexcept nogil
cdef int check_pdptes(CpuState *s, uint64_t cr3) noexcept nogil
cdef CpuidRow *cpuid_row(Engine *e, uint32_t leaf, uint32_t subleaf) noexcept nogil
cdef uint64_t cr4_allowed(Engine *e) noexcept nogil
cdef bint memory_type(uint64_t value) noexcept nogil
cdef bint memory_types(uint64_t value, bint pat) noexcept nogil
cdef bint is_mtrr(uint32_t index) noexcept nogil
cdef uint64_t *mtrr_slot(CpuState *s, uint32_t index) noexcept nogil
cdef int mtrr_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
cdef int set_base(CpuState *s, int seg, uint64_t value) noexcept nogil
cdef int set_canonical(CpuState *s, uint64_t *where, uint64_t value) noexcept nogil
cdef int fsgsbase_check(CpuState *s) noexcept nogil
cdef int debug_register(CpuState *s, Insn *insn, int *number) noexcept nogil

# Helpers
cdef int mov_from_cr(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_to_cr(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_from_dr(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_to_dr(CpuState *s, Insn *insn) noexcept nogil
cdef int clts(CpuState *s, Insn *insn) noexcept nogil
cdef int lmsw(CpuState *s, Insn *insn) noexcept nogil
cdef int smsw(CpuState *s, Insn *insn) noexcept nogil
cdef int rdmsr(CpuState *s, Insn *insn) noexcept nogil
cdef int wrmsr(CpuState *s, Insn *insn) noexcept nogil
cdef int cpuid(CpuState *s, Insn *insn) noexcept nogil
cdef int rdtsc(CpuState *s, Insn *insn) noexcept nogil
cdef int rdpmc(CpuState *s, Insn *insn) noexcept nogil
cdef int rdpid(CpuState *s, Insn *insn) noexcept nogil
cdef int xgetbv(CpuState *s, Insn *insn) noexcept nogil
cdef int xsetbv(CpuState *s, Insn *insn) noexcept nogil
cdef int invlpg(CpuState *s, Insn *insn) noexcept nogil
cdef int invpcid(CpuState *s, Insn *insn) noexcept nogil
cdef int invd(CpuState *s, Insn *insn) noexcept nogil
cdef int wbinvd(CpuState *s, Insn *insn) noexcept nogil
cdef int hlt(CpuState *s, Insn *insn) noexcept nogil
cdef int monitor(CpuState *s, Insn *insn) noexcept nogil
cdef int mwait(CpuState *s, Insn *insn) noexcept nogil
cdef int pause(CpuState *s, Insn *insn) noexcept nogil
cdef int cli(CpuState *s, Insn *insn) noexcept nogil
cdef int sti(CpuState *s, Insn *insn) noexcept nogil
cdef int pushf(CpuState *s, Insn *insn) noexcept nogil
cdef int popf(CpuState *s, Insn *insn) noexcept nogil
cdef int stac(CpuState *s, Insn *insn) noexcept nogil
cdef int clac(CpuState *s, Insn *insn) noexcept nogil
cdef int rdfsbase(CpuState *s, Insn *insn) noexcept nogil
cdef int rdgsbase(CpuState *s, Insn *insn) noexcept nogil
cdef int wrfsbase(CpuState *s, Insn *insn) noexcept nogil
cdef int wrgsbase(CpuState *s, Insn *insn) noexcept nogil
