"""Stack instructions and near control transfers as helpers (SDM Vol. 2: PUSH, POP, CALL, RET, JMP, Jcc, LOOP).

64-bit code with ordinary operand sizes is translated; these serve 16- and 32-bit code, where stack and code segments
have bases and limits, and the rare sizes. rip is the offset in the code segment.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import Insn, finish, get_gpr, next_rip, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import mem_read
from cython.cimports.pyhyve.vmm.soft.addresses import linear, read_operand, write_operand
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    CS,
    DONE,
    EXC_GP,
    FLAG_CF,
    FLAG_OF,
    FLAG_PF,
    FLAG_SF,
    FLAG_ZF,
    LOW32,
    MODE_CODE64,
    RAX,
    RBP,
    RBX,
    RCX,
    RSP,
    SS,
    CpuState,
    gp,
    is_canonical,
)
from cython.cimports.pyhyve.vmm.soft.flags import peek_value, push_value, stack_adjust, stack_size


def condition_holds(s, condition):
    """Condition code 0-15 (SDM Vol. 1 appendix B) on the flags in memory."""
    f: uint64_t = s.flags_arith
    holds: cython.bint
    sign: cython.bint = (f & FLAG_SF) != 0
    overflow: cython.bint = (f & FLAG_OF) != 0
    which: uint32_t = condition >> 1
    if which == 0:
        holds = overflow
    elif which == 1:
        holds = (f & FLAG_CF) != 0
    elif which == 2:
        holds = (f & FLAG_ZF) != 0
    elif which == 3:
        holds = (f & (FLAG_CF | FLAG_ZF)) != 0
    elif which == 4:
        holds = sign
    elif which == 5:
        holds = (f & FLAG_PF) != 0
    elif which == 6:
        holds = sign != overflow
    else:
        holds = sign != overflow or (f & FLAG_ZF) != 0
    return holds != (condition & 1)


def jump_near(s, insn, target):
    """Set rip to ``target``, truncated to the operand size, within the limit of CS."""
    if s.mode & MODE_CODE64:
        if not is_canonical(target):
            return gp(s, 0)
    else:
        target &= 0xFFFF if insn.opsize == 2 else cython.cast(uint64_t, LOW32)
        if target > s.segments[CS].limit:
            return gp(s, 0)
    s.rip = target
    return DONE


def relative(s, insn):
    return s.rip + insn.length + insn.imm


def push(s, insn):
    status: cython.int = push_value(s, s.gpr[insn.rm], insn.opsize)
    return finish(s, insn) if status == DONE else status


def pop(s, insn):
    value: uint64_t = 0
    status: cython.int = peek_value(s, 0, insn.opsize, cython.address(value))
    if status != DONE:
        return status
    stack_adjust(s, insn.opsize)
    set_gpr(s, insn.rm, value, insn.opsize)
    return finish(s, insn)


def push_imm(s, insn):
    status: cython.int = push_value(s, insn.imm, insn.opsize)
    return finish(s, insn) if status == DONE else status


def push_mem(s, insn):
    value: uint64_t = s.gpr[insn.rm]
    status: cython.int = DONE
    if insn.has_mem:
        status = read_operand(s, insn, insn.opsize, cython.address(value))
    if status == DONE:
        status = push_value(s, value, insn.opsize)
    return finish(s, insn) if status == DONE else status


def pop_mem(s, insn):
    value: uint64_t = 0
    old: uint64_t = s.gpr[RSP]
    status: cython.int = peek_value(s, 0, insn.opsize, cython.address(value))
    if status != DONE:
        return status
    # The address is computed with the stack pointer already moved (SDM Vol. 2 POP).
    stack_adjust(s, insn.opsize)
    if insn.has_mem:
        status = write_operand(s, insn, insn.opsize, value)
        if status != DONE:
            s.gpr[RSP] = old
            return status
    else:
        set_gpr(s, insn.rm, value, insn.opsize)
    return finish(s, insn)


def ret(s, insn):
    value: uint64_t = 0
    status: cython.int = peek_value(s, 0, insn.opsize, cython.address(value))
    if status == DONE:
        status = jump_near(s, insn, value)
    if status == DONE:
        stack_adjust(s, insn.opsize)
        if insn.opcode == 0xC2:
            stack_adjust(s, insn.imm & 0xFFFF)
    return status


def leave(s, insn):
    value: uint64_t = 0
    va: uint64_t = 0
    mask: uint64_t = cython.cast(uint64_t, -1) >> (64 - 8 * stack_size(s))
    status: cython.int = linear(s, SS, s.gpr[RBP] & mask, insn.opsize, ACCESS_READ, cython.address(va))
    if status == DONE:
        status = mem_read(s, va, insn.opsize, s.mmu_mode, cython.address(value))
    if status != DONE:
        return status
    s.gpr[RSP] = (s.gpr[RSP] & ~mask) | (s.gpr[RBP] & mask)
    stack_adjust(s, insn.opsize)
    set_gpr(s, RBP, value, insn.opsize)
    return finish(s, insn)


def xlat(s, insn):
    va: uint64_t = 0
    value: uint64_t = 0
    status: cython.int = linear(
        s, insn.segment, get_gpr(s, RBX, insn.addrsize) + (s.gpr[RAX] & 0xFF) & address_mask(insn), 1, ACCESS_READ,
        cython.address(va),
    )
    if status == DONE:
        status = mem_read(s, va, 1, s.mmu_mode, cython.address(value))
    if status != DONE:
        return status
    set_gpr(s, RAX, value, 1)
    return finish(s, insn)


def address_mask(insn):
    if insn.addrsize == 8:
        return cython.cast(uint64_t, -1)
    return LOW32 if insn.addrsize == 4 else cython.cast(uint64_t, 0xFFFF)


def loop(s, insn):
    count: uint64_t = get_gpr(s, RCX, insn.addrsize) - 1
    status: cython.int = DONE
    taken: cython.bint = (count & address_mask(insn)) != 0
    if insn.opcode == 0xE0:
        taken = taken and (s.flags_arith & FLAG_ZF) == 0
    elif insn.opcode == 0xE1:
        taken = taken and (s.flags_arith & FLAG_ZF) != 0
    if taken:
        status = jump_near(s, insn, relative(s, insn))
        if status != DONE:
            return status
    else:
        s.rip = next_rip(s, insn)
    set_gpr(s, RCX, count, insn.addrsize)
    return DONE


def jcxz(s, insn):
    if get_gpr(s, RCX, insn.addrsize) == 0:
        return jump_near(s, insn, relative(s, insn))
    return finish(s, insn)


def jcc(s, insn):
    if condition_holds(s, insn.opcode & 15):
        return jump_near(s, insn, relative(s, insn))
    return finish(s, insn)


def jmp(s, insn):
    return jump_near(s, insn, relative(s, insn))


def call_to_target(s, insn, target):
    old: uint64_t = s.rip
    after: uint64_t = next_rip(s, insn)
    status: cython.int = jump_near(s, insn, target)
    if status != DONE:
        return status
    status = push_value(s, after, insn.opsize)
    if status != DONE:
        s.rip = old
    return status


def call(s, insn):
    return call_to_target(s, insn, relative(s, insn))


def operand_target(s, insn, value):
    if insn.has_mem:
        return read_operand(s, insn, insn.opsize, value)
    value[0] = get_gpr(s, insn.rm, insn.opsize)
    return DONE


def call_ind(s, insn):
    value: uint64_t = 0
    status: cython.int = operand_target(s, insn, cython.address(value))
    return call_to_target(s, insn, value) if status == DONE else status


def jmp_ind(s, insn):
    value: uint64_t = 0
    status: cython.int = operand_target(s, insn, cython.address(value))
    return jump_near(s, insn, value) if status == DONE else status


register("push", push)
register("pop", pop)
register("push_imm", push_imm)
register("push_mem", push_mem)
register("pop_mem", pop_mem)
register("ret", ret)
register("leave", leave)
register("xlat", xlat)
register("loop", loop)
register("jcxz", jcxz)
register("call", call)
register("jmp", jmp)
register("call_ind", call_ind)
register("jmp_ind", jmp_ind)
register("jcc", jcc)
