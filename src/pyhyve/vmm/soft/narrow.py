"""Stack instructions and near jumps of 16- and 32-bit code, where SS, CS and operand sizes make a difference."""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.decode import (
    K_CALL,
    K_CALL_IND,
    K_JCC,
    K_JCXZ,
    K_JMP,
    K_JMP_IND,
    K_LEAVE,
    K_LOOP,
    K_POP,
    K_POP_MEM,
    K_PUSH,
    K_PUSH_IMM,
    K_PUSH_MEM,
    K_RET,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.encode import (
    GSP,
    HRCX,
    T0,
    T1,
    T2,
    Asm,
    e16,
    e32,
    e8,
    jcc_fwd,
    jmp_fwd,
    land,
    land_short,
    lea,
    load_gs,
    modrm_mem,
    mov,
    op_mem,
    rex,
    short_fwd,
    store_gs,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG
from cython.cimports.pyhyve.vmm.soft.leaving import emit_branch, emit_far_jump, emit_helper, emit_jump
from cython.cimports.pyhyve.vmm.soft.operands import emit_address, emit_tlb, finish_access
from cython.cimports.pyhyve.vmm.soft.plain import emit_access
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CS,
    MODE_CODE32,
    MODE_CS_PAGES,
    MODE_FLAT,
    MODE_STACK32,
    RBP,
    RSP,
    SS,
)
from cython.cimports.pyhyve.vmm.soft.stubs import host_reg, off
from cython.cimports.pyhyve.vmm.soft.translate import PART_PUSH


def is_near_kind(kind):
    return (
        kind == K_PUSH or kind == K_POP or kind == K_PUSH_IMM or kind == K_PUSH_MEM or kind == K_POP_MEM or kind == K_RET
        or kind == K_LEAVE or kind == K_LOOP or kind == K_JCXZ or kind == K_CALL or kind == K_JMP or kind == K_CALL_IND
        or kind == K_JMP_IND or kind == K_JCC
    )  # fmt: skip


def is_narrow(x, insn):
    """Does ``emit_narrow`` have this stack instruction or jump?

    Jumps only where code pages lie in CS as a whole: then neither the limit nor the end of a 16-bit segment matters
    inside the page. What leaves a 16-bit segment by a 32-bit jump is found at run time and goes to the helper.
    """
    kind: uint32_t = ops[insn.op].kind
    if kind == K_PUSH or kind == K_PUSH_IMM or kind == K_PUSH_MEM or kind == K_LEAVE:
        return True
    if kind == K_POP:
        return insn.rm != RSP
    if (x.mode & MODE_CS_PAGES) == 0:
        return False
    if x.mode & MODE_CODE32:
        return insn.opsize == 4
    return insn.opsize == 2 or kind != K_LOOP  # which cannot be done twice


def mov32(a, dst, src):
    """Zero-extends."""
    rex(a, 0, src, 0, dst)
    e8(a, 0x89)
    e8(a, 0xC0 | ((src & 7) << 3) | (dst & 7))


def mov16(a, dst, src):
    """The lower 16 bits; the rest of ``dst`` stays."""
    e8(a, 0x66)
    mov32(a, dst, src)


def movzx16(a, dst, src):
    rex(a, 0, dst, 0, src)
    e8(a, 0x0F)
    e8(a, 0xB7)
    e8(a, 0xC0 | ((dst & 7) << 3) | (src & 7))


def load_word(a, reg, size):
    """``[T0 + T2]``, of 2 or 4 bytes, zero-extended."""
    if size == 4:
        op_mem(a, 0, 0x8B, reg, T0, T2, 0)
        return
    rex(a, 0, reg, T2, T0)
    e8(a, 0x0F)
    e8(a, 0xB7)
    modrm_mem(a, reg, T0, T2, 0, 0)


def stack_slot(x, base, delta):
    """The stack address in host register ``base``, plus ``delta``, to T0, as wide as SS has it."""
    lea(cython.address(x.a), 0, T0, base, NO_REG, 0, delta)
    if (x.mode & MODE_STACK32) == 0:
        movzx16(cython.address(x.a), T0, T0)


def set_stack(x, base, delta):
    """The stack pointer becomes host register ``base`` plus ``delta``. Uses T2."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if x.mode & MODE_STACK32:
        lea(a, 0, GSP, base, NO_REG, 0, delta)
        return
    lea(a, 0, T2, base, NO_REG, 0, delta)
    mov16(a, GSP, T2)


def emit_narrow_push(x, insn):
    size: uint32_t = insn.opsize
    stack_slot(x, GSP, -cython.cast(int64_t, size))
    x.part = PART_PUSH
    emit_tlb(x, SS, size, ACCESS_WRITE)
    emit_access(x, insn, PART_PUSH)
    finish_access(x, SS, ACCESS_WRITE)
    set_stack(x, GSP, -cython.cast(int64_t, size))


def emit_narrow_slot(x, insn):
    """The store of a push to ``[T0 + T2]``."""
    a: cython.pointer(Asm) = cython.address(x.a)
    kind: uint32_t = ops[insn.op].kind
    if kind != K_PUSH and kind != K_PUSH_IMM:
        load_gs(a, T1, off(x.s, cython.address(x.s.scratch[2])))
    if insn.opsize == 2:
        e8(a, 0x66)
    if kind == K_PUSH:
        op_mem(a, 0, 0x89, host_reg(insn.rm), T0, T2, 0)
    elif kind == K_PUSH_IMM:
        op_mem(a, 0, 0xC7, 0, T0, T2, 0)
        if insn.opsize == 2:
            e16(a, cython.cast(uint32_t, insn.imm))
        else:
            e32(a, insn.imm)
    else:
        op_mem(a, 0, 0x89, T1, T0, T2, 0)


def offset_in_code(x, target):
    """The offset in CS of page offset ``target`` to T0, neither cut to 32 bits nor to 16. Uses T1."""
    a: cython.pointer(Asm) = cython.address(x.a)
    load_gs(a, T0, off(x.s, cython.address(x.s.page_va)))
    if (x.mode & MODE_FLAT) == 0:
        load_gs(a, T1, off(x.s, cython.address(x.s.segments[CS].base)))
        invert(a, T1)
        lea(a, 1, T0, T0, T1, 0, 1)
    lea(a, 1, T0, T0, NO_REG, 0, target)


def invert(a, reg):
    """NOT, which leaves flags alone."""
    rex(a, 1, 0, 0, reg)
    e8(a, 0xF7)
    e8(a, 0xD0 | (reg & 7))


def within_64k(x, insn):
    """Leave a 32-bit jump of 16-bit code to the helper if the offset in T0 has more than 16 bits."""
    a: cython.pointer(Asm) = cython.address(x.a)
    fits: cython.pointer(uint8_t)
    if x.mode & MODE_CODE32 or insn.opsize != 4:
        return
    movzx16(a, T1, T0)
    invert(a, T1)
    lea(a, 1, T1, T1, T0, 0, 1)
    xchg(a, HRCX, T1)
    fits = short_fwd(a, 0xE3)
    mov(a, HRCX, T1)
    emit_helper(x, insn)
    land_short(a, fits)
    mov(a, HRCX, T1)


def jump_in_code(x):
    """Go to the offset in CS that is in T0."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if (x.mode & MODE_FLAT) == 0:
        load_gs(a, T1, off(x.s, cython.address(x.s.segments[CS].base)))
        lea(a, 0, T0, T0, T1, 0, 0)
    emit_far_jump(x)


def stays_near(x, target):
    """Is page offset ``target`` surely where the jump goes to, without a segment's end in between?"""
    return 0 <= target <= 4095 or (x.mode & MODE_CODE32) != 0


def narrow_jump(x, insn, target):
    if stays_near(x, target):
        emit_jump(x, insn, target)
        return
    offset_in_code(x, target)
    if insn.opsize == 2:
        movzx16(cython.address(x.a), T0, T0)
    within_64k(x, insn)
    jump_in_code(x)


def narrow_branch(x, insn, condition, target):
    a: cython.pointer(Asm) = cython.address(x.a)
    skip: cython.pointer(uint8_t)
    if stays_near(x, target):
        emit_branch(x, insn, condition, target)
        return
    skip = jcc_fwd(a, condition ^ 1)
    narrow_jump(x, insn, target)
    land(a, skip)


def narrow_call(x, insn):
    """Push the offset of the next instruction."""
    a: cython.pointer(Asm) = cython.address(x.a)
    offset_in_code(x, insn.page_offset + insn.length)
    if (x.mode & MODE_CODE32) == 0:
        movzx16(a, T0, T0)
    store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
    emit_narrow_push(x, insn)


def narrow_operand(x, insn):
    """The operand of an indirect jump or of PUSH to T0, zero-extended."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if insn.has_mem:
        emit_address(x, insn)
        emit_tlb(x, insn.segment, insn.opsize, ACCESS_READ)
        load_word(a, T0, insn.opsize)
    elif insn.opsize == 2:
        movzx16(a, T0, host_reg(insn.rm))
    else:
        mov32(a, T0, host_reg(insn.rm))


def narrow_count(x, insn, target):
    """LOOP and JCXZ."""
    a: cython.pointer(Asm) = cython.address(x.a)
    loops: cython.bint = ops[insn.op].kind == K_LOOP
    wide: cython.bint = insn.addrsize == 4
    zero: cython.pointer(uint8_t)
    end: cython.pointer(uint8_t)
    if loops:
        lea(a, 0, T1, HRCX, NO_REG, 0, -1)
        if wide:
            mov32(a, HRCX, T1)
        else:
            mov16(a, HRCX, T1)
    if wide:
        mov32(a, T1, HRCX)
    else:
        movzx16(a, T1, HRCX)
    xchg(a, HRCX, T1)
    zero = short_fwd(a, 0xE3)
    mov(a, HRCX, T1)
    if loops:
        if insn.opcode == 0xE2:
            narrow_jump(x, insn, target)
        else:
            narrow_branch(x, insn, 5 if insn.opcode == 0xE0 else 4, target)
            end = jmp_fwd(a)
            land_short(a, zero)
            mov(a, HRCX, T1)
            land(a, end)
            return
        land_short(a, zero)
        mov(a, HRCX, T1)
        return
    end = jmp_fwd(a)
    land_short(a, zero)
    mov(a, HRCX, T1)
    narrow_jump(x, insn, target)
    land(a, end)


def emit_narrow(x, insn, target):
    """A stack instruction or near jump of 16- or 32-bit code for which ``is_narrow`` holds."""
    a: cython.pointer(Asm) = cython.address(x.a)
    kind: uint32_t = ops[insn.op].kind
    size: uint32_t = insn.opsize
    if kind == K_PUSH or kind == K_PUSH_IMM:
        emit_narrow_push(x, insn)
    elif kind == K_PUSH_MEM:
        narrow_operand(x, insn)
        store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
        emit_narrow_push(x, insn)
    elif kind == K_POP:
        stack_slot(x, GSP, 0)
        emit_tlb(x, SS, size, ACCESS_READ)
        if size == 2:
            e8(a, 0x66)
        op_mem(a, 0, 0x8B, host_reg(insn.rm), T0, T2, 0)
        set_stack(x, GSP, size)
    elif kind == K_LEAVE:
        stack_slot(x, RBP, 0)
        emit_tlb(x, SS, size, ACCESS_READ)
        load_word(a, T1, size)
        set_stack(x, RBP, size)
        if size == 2:
            mov16(a, RBP, T1)
        else:
            mov32(a, RBP, T1)
    elif kind == K_JCC:
        narrow_branch(x, insn, insn.opcode & 15, target)
    elif kind == K_JMP:
        narrow_jump(x, insn, target)
    elif kind == K_LOOP or kind == K_JCXZ:
        narrow_count(x, insn, target)
    elif kind == K_CALL:
        if not stays_near(x, target):
            offset_in_code(x, target)
            within_64k(x, insn)
        narrow_call(x, insn)
        narrow_jump(x, insn, target)
    elif kind == K_RET:
        stack_slot(x, GSP, 0)
        emit_tlb(x, SS, size, ACCESS_READ)
        load_word(a, T0, size)
        within_64k(x, insn)
        set_stack(x, GSP, size + cython.cast(int64_t, insn.imm & 0xFFFF if insn.opcode == 0xC2 else 0))
        jump_in_code(x)
    else:  # indirect
        narrow_operand(x, insn)
        within_64k(x, insn)
        if kind == K_CALL_IND:
            store_gs(a, T0, off(x.s, cython.address(x.s.scratch[3])))
            narrow_call(x, insn)
            load_gs(a, T0, off(x.s, cython.address(x.s.scratch[3])))
        jump_in_code(x)
