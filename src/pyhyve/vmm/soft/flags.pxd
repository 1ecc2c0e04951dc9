# RFLAGS, and the stack as PUSH and POP see it.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    # Masks that Cython would take for Python integers if they stood in the code.
    PUSHF_IMAGE = 0xFCFFFF           # RFLAGS without VM and RF


# The stack as PUSH and POP see it. push_value: check and write `size` bytes, then lower rSP. peek_value: read at
# rSP + offset; the caller raises rSP with stack_adjust once nothing can fail any more.
cdef uint32_t stack_size(CpuState *s) noexcept nogil
cdef void stack_adjust(CpuState *s, int64_t delta) noexcept nogil
cdef int push_value(CpuState *s, uint64_t value, uint32_t size) noexcept nogil
cdef int peek_value(CpuState *s, uint64_t offset, uint32_t size, uint64_t *value) noexcept nogil

# What VME and PVI make of IF.
cdef bint has_virtual_if(CpuState *s) noexcept nogil
cdef uint64_t virtual_image(uint64_t flags) noexcept nogil
cdef bint virtual_refused(CpuState *s, uint64_t flags) noexcept nogil
cdef bint virtual_due(CpuState *s) noexcept nogil
cdef void set_virtual_if(CpuState *s, bint on) noexcept nogil

# Helpers
cdef int cli(CpuState *s, Insn *insn) noexcept nogil
cdef int sti(CpuState *s, Insn *insn) noexcept nogil
cdef int pushf(CpuState *s, Insn *insn) noexcept nogil
cdef int popf(CpuState *s, Insn *insn) noexcept nogil
cdef int stac(CpuState *s, Insn *insn) noexcept nogil
cdef int clac(CpuState *s, Insn *insn) noexcept nogil
