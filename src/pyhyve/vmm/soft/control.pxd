# Control and debug registers, XCR0.

from libc.stdint cimport uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Engine


cdef enum:
    # Masks that Cython would take for Python integers if they stood in the code.
    PDPTE_RESERVED = 0xFFFFFF00000001E6
    CR0_WRITABLE = 0xE005002F        # PE MP EM TS NE WP AM NW CD PG; ET is wired to 1

    DR6_BD = 0x2000
    DR7_GD = 0x2000


cdef int set_cr3(CpuState *s, uint64_t value) noexcept nogil

# Used inside this module only.
cdef int set_cr0(CpuState *s, uint64_t value) noexcept nogil
cdef int set_cr4(CpuState *s, uint64_t value) noexcept nogil
cdef int set_xcr0(CpuState *s, uint64_t value) noexcept nogil
cdef int check_pdptes(CpuState *s, uint64_t cr3) noexcept nogil
cdef uint64_t cr4_allowed(Engine *e) noexcept nogil
cdef int debug_register(CpuState *s, Insn *insn, int *number) noexcept nogil

# Helpers
cdef int mov_from_cr(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_to_cr(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_from_dr(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_to_dr(CpuState *s, Insn *insn) noexcept nogil
cdef int clts(CpuState *s, Insn *insn) noexcept nogil
cdef int lmsw(CpuState *s, Insn *insn) noexcept nogil
cdef int smsw(CpuState *s, Insn *insn) noexcept nogil
cdef int xgetbv(CpuState *s, Insn *insn) noexcept nogil
cdef int xsetbv(CpuState *s, Insn *insn) noexcept nogil
