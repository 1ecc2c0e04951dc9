# Where code lies by its linear address: the jump caches, and a cache of code pages. Each vCPU has its own.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState

cdef enum:
    NO_TAG = 0xFFFFFFFFFFFFFFFF


# The code of linear `rip` in the jump cache of the mode that runs, or 0.
cdef uint64_t find_jump(CpuState *s, uint64_t rip) noexcept nogil
# Remember it. s.code_local tells whether it lies in a page that is not global.
cdef void note_jump(CpuState *s, uint64_t rip, uint64_t code) noexcept nogil

# Guest-physical address of code at `va`, fetched with the rights of `user` (MMU_USER or MMU_KERNEL): as walk(), through
# a cache. Of the flags only PAGE_GLOBAL counts.
cdef int code_page(CpuState *s, uint64_t va, int user, uint64_t *gpa, uint32_t *flags) noexcept nogil

# Forget where code lies. `keep_global`: not what lies in global pages, as far as that is easily told.
cdef void clear_jumps(CpuState *s, bint keep_global) noexcept nogil
# The same for the user's code, or for the kernel's.
cdef void clear_jumps_of(CpuState *s, bint user, bint keep_global) noexcept nogil
# Forget one cache whole.
cdef void clear_slot(CpuState *s, uint32_t slot) noexcept nogil
# May anything be remembered of code in the page of `va`?
cdef bint has_jumps(CpuState *s, bint user, uint64_t va) noexcept nogil
# The same for the region of `1 << shift` bytes (4 MiB or 1 GiB) around it.
cdef bint has_jumps_in(CpuState *s, bint user, uint64_t va, int shift) noexcept nogil
# Once, on a zeroed CpuState: zero is not an empty entry.
cdef void jumps_init(CpuState *s) noexcept nogil

# Which of jump_pages.
cdef uint32_t filter_of(bint user, uint64_t va) noexcept nogil
cdef uint32_t jump_set(uint64_t rip) noexcept nogil
