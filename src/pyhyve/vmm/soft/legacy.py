"""Old instructions: PUSHA, POPA, ENTER, BOUND, the decimal adjustments, SALC.

Document: Intel SDM Vol. 2. All but ENTER are undefined in 64-bit mode, which the decoder knows. Flags that the manual
leaves undefined follow the result here.
"""

import cython
from cython.cimports.libc.stdint import int16_t, int32_t, int64_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, get_gpr, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import mem_probe, mem_read, mem_write
from cython.cimports.pyhyve.vmm.soft.addresses import effective_address, linear
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    DONE,
    EXC_BR,
    EXC_DE,
    FAULT,
    FLAG_AF,
    FLAG_CF,
    FLAG_PF,
    FLAG_SF,
    FLAG_ZF,
    LOW32,
    RAX,
    RBP,
    RSP,
    SS,
    raise_fault,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.flags import peek_value, stack_adjust, stack_size

# The stack


def stack_mask(s):
    size: uint32_t = stack_size(s)
    if size == 8:
        return cython.cast(uint64_t, -1)
    return LOW32 if size == 4 else 0xFFFF


def pusha(s, insn):
    where = cython.declare(uint64_t[8])
    mask: uint64_t = stack_mask(s)
    size: uint32_t = insn.opsize
    status: cython.int
    i: cython.int
    # Eight pushes, all or none; the stack may wrap between them.
    for i in range(8):
        if linear(s, SS, (s.gpr[RSP] - (i + 1) * size) & mask, size, ACCESS_WRITE, cython.address(where[i])) != DONE:
            return FAULT
        if mem_probe(s, where[i], size, ACCESS_WRITE, s.mmu_mode) != DONE:
            return FAULT
    for i in range(8):
        status = mem_write(s, where[i], size, s.mmu_mode, s.gpr[i])
        if status != DONE:
            return status
    stack_adjust(s, -8 * cython.cast(int64_t, size))
    return finish(s, insn)


def popa(s, insn):
    values = cython.declare(uint64_t[8])
    size: uint32_t = insn.opsize
    status: cython.int
    i: cython.int
    for i in range(8):
        values[i] = 0
        status = peek_value(s, i * size, size, cython.address(values[i]))
        if status != DONE:
            return status
    # In order of their addresses: DI first, AX last; the place of SP is skipped.
    for i in range(8):
        if 7 - i != RSP:
            set_gpr(s, 7 - i, values[i], size)
    stack_adjust(s, 8 * cython.cast(int64_t, size))
    return finish(s, insn)


def enter(s, insn):
    """Nothing but memory below rSP changes before the end, so that a fault anywhere lets it run again."""
    size: uint32_t = insn.opsize
    mask: uint64_t = stack_mask(s)
    level: uint32_t = insn.imm2 & 31
    sp: uint64_t = (s.gpr[RSP] - size) & mask
    bp: uint64_t = s.gpr[RBP]
    frame: uint64_t = (s.gpr[RSP] & ~mask) | sp  # 32-bit ENTER on a 16-bit stack keeps the upper half
    va: uint64_t = 0
    value: uint64_t = bp
    status: cython.int
    i: uint32_t
    for i in range(level + 1):
        if i != 0:
            sp = (sp - size) & mask
            if i == level:
                value = frame
            else:
                # The frame pointers of the enclosing procedures.
                bp -= size
                if linear(s, SS, bp & mask, size, ACCESS_READ, cython.address(va)) != DONE:
                    return FAULT
                status = mem_read(s, va, size, s.mmu_mode, cython.address(value))
                if status != DONE:
                    return status
        if linear(s, SS, sp, size, ACCESS_WRITE, cython.address(va)) != DONE:
            return FAULT
        status = mem_write(s, va, size, s.mmu_mode, value)
        if status != DONE:
            return status
    sp = (sp - (insn.imm & 0xFFFF)) & mask
    # The new top must be writable too.
    if linear(s, SS, sp, size, ACCESS_WRITE, cython.address(va)) != DONE:
        return FAULT
    if mem_probe(s, va, size, ACCESS_WRITE, s.mmu_mode) != DONE:
        return FAULT
    set_gpr(s, RBP, frame, size)
    set_gpr(s, RSP, sp, stack_size(s))
    return finish(s, insn)


# BOUND


def signed(value, size):
    if size == 2:
        return cython.cast(int16_t, value)
    return cython.cast(int32_t, value)


def bound(s, insn):
    size: uint32_t = insn.opsize
    va: uint64_t = 0
    lower: uint64_t = 0
    upper: uint64_t = 0
    index: int64_t
    status: cython.int
    if not insn.has_mem:
        return ud(s)
    if linear(s, insn.segment, effective_address(s, insn), 2 * size, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    status = mem_read(s, va, size, s.mmu_mode, cython.address(lower))
    if status == DONE:
        status = mem_read(s, (va + size) & LOW32, size, s.mmu_mode, cython.address(upper))
    if status != DONE:
        return status
    index = signed(get_gpr(s, insn.reg, size), size)
    if index < signed(lower, size) or index > signed(upper, size):
        return raise_fault(s, EXC_BR, False, 0)
    return finish(s, insn)


# Decimal and ASCII adjustment


def result_flags(al):
    flags: uint64_t = 0
    parity: uint64_t = al ^ (al >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    if parity & 1 == 0:
        flags |= FLAG_PF
    if al == 0:
        flags |= FLAG_ZF
    if al & 0x80:
        flags |= FLAG_SF
    return flags


def set_al(s, al):
    s.gpr[RAX] = (s.gpr[RAX] & ~cython.cast(uint64_t, 0xFF)) | (al & 0xFF)


def decimal_adjust(s, insn, add):
    old: uint64_t = s.gpr[RAX] & 0xFF
    al: uint64_t = old
    flags: uint64_t = 0
    if (old & 15) > 9 or s.flags_arith & FLAG_AF:
        if add:
            al += 6
        else:
            if old < 6 or s.flags_arith & FLAG_CF:
                flags |= FLAG_CF
            al -= 6
        flags |= FLAG_AF
    if old > 0x99 or s.flags_arith & FLAG_CF:
        al = al + 0x60 if add else al - 0x60
        flags |= FLAG_CF
    set_al(s, al)
    s.flags_arith = flags | result_flags(al & 0xFF)
    return finish(s, insn)


def daa(s, insn):
    return decimal_adjust(s, insn, True)


def das(s, insn):
    return decimal_adjust(s, insn, False)


def ascii_adjust(s, insn, add):
    ax: uint64_t = s.gpr[RAX] & 0xFFFF
    flags: uint64_t = 0
    if (ax & 15) > 9 or s.flags_arith & FLAG_AF:
        # AL by 6 with its carry into AH, AH by 1
        ax = ax + 0x106 if add else ax - 0x106
        flags = FLAG_AF | FLAG_CF
    ax &= 0xFF0F
    s.gpr[RAX] = (s.gpr[RAX] & ~cython.cast(uint64_t, 0xFFFF)) | ax
    s.flags_arith = flags | result_flags(ax & 0xFF)
    return finish(s, insn)


def aaa(s, insn):
    return ascii_adjust(s, insn, True)


def aas(s, insn):
    return ascii_adjust(s, insn, False)


def aam(s, insn):
    base: uint64_t = insn.imm & 0xFF
    al: uint64_t = s.gpr[RAX] & 0xFF
    if base == 0:
        return raise_fault(s, EXC_DE, False, 0)
    s.gpr[RAX] = (s.gpr[RAX] & ~cython.cast(uint64_t, 0xFFFF)) | (al // base << 8) | al % base
    s.flags_arith = result_flags(al % base)
    return finish(s, insn)


def aad(s, insn):
    ax: uint64_t = s.gpr[RAX] & 0xFFFF
    al: uint64_t = ((ax & 0xFF) + (ax >> 8) * (insn.imm & 0xFF)) & 0xFF
    s.gpr[RAX] = (s.gpr[RAX] & ~cython.cast(uint64_t, 0xFFFF)) | al
    s.flags_arith = result_flags(al)
    return finish(s, insn)


def salc(s, insn):
    set_al(s, 0xFF if s.flags_arith & FLAG_CF else 0)
    return finish(s, insn)


register("pusha", pusha)
register("popa", popa)
register("enter", enter)
register("bound", bound)
register("daa", daa)
register("das", das)
register("aaa", aaa)
register("aas", aas)
register("aam", aam)
register("aad", aad)
register("salc", salc)
