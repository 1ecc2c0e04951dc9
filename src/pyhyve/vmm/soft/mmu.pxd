# Page walks, the software TLB and typed access to guest memory.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Engine, StlbEntry, TlbEntry, WalkEntry


cdef extern from *:
    # GCC builtins for operand types that state.pxd does not declare.
    uint64_t load64 "__atomic_load_n"(uint64_t *where, int order) noexcept nogil
    bint swap32 "__atomic_compare_exchange_n"(uint32_t *where, uint32_t *expected, uint32_t value, bint weak,
                                              int success, int failure) noexcept nogil
    void fence "__atomic_thread_fence"(int order) noexcept nogil


cdef enum:
    # Result flags of walk().
    PAGE_GLOBAL = 1
    PAGE_WRITABLE = 2    # writable now: allowed in that mode, and the dirty flag is set
    PAGE_USER = 4
    PAGE_LARGE = 8       # 2 or 4 MiB
    PAGE_HUGE = 16       # 1 GiB

    # After so many races with another vCPU that changes the entries all the time, a walk goes by what it has read.
    WALK_TRIES = 1000

    # `access` of tlb_fill: a read-modify-write, or a store of unknown extent; always together with ACCESS_WRITE.
    ACCESS_RMW = 4
    ACCESS_UNALIGNED = 8  # for `linear`: the instruction is not checked for alignment

    PAGE = 0x1000
    PAGE_OFFSET = 0xFFF
    FRAME = 0xFFFFFFFFFF000      # bits 12-51

    # Masks that Cython would take for Python integers if they stood in the code.
    FRAME32 = 0xFFFFF000
    FRAME_4M = 0xFFC00000
    PDPT_BASE = 0xFFFFFFE0
    OFFSET_2M = 0x1FFFFF
    GOLDEN = 0x9E3779B1          # 2^32 over the golden ratio, for hashing

    # Paging-structure entries (SDM Vol. 3A 4.3-4.5).
    PTE_P = 1
    PTE_W = 2
    PTE_U = 4
    PTE_A = 0x20
    PTE_D = 0x40
    PTE_PS = 0x80
    PTE_G = 0x100
    RESERVED_4LEVEL = 0xFC00000000000        # bits 46-51: MAXPHYADDR is 46
    RESERVED_PAE = 0x7FFFC00000000000        # bits 46-62
    NX_SHIFT = 63

# Guest-physical to host address, or 0 where there is no RAM (or, for a write, only ROM).
cdef uint64_t ram_host(Engine *e, uint64_t gpa, bint write) noexcept nogil

# Walk the page tables for linear `va`. DONE with *gpa (and *flags: bit 0 global, bit 1 writable now (dirty set),
# bit 2 user page: PAGE_*), or FAULT with the #PF recorded (nothing recorded if `quiet`). Sets accessed and dirty bits
# atomically unless `quiet`. With paging off: identity.
cdef int walk(CpuState *s, uint64_t va, int access, int mode, bint quiet, uint64_t *gpa, uint32_t *flags) noexcept nogil

# Linear-address accesses of 1 to 8 bytes with the rights of `mode` (MMU_*): DONE, FAULT or LEAVE (a device read that
# Python must answer; the caller returns LEAVE with rip unchanged and is run again, then the value comes from the
# replay log). Pages may be crossed. A write to a device is queued in s.mmio_write and counts as DONE: mem_write never
# returns LEAVE.
cdef int mem_read(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t *value) noexcept nogil
cdef int mem_write(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t value) noexcept nogil
# The same read for what the processor reads by itself (descriptor tables, TSS), with supervisor rights: DONE or FAULT.
# Device memory is not asked and reads as all ones.
cdef int system_read(CpuState *s, uint64_t va, uint32_t size, uint64_t *value) noexcept nogil
# Check that a write of `size` bytes at `va` would not fault (for instructions that must be all or nothing).
cdef int mem_probe(CpuState *s, uint64_t va, uint32_t size, int access, int mode) noexcept nogil

# Host pointer to linear `va`, valid up to the end of its page, or NULL: then *status is FAULT (recorded) or
# LEAVE (not RAM: use mem_read / mem_write). A pointer for writing has already invalidated the translated code that
# lies in the `size` bytes from va (and only those may be written, before the next call or the end of the helper).
cdef uint8_t *mem_pointer(CpuState *s, uint64_t va, uint32_t size, int access, int mode, int *status) noexcept nogil

# Effective to linear address: base, limit and type checks of segment `seg` outside 64-bit mode, canonical check in it.
# `size` bytes are accessed. FAULT is #SS(0) for SS, else #GP(0).
cdef int linear(CpuState *s, int seg, uint64_t ea, uint32_t size, int access, uint64_t *va) noexcept nogil

# Where MODE_ALIGN is set (`linear` does it): DONE, or FAULT with #PF or #AC(0) recorded.
cdef int check_alignment(CpuState *s, uint64_t va, uint32_t size, uint32_t access) noexcept nogil

# Effective address of the memory operand, truncated to its address size.
cdef uint64_t effective_address(CpuState *s, Insn *insn) noexcept nogil

# Both together, then read / write with the rights of the running code (s.mmu_mode).
cdef int read_operand(CpuState *s, Insn *insn, uint32_t size, uint64_t *value) noexcept nogil
cdef int write_operand(CpuState *s, Insn *insn, uint32_t size, uint64_t value) noexcept nogil

# TLB maintenance. The jump caches go with it.
cdef void tlb_flush(CpuState *s, bint keep_global) noexcept nogil
# Once, on a zeroed CpuState, before anything else: zero is not an empty tag.
cdef void tlb_init(CpuState *s) noexcept nogil
cdef void tlb_flush_page(CpuState *s, uint64_t va) noexcept nogil
# Drop write permission for a guest-physical page (it now holds translated code) from every TLB of every vCPU.
cdef void tlb_protect(Engine *e, uint64_t gpa) noexcept nogil

# The slow path of emitted code. Returns what to add to `va` to get a host address: RAM filled into the TLB, or the
# bounce buffer. *status: DONE, FAULT or LEAVE (or CODE_WRITE: the write hits the block that runs,
# or the access touches watched bytes; go on in step mode).
cdef enum:
    CODE_WRITE = 3
    ALONE = 4            # an atomic access that crosses a page: run it again with the world stopped

    # CpuState.bounce_active
    BOUNCED = 1          # the store goes into the bounce buffer
    OPEN_STORE = 2       # it goes to a page with code, from which another vCPU may translate before it is done
cdef uint64_t tlb_fill(CpuState *s, uint64_t va, uint32_t size, uint32_t access, int *status) noexcept nogil
# After a store of emitted code: write the bounce buffer out, or close the store.
cdef void bounce_finish(CpuState *s) noexcept nogil

# A store through mem_pointer, or one of emitted code that the slow path let through, is done: forget what another vCPU
# translated from there meanwhile.
cdef void close_store(CpuState *s) noexcept nogil

# Used inside this module only.
cdef bint is_apic(CpuState *s, uint64_t gpa) noexcept nogil
cdef uint64_t page_table_entry(Engine *e, uint64_t gpa, uint32_t size) noexcept nogil
cdef bint mark_entry(CpuState *s, uint64_t gpa, uint32_t size, uint64_t entry, uint64_t bits) noexcept nogil
cdef int page_fault(CpuState *s, uint64_t va, int access, int mode, bint quiet, uint32_t error) noexcept nogil
cdef bint permitted(CpuState *s, int access, int mode, uint64_t rights, bint nx) noexcept nogil
cdef int lookup(CpuState *s, uint64_t va, int access, int mode, uint64_t *host, uint64_t *gpa) noexcept nogil
cdef uint64_t next_page(CpuState *s, uint64_t va) noexcept nogil
cdef uint64_t load(uint64_t host, uint32_t size) noexcept nogil
cdef void store(uint64_t host, uint32_t size, uint64_t value) noexcept nogil
cdef uint32_t piece(uint32_t size) noexcept nogil
cdef int device_read(CpuState *s, uint64_t gpa, uint32_t size, uint64_t *value) noexcept nogil
cdef void device_write(CpuState *s, uint64_t gpa, uint32_t size, uint64_t value) noexcept nogil
cdef int read_part(CpuState *s, uint64_t host, uint64_t gpa, uint8_t *buffer, uint32_t size) noexcept nogil
cdef void write_part(CpuState *s, uint64_t host, uint64_t gpa, uint8_t *buffer, uint32_t size) noexcept nogil
cdef int read_slow(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t *value) noexcept nogil
cdef int write_slow(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t value) noexcept nogil
cdef bint overwrites_code(CpuState *s, uint64_t host, uint64_t gpa, uint32_t size) noexcept nogil
cdef void wrote_memory(CpuState *s, uint64_t gpa, uint32_t size) noexcept nogil
cdef void clear_entry(TlbEntry *t, uint64_t index) noexcept nogil
cdef bint writable_now(CpuState *s, int mode, uint64_t va) noexcept nogil
cdef void mark_local(CpuState *s, int mode, uint64_t index) noexcept nogil
cdef void flush_marked(CpuState *s, int mode) noexcept nogil
cdef uint64_t empty_tag(uint64_t index) noexcept nogil
cdef StlbEntry *stlb_entry(CpuState *s, int mode, uint64_t page) noexcept nogil
cdef bint refill(CpuState *s, uint64_t page, int access, int mode) noexcept nogil
cdef int fill(CpuState *s, uint64_t va, int access, int mode, uint64_t *host, uint64_t *gpa) noexcept nogil
cdef uint32_t current_key(CpuState *s, uint64_t page) noexcept nogil
cdef void drop_key(CpuState *s, uint64_t half) noexcept nogil
cdef uint32_t page_flags(CpuState *s, int mode, uint64_t rights, uint64_t entry, uint32_t size) noexcept nogil
cdef void forget_page(CpuState *s, uint64_t va) noexcept nogil
cdef WalkEntry *walk_entry(CpuState *s, uint64_t va) noexcept nogil
cdef int long_walk(CpuState *s, uint64_t va, int access, int mode, bint quiet, uint64_t *gpa,
                   uint32_t *flags) noexcept nogil
cdef bint short_walk(CpuState *s, uint64_t va, int access, int mode, uint64_t *gpa, uint32_t *flags) noexcept nogil
cdef void note_large(CpuState *s, uint64_t va, uint32_t flags) noexcept nogil
cdef bint maybe_large(CpuState *s, uint64_t va, int shift) noexcept nogil
cdef uint32_t large_hash(uint64_t va, int shift) noexcept nogil
cdef void flush_region(CpuState *s, uint64_t va, int shift) noexcept nogil
