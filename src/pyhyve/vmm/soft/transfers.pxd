# Far jumps, calls and returns.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Segment

# Used inside this module only.
cdef int transfer(CpuState *s, Insn *insn, uint16_t selector, uint64_t offset, bint call) noexcept nogil
cdef int transfer_mem(CpuState *s, Insn *insn, bint call) noexcept nogil
cdef int transfer_real(CpuState *s, Insn *insn, uint16_t selector, uint64_t offset, bint call) noexcept nogil
cdef int through_gate(CpuState *s, Insn *insn, uint64_t gate, uint64_t address, uint16_t selector,
                      bint call) noexcept nogil
cdef int call_inner(CpuState *s, Insn *insn, Segment *cs, uint64_t address, uint64_t rip, uint32_t size,
                    uint32_t count) noexcept nogil
cdef int push_return(CpuState *s, uint32_t size, uint64_t rip) noexcept nogil

# Helpers
cdef int jmp_far_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int call_far_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int jmp_far_mem(CpuState *s, Insn *insn) noexcept nogil
cdef int call_far_mem(CpuState *s, Insn *insn) noexcept nogil
cdef int retf(CpuState *s, Insn *insn) noexcept nogil
