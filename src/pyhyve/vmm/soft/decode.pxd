# Bytes to Insn, and the opcode table in C.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn

cdef enum:
    # OpInfo.kind, in the order of opcodes.KINDS
    K_PLAIN = 0
    K_HELPER
    K_UD
    K_NOP
    K_LEA
    K_PUSH
    K_POP
    K_PUSH_IMM
    K_PUSH_MEM
    K_POP_MEM
    K_INCDEC
    K_XCHG_A
    K_MOFFS
    K_RET
    K_LEAVE
    K_XLAT
    K_LOOP
    K_JCXZ
    K_CALL
    K_JMP
    K_CALL_IND
    K_JMP_IND
    K_JCC
    K_BT
    K_CLI
    K_STI
    K_CLD
    K_STD
    K_RDTSC
    K_STOS
    K_MOVS

    # Operand sizes
    SZ_NONE = 0
    SZ_B
    SZ_W
    SZ_D
    SZ_Q
    SZ_V       # operand size
    SZ_Z       # operand size, at most 4
    SZ_Y       # 8 with REX.W, else 4
    SZ_X       # vector length
    SZ_H       # half of it
    SZ_F       # a quarter
    SZ_E       # an eighth
    SZ_O       # 16
    SZ_DUP     # MOVDDUP: 8, or 32 with VEX.256
    SZ_PAIR    # twice the y size
    SZ_ENV     # x87 environment: 28, or 14 with 66
    SZ_FSAVE   # x87 state: 108 or 94
    SZ_TEN
    SZ_KW      # 2, or 8 with VEX.W: KMOV
    SZ_KB      # 1, or 4
    SZ_32

    OP_READ = 1
    OP_WRITE = 2
    OP_RW = 3

    ATTR_I64 = 1
    ATTR_O64 = 2
    ATTR_D64 = 4
    ATTR_F64 = 8
    ATTR_LOCK = 0x10
    ATTR_V = 0x20        # has an operand of operand size: 66 matters
    ATTR_VVVV = 0x40     # VEX.vvvv names a register
    ATTR_IS4 = 0x80      # the immediate's upper half names a register

    NEED_FPU = 1
    NEED_MMX = 2
    NEED_SSE = 4
    NEED_AVX = 8
    NEED_WAIT = 0x10
    NEED_AVX512 = 0x20

    # OpInfo.evex: see opcodes_evex
    EVEX_VVVV = 1        # vvvv names a register
    EVEX_BROADCAST = 2   # EVEX.b may broadcast from memory
    EVEX_MASK = 4        # EVEX.aaa may name a mask
    EVEX_WHOLE = 8       # ... and memory is accessed whole all the same
    EVEX_NO_ZERO = 0x10
    EVEX_TO_MASK = 0x20  # ModRM.reg is an opmask register
    EVEX_REPEATS = 0x40  # the mask goes by elements of the vector, of which memory has fewer
    EVEX_PACKED = 0x80   # memory holds the elements whose mask bit is set
    EVEX_VSIB = 0x100
    EVEX_ROUND = 0x200   # EVEX.b rounds, or keeps exceptions quiet, in register forms

    DECODED = 0
    NEED_BYTES = 1       # the bytes end before the instruction does
    TOO_LONG = 2         # inside decode.py: the instruction has more than 15 bytes


cdef struct OpInfo:
    uint8_t kind
    uint8_t helper
    uint8_t mem_size     # SZ_*
    uint8_t mem_access   # MEM_*
    uint8_t reg_access   # OP_*, 0 where ModRM.reg is no general register
    uint8_t reg_size
    uint8_t rm_access    # of ModRM.rm as a general register
    uint8_t rm_size
    uint8_t vvvv_access  # of VEX.vvvv as a general register
    uint8_t z_access     # of the register in the opcode
    uint8_t z_size
    uint8_t imm          # SZ_* of the immediate, SZ_NONE without
    uint8_t imm_signed
    uint8_t imm_word     # a 16-bit immediate comes first (ENTER, RET)
    uint8_t pp           # mandatory prefix 0-3, 0xFF where none is meant
    uint8_t attr
    uint8_t need
    uint8_t lengths      # EVEX: bits of the values of L'L that there are
    uint8_t mask_size    # EVEX: SZ_* of what a bit of the mask stands for in memory
    uint16_t evex        # EVEX_*
    uint16_t flags_read
    uint16_t flags_kill

cdef OpInfo ops[2048]

# Decode at most `avail` bytes at `code` as MODE_* `mode` has it. An unknown or invalid encoding comes out as K_UD.
# DECODED, or NEED_BYTES. More than 15 bytes come out as K_UD of length 15 with `too_long`.
cdef int decode(const uint8_t *code, uint32_t avail, uint32_t mode, Insn *insn) noexcept nogil
# DECODED, NEED_BYTES or TOO_LONG; with NEED_BYTES and TOO_LONG not all fields are right.
cdef int decode_fields(const uint8_t *code, uint32_t avail, uint32_t mode, Insn *insn) noexcept nogil
# Does an EVEX instruction with this row encode nothing that raises #UD? What depends on the processor in the forms
# without memory is left to the host, which runs the same encoding.
cdef bint evex_valid(Insn *insn, OpInfo *op) noexcept nogil
cdef uint32_t operand_size(uint8_t size, Insn *insn) noexcept nogil
# The row of a VEX or EVEX instruction, 0 where it is invalid. Outside 64-bit mode W of general registers goes.
cdef uint32_t vector_row(Insn *insn, uint32_t row, uint32_t index, bint code64) noexcept nogil
cdef uint64_t read_le(const uint8_t *code, uint32_t at, uint32_t size) noexcept nogil
