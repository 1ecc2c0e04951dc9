# Gathers and masked moves.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    VECTORS = 0x46             # components with registers 0-15, all of their bits: SSE, AVX, the upper half of AVX-512's


cdef int vgather(CpuState *s, Insn *insn) noexcept nogil
cdef int vmaskmov(CpuState *s, Insn *insn) noexcept nogil
cdef int maskmovq(CpuState *s, Insn *insn) noexcept nogil
cdef int maskmovdqu(CpuState *s, Insn *insn) noexcept nogil

# Used inside this module only.
cdef int avx_checks(CpuState *s) noexcept nogil
cdef uint32_t vector_bytes(CpuState *s) noexcept nogil
cdef uint32_t lane_place(uint32_t reg, uint32_t offset) noexcept nogil
cdef void registers_to(CpuState *s, uint64_t components) noexcept nogil
cdef void registers_from(CpuState *s, uint64_t components) noexcept nogil
cdef int vsib_address(CpuState *s, Insn *insn, uint32_t lane, uint32_t size, int access, uint64_t *va) noexcept nogil
cdef uint64_t get_lane(CpuState *s, uint32_t reg, uint32_t lane, uint32_t size) noexcept nogil
cdef void set_lane(CpuState *s, uint32_t reg, uint32_t lane, uint32_t size, uint64_t value) noexcept nogil
cdef int masked_store(CpuState *s, Insn *insn, uint8_t *data, uint8_t *mask, uint32_t size) noexcept nogil
