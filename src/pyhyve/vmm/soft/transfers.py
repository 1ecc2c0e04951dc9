"""Far jumps, calls and returns: directly, and through call gates.

Documents: Intel SDM Vol. 3A 5.8 (privilege checks, gates, stack switching), and Vol. 2 JMP, CALL, RET. Everything is
checked, and frames are written, before registers change.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import next_rip
from cython.cimports.pyhyve.vmm.soft.access import system_read
from cython.cimports.pyhyve.vmm.soft.modes import update_mode
from cython.cimports.pyhyve.vmm.soft.segments import (
    TYPE_CALL_GATE,
    TYPE_CALL_GATE16,
    TYPE_TASK_GATE,
    TYPE_TSS,
    TYPE_TSS16,
    UPPER_WORD,
    check_code,
    check_return,
    check_rip,
    descriptor_address,
    dpl,
    enter_code,
    enter_return,
    in_long_mode,
    inner_stack,
    mark_accessed,
    protected_mode,
    push_new,
    read_code,
    read_descriptor,
    read_far,
    read_return_cs,
    read_stack,
    set_new_stack,
    set_null,
    set_real,
    set_sp,
    stack_mask,
    tss_rsp,
    unpack_descriptor,
    write_stack,
)
from cython.cimports.pyhyve.vmm.soft.state import (
    CS,
    DONE,
    EXC_GP,
    EXC_NP,
    FAULT,
    LOW32,
    RSP,
    SEG_CODE,
    SEG_DB,
    SEG_EXPAND_DOWN,
    SEG_L,
    SEG_PRESENT,
    SEG_S,
    SEG_TYPE,
    SEG_UNUSABLE,
    SS,
    Segment,
    gp,
    raise_fault,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.tasks import SWITCH_CALL, SWITCH_JUMP, task_switch


def push_return(s, size, rip):
    """CS and rip onto the current stack."""
    mask: uint64_t = stack_mask(s)
    sp: uint64_t = (s.gpr[RSP] - size) & mask
    if write_stack(s, sp, size, s.segments[CS].selector) != DONE:
        return FAULT
    sp = (sp - size) & mask
    if write_stack(s, sp, size, rip) != DONE:
        return FAULT
    set_sp(s, sp, mask)
    return DONE


def transfer_real(s, insn, selector, offset, call):
    if offset > s.segments[CS].limit:
        return gp(s, 0)
    if call and push_return(s, insn.opsize, next_rip(s, insn)) != DONE:
        return FAULT
    set_real(s, CS, selector)
    s.rip = offset
    update_mode(s)
    return DONE


def transfer(s, insn, selector, offset, call):
    """JMP or CALL far."""
    cs: Segment
    descriptor: uint64_t = 0
    address: uint64_t = 0
    error: uint32_t = selector & 0xFFFC
    if not protected_mode(s):
        return transfer_real(s, insn, selector, offset, call)
    if error == 0:
        return gp(s, 0)
    if read_descriptor(s, selector, EXC_GP, cython.address(descriptor), cython.address(address)) != DONE:
        return FAULT
    unpack_descriptor(descriptor, selector, cython.address(cs))
    if (cs.access & SEG_S) == 0:
        return through_gate(s, insn, descriptor, address, selector, call)
    if (cs.access & SEG_CODE) == 0:
        return gp(s, error)
    if cs.access & SEG_EXPAND_DOWN:
        if dpl(cs.access) > s.cpl:
            return gp(s, error)
    elif (selector & 3) > s.cpl or dpl(cs.access) != s.cpl:
        return gp(s, error)
    if (
        check_code(s, cython.address(cs)) != DONE
        or check_rip(s, cython.address(cs), cython.address(offset)) != DONE
        or mark_accessed(s, cython.address(cs), address) != DONE
        or (call and push_return(s, insn.opsize, next_rip(s, insn)) != DONE)
    ):
        return FAULT
    enter_code(s, cython.address(cs), s.cpl, offset)
    return DONE


def through_gate(s, insn, gate, address, selector, call):
    """JMP or CALL to a system descriptor: call gate, task gate or TSS."""
    cs: Segment
    error: uint32_t = selector & 0xFFFC
    kind: cython.int = gate >> 40 & SEG_TYPE
    gate_level: cython.int = gate >> 45 & 3
    offset: uint64_t
    upper: uint64_t = 0
    size: uint32_t = 4
    if in_long_mode(s):
        if kind != TYPE_CALL_GATE:
            return gp(s, error)
        size = 8
    elif kind == TYPE_CALL_GATE16:
        size = 2
    elif kind == TYPE_TSS or kind == TYPE_TSS16:
        if gate_level < s.cpl or (selector & 3) > gate_level:
            return gp(s, error)
        return task_switch(s, selector, SWITCH_CALL if call else SWITCH_JUMP, next_rip(s, insn))
    elif kind != TYPE_CALL_GATE and kind != TYPE_TASK_GATE:
        return gp(s, error)
    if gate_level < s.cpl or (selector & 3) > gate_level:
        return gp(s, error)
    if (gate >> 40 & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, error)
    if kind == TYPE_TASK_GATE:
        return task_switch(s, gate >> 16 & 0xFFFF, SWITCH_CALL if call else SWITCH_JUMP, next_rip(s, insn))

    offset = gate & 0xFFFF
    if size >= 4:
        offset |= gate >> 32 & UPPER_WORD
    if size == 8:
        if not descriptor_address(s, selector, 16, cython.address(address)):
            return gp(s, error)
        if system_read(s, address + 8, 8, cython.address(upper)) != DONE:
            return FAULT
        if upper >> 40 & 0x1F:
            return gp(s, error)
        offset |= (upper & LOW32) << 32
    if read_code(s, gate >> 16 & 0xFFFF, cython.address(cs), cython.address(address)) != DONE:
        return FAULT
    error = cs.selector & 0xFFFC
    if dpl(cs.access) > s.cpl or (not call and (cs.access & SEG_EXPAND_DOWN) == 0 and dpl(cs.access) != s.cpl):
        return gp(s, error)
    if size == 8 and (cs.access & (SEG_L | SEG_DB)) != SEG_L:
        return gp(s, error)
    if (cs.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, error)
    if check_rip(s, cython.address(cs), cython.address(offset)) != DONE:
        return FAULT
    if call and (cs.access & SEG_EXPAND_DOWN) == 0 and dpl(cs.access) < s.cpl:
        return call_inner(s, insn, cython.address(cs), address, offset, size, gate >> 32 & 0x1F)
    if mark_accessed(s, cython.address(cs), address) != DONE:
        return FAULT
    if call and push_return(s, size, next_rip(s, insn)) != DONE:
        return FAULT
    enter_code(s, cython.address(cs), s.cpl, offset)
    return DONE


def call_inner(s, insn, cs, address, rip, size, count):
    """CALL through a gate to a more privileged level: its stack gets the old SS:RSP, ``count`` parameters, CS:RIP."""
    ss: Segment
    parameters: uint64_t[32]
    sp: uint64_t = 0
    mask: uint64_t = stack_mask(s)
    level: cython.int = dpl(cs.access)
    status: cython.int
    i: uint32_t
    if size == 8:
        count = 0
        set_null(cython.address(ss), level, level)
        if tss_rsp(s, 4 + 8 * level, cython.address(sp)) != DONE:
            return FAULT
    elif inner_stack(s, level, cython.address(ss), cython.address(sp)) != DONE:
        return FAULT
    for i in range(count):
        status = read_stack(s, (s.gpr[RSP] + i * size) & mask, size, cython.address(parameters[i]))
        if status != DONE:
            return status
    if (
        mark_accessed(s, cs, address) != DONE
        or push_new(s, cython.address(ss), cython.address(sp), size, s.segments[SS].selector) != DONE
        or push_new(s, cython.address(ss), cython.address(sp), size, s.gpr[RSP]) != DONE
    ):
        return FAULT
    for i in range(count):
        if push_new(s, cython.address(ss), cython.address(sp), size, parameters[count - 1 - i]) != DONE:
            return FAULT
    if (
        push_new(s, cython.address(ss), cython.address(sp), size, s.segments[CS].selector) != DONE
        or push_new(s, cython.address(ss), cython.address(sp), size, next_rip(s, insn)) != DONE
    ):
        return FAULT
    set_new_stack(s, cython.address(ss), sp)
    enter_code(s, cs, level, rip)
    return DONE


def jmp_far_imm(s, insn):
    return transfer(s, insn, insn.imm2, insn.imm & (LOW32 if insn.opsize == 4 else 0xFFFF), False)


def call_far_imm(s, insn):
    return transfer(s, insn, insn.imm2, insn.imm & (LOW32 if insn.opsize == 4 else 0xFFFF), True)


def transfer_mem(s, insn, call):
    selector: uint16_t = 0
    offset: uint64_t = 0
    status: cython.int
    if not insn.has_mem:
        return ud(s)
    status = read_far(s, insn, cython.address(selector), cython.address(offset))
    return status if status != DONE else transfer(s, insn, selector, offset, call)


def jmp_far_mem(s, insn):
    return transfer_mem(s, insn, False)


def call_far_mem(s, insn):
    return transfer_mem(s, insn, True)


def retf(s, insn):
    cs: Segment
    ss: Segment
    size: uint32_t = insn.opsize
    release: uint64_t = insn.imm & 0xFFFF if insn.opcode == 0xCA else 0
    mask: uint64_t = stack_mask(s)
    sp: uint64_t = s.gpr[RSP] & mask
    rip: uint64_t = 0
    selector: uint64_t = 0
    new_sp: uint64_t = 0
    new_ss: uint64_t = 0
    cs_address: uint64_t = 0
    status: cython.int
    level: cython.int
    status = read_stack(s, sp, size, cython.address(rip))
    if status == DONE:
        status = read_stack(s, (sp + size) & mask, size, cython.address(selector))
    if status != DONE:
        return status
    sp += 2 * size + release
    if not protected_mode(s):
        if rip > s.segments[CS].limit:
            return gp(s, 0)
        set_real(s, CS, selector & 0xFFFF)
        set_sp(s, sp, mask)
        s.rip = rip
        update_mode(s)
        return DONE

    level = selector & 3
    if read_return_cs(s, selector & 0xFFFF, cython.address(cs), cython.address(cs_address)) != DONE:
        return FAULT
    if level == s.cpl:
        if (
            check_rip(s, cython.address(cs), cython.address(rip)) != DONE
            or mark_accessed(s, cython.address(cs), cs_address) != DONE
        ):
            return FAULT
        set_sp(s, sp, mask)
        enter_code(s, cython.address(cs), level, rip)
        return DONE

    status = read_stack(s, sp & mask, size, cython.address(new_sp))
    if status == DONE:
        status = read_stack(s, (sp + size) & mask, size, cython.address(new_ss))
    if status != DONE:
        return status
    status = check_return(s, cython.address(cs), cs_address, cython.address(rip), new_ss & 0xFFFF, cython.address(ss))
    if status == DONE:
        enter_return(s, cython.address(cs), cython.address(ss), rip, new_sp + release)
    return status


register("jmp_far_imm", jmp_far_imm)
register("call_far_imm", call_far_imm)
register("jmp_far_mem", jmp_far_mem)
register("call_far_mem", call_far_mem)
register("retf", retf)
