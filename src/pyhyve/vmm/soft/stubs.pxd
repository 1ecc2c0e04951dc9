# The fixed pieces of machine code: entering and leaving emitted code, its slow paths, small native functions.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.blocks cimport CodeCache
from pyhyve.vmm.soft.encode cimport Asm
from pyhyve.vmm.soft.state cimport CpuState

cdef enum:
    # Why emitted code came back: the result of `enter`.
    X_LOOKUP = 0
    X_CHAIN = 1
    X_EVENT = 2
    X_HELPER = 3
    X_RAISE = 4
    X_SLOW = 5        # a slow path failed: s.slow_status
    X_HOST_FAULT = 6

    # What the slow path is told in T1: size | access << 16 | segment << 20 | flags
    # With a mask (evex.evex_what): | SLOW_PACKED, opmask register << 24, log2 of the element's bytes << 27, log2 of how
    # many bits of the mask count << 29
    # Without one: SLOW_WAITING, an x87 exception that waits comes before all that is wrong with the operand
    SLOW_WAITING = 0x8000000
    SLOW_SEGMENTED = 0x800000
    SLOW_PACKED = 0x80000
    SLOW_MASKED = 0x7000000
    ACCESS_LOAD_FIRST = 4   # with ACCESS_WRITE: the old contents are needed

cdef uint64_t off(CpuState *s, const void *field) noexcept nogil
cdef void emit_stubs(CodeCache *c, CpuState *s, uint64_t slow_access, uint64_t span_access, uint64_t slow_finish,
                     bint fsgsbase) noexcept nogil
cdef bint is_spilled(uint32_t reg) noexcept nogil
cdef uint32_t host_reg(uint32_t reg) noexcept nogil
