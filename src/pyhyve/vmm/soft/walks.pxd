# Page walks.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine, WalkEntry


cdef extern from *:
    # GCC builtins for operand types that state.pxd does not declare.
    uint64_t load64 "__atomic_load_n"(uint64_t *where, int order) noexcept nogil
    bint swap32 "__atomic_compare_exchange_n"(uint32_t *where, uint32_t *expected, uint32_t value, bint weak,
                                              int success, int failure) noexcept nogil


cdef enum:
    # Result flags of walk().
    PAGE_GLOBAL = 1
    PAGE_WRITABLE = 2    # writable now: allowed in that mode, and the dirty flag is set
    PAGE_USER = 4
    PAGE_LARGE = 8       # 2 or 4 MiB
    PAGE_HUGE = 16       # 1 GiB

    # After so many races with another vCPU that changes the entries all the time, a walk goes by what it has read.
    WALK_TRIES = 1000

    # Masks that Cython would take for Python integers if they stood in the code.
    FRAME32 = 0xFFFFF000
    FRAME_4M = 0xFFC00000
    PDPT_BASE = 0xFFFFFFE0
    OFFSET_2M = 0x1FFFFF

    # Paging-structure entries (SDM Vol. 3A 4.3-4.5).
    PTE_P = 1
    PTE_W = 2
    PTE_U = 4
    PTE_A = 0x20
    PTE_D = 0x40
    PTE_PS = 0x80
    PTE_G = 0x100
    RESERVED_4LEVEL = 0xFFF0000000000        # bits 40-51: beyond MAXPHYADDR
    RESERVED_PAE = 0x7FFFFF0000000000        # bits 40-62
    NX_SHIFT = 63


# Walk the page tables for linear `va`. DONE with *gpa (and *flags: bit 0 global, bit 1 writable now (dirty set),
# bit 2 user page: PAGE_*), or FAULT with the #PF recorded (nothing recorded if `quiet`). Sets accessed and dirty bits
# atomically unless `quiet`. With paging off: identity.
cdef int walk(CpuState *s, uint64_t va, int access, int mode, bint quiet, uint64_t *gpa, uint32_t *flags) noexcept nogil

# Where what the upper levels led to is remembered for `va`.
cdef WalkEntry *walk_entry(CpuState *s, uint64_t va) noexcept nogil

# Used inside this module only.
cdef uint64_t page_table_entry(Engine *e, uint64_t gpa, uint32_t size) noexcept nogil
cdef bint mark_entry(CpuState *s, uint64_t gpa, uint32_t size, uint64_t entry, uint64_t bits) noexcept nogil
cdef int page_fault(CpuState *s, uint64_t va, int access, int mode, bint quiet, uint32_t error) noexcept nogil
cdef bint permitted(CpuState *s, int access, int mode, uint64_t rights, bint nx) noexcept nogil
cdef uint32_t page_flags(CpuState *s, int mode, uint64_t rights, uint64_t entry, uint32_t size) noexcept nogil
cdef bint short_walk(CpuState *s, uint64_t va, int access, int mode, uint64_t *gpa, uint32_t *flags) noexcept nogil
cdef int long_walk(CpuState *s, uint64_t va, int access, int mode, bint quiet, uint64_t *gpa,
                   uint32_t *flags) noexcept nogil
