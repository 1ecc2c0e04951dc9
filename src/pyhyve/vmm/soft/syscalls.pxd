# System-call instructions.

from libc.stdint cimport uint16_t, uint32_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Segment


cdef enum:
    # Access rights of flat segments, as SYSCALL and its kin load them; the DPL of user segments is 3.
    FLAT_CODE64 = 0xA09B
    FLAT_CODE32 = 0xC09B
    FLAT_DATA = 0xC093
    DPL3 = 0x60

    R11 = 11


# Used inside this module only.
cdef bint is_amd(CpuState *s) noexcept nogil
cdef void load_flat(Segment *segment, uint16_t selector, uint32_t access) noexcept nogil

# Helpers
cdef int syscall(CpuState *s, Insn *insn) noexcept nogil
cdef int sysret(CpuState *s, Insn *insn) noexcept nogil
cdef int sysenter(CpuState *s, Insn *insn) noexcept nogil
cdef int sysexit(CpuState *s, Insn *insn) noexcept nogil
cdef int swapgs(CpuState *s, Insn *insn) noexcept nogil
