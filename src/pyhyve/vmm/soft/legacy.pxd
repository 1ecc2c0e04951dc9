# Old instructions that compilers no longer emit: PUSHA, POPA, ENTER, BOUND, decimal adjustment, SALC.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState

cdef int pusha(CpuState *s, Insn *insn) noexcept nogil
cdef int popa(CpuState *s, Insn *insn) noexcept nogil
cdef int enter(CpuState *s, Insn *insn) noexcept nogil
cdef int bound(CpuState *s, Insn *insn) noexcept nogil
cdef int daa(CpuState *s, Insn *insn) noexcept nogil
cdef int das(CpuState *s, Insn *insn) noexcept nogil
cdef int aaa(CpuState *s, Insn *insn) noexcept nogil
cdef int aas(CpuState *s, Insn *insn) noexcept nogil
cdef int aam(CpuState *s, Insn *insn) noexcept nogil
cdef int aad(CpuState *s, Insn *insn) noexcept nogil
cdef int salc(CpuState *s, Insn *insn) noexcept nogil

# Used inside this module only.
cdef uint64_t stack_mask(CpuState *s) noexcept nogil
cdef uint64_t result_flags(uint64_t al) noexcept nogil
cdef void set_al(CpuState *s, uint64_t al) noexcept nogil
cdef int64_t signed(uint64_t value, uint32_t size) noexcept nogil
cdef int decimal_adjust(CpuState *s, Insn *insn, bint add) noexcept nogil
cdef int ascii_adjust(CpuState *s, Insn *insn, bint add) noexcept nogil
