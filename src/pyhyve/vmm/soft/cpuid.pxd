# CPUID.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, CpuidRow, Engine


cdef enum:
    # Masks that Cython would take for Python integers if they stood in the code.
    LEAF_HYPERVISOR = 0x40000000
    LEAF_EXTENDED = 0x80000000
    LEAF_AMD_TOPOLOGY = 0x8000001E

    # One CPUID register, as `feature` takes it.
    R_EAX = 0
    R_EBX = 1
    R_ECX = 2
    R_EDX = 3


# Is a feature bit announced?
cdef bint feature(Engine *e, uint32_t leaf, int reg, int bit) noexcept nogil
# Is one of XSAVE's relatives there (xstate.EXTRA_*)?
cdef bint xsave_extra(Engine *e, uint32_t bit) noexcept nogil
cdef CpuidRow *cpuid_row(Engine *e, uint32_t leaf, uint32_t subleaf) noexcept nogil

# Used inside this module only.
# What CPUID answers on this vCPU. (A name of its own: `cpuid` is the helper.)
cdef void cpuid_query(CpuState *s, uint32_t leaf, uint32_t subleaf, uint32_t *regs) noexcept nogil

# Helpers
cdef int cpuid(CpuState *s, Insn *insn) noexcept nogil
