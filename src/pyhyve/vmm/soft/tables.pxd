# System segments and descriptor tables.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Segment

# Used inside this module only.
cdef bint umip(CpuState *s) noexcept nogil
cdef void set_zf(CpuState *s, bint zero) noexcept nogil
cdef bint inspect(CpuState *s, uint16_t selector, uint32_t system_types, Segment *segment, int *status) noexcept nogil
cdef int verify(CpuState *s, Insn *insn, bint write) noexcept nogil
cdef int look(CpuState *s, Insn *insn, uint32_t system_types, bint limit) noexcept nogil
# For LLDT and LTR: the operand, in protected mode at CPL 0.
cdef int read_system_selector(CpuState *s, Insn *insn, uint16_t *selector) noexcept nogil
cdef int system_descriptor(CpuState *s, uint16_t selector, uint64_t *descriptor, uint64_t *address,
                           Segment *segment) noexcept nogil
cdef int store_table(CpuState *s, Insn *insn, uint64_t base, uint32_t limit) noexcept nogil
cdef int load_table(CpuState *s, Insn *insn, uint64_t *base, uint32_t *limit) noexcept nogil

# Helpers
cdef int lldt(CpuState *s, Insn *insn) noexcept nogil
cdef int ltr(CpuState *s, Insn *insn) noexcept nogil
cdef int sldt(CpuState *s, Insn *insn) noexcept nogil
cdef int str_(CpuState *s, Insn *insn) noexcept nogil
cdef int verr(CpuState *s, Insn *insn) noexcept nogil
cdef int verw(CpuState *s, Insn *insn) noexcept nogil
cdef int lar(CpuState *s, Insn *insn) noexcept nogil
cdef int lsl(CpuState *s, Insn *insn) noexcept nogil
cdef int sgdt(CpuState *s, Insn *insn) noexcept nogil
cdef int sidt(CpuState *s, Insn *insn) noexcept nogil
cdef int lgdt(CpuState *s, Insn *insn) noexcept nogil
cdef int lidt(CpuState *s, Insn *insn) noexcept nogil
cdef int arpl(CpuState *s, Insn *insn) noexcept nogil
