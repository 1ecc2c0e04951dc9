# Operands of helpers.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    ACCESS_UNALIGNED = 8  # for `linear`: the instruction is not checked for alignment


# Effective address of the memory operand, truncated to its address size.
cdef uint64_t effective_address(CpuState *s, Insn *insn) noexcept nogil

# Effective to linear address: base, limit and type checks of segment `seg` outside 64-bit mode, canonical check in it.
# `size` bytes are accessed. FAULT is #SS(0) for SS, else #GP(0).
cdef int linear(CpuState *s, int seg, uint64_t ea, uint32_t size, int access, uint64_t *va) noexcept nogil

# Where MODE_ALIGN is set (`linear` does it): DONE, or FAULT with #PF or #AC(0) recorded.
cdef int check_alignment(CpuState *s, uint64_t va, uint32_t size, uint32_t access) noexcept nogil

# Both together, then read / write with the rights of the running code (s.mmu_mode).
cdef int read_operand(CpuState *s, Insn *insn, uint32_t size, uint64_t *value) noexcept nogil
cdef int write_operand(CpuState *s, Insn *insn, uint32_t size, uint64_t value) noexcept nogil
