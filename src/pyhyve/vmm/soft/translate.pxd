# One block of guest instructions to host code.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.blocks cimport Block, CodeCache, MapEntry
from pyhyve.vmm.soft.decode cimport OpInfo
from pyhyve.vmm.soft.encode cimport Asm
from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Engine

cdef enum:
    MAX_INSNS = 48
    MAX_COLD = 256
    BLOCK_BYTES = 49152      # more than the longest block can need

    # Context.part: what the store of an instruction with several accesses writes
    PART_OPERAND = 0
    PART_PUSH = 1

    COLD_LOAD = 0            # slow path of a load: back into the hot path
    COLD_STORE = 1           # slow path of a store: does the access itself
    COLD_CHAIN = 2           # a jump inside the page whose target is not translated yet
    COLD_EVENT = 3           # go back to the loop at a page offset
    COLD_RESTORE_EVENT = 4   # the same, RCX is in T1
    COLD_CROSSING = 6        # what crossing number `what` leads to at first
    COLD_KEEPING = 7         # the push of a call that has its target in T0
    COLD_GROUP = 5           # pushes or pops, `what` of them, that the TLB does not have together: one by one


cdef struct Cold:
    uint8_t *rel32           # the jump that leads here
    uint64_t back            # executable address to go on at; of a chain, its Link
    uint32_t kind
    uint32_t insn
    uint32_t what            # T1 of the slow path, or a page offset
    uint32_t live            # RCX and T2 are exchanged on arrival
    uint32_t part            # which access of the instruction
    uint32_t linked          # a chain that leads to its target already


cdef struct Context:
    Asm a
    CpuState *s
    CodeCache *c
    Block *block
    uint32_t mode
    uint32_t slot
    uint32_t count
    uint32_t colds
    uint32_t current
    uint32_t part            # accesses of the current instruction so far
    uint32_t masked          # what the slow path must know of the current instruction's mask (evex)
    uint32_t holding         # `held` may be used and changed
    uint32_t held[3]         # which spilled guest register's value T0, T1 and T2 have, or NO_REG
    uint64_t page_gpa
    uint64_t tlb             # offset of the TLB in use
    Insn insns[64]
    uint32_t live[64]        # flags that must survive the memory accesses of the instruction
    uint32_t live_out[64]    # flags that matter behind it
    MapEntry map[400]
    uint32_t map_count
    Cold cold[256]


# Translate the block at guest-physical `gpa`, `code` being its bytes in host memory up to the page's end (`avail`), or a
# copy of up to 15 bytes when the first instruction crosses into page `gpa2`. NULL if the cache is full (flush, try again).
# `max_insns` is 1 for single stepping.
cdef Block *translate(Engine *e, CpuState *s, uint64_t gpa, uint64_t gpa2, const uint8_t *code, uint32_t avail,
                      uint32_t max_insns) noexcept nogil
# Does the first instruction at `code` need more than `avail` bytes?
cdef bint crosses_page(const uint8_t *code, uint32_t avail, uint32_t mode) noexcept nogil
