# Descriptors and segment registers. `selector & ~3` is the error code of every fault, unless said otherwise.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Segment


cdef extern from *:
    # GCC builtins for an operand type that state.pxd does not declare.
    uint8_t fetch_or8 "__atomic_fetch_or"(uint8_t *where, uint8_t value, int order) noexcept nogil
    uint8_t fetch_and8 "__atomic_fetch_and"(uint8_t *where, uint8_t value, int order) noexcept nogil


cdef enum:
    # Types of system descriptors (SDM Vol. 3A 3.5); in long mode only LDT, 9, B, C, E and F exist, 64 bits wide.
    TYPE_TSS16 = 1
    TYPE_LDT = 2
    TYPE_TSS16_BUSY = 3
    TYPE_CALL_GATE16 = 4
    TYPE_TASK_GATE = 5
    TYPE_INTERRUPT_GATE16 = 6
    TYPE_TRAP_GATE16 = 7
    TYPE_TSS = 9
    TYPE_TSS_BUSY = 0xB
    TYPE_CALL_GATE = 0xC
    TYPE_INTERRUPT_GATE = 0xE
    TYPE_TRAP_GATE = 0xF
    TYPE_BUSY = 2            # the bit by which a busy TSS differs

    # Access rights in real and virtual-8086 mode.
    REAL_DATA = 0x93
    VM86_DATA = 0xF3

    SELECTOR_TI = 4
    UPPER_WORD = 0xFFFF0000


cdef inline int dpl(uint32_t access) noexcept nogil:
    return (access >> 5) & 3


cdef inline bint in_long_mode(CpuState *s) noexcept nogil:
    return (s.efer & 0x400) != 0


# Read an 8-byte descriptor for `selector` from GDT or LDT with supervisor rights. FAULT: `vector`(selector & ~3)
# beyond the limit.
cdef int read_descriptor(CpuState *s, uint16_t selector, uint8_t vector, uint64_t *descriptor,
                         uint64_t *address) noexcept nogil
cdef void unpack_descriptor(uint64_t descriptor, uint16_t selector, Segment *segment) noexcept nogil
# A null selector in a segment register. `dpl` counts for SS.
cdef void set_null(Segment *segment, uint16_t selector, int level) noexcept nogil
# Set the accessed flag in memory and in `segment`. DONE or FAULT.
cdef int mark_accessed(CpuState *s, Segment *segment, uint64_t address) noexcept nogil
# Set or clear bits of the byte with the type of the descriptor at `address`, as one locked operation. DONE or FAULT.
cdef int change_type(CpuState *s, uint64_t address, uint8_t set, uint8_t clear) noexcept nogil
# Read and unpack a code segment's descriptor: #GP(0) for null, #GP for everything that is not code.
cdef int read_code(CpuState *s, uint16_t selector, Segment *cs, uint64_t *address) noexcept nogil
# L and D are not both set (#GP), the segment is present (#NP).
cdef int check_code(CpuState *s, Segment *cs) noexcept nogil
# Canonical in a 64-bit segment, else within the limit; truncated to the segment's size. #GP(0).
cdef int check_rip(CpuState *s, Segment *cs, uint64_t *rip) noexcept nogil
# For RETF and IRET: the code segment returned to, at any outer or the same level.
cdef int read_return_cs(CpuState *s, uint16_t selector, Segment *cs, uint64_t *address) noexcept nogil
# With a stack to go with it: the stack segment `selector` and all that is still to be checked, both marked accessed;
# then the change itself. Data segments that an outer level may not use become null.
cdef int check_return(CpuState *s, Segment *cs, uint64_t cs_address, uint64_t *rip, uint16_t selector,
                      Segment *ss) noexcept nogil
cdef void enter_return(CpuState *s, Segment *cs, Segment *ss, uint64_t rip, uint64_t sp) noexcept nogil
# CS and CPL, then rip; update_mode is done.
cdef void enter_code(CpuState *s, Segment *cs, int level, uint64_t rip) noexcept nogil
cdef void set_real(CpuState *s, int seg, uint16_t selector) noexcept nogil
# The current stack: the bits of rsp that count, and slots at `sp` (already cut to the mask).
cdef uint64_t stack_mask(CpuState *s) noexcept nogil
cdef int read_stack(CpuState *s, uint64_t sp, uint32_t size, uint64_t *value) noexcept nogil
cdef int write_stack(CpuState *s, uint64_t sp, uint32_t size, uint64_t value) noexcept nogil
cdef void set_sp(CpuState *s, uint64_t value, uint64_t mask) noexcept nogil
# An inner level's stack, from a 16- or 32-bit TSS with all checks (#TS, #SS), and pushes on it (#SS).
cdef int inner_stack(CpuState *s, int level, Segment *ss, uint64_t *sp) noexcept nogil
cdef int push_new(CpuState *s, Segment *ss, uint64_t *sp, uint32_t size, uint64_t value) noexcept nogil
cdef void set_new_stack(CpuState *s, Segment *ss, uint64_t sp) noexcept nogil
# A stack pointer at `offset` of a 64-bit TSS: #TS beyond its limit, #SS(0) if it is not canonical.
cdef int tss_rsp(CpuState *s, uint32_t offset, uint64_t *rsp) noexcept nogil
cdef bint descriptor_address(CpuState *s, uint16_t selector, uint32_t size, uint64_t *address) noexcept nogil
cdef bint protected_mode(CpuState *s) noexcept nogil
cdef int read_word(CpuState *s, Insn *insn, uint16_t *value) noexcept nogil
cdef int write_word(CpuState *s, Insn *insn, uint16_t value) noexcept nogil
cdef int read_far(CpuState *s, Insn *insn, uint16_t *selector, uint64_t *offset) noexcept nogil

# Used inside this module only.
cdef int read_return_ss(CpuState *s, uint16_t selector, Segment *cs, Segment *ss, uint64_t *address) noexcept nogil
cdef void drop_segments(CpuState *s) noexcept nogil
# MOV/POP to a data segment register or SS, with every check of SDM Vol. 2 MOV.
cdef int load_segment(CpuState *s, int seg, uint16_t selector) noexcept nogil
cdef bint within(Segment *segment, uint64_t offset, uint32_t size) noexcept nogil
cdef int segment_of_opcode(Insn *insn) noexcept nogil

# Helpers
cdef int mov_to_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_from_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int push_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int pop_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int load_far(CpuState *s, Insn *insn) noexcept nogil
