# EVEX instructions: encoding them anew, and the accesses to memory that a mask has a say in.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.encode cimport Asm, e8
from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    SLOW_WHOLE = 0x40000       # with a mask: all of the operand must be accessible


cdef inline void evex_opcode(Asm *a, Insn *insn, uint32_t reg, uint32_t index, uint32_t rm) noexcept nogil:
    """The prefix and the opcode. `reg`, `index` and `rm` are host registers; all else stays as it is."""
    cdef uint32_t high = insn.evex[0] & 0x40
    if insn.has_mem:
        high = 0 if index & 8 else 0x40
    e8(a, 0x62)
    e8(a, (0 if reg & 8 else 0x80) | high | (0 if rm & 8 else 0x20) | (insn.evex[0] & 0x10) | insn.map)
    e8(a, insn.evex[1])
    e8(a, insn.evex[2])
    e8(a, insn.opcode)


# What the slow path of the instruction's access must know of its mask (SLOW_* in stubs.pxd); 0 where it has no say.
cdef uint32_t evex_what(Insn *insn) noexcept nogil
# The slow path of such an access: as tlb_fill, but for the bytes whose elements are enabled, and with the segment.
cdef uint64_t masked_access(CpuState *s, uint64_t va, uint32_t what, int *status) noexcept nogil
# bounce_finish of a masked store.
cdef void masked_finish(CpuState *s) noexcept nogil
cdef int evex_gather(CpuState *s, Insn *insn) noexcept nogil
cdef int evex_scatter(CpuState *s, Insn *insn) noexcept nogil

# Used inside this module only.
cdef uint32_t log2_of(uint32_t size) noexcept nogil
cdef uint64_t enabled_bytes(uint32_t what) noexcept nogil
cdef uint32_t lowest(uint64_t bits) noexcept nogil
cdef uint32_t run_length(uint64_t bits) noexcept nogil
cdef int check_segment(CpuState *s, uint64_t *va, uint32_t what, uint64_t enabled) noexcept nogil
cdef int check_elements(CpuState *s, uint64_t va, uint32_t what, uint64_t enabled) noexcept nogil
cdef bint in_parts(uint32_t what) noexcept nogil
cdef bint watched(CpuState *s, uint64_t va, uint64_t bits, uint32_t access) noexcept nogil
cdef uint64_t component_of(uint32_t reg) noexcept nogil
cdef uint64_t *opmask_of(CpuState *s, Insn *insn) noexcept nogil
