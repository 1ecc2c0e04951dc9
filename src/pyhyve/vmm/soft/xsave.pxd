# FXSAVE, the XSAVE family, FNSAVE.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    # State components (SDM Vol. 1 13.1).
    X87 = 1
    SSE = 2
    AVX = 4
    COMPACTED = 63             # bit of XCOMP_BV

    # The XSAVE area (SDM Vol. 1 13.4).
    AREA_FTW = 4
    AREA_FSW = 2
    AREA_FIP = 8               # FIP, FCS, FDP, FDS: 16 bytes
    AREA_MXCSR = 24
    AREA_MXCSR_MASK = 28
    AREA_ST = 32
    AREA_XMM = 160
    AREA_LEGACY_END = 416      # what follows is free for software
    AREA_HEADER = 512
    AREA_XCOMP = 520
    AREA_HEADER_END = 576
    AREA_YMM = 576             # upper halves
    FXSAVE_SIZE = 512

    MXCSR_RESET = 0x1F80
    MXCSR_MASK_DEFAULT = 0xFFBF

    FSW_SUMMARY = 0x80


cdef int fxsave(CpuState *s, Insn *insn) noexcept nogil
cdef int fxrstor(CpuState *s, Insn *insn) noexcept nogil
cdef int xsave(CpuState *s, Insn *insn) noexcept nogil
cdef int xsavec(CpuState *s, Insn *insn) noexcept nogil
cdef int xsaveopt(CpuState *s, Insn *insn) noexcept nogil
cdef int xrstor(CpuState *s, Insn *insn) noexcept nogil
cdef int xsaves(CpuState *s, Insn *insn) noexcept nogil
cdef int xrstors(CpuState *s, Insn *insn) noexcept nogil
cdef int fnstenv(CpuState *s, Insn *insn) noexcept nogil
cdef int fnsave(CpuState *s, Insn *insn) noexcept nogil

# Parts of an area, and its header as an empty one has it.
cdef uint32_t *word(uint8_t *area, uint32_t offset) noexcept nogil
cdef uint64_t *quad(uint8_t *area, uint32_t offset) noexcept nogil
cdef void clear_header(uint8_t *area) noexcept nogil

# Used inside this module only.
cdef int area_address(CpuState *s, Insn *insn, uint32_t size, uint32_t alignment, int access,
                      uint64_t *va) noexcept nogil
cdef int copy_area(CpuState *s, uint64_t va, uint32_t begin, uint32_t end, int access) noexcept nogil
cdef int read_area(CpuState *s, uint64_t va, uint32_t begin, uint32_t end) noexcept nogil
cdef int write_area(CpuState *s, uint64_t va, uint32_t begin, uint32_t end) noexcept nogil
cdef uint32_t in_page(uint64_t at, uint32_t size) noexcept nogil
cdef uint32_t vector_registers(CpuState *s) noexcept nogil
cdef bint mxcsr_valid(CpuState *s, uint32_t mxcsr) noexcept nogil
cdef int save(CpuState *s, Insn *insn, bint compacted) noexcept nogil
cdef int restore(CpuState *s, Insn *insn, bint compacted_only) noexcept nogil
cdef int supervisor_checks(CpuState *s) noexcept nogil
cdef int xsave_checks(CpuState *s) noexcept nogil
cdef uint32_t part_size(CpuState *s, uint32_t number) noexcept nogil
cdef int store_x87(CpuState *s, Insn *insn, uint32_t size) noexcept nogil
cdef void x87_out(CpuState *s, Insn *insn, uint32_t size) noexcept nogil
