# Stack and near control transfers as helpers: for 16- and 32-bit code, and odd operand sizes in 64-bit code.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState

cdef bint condition_holds(CpuState *s, uint32_t condition) noexcept nogil
cdef int jump_near(CpuState *s, Insn *insn, uint64_t target) noexcept nogil

cdef int push(CpuState *s, Insn *insn) noexcept nogil
cdef int pop(CpuState *s, Insn *insn) noexcept nogil
cdef int push_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int push_mem(CpuState *s, Insn *insn) noexcept nogil
cdef int pop_mem(CpuState *s, Insn *insn) noexcept nogil
cdef int ret(CpuState *s, Insn *insn) noexcept nogil
cdef int leave(CpuState *s, Insn *insn) noexcept nogil
cdef int xlat(CpuState *s, Insn *insn) noexcept nogil
cdef int loop(CpuState *s, Insn *insn) noexcept nogil
cdef int jcxz(CpuState *s, Insn *insn) noexcept nogil
cdef int call(CpuState *s, Insn *insn) noexcept nogil
cdef int jmp(CpuState *s, Insn *insn) noexcept nogil
cdef int call_ind(CpuState *s, Insn *insn) noexcept nogil
cdef int jmp_ind(CpuState *s, Insn *insn) noexcept nogil
cdef int jcc(CpuState *s, Insn *insn) noexcept nogil
cdef uint64_t relative(CpuState *s, Insn *insn) noexcept nogil
cdef uint64_t address_mask(Insn *insn) noexcept nogil
cdef int call_to_target(CpuState *s, Insn *insn, uint64_t target) noexcept nogil
cdef int operand_target(CpuState *s, Insn *insn, uint64_t *value) noexcept nogil
