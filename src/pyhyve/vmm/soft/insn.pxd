# A decoded instruction, as decode.py fills it in and the translator and helpers read it.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport LOW32, CpuState

cdef enum:
    NO_REG = 0xFF
    REG_RIP = 16

    # Insn.mem_access
    MEM_NONE = 0     # no memory operand, or only its address counts (LEA)
    MEM_READ = 1
    MEM_WRITE = 2
    MEM_RMW = 3


cdef struct Insn:
    uint64_t imm             # sign-extended to 64 bits where the instruction does so
    int64_t disp
    uint16_t op              # row of the opcode table
    uint16_t imm2            # ENTER's level; selector of a far pointer
    uint16_t page_offset     # of the first byte, within the page
    uint16_t mem_size        # bytes of the memory operand
    uint8_t length
    uint8_t map              # 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A
    uint8_t opcode
    uint8_t has_modrm
    uint8_t modrm
    uint8_t mod
    uint8_t reg              # with REX.R / VEX.R
    uint8_t rm               # with REX.B, as a register number
    uint8_t rex              # raw REX byte, 0 if none
    uint8_t rex_w            # REX.W or VEX.W
    uint8_t vex              # 0: legacy, 1: VEX, 2: EVEX
    uint8_t vex_l            # vector length: 0 = 128, 1 = 256, 2 = 512 (EVEX.L'L, 3 where it is only a rounding mode)
    uint8_t vvvv             # register number
    uint8_t vex_pp           # 0, 1 = 66, 2 = F3, 3 = F2
    uint8_t opsize           # 2, 4, 8
    uint8_t addrsize         # 2, 4, 8
    uint8_t rep              # 0, F2 or F3: the last one
    uint8_t opsize_prefix    # 66 seen
    uint8_t lock
    uint8_t segment          # effective segment of the memory operand, ES..GS
    uint8_t segment_override # NO_REG if none
    uint8_t has_mem          # mod != 3 (or a moffs)
    uint8_t base             # register, NO_REG or REG_RIP
    uint8_t index            # register or NO_REG (for VSIB: the vector register)
    uint8_t scale            # shift, 0-3
    uint8_t mem_access
    uint8_t imm_size
    uint8_t code_size        # 2, 4, 8: of the code segment it was decoded in
    uint8_t too_long         # more than 15 bytes: nothing else counts
    uint8_t evex[3]          # the bytes behind 62, R', X, V', vvvv, z, b and aaa as they are


ctypedef int (*Helper)(CpuState *s, Insn *insn) noexcept nogil


cdef inline uint64_t next_rip(CpuState *s, Insn *insn) noexcept nogil:
    """rip behind the instruction, truncated to the code segment's size outside 64-bit mode."""
    cdef uint64_t rip = s.rip + insn.length
    if insn.code_size == 8:
        return rip
    if insn.code_size == 4:
        return rip & LOW32
    return rip & 0xFFFF


cdef inline int finish(CpuState *s, Insn *insn) noexcept nogil:
    """Advance rip and return DONE: how a helper ends."""
    s.rip = next_rip(s, insn)
    return 0


cdef inline uint64_t get_gpr(CpuState *s, uint8_t reg, uint32_t size) noexcept nogil:
    """Register `reg` as `size` (1, 2, 4, 8) bytes; for size 1 only the low byte (callers handle AH..BH)."""
    cdef uint64_t value = s.gpr[reg]
    if size == 8:
        return value
    if size == 4:
        return value & LOW32
    if size == 2:
        return value & 0xFFFF
    return value & 0xFF


cdef inline void set_gpr(CpuState *s, uint8_t reg, uint64_t value, uint32_t size) noexcept nogil:
    """Write `size` bytes of a register: 4 zero-extends, 1 and 2 keep the rest."""
    if size == 8:
        s.gpr[reg] = value
    elif size == 4:
        s.gpr[reg] = value & LOW32
    elif size == 2:
        s.gpr[reg] = (s.gpr[reg] & ~<uint64_t>0xFFFF) | (value & 0xFFFF)
    else:
        s.gpr[reg] = (s.gpr[reg] & ~<uint64_t>0xFF) | (value & 0xFF)
