# MOVS, STOS, LODS, SCAS, CMPS with their repeat prefixes.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    PAGE = 0x1000
    PAGE_OFFSET = 0xFFF
    BUDGET = 0x10000      # bytes that one execution moves at most, so that events are looked at
    REPNE = 0xF2
    REPE = 0xF3


# One string operand: where its next element is.
cdef struct Stream:
    uint64_t ea           # effective address of the next element
    uint8_t *host         # pointer to it, if run() found one
    uint8_t reg           # RSI or RDI
    uint8_t segment
    uint8_t access


# What is needed of the instruction, and how far it is.
cdef struct Work:
    uint64_t mask         # of addresses and of the count, by address size
    uint64_t left         # elements to go; without a prefix 1
    uint32_t size         # of an element: 1, 2, 4, 8
    uint32_t address_size
    uint32_t repeat       # 0, REPE, REPNE
    uint32_t down         # DF


cdef int movs(CpuState *s, Insn *insn) noexcept nogil
cdef int stos(CpuState *s, Insn *insn) noexcept nogil
cdef int lods(CpuState *s, Insn *insn) noexcept nogil
cdef int scas(CpuState *s, Insn *insn) noexcept nogil
cdef int cmps(CpuState *s, Insn *insn) noexcept nogil

# The arithmetic flags of a - b, as CMP sets them.
cdef uint64_t compare_flags(uint64_t a, uint64_t b, uint32_t size) noexcept nogil
# Element `size` of 1 to 8 bytes at a host pointer.
cdef uint64_t load_element(uint8_t *host, uint32_t size) noexcept nogil

# Used inside this module only.
cdef void begin(CpuState *s, Insn *insn, Work *w) noexcept nogil
cdef void source(CpuState *s, Insn *insn, Work *w, Stream *stream) noexcept nogil
cdef void destination(CpuState *s, Work *w, Stream *stream, int access) noexcept nogil
cdef uint64_t run_length(CpuState *s, Work *w, Stream *stream, uint64_t n, int *status) noexcept nogil
cdef void advance(CpuState *s, Work *w, Stream *stream, uint64_t n) noexcept nogil
cdef void count_down(CpuState *s, Work *w, uint64_t n) noexcept nogil
cdef int element_address(CpuState *s, Work *w, Stream *stream, uint64_t *va) noexcept nogil
cdef int pause_or_finish(CpuState *s, Insn *insn, Work *w) noexcept nogil
cdef uint64_t wanted(CpuState *s, Work *w, uint64_t moved) noexcept nogil
cdef void store_element(uint8_t *host, uint32_t size, uint64_t value) noexcept nogil
cdef void copy_run(Work *w, uint8_t *dst, uint8_t *src, uint64_t n) noexcept nogil
cdef void fill_run(Work *w, uint8_t *dst, uint64_t value, uint64_t n) noexcept nogil
cdef bint goes_on(Work *w, uint64_t flags) noexcept nogil
cdef int compare(CpuState *s, Insn *insn, bint two) noexcept nogil
