# The code cache: translated blocks by guest-physical address and mode, their invalidation, and the memory they live in.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine

cdef enum:
    HASH_BITS = 17
    HASH_SIZE = 131072
    HASH_FACTOR = 0x9E3779B97F4A7C15   # 2^64 over the golden ratio
    NO_PAGE = 0xFFFFFFFFFFFFFFFF
    HARMLESS_WRITES = 64
    CLAIMING = 1
    CLAIMED = 2
    MAX_DROPS = 20
    NO_MODE = 0x80000000     # CpuState.slot_mode: the slot must be looked for


cdef extern from *:
    # GCC builtins for operand types that state.pxd does not declare.
    void store_int32 "__atomic_store_n"(int32_t *where, int32_t value, int order) noexcept nogil
    CodePage *load_pointer "__atomic_load_n"(CodePage **where, int order) noexcept nogil
    uint32_t load_uint32 "__atomic_load_n"(uint32_t *where, int order) noexcept nogil
    void store_uint64 "__atomic_store_n"(uint64_t *where, uint64_t value, int order) noexcept nogil


cdef extern from "sys/mman.h":
    int memfd_create(const char *name, unsigned int flags) noexcept nogil


cdef struct Link:
    # A jump inside a page that leads to another block, or to its own cold exit
    uint64_t site            # executable address of its rel32, which lies in one aligned quadword
    uint64_t cold            # where it leads while the target is not translated
    uint16_t checked         # it comes in where events are looked at
    uint16_t singly          # it wants the block with look-ups for single accesses
    Link *next               # of those that lead to the same block


cdef struct MapEntry:
    uint32_t host            # offset from Block.code where the host code of an instruction (or its cold part) starts
    uint16_t guest           # page offset of the instruction
    uint16_t length


cdef struct Block:
    uint64_t gpa             # guest-physical address of the first byte
    Block *hash_next
    uint64_t gpa2            # guest-physical page of the part behind a page border, or NO_PAGE
    uint64_t code            # executable address of the lookup entry (T0 = linear rip)
    uint32_t mode
    uint64_t check           # executable address of the event check between the two
    uint64_t chained         # executable address of the entry for jumps inside the page
    uint64_t cold_exit       # executable address of its cold exit to the lookup
    Link *links              # jumps that lead to `chained`
    uint64_t host_end
    Block *page_next         # blocks of the page of gpa
    Block *page2_next        # blocks of the page of gpa2
    MapEntry *map
    uint32_t map_count
    uint16_t size            # guest bytes
    uint16_t insns
    uint16_t flags_in        # arithmetic flags that matter at the entry
    uint8_t valid
    uint8_t assumes          # flags are dead at its end because of what another block of its page does


cdef struct CodePage:
    Block *first
    Block *second            # blocks of which only the tail lies in this page
    uint64_t assumed         # the same for code that was read ahead only, for those blocks that are marked `assumes`
    uint64_t granules        # which 64-byte pieces hold translated code
    uint32_t harmless        # writes beside the code since it was last dropped
    uint32_t drops           # how often that happened
    uint64_t homes[16][2]    # [vCPU][of user code]: the linear address it runs at, in the low bits CpuState.home_epoch
    uint64_t number          # its place in CodeCache.pages
    CodePage *before         # the page that was made before it
    uint32_t claimed         # there is translated code, or soon will be: nobody gets a write tag; CLAIMED: nobody has one


cdef struct Stubs:
    uint64_t enter
    uint64_t exit_lookup     # T0 = linear target
    uint64_t exit_chain      # T0 = page offset of the target, T1 = Link *
    uint64_t exit_event      # T0 = page offset to go on at
    uint64_t exit_helper     # T0 = page offset, T1 = Insn *
    uint64_t exit_raise      # T0 = page offset, T1 = vector
    uint64_t slow            # T0 = linear (or effective) address, T1 = what; returns T2
    uint64_t refill[3][2]    # the same by MMU_*, for a load and a store: looks at the second TLB first
    uint64_t span[3][2]      # the same for a span; never fails: 0 in T1 if all of the span is there
    uint64_t site[3][2]      # refill for a look-up that remembers its page; T2 is the number of its Site
    uint64_t site_span[3][2] # the same for a span
    uint64_t finish          # after a store
    uint64_t host_fault
    uint64_t jump[8]         # T0 = linear target; jump cache of each mode slot
    uint64_t missed[8]       # the same for a return that was not foreseen
    uint64_t crossing[8]     # the same for a crossing; T1 is the offset of its place in CpuState


cdef struct CodeCache:
    uint8_t *rw              # writable mapping
    uint64_t rx              # executable mapping of the same memory
    uint64_t size
    uint64_t start           # first byte behind the stubs
    uint64_t used
    uint8_t *data            # arena of Blocks, maps and Insns
    uint64_t data_size
    uint64_t data_used
    Block *hash[131072]      # HASH_SIZE
    Block **index            # blocks in the order of their code
    uint32_t index_count
    uint32_t index_size
    CodePage **pages         # by guest-physical page number
    CodePage *newest         # of those that there are
    uint64_t page_count
    Stubs stubs
    uint32_t modes[8]        # which mode each slot stands for
    uint32_t mode_count
    uint64_t crossing_cold[65536]  # CROSSINGS: where each leads while its target is not known
    uint32_t crossing_count
    uint32_t next_site[2]    # [store]: the place of the next look-up that has one
    uint64_t flushes
    uint64_t invalidated     # blocks dropped because their code was written


cdef int code_create(Engine *e, CpuState *s, uint64_t size) noexcept nogil
cdef void code_destroy(Engine *e) noexcept nogil
cdef void code_flush(Engine *e) noexcept nogil
# More memory may hold code now. While the world is stopped; 0, or -1 without memory.
cdef int code_grow(Engine *e) noexcept nogil
cdef void *code_alloc(CodeCache *c, uint64_t size) noexcept nogil
cdef Block *block_find(CodeCache *c, uint64_t gpa, uint32_t mode) noexcept nogil
# The code lock is held from claim_pages to block_insert, and around retire and link.
# Before the code bytes of a block are read: from now on every write to its pages comes to code_written. -1: no room.
cdef int claim_pages(Engine *e, CpuState *s, uint64_t gpa, uint64_t gpa2) noexcept nogil
cdef int block_insert(Engine *e, Block *block) noexcept nogil
cdef void link_to(CodeCache *c, Link *link, Block *block) noexcept nogil
cdef void retire(CodeCache *c, Block *b) noexcept nogil
cdef Block *block_at(CodeCache *c, uint64_t host_pc) noexcept nogil
cdef MapEntry *map_at(Block *block, uint64_t host_pc) noexcept nogil
# The slot that stands for `mode`, or -1: needs no lock, for slots are given back only while the world is stopped.
cdef int known_slot(CodeCache *c, uint32_t mode) noexcept nogil
cdef int mode_slot(Engine *e, uint32_t mode) noexcept nogil

# Does this guest-physical page hold translated code? (Then stores to it must take the slow path.)
cdef bint has_code(Engine *e, uint64_t gpa) noexcept nogil
# `size` bytes at `gpa` (not crossing a page) are about to be written, or have been, by vCPU `s` (NULL: by the VMM): drop
# what was translated from them. True if that is the block which runs, so that it must be left before the write.
cdef bint code_written(Engine *e, CpuState *s, uint64_t gpa, uint32_t size) noexcept nogil
# The same for any range, behind the write, by a thread of the VMM.
cdef void code_changed(Engine *e, uint64_t gpa, uint64_t size) noexcept nogil
# Drop the translations of every page that has code at one of these page offsets (4096 bits).
cdef void offsets_changed(Engine *e, CpuState *s, uint64_t *offsets) noexcept nogil
cdef bint page_covers(CodePage *page, uint64_t *offsets) noexcept nogil

cdef uint64_t pages_of(Engine *e) noexcept nogil
cdef uint32_t hash_of(uint64_t gpa, uint32_t mode) noexcept nogil
cdef CodePage *page_of(CodeCache *c, uint64_t gpa) noexcept nogil
cdef int claim_page(Engine *e, CpuState *s, uint64_t gpa) noexcept nogil
cdef void patch_rel32(CodeCache *c, uint64_t site, uint64_t target) noexcept nogil
cdef uint64_t granules(uint32_t start, uint32_t size) noexcept nogil
cdef void count_harmless(CodeCache *c, CodePage *page) noexcept nogil
cdef void divert(CodeCache *c, uint64_t where, uint64_t to) noexcept nogil
