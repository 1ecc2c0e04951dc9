# The software TLBs.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine, StlbEntry, TlbEntry


cdef extern from *:
    void fence "__atomic_thread_fence"(int order) noexcept nogil


cdef enum:
    GOLDEN = 0x9E3779B1          # 2^32 over the golden ratio, for hashing


# Where linear `va` lies: DONE with the host address (0 if not RAM, or ROM that is to be written) and the guest-physical
# address, or FAULT with the #PF recorded. `access` is ACCESS_READ or ACCESS_WRITE.
cdef int lookup(CpuState *s, uint64_t va, int access, int mode, uint64_t *host, uint64_t *gpa) noexcept nogil
# Has the TLB a write tag for the page of `va`? If not, it may hold code.
cdef bint writable_now(CpuState *s, int mode, uint64_t va) noexcept nogil

# TLB maintenance. The jump caches go with it.
cdef void tlb_flush(CpuState *s, bint keep_global) noexcept nogil
cdef void tlb_flush_page(CpuState *s, uint64_t va) noexcept nogil
# Once, on a zeroed CpuState, before anything else: zero is not an empty tag.
cdef void tlb_init(CpuState *s) noexcept nogil
# Drop write permission for a guest-physical page (it now holds translated code) from every TLB of every vCPU.
cdef void tlb_protect(Engine *e, uint64_t gpa) noexcept nogil
# Drop what a page fault invalidates.
cdef void forget_page(CpuState *s, uint64_t va) noexcept nogil

# Used inside this module only.
cdef uint64_t empty_tag(uint64_t index) noexcept nogil
cdef StlbEntry *stlb_entry(CpuState *s, int mode, uint64_t page) noexcept nogil
cdef bint refill(CpuState *s, uint64_t page, int access, int mode) noexcept nogil
cdef int fill(CpuState *s, uint64_t va, int access, int mode, uint64_t *host, uint64_t *gpa) noexcept nogil
cdef uint32_t current_key(CpuState *s, uint64_t page) noexcept nogil
cdef void drop_key(CpuState *s, uint64_t half) noexcept nogil
cdef uint32_t large_hash(uint64_t va, int shift) noexcept nogil
cdef void clear_entry(TlbEntry *t, uint64_t index) noexcept nogil
cdef void mark_local(CpuState *s, int mode, uint64_t index) noexcept nogil
cdef void note_large(CpuState *s, uint64_t va, uint32_t flags) noexcept nogil
cdef bint maybe_large(CpuState *s, uint64_t va, int shift) noexcept nogil
cdef void flush_region(CpuState *s, uint64_t va, int shift) noexcept nogil
cdef void flush_marked(CpuState *s, int mode) noexcept nogil
