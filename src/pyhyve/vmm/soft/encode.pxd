# A small assembler for what the translator emits: inline functions that append to a buffer.
#
# Host registers are numbers as in x86 encodings. Guest state is reached through the GS base: [gs:disp32], or
# [gs:index*scale + disp32].

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    # Host registers with a role of their own; every other one holds the guest's register of that number.
    T0 = 10   # addresses: linear address of the access, jump targets
    T1 = 11
    T2 = 14   # what to add to T0
    GSP = 15  # the guest's RSP
    HRCX = 1

    # Condition codes
    CC_B = 2
    CC_AE = 3
    CC_Z = 4
    CC_NZ = 5
    CC_ALWAYS = 16
    CC_CALL = 17


cdef struct Asm:
    uint8_t *p          # where the next byte goes, in the writable mapping
    int64_t delta       # executable address = writable address + delta


cdef inline void e8(Asm *a, uint32_t value) noexcept nogil:
    a.p[0] = <uint8_t>value
    a.p += 1


cdef inline void e16(Asm *a, uint32_t value) noexcept nogil:
    (<uint16_t *>a.p)[0] = <uint16_t>value
    a.p += 2


cdef inline void e32(Asm *a, uint64_t value) noexcept nogil:
    (<uint32_t *>a.p)[0] = <uint32_t>value
    a.p += 4


cdef inline void e64(Asm *a, uint64_t value) noexcept nogil:
    (<uint64_t *>a.p)[0] = value
    a.p += 8


cdef inline uint64_t here(Asm *a) noexcept nogil:
    """The executable address of the next byte."""
    return <uint64_t>(<int64_t>a.p + a.delta)


cdef inline void rex(Asm *a, uint32_t w, uint32_t r, uint32_t x, uint32_t b) noexcept nogil:
    """A REX byte, always; w is 0 or 1, the others register numbers."""
    e8(a, 0x40 | (w << 3) | ((r >> 3) << 2) | ((x >> 3) << 1) | (b >> 3))


cdef inline void op_gs(Asm *a, uint32_t w, uint32_t opcode, uint32_t reg, uint64_t offset) noexcept nogil:
    """opcode reg, [gs:offset] (or the other way, as the opcode has it)."""
    e8(a, 0x65)
    rex(a, w, reg, 0, 0)
    e8(a, opcode)
    e8(a, ((reg & 7) << 3) | 4)
    e8(a, 0x25)
    e32(a, offset)


cdef inline void cmp_imm32(Asm *a, uint32_t reg, uint64_t value) noexcept nogil:
    rex(a, 1, 0, 0, reg)
    e8(a, 0x81)
    e8(a, 0xF8 | (reg & 7))
    e32(a, value)


cdef inline void load_gs(Asm *a, uint32_t reg, uint64_t offset) noexcept nogil:
    op_gs(a, 1, 0x8B, reg, offset)


cdef inline void store_gs(Asm *a, uint32_t reg, uint64_t offset) noexcept nogil:
    op_gs(a, 1, 0x89, reg, offset)


cdef inline void load_gs32(Asm *a, uint32_t reg, uint64_t offset) noexcept nogil:
    op_gs(a, 0, 0x8B, reg, offset)


cdef inline void store_gs32(Asm *a, uint32_t reg, uint64_t offset) noexcept nogil:
    op_gs(a, 0, 0x89, reg, offset)


cdef inline void store_gs_imm8(Asm *a, uint64_t offset, uint32_t value) noexcept nogil:
    """mov byte [gs:offset], value"""
    e8(a, 0x65)
    e8(a, 0xC6)
    e8(a, 0x04)
    e8(a, 0x25)
    e32(a, offset)
    e8(a, value)


cdef inline void store_gs_imm32(Asm *a, uint64_t offset, uint64_t value) noexcept nogil:
    """mov dword [gs:offset], value"""
    e8(a, 0x65)
    e8(a, 0xC7)
    e8(a, 0x04)
    e8(a, 0x25)
    e32(a, offset)
    e32(a, value)


cdef inline void cmp_gs32_zero(Asm *a, uint64_t offset) noexcept nogil:
    """cmp dword [gs:offset], 0"""
    e8(a, 0x65)
    e8(a, 0x83)
    e8(a, 0x3C)
    e8(a, 0x25)
    e32(a, offset)
    e8(a, 0)


cdef inline void op_gs_index(Asm *a, uint32_t w, uint32_t opcode, uint32_t reg, uint32_t index, uint32_t scale,
                             uint64_t offset) noexcept nogil:
    """opcode reg, [gs:index*2^scale + offset]"""
    e8(a, 0x65)
    rex(a, w, reg, index, 0)
    e8(a, opcode)
    e8(a, ((reg & 7) << 3) | 4)
    e8(a, (scale << 6) | ((index & 7) << 3) | 5)
    e32(a, offset)


cdef inline void mov(Asm *a, uint32_t dst, uint32_t src) noexcept nogil:
    rex(a, 1, src, 0, dst)
    e8(a, 0x89)
    e8(a, 0xC0 | ((src & 7) << 3) | (dst & 7))


cdef inline void xchg(Asm *a, uint32_t first, uint32_t second) noexcept nogil:
    rex(a, 1, second, 0, first)
    e8(a, 0x87)
    e8(a, 0xC0 | ((second & 7) << 3) | (first & 7))


cdef inline void movzx16(Asm *a, uint32_t dst, uint32_t src) noexcept nogil:
    """movzx dst32, src16"""
    rex(a, 0, dst, 0, src)
    e8(a, 0x0F)
    e8(a, 0xB7)
    e8(a, 0xC0 | ((dst & 7) << 3) | (src & 7))


cdef inline void not_(Asm *a, uint32_t reg) noexcept nogil:
    rex(a, 1, 0, 0, reg)
    e8(a, 0xF7)
    e8(a, 0xD0 | (reg & 7))


cdef inline void mov_imm32(Asm *a, uint32_t dst, uint64_t value) noexcept nogil:
    """mov dst32, value: zero-extends"""
    if dst >= 8:
        e8(a, 0x41)
    e8(a, 0xB8 | (dst & 7))
    e32(a, value)


cdef inline void mov_imm64(Asm *a, uint32_t dst, uint64_t value) noexcept nogil:
    if (value >> 32) == 0:
        mov_imm32(a, dst, value)
    elif <uint64_t><int64_t><int32_t>value == value:
        rex(a, 1, 0, 0, dst)
        e8(a, 0xC7)
        e8(a, 0xC0 | (dst & 7))
        e32(a, value)
    else:
        rex(a, 1, 0, 0, dst)
        e8(a, 0xB8 | (dst & 7))
        e64(a, value)


cdef inline void modrm_mem(Asm *a, uint32_t reg, uint32_t base, uint32_t index, uint32_t scale,
                           int64_t disp) noexcept nogil:
    """ModRM, SIB and displacement of [base + index*2^scale + disp]; index or base 0xFF where there is none."""
    cdef uint32_t r = (reg & 7) << 3
    cdef uint32_t mod
    if base == 0xFF:
        e8(a, r | 4)
        e8(a, (scale << 6) | ((4 if index == 0xFF else index & 7) << 3) | 5)
        e32(a, <uint64_t>disp)
        return
    if disp == 0 and (base & 7) != 5:
        mod = 0
    elif -128 <= disp <= 127:
        mod = 0x40
    else:
        mod = 0x80
    if index == 0xFF and (base & 7) != 4:
        e8(a, mod | r | (base & 7))
    else:
        e8(a, mod | r | 4)
        e8(a, (scale << 6) | ((4 if index == 0xFF else index & 7) << 3) | (base & 7))
    if mod == 0x40:
        e8(a, <uint32_t>disp)
    elif mod == 0x80:
        e32(a, <uint64_t>disp)


cdef inline void modrm_far(Asm *a, uint32_t reg, uint32_t base, uint32_t index, int64_t disp) noexcept nogil:
    """[base + index + disp] with 32 bits of displacement: EVEX takes a single byte for a multiple of the operand's size."""
    if index == 0xFF and (base & 7) != 4:
        e8(a, 0x80 | ((reg & 7) << 3) | (base & 7))
    else:
        e8(a, 0x80 | ((reg & 7) << 3) | 4)
        e8(a, ((4 if index == 0xFF else index & 7) << 3) | (base & 7))
    e32(a, <uint64_t>disp)


cdef inline void lea(Asm *a, uint32_t w, uint32_t dst, uint32_t base, uint32_t index, uint32_t scale,
                     int64_t disp) noexcept nogil:
    """lea dst, [base + index*2^scale + disp]; w 0 truncates to 32 bits."""
    rex(a, w, dst, 0 if index == 0xFF else index, 0 if base == 0xFF else base)
    e8(a, 0x8D)
    modrm_mem(a, dst, base, index, scale, disp)


cdef inline void op_mem(Asm *a, uint32_t w, uint32_t opcode, uint32_t reg, uint32_t base, uint32_t index,
                        int64_t disp) noexcept nogil:
    """opcode reg, [base + index + disp] with a one-byte opcode."""
    rex(a, w, reg, 0 if index == 0xFF else index, 0 if base == 0xFF else base)
    e8(a, opcode)
    modrm_mem(a, reg, base, index, 0, disp)


cdef inline void jmp_to(Asm *a, uint64_t target) noexcept nogil:
    e8(a, 0xE9)
    e32(a, target - (here(a) + 4))


cdef inline void call_to(Asm *a, uint64_t target) noexcept nogil:
    e8(a, 0xE8)
    e32(a, target - (here(a) + 4))


cdef inline void jcc_to(Asm *a, uint32_t condition, uint64_t target) noexcept nogil:
    e8(a, 0x0F)
    e8(a, 0x80 | condition)
    e32(a, target - (here(a) + 4))


cdef inline uint8_t *jcc_fwd(Asm *a, uint32_t condition) noexcept nogil:
    """A conditional jump whose target is set later by `land`. Returns its rel32."""
    e8(a, 0x0F)
    e8(a, 0x80 | condition)
    e32(a, 0)
    return a.p - 4


cdef inline uint8_t *jmp_fwd(Asm *a) noexcept nogil:
    e8(a, 0xE9)
    e32(a, 0)
    return a.p - 4


cdef inline uint8_t *call_fwd(Asm *a) noexcept nogil:
    e8(a, 0xE8)
    e32(a, 0)
    return a.p - 4


cdef inline void land(Asm *a, uint8_t *rel32) noexcept nogil:
    """Let the jump with this rel32 come here."""
    (<int32_t *>rel32)[0] = <int32_t>(a.p - (rel32 + 4))


cdef inline void nops(Asm *a, uint32_t count) noexcept nogil:
    """One NOP of 0 to 7 bytes."""
    if count == 1:
        e8(a, 0x90)
    elif count == 2:
        e16(a, 0x9066)
    elif count == 3:
        e16(a, 0x1F0F)
        e8(a, 0)
    elif count == 4:
        e32(a, 0x00401F0F)
    elif count == 5:
        e32(a, 0x00441F0F)
        e8(a, 0)
    elif count == 6:
        e8(a, 0x66)
        e32(a, 0x00441F0F)
        e8(a, 0)
    elif count == 7:
        e32(a, 0x00801F0F)
        e16(a, 0)
        e8(a, 0)


cdef inline void align_patch(Asm *a, uint32_t lead, uint32_t size) noexcept nogil:
    """Let the `size` bytes that come behind the next `lead` lie in one aligned quadword, so that they can be patched."""
    cdef uint32_t at = (<uint32_t>here(a) + lead) & 7
    if at + size > 8:
        nops(a, 8 - at)


cdef inline uint8_t *short_fwd(Asm *a, uint32_t opcode) noexcept nogil:
    """A short jump (JRCXZ is E3, JMP EB, Jcc 70+cc). Returns its rel8."""
    e8(a, opcode)
    e8(a, 0)
    return a.p - 1


cdef inline void land_short(Asm *a, uint8_t *rel8) noexcept nogil:
    rel8[0] = <uint8_t>(a.p - (rel8 + 1))


cdef inline void pext_gs(Asm *a, uint32_t dst, uint32_t src, uint64_t mask_offset) noexcept nogil:
    """pext dst, src, [gs:mask_offset] (VEX.F3.0F38.W1 F5 /r)"""
    e8(a, 0x65)
    e8(a, 0xC4)
    e8(a, (0 if dst & 8 else 0x80) | 0x60 | 2)
    e8(a, 0x80 | ((~src & 15) << 3) | 2)
    e8(a, 0xF5)
    e8(a, ((dst & 7) << 3) | 4)
    e8(a, 0x25)
    e32(a, mask_offset)


cdef inline void pdep_gs(Asm *a, uint32_t dst, uint32_t src, uint64_t mask_offset) noexcept nogil:
    """pdep dst, src, [gs:mask_offset] (VEX.F2.0F38.W1 F5 /r)"""
    e8(a, 0x65)
    e8(a, 0xC4)
    e8(a, (0 if dst & 8 else 0x80) | 0x60 | 2)
    e8(a, 0x80 | ((~src & 15) << 3) | 3)
    e8(a, 0xF5)
    e8(a, ((dst & 7) << 3) | 4)
    e8(a, 0x25)
    e32(a, mask_offset)


cdef inline void rorx(Asm *a, uint32_t dst, uint32_t src, uint32_t count) noexcept nogil:
    """rorx dst, src, count (VEX.F2.0F3A.W1 F0 /r)"""
    e8(a, 0xC4)
    e8(a, (0 if dst & 8 else 0x80) | 0x40 | (0 if src & 8 else 0x20) | 3)
    e8(a, 0x80 | 0x78 | 3)
    e8(a, 0xF0)
    e8(a, 0xC0 | ((dst & 7) << 3) | (src & 7))
    e8(a, count)
