# One block of guest instructions to host code.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

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
    COLD_SPAN = 5            # a span that the TLB does not have: on in a block with MODE_SINGLY if that stays so


    # Context.held: T2 finds the memory of the span with this number
    SPAN_HELD = 0x100
    NO_SPAN = 0xFF


cdef struct Span:
    # What instructions of a block access around a register, with one look-up in front of instruction `at` (spans.py)
    int32_t low              # bytes, from where the register points at the start of the block
    int32_t high
    uint32_t base            # register, or REG_RIP
    uint32_t at
    uint32_t first           # the first and the last instruction that accesses it
    uint32_t last
    uint32_t accesses
    uint32_t writes
    uint32_t branch          # a conditional jump stands between
    uint8_t *kept            # where the look-up's result is stored, NULL if it was loaded from there


cdef struct Cold:
    uint8_t *rel32           # the jump that leads here
    uint64_t back            # executable address to go on at; of a chain, its Link
    uint32_t kind
    uint32_t insn
    uint32_t what            # T1 of the slow path, or a page offset
    uint32_t live            # RCX and T2 are exchanged on arrival
    uint32_t part            # which access of the instruction
    uint32_t site            # the look-up's Site, as offset in CpuState, or 0
    uint32_t inside          # T0 is what lies between the page of the Site and the address
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
    uint32_t singly          # MODE_SINGLY: no spans
    uint32_t base            # where emit_mem_form finds the memory operand: host registers and a constant
    uint32_t index
    int64_t disp
    uint32_t masked          # what the slow path must know of the current instruction's mask (evex)
    uint32_t loop            # so many instructions from the start are a loop; 0: none
    uint32_t steps[16]       # how far each register moves in a round of it
    uint64_t site            # the Site of the next look-up, as offset in CpuState, or 0
    uint32_t inside          # it may leave T0 as the distance from the page's start
    uint32_t holding         # `held` may be used and changed
    uint32_t held[3]         # which spilled guest register's value T0, T1 and T2 have, or NO_REG
    uint64_t page_gpa
    uint32_t mmu             # MMU_*: with whose rights memory is accessed
    uint64_t tlb             # offset of that TLB
    Insn insns[64]
    uint32_t live[64]        # flags that must survive the memory accesses of the instruction
    uint32_t live_out[64]    # flags that matter behind it
    Span spans[32]
    uint32_t span_count
    uint8_t operand_span[64] # of each instruction's operand, and of what it pushes or pops: a number, or NO_SPAN
    uint8_t stack_span[64]
    int32_t moved[64]        # how far RSP has moved by then since the start of the block
    MapEntry map[400]
    uint32_t map_count
    Cold cold[256]


# Translate the block at guest-physical `gpa`, `code` being its bytes in host memory up to the page's end (`avail`), or a
# copy of up to 15 bytes when the first instruction crosses into page `gpa2`. NULL if the cache is full (flush, try again).
# `mode` is that of the vCPU, with MODE_STEP for a block of one instruction, or MODE_SINGLY.
cdef Block *translate(Engine *e, CpuState *s, uint64_t gpa, uint64_t gpa2, const uint8_t *code, uint32_t avail,
                      uint32_t mode) noexcept nogil
# Does the first instruction at `code` need more than `avail` bytes?
cdef bint crosses_page(const uint8_t *code, uint32_t avail, uint32_t mode) noexcept nogil
