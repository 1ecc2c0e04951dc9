# Descriptor loads, far transfers, system-call instructions.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Segment

# Read an 8-byte descriptor for `selector` from GDT or LDT with supervisor rights. FAULT: `vector`(selector & ~3)
# beyond the limit.
cdef int read_descriptor(CpuState *s, uint16_t selector, uint8_t vector, uint64_t *descriptor,
                         uint64_t *address) noexcept nogil
cdef void unpack_descriptor(uint64_t descriptor, uint16_t selector, Segment *segment) noexcept nogil
# MOV/POP to a data segment register or SS, with every check of SDM Vol. 2 MOV.
cdef int load_segment(CpuState *s, int seg, uint16_t selector) noexcept nogil


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

    # Access rights of flat segments, as SYSCALL and its kin load them; the DPL of user segments is 3.
    FLAT_CODE64 = 0xA09B
    FLAT_CODE32 = 0xC09B
    FLAT_DATA = 0xC093
    DPL3 = 0x60
    REAL_DATA = 0x93
    VM86_DATA = 0xF3

    SELECTOR_TI = 4
    UPPER_WORD = 0xFFFF0000
    R11 = 11

    # Why a task is switched to.
    SWITCH_JUMP = 0
    SWITCH_CALL = 1          # nests: CALL, and interrupts through a task gate
    SWITCH_RETURN = 2


cdef inline int dpl(uint32_t access) noexcept nogil:
    return (access >> 5) & 3


cdef inline bint in_long_mode(CpuState *s) noexcept nogil:
    return (s.efer & 0x400) != 0


# Shared with events.py. `selector & ~3` is the error code of every fault, unless said otherwise.

# A null selector in a segment register. `dpl` counts for SS.
cdef void set_null(Segment *segment, uint16_t selector, int level) noexcept nogil
# Set the accessed flag in memory and in `segment`. DONE or FAULT.
cdef int mark_accessed(CpuState *s, Segment *segment, uint64_t address) noexcept nogil
# Read and unpack a code segment's descriptor: #GP(0) for null, #GP for everything that is not code.
cdef int read_code(CpuState *s, uint16_t selector, Segment *cs, uint64_t *address) noexcept nogil
# L and D are not both set (#GP), the segment is present (#NP).
cdef int check_code(CpuState *s, Segment *cs) noexcept nogil
# Canonical in a 64-bit segment, else within the limit; truncated to the segment's size. #GP(0).
cdef int check_rip(CpuState *s, Segment *cs, uint64_t *rip) noexcept nogil
# For RETF and IRET: the code segment returned to, at any outer or the same level; the stack segment with it.
cdef int read_return_cs(CpuState *s, uint16_t selector, Segment *cs, uint64_t *address) noexcept nogil
cdef int read_return_ss(CpuState *s, uint16_t selector, Segment *cs, Segment *ss, uint64_t *address) noexcept nogil
# Behind a return to an outer level: data segments that it may not use become null.
cdef void drop_segments(CpuState *s) noexcept nogil
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

# Task switch (SDM Vol. 3A 7.3) to the TSS `selector`, SWITCH_*; rip is what the old task goes on with. DONE, or
# FAULT, which may already be in the new task.
cdef int task_switch(CpuState *s, uint16_t selector, int kind, uint64_t rip) noexcept nogil


# Used inside this module only.
cdef bint descriptor_address(CpuState *s, uint16_t selector, uint32_t size, uint64_t *address) noexcept nogil
cdef bint within(Segment *segment, uint64_t offset, uint32_t size) noexcept nogil
cdef bint protected_mode(CpuState *s) noexcept nogil
cdef bint umip(CpuState *s) noexcept nogil
cdef bint is_amd(CpuState *s) noexcept nogil
cdef int segment_of_opcode(Insn *insn) noexcept nogil
cdef int read_word(CpuState *s, Insn *insn, uint16_t *value) noexcept nogil
cdef int write_word(CpuState *s, Insn *insn, uint16_t value) noexcept nogil
cdef int read_far(CpuState *s, Insn *insn, uint16_t *selector, uint64_t *offset) noexcept nogil
cdef int transfer(CpuState *s, Insn *insn, uint16_t selector, uint64_t offset, bint call) noexcept nogil
cdef int transfer_real(CpuState *s, Insn *insn, uint16_t selector, uint64_t offset, bint call) noexcept nogil
cdef int through_gate(CpuState *s, Insn *insn, uint64_t gate, uint64_t address, uint16_t selector,
                      bint call) noexcept nogil
cdef int call_inner(CpuState *s, Insn *insn, Segment *cs, uint64_t address, uint64_t rip, uint32_t size,
                    uint32_t count) noexcept nogil
cdef int push_return(CpuState *s, uint32_t size, uint64_t rip) noexcept nogil
cdef void load_flat(Segment *segment, uint16_t selector, uint32_t access) noexcept nogil
cdef void set_zf(CpuState *s, bint zero) noexcept nogil
cdef bint inspect(CpuState *s, uint16_t selector, uint32_t system_types, Segment *segment, int *status) noexcept nogil
cdef int verify(CpuState *s, Insn *insn, bint write) noexcept nogil
cdef int look(CpuState *s, Insn *insn, uint32_t system_types, bint limit) noexcept nogil
cdef int system_descriptor(CpuState *s, uint16_t selector, uint64_t *descriptor, uint64_t *address,
                           Segment *segment) noexcept nogil
cdef int store_table(CpuState *s, Insn *insn, uint64_t base, uint32_t limit) noexcept nogil
cdef int load_table(CpuState *s, Insn *insn, uint64_t *base, uint32_t *limit) noexcept nogil
cdef int load_task_segment(CpuState *s, int seg, uint16_t selector) noexcept nogil
cdef int task_fault(CpuState *s, uint8_t vector, uint16_t selector) noexcept nogil
cdef int save_task(CpuState *s, uint64_t base, bint wide, uint64_t rip, uint64_t flags) noexcept nogil

cdef int mov_to_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int mov_from_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int push_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int pop_sreg(CpuState *s, Insn *insn) noexcept nogil
cdef int load_far(CpuState *s, Insn *insn) noexcept nogil
cdef int jmp_far_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int call_far_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int jmp_far_mem(CpuState *s, Insn *insn) noexcept nogil
cdef int call_far_mem(CpuState *s, Insn *insn) noexcept nogil
cdef int retf(CpuState *s, Insn *insn) noexcept nogil
cdef int lldt(CpuState *s, Insn *insn) noexcept nogil
cdef int ltr(CpuState *s, Insn *insn) noexcept nogil
cdef int sldt(CpuState *s, Insn *insn) noexcept nogil
cdef int str_(CpuState *s, Insn *insn) noexcept nogil
cdef int verr(CpuState *s, Insn *insn) noexcept nogil
cdef int verw(CpuState *s, Insn *insn) noexcept nogil
cdef int lar(CpuState *s, Insn *insn) noexcept nogil
cdef int lsl(CpuState *s, Insn *insn) noexcept nogil
cdef int sgdt(CpuState *s, Insn *insn) noexcept nogil
cdef int sidt(CpuState *s, Insn *insn) noexcept nogil
cdef int lgdt(CpuState *s, Insn *insn) noexcept nogil
cdef int lidt(CpuState *s, Insn *insn) noexcept nogil
cdef int syscall(CpuState *s, Insn *insn) noexcept nogil
cdef int sysret(CpuState *s, Insn *insn) noexcept nogil
cdef int sysenter(CpuState *s, Insn *insn) noexcept nogil
cdef int sysexit(CpuState *s, Insn *insn) noexcept nogil
cdef int arpl(CpuState *s, Insn *insn) noexcept nogil
cdef int swapgs(CpuState *s, Insn *insn) noexcept nogil
