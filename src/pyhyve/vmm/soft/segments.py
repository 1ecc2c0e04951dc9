"""Segment registers: descriptor loads, far transfers, task switches, system-call instructions.

Documents: Intel SDM Vol. 3A 3.4-3.5 (descriptors), 5.5-5.8 (privilege checks, gates, SYSENTER, SYSCALL), 7 (tasks),
and the operation sections of Vol. 2 for each instruction.

A descriptor is found in the GDT or LDT by its selector, read with supervisor rights, unpacked into a ``Segment``
and checked; only then anything changes. Faults that remain after the first visible change are those of a task switch,
which happen in the new task. In real and virtual-8086 mode a selector is the base, divided by 16.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.debug import debug_update
from cython.cimports.pyhyve.vmm.soft.insn import finish, next_rip, set_gpr
from cython.cimports.pyhyve.vmm.soft.mmu import (
    effective_address,
    linear,
    mem_probe,
    mem_read,
    mem_write,
    read_operand,
    system_read,
    write_operand,
)
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR4_UMIP,
    CS,
    DONE,
    DS,
    EFER_SCE,
    ES,
    EXC_DB,
    EXC_GP,
    EXC_NP,
    EXC_SS,
    EXC_TS,
    FAULT,
    FLAG_IF,
    FLAG_NT,
    FLAG_RF,
    FLAG_VM,
    FLAG_ZF,
    FS,
    GS,
    LOW32,
    MMU_KERNEL,
    MODE_CODE64,
    RCX,
    RDX,
    RSP,
    SEG_ACCESSED,
    SEG_CODE,
    SEG_DB,
    SEG_DPL_SHIFT,
    SEG_EXPAND_DOWN,
    SEG_G,
    SEG_L,
    SEG_PRESENT,
    SEG_S,
    SEG_TYPE,
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SHADOW_SS,
    SS,
    Segment,
    get_rflags,
    gp,
    is_canonical,
    raise_fault,
    set_rflags,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.system import set_cr3, update_mode

from cython.cimports.pyhyve.vmm.soft import helpers

# Descriptors


def protected_mode(s):
    """CR0.PE and not virtual-8086 mode."""
    return (s.cr0 & CR0_PE) != 0 and (s.flags_system & FLAG_VM) == 0


def descriptor_address(s, selector, size, address):
    """Where the descriptor lies; False if its ``size`` bytes are not all within the table's limit."""
    offset: uint32_t = selector & 0xFFF8
    base: uint64_t
    if selector & SELECTOR_TI:
        if s.ldtr.access & SEG_UNUSABLE or offset + size - 1 > s.ldtr.limit:
            return False
        base = s.ldtr.base
    else:
        if offset + size - 1 > s.gdt_limit:
            return False
        base = s.gdt_base
    base += offset
    address[0] = base if in_long_mode(s) else base & LOW32
    return True


def read_descriptor(s, selector, vector, descriptor, address):
    if not descriptor_address(s, selector, 8, address):
        return raise_fault(s, vector, True, selector & 0xFFFC)
    return system_read(s, address[0], 8, descriptor)


def unpack_descriptor(descriptor, selector, segment):
    segment.selector = selector
    segment.base = (descriptor >> 16 & 0xFFFFFF) | (descriptor >> 32 & LOW32 & ~0xFFFFFF)
    segment.limit = (descriptor & 0xFFFF) | (descriptor >> 32 & 0xF0000)
    segment.access = descriptor >> 40 & 0xF0FF
    if segment.access & SEG_G:
        segment.limit = (segment.limit << 12) | 0xFFF


def set_null(segment, selector, level):
    segment.base = 0
    segment.limit = 0
    segment.access = SEG_UNUSABLE | (level << SEG_DPL_SHIFT)
    segment.selector = selector


def mark_accessed(s, segment, address):
    if segment.access & SEG_ACCESSED:
        return DONE
    segment.access |= SEG_ACCESSED
    return mem_write(s, address + 5, 1, MMU_KERNEL, segment.access & 0xFF)


def load_flat(segment, selector, access):
    segment.base = 0
    segment.limit = LOW32
    segment.access = access
    segment.selector = selector


def set_real(s, seg, selector):
    """A selector in real or virtual-8086 mode. Real mode keeps limit and rights, whatever they are."""
    segment: cython.pointer[Segment] = cython.address(s.segments[seg])
    segment.base = cython.cast(uint64_t, selector) << 4
    segment.selector = selector
    if s.flags_system & FLAG_VM and s.cr0 & CR0_PE:
        segment.limit = 0xFFFF
        segment.access = VM86_DATA
    elif segment.access & SEG_UNUSABLE:
        segment.limit = 0xFFFF
        segment.access = REAL_DATA


def load_segment(s, seg, selector):
    loaded: Segment
    descriptor: uint64_t = 0
    address: uint64_t = 0
    error: uint32_t = selector & 0xFFFC
    level: cython.int = selector & 3
    if not protected_mode(s):
        set_real(s, seg, selector)
        return DONE

    if error == 0:
        if seg == SS and not ((s.mode & MODE_CODE64) != 0 and s.cpl < 3 and level == s.cpl):
            return gp(s, 0)
        set_null(cython.address(s.segments[seg]), selector, s.cpl if seg == SS else 0)
    else:
        if read_descriptor(s, selector, EXC_GP, cython.address(descriptor), cython.address(address)) != DONE:
            return FAULT
        unpack_descriptor(descriptor, selector, cython.address(loaded))
        if (loaded.access & SEG_S) == 0:
            return gp(s, error)
        if seg == SS:
            if (
                level != s.cpl
                or dpl(loaded.access) != s.cpl
                or (loaded.access & (SEG_CODE | SEG_WRITABLE)) != SEG_WRITABLE
            ):
                return gp(s, error)
            if (loaded.access & SEG_PRESENT) == 0:
                return raise_fault(s, EXC_SS, True, error)
        else:
            if (loaded.access & (SEG_CODE | SEG_WRITABLE)) == SEG_CODE:
                return gp(s, error)  # code that may not be read
            if (loaded.access & (SEG_CODE | SEG_EXPAND_DOWN)) != (SEG_CODE | SEG_EXPAND_DOWN) and (
                level > dpl(loaded.access) or s.cpl > dpl(loaded.access)
            ):
                return gp(s, error)
            if (loaded.access & SEG_PRESENT) == 0:
                return raise_fault(s, EXC_NP, True, error)
        if mark_accessed(s, cython.address(loaded), address) != DONE:
            return FAULT
        s.segments[seg] = loaded
    if seg < FS and (s.mode & MODE_CODE64) == 0:
        update_mode(s)
    return DONE


# Code segments


def read_code(s, selector, cs, address):
    descriptor: uint64_t = 0
    if (selector & 0xFFFC) == 0:
        return gp(s, 0)
    if read_descriptor(s, selector, EXC_GP, cython.address(descriptor), address) != DONE:
        return FAULT
    unpack_descriptor(descriptor, selector, cs)
    if (cs.access & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE):
        return gp(s, selector & 0xFFFC)
    return DONE


def check_code(s, cs):
    if in_long_mode(s) and (cs.access & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB):
        return gp(s, cs.selector & 0xFFFC)
    if (cs.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, cs.selector & 0xFFFC)
    return DONE


def check_rip(s, cs, rip):
    if in_long_mode(s) and cs.access & SEG_L:
        return DONE if is_canonical(rip[0]) else gp(s, 0)
    rip[0] &= LOW32
    return DONE if rip[0] <= cs.limit else gp(s, 0)


def enter_code(s, cs, level, rip):
    s.segments[CS] = cs[0]
    s.segments[CS].selector = (cs.selector & 0xFFFC) | level
    s.cpl = level
    s.rip = rip
    update_mode(s)


def read_return_cs(s, selector, cs, address):
    level: cython.int = selector & 3
    if read_code(s, selector, cs, address) != DONE:
        return FAULT
    if level < s.cpl:
        return gp(s, selector & 0xFFFC)
    if dpl(cs.access) != level and not (cs.access & SEG_EXPAND_DOWN and dpl(cs.access) < level):
        return gp(s, selector & 0xFFFC)
    return check_code(s, cs)


def read_return_ss(s, selector, cs, ss, address):
    level: cython.int = cs.selector & 3
    descriptor: uint64_t = 0
    error: uint32_t = selector & 0xFFFC
    if error == 0:
        if not (in_long_mode(s) and cs.access & SEG_L and level != 3 and (selector & 3) == level):
            return gp(s, 0)
        set_null(ss, selector, level)
        address[0] = 0
        return DONE
    if read_descriptor(s, selector, EXC_GP, cython.address(descriptor), address) != DONE:
        return FAULT
    unpack_descriptor(descriptor, selector, ss)
    if (
        (selector & 3) != level
        or dpl(ss.access) != level
        or (ss.access & (SEG_S | SEG_CODE | SEG_WRITABLE)) != (SEG_S | SEG_WRITABLE)
    ):
        return gp(s, error)
    if (ss.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_SS, True, error)
    return DONE


def drop_segments(s):
    seg: cython.int
    access: uint32_t
    for seg in range(ES, GS + 1):
        access = s.segments[seg].access
        if (
            seg != CS
            and seg != SS
            and (access & SEG_UNUSABLE) == 0
            and dpl(access) < s.cpl
            and (access & (SEG_CODE | SEG_EXPAND_DOWN)) != (SEG_CODE | SEG_EXPAND_DOWN)
        ):
            set_null(cython.address(s.segments[seg]), 0, 0)


# Stacks


def stack_mask(s):
    if s.mode & MODE_CODE64:
        return cython.cast(uint64_t, -1)
    return LOW32 if s.segments[SS].access & SEG_DB else 0xFFFF


def set_sp(s, value, mask):
    if mask == 0xFFFF:
        s.gpr[RSP] = (s.gpr[RSP] & ~mask) | (value & mask)
    else:
        s.gpr[RSP] = value & mask


def read_stack(s, sp, size, value):
    va: uint64_t = 0
    if linear(s, SS, sp, size, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    return mem_read(s, va, size, s.mmu_mode, value)


def write_stack(s, sp, size, value):
    va: uint64_t = 0
    if linear(s, SS, sp, size, ACCESS_WRITE, cython.address(va)) != DONE:
        return FAULT
    return mem_write(s, va, size, s.mmu_mode, value)


def within(segment, offset, size):
    """Is this part of a data segment within its limit?"""
    last: uint64_t = offset + size - 1
    if segment.access & SEG_EXPAND_DOWN:
        return offset > segment.limit and last <= cython.cast(uint64_t, LOW32 if segment.access & SEG_DB else 0xFFFF)
    return last <= segment.limit or segment.limit == LOW32


def push_new(s, ss, sp, size, value):
    mask: uint64_t
    offset: uint64_t
    if ss.access & SEG_UNUSABLE:  # only the null SS of long mode
        sp[0] -= size
        if not (is_canonical(sp[0]) and is_canonical(sp[0] + size - 1)):
            return raise_fault(s, EXC_SS, True, 0)
        return mem_write(s, sp[0], size, MMU_KERNEL, value)
    mask = LOW32 if ss.access & SEG_DB else 0xFFFF
    offset = (sp[0] - size) & mask
    if not within(ss, offset, size):
        return raise_fault(s, EXC_SS, True, ss.selector & 0xFFFC)
    sp[0] = (sp[0] & ~mask) | offset
    return mem_write(s, (ss.base + offset) & LOW32, size, MMU_KERNEL, value)


def set_new_stack(s, ss, sp):
    """SS:rsp of an inner level. A 16-bit stack segment leaves the upper part of ESP as it was."""
    s.segments[SS] = ss[0]
    if ss.access & SEG_UNUSABLE:
        s.gpr[RSP] = sp
    else:
        set_sp(s, sp, LOW32 if ss.access & SEG_DB else 0xFFFF)


def tss_rsp(s, offset, rsp):
    if s.tr.access & SEG_UNUSABLE or offset + 7 > s.tr.limit:
        return raise_fault(s, EXC_TS, True, s.tr.selector & 0xFFFC)
    if system_read(s, s.tr.base + offset, 8, rsp) != DONE:
        return FAULT
    return DONE if is_canonical(rsp[0]) else raise_fault(s, EXC_SS, True, 0)


def inner_stack(s, level, ss, sp):
    wide: cython.bint = (s.tr.access & TYPE_TSS & ~1) != 0
    offset: uint32_t = 4 + 8 * level if wide else 2 + 4 * level
    size: uint32_t = 4 if wide else 2
    selector: uint64_t = 0
    descriptor: uint64_t = 0
    address: uint64_t = 0
    if s.tr.access & SEG_UNUSABLE or offset + size + 1 > s.tr.limit:
        return raise_fault(s, EXC_TS, True, s.tr.selector & 0xFFFC)
    if system_read(s, (s.tr.base + offset) & LOW32, size, sp) != DONE:
        return FAULT
    if system_read(s, (s.tr.base + offset + size) & LOW32, 2, cython.address(selector)) != DONE:
        return FAULT
    if (selector & 0xFFFC) == 0:
        return raise_fault(s, EXC_TS, True, 0)
    if read_descriptor(s, selector, EXC_TS, cython.address(descriptor), cython.address(address)) != DONE:
        return FAULT
    unpack_descriptor(descriptor, selector, ss)
    if (
        cython.cast(cython.int, selector & 3) != level
        or dpl(ss.access) != level
        or (ss.access & (SEG_S | SEG_CODE | SEG_WRITABLE)) != (SEG_S | SEG_WRITABLE)
    ):
        return raise_fault(s, EXC_TS, True, selector & 0xFFFC)
    if (ss.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_SS, True, selector & 0xFFFC)
    return mark_accessed(s, ss, address)


# Operands


def read_word(s, insn, value):
    """The 16-bit r/m operand."""
    wide: uint64_t = 0
    status: cython.int
    if not insn.has_mem:
        value[0] = cython.cast(uint16_t, s.gpr[insn.rm])
        return DONE
    status = read_operand(s, insn, 2, cython.address(wide))
    value[0] = cython.cast(uint16_t, wide)
    return status


def write_word(s, insn, value):
    """A selector or 16-bit word to the r/m operand: a register takes it zero-extended to the operand size."""
    if insn.has_mem:
        return write_operand(s, insn, 2, value)
    set_gpr(s, insn.rm, value, insn.opsize)
    return DONE


def read_far(s, insn, selector, offset):
    """A far pointer in memory: the offset, then the selector."""
    va: uint64_t = 0
    wide: uint64_t = 0
    size: uint32_t = insn.opsize
    status: cython.int
    if linear(s, insn.segment, effective_address(s, insn), size + 2, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    status = mem_read(s, va, size, s.mmu_mode, offset)
    if status != DONE:
        return status
    va += size
    if insn.code_size != 8:
        va &= LOW32
    status = mem_read(s, va, 2, s.mmu_mode, cython.address(wide))
    selector[0] = cython.cast(uint16_t, wide)
    return status


def segment_of_opcode(insn):
    """The segment register of PUSH, POP, LES and their kin, which is part of the opcode."""
    if insn.map == 1:
        if insn.opcode == 0xB2:
            return SS
        return GS if insn.opcode & 1 and insn.opcode >= 0xB0 or insn.opcode & 8 else FS
    if insn.opcode >= 0xC4:
        return ES if insn.opcode == 0xC4 else DS
    return insn.opcode >> 3 & 3


# MOV, PUSH, POP, LDS and kin


def mov_to_sreg(s, insn):
    seg: cython.int = insn.modrm >> 3 & 7
    selector: uint16_t = 0
    status: cython.int
    if seg == CS or seg > GS:
        return ud(s)
    status = read_word(s, insn, cython.address(selector))
    if status == DONE:
        status = load_segment(s, seg, selector)
    if status != DONE:
        return status
    if seg == SS:
        s.inhibit = SHADOW_SS
    return finish(s, insn)


def mov_from_sreg(s, insn):
    seg: cython.int = insn.modrm >> 3 & 7
    status: cython.int
    if seg > GS:
        return ud(s)
    status = write_word(s, insn, s.segments[seg].selector)
    return finish(s, insn) if status == DONE else status


def push_sreg(s, insn):
    size: uint32_t = insn.opsize
    mask: uint64_t = stack_mask(s)
    sp: uint64_t
    if insn.code_size == 8 and size == 4:
        size = 8
    sp = (s.gpr[RSP] - size) & mask
    # With 32-bit operands processors write the selector only and leave the upper half of the slot alone.
    if write_stack(s, sp, 2 if size == 4 else size, s.segments[segment_of_opcode(insn)].selector) != DONE:
        return FAULT
    set_sp(s, sp, mask)
    return finish(s, insn)


def pop_sreg(s, insn):
    seg: cython.int = segment_of_opcode(insn)
    size: uint32_t = insn.opsize
    mask: uint64_t = stack_mask(s)
    selector: uint64_t = 0
    status: cython.int
    if insn.code_size == 8 and size == 4:
        size = 8
    status = read_stack(s, s.gpr[RSP] & mask, 2, cython.address(selector))
    if status == DONE:
        status = load_segment(s, seg, cython.cast(uint16_t, selector))
    if status != DONE:
        return status
    set_sp(s, s.gpr[RSP] + size, mask)
    if seg == SS:
        s.inhibit = SHADOW_SS
    return finish(s, insn)


def load_far(s, insn):
    selector: uint16_t = 0
    offset: uint64_t = 0
    status: cython.int
    if not insn.has_mem:
        return ud(s)
    status = read_far(s, insn, cython.address(selector), cython.address(offset))
    if status == DONE:
        status = load_segment(s, segment_of_opcode(insn), selector)
    if status != DONE:
        return status
    set_gpr(s, insn.reg, offset, insn.opsize)
    return finish(s, insn)


# Far jumps, calls and returns


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


def jmp_far_mem(s, insn):
    selector: uint16_t = 0
    offset: uint64_t = 0
    status: cython.int
    if not insn.has_mem:
        return ud(s)
    status = read_far(s, insn, cython.address(selector), cython.address(offset))
    return status if status != DONE else transfer(s, insn, selector, offset, False)


def call_far_mem(s, insn):
    selector: uint16_t = 0
    offset: uint64_t = 0
    status: cython.int
    if not insn.has_mem:
        return ud(s)
    status = read_far(s, insn, cython.address(selector), cython.address(offset))
    return status if status != DONE else transfer(s, insn, selector, offset, True)


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
    ss_address: uint64_t = 0
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
    if (
        read_return_ss(s, new_ss & 0xFFFF, cython.address(cs), cython.address(ss), cython.address(ss_address)) != DONE
        or check_rip(s, cython.address(cs), cython.address(rip)) != DONE
        or mark_accessed(s, cython.address(cs), cs_address) != DONE
        or ((ss.access & SEG_UNUSABLE) == 0 and mark_accessed(s, cython.address(ss), ss_address) != DONE)
    ):
        return FAULT
    s.segments[SS] = ss
    s.cpl = level
    drop_segments(s)
    enter_code(s, cython.address(cs), level, rip)
    set_sp(s, new_sp + release, stack_mask(s))
    return DONE


# SYSCALL, SYSENTER and their returns


def is_amd(s):
    """Does CPUID show an AMD processor, where SYSCALL works in compatibility mode and SYSENTER does not?"""
    i: uint32_t
    for i in range(s.engine.cpuid_count):
        if s.engine.cpuid[i].leaf == 0:
            return s.engine.cpuid[i].ebx == 0x68747541  # "Auth"
    return False


def syscall(s, insn):
    flags: uint64_t
    selector: uint16_t
    if (s.efer & EFER_SCE) == 0 or not in_long_mode(s) or (insn.code_size != 8 and not is_amd(s)):
        return ud(s)
    flags = get_rflags(s) & ~cython.cast(uint64_t, FLAG_RF)
    s.gpr[RCX] = next_rip(s, insn)
    s.gpr[R11] = flags
    set_rflags(s, flags & ~s.sfmask)
    selector = s.star >> 32 & 0xFFFC
    load_flat(cython.address(s.segments[CS]), selector, FLAT_CODE64)
    load_flat(cython.address(s.segments[SS]), selector + 8, FLAT_DATA)
    s.cpl = 0
    s.rip = s.lstar if insn.code_size == 8 else s.cstar
    update_mode(s)
    return DONE


def sysret(s, insn):
    selector: uint16_t = s.star >> 48 & 0xFFFF
    if (s.efer & EFER_SCE) == 0 or insn.code_size != 8:
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    if insn.opsize == 8:
        if not is_canonical(s.gpr[RCX]):
            return gp(s, 0)
        s.rip = s.gpr[RCX]
        load_flat(cython.address(s.segments[CS]), (selector + 16) | 3, FLAT_CODE64 | DPL3)
    else:
        s.rip = s.gpr[RCX] & LOW32
        load_flat(cython.address(s.segments[CS]), selector | 3, FLAT_CODE32 | DPL3)
    load_flat(cython.address(s.segments[SS]), (selector + 8) | 3, FLAT_DATA | DPL3)
    set_rflags(s, s.gpr[R11] & 0x3C7FD7)
    s.cpl = 3
    update_mode(s)
    return DONE


def sysenter(s, insn):
    selector: uint16_t = s.sysenter_cs & 0xFFFC
    if (s.cr0 & CR0_PE) == 0 or selector == 0:
        return gp(s, 0)
    if in_long_mode(s):
        if is_amd(s):
            return ud(s)
        s.gpr[RSP] = s.sysenter_esp
        s.rip = s.sysenter_eip
        load_flat(cython.address(s.segments[CS]), selector, FLAT_CODE64)
    else:
        s.gpr[RSP] = s.sysenter_esp & LOW32
        s.rip = s.sysenter_eip & LOW32
        load_flat(cython.address(s.segments[CS]), selector, FLAT_CODE32)
    load_flat(cython.address(s.segments[SS]), selector + 8, FLAT_DATA)
    set_rflags(s, get_rflags(s) & ~cython.cast(uint64_t, FLAG_VM | FLAG_IF | FLAG_RF))
    s.cpl = 0
    update_mode(s)
    return DONE


def sysexit(s, insn):
    selector: uint16_t = s.sysenter_cs & 0xFFFC
    if selector == 0 or not protected_mode(s) or s.cpl != 0:
        return gp(s, 0)
    if in_long_mode(s) and is_amd(s):
        return ud(s)
    if insn.opsize == 8:
        if not (is_canonical(s.gpr[RCX]) and is_canonical(s.gpr[RDX])):
            return gp(s, 0)
        s.gpr[RSP] = s.gpr[RCX]
        s.rip = s.gpr[RDX]
        selector += 32
        load_flat(cython.address(s.segments[CS]), selector | 3, FLAT_CODE64 | DPL3)
    else:
        s.gpr[RSP] = s.gpr[RCX] & LOW32
        s.rip = s.gpr[RDX] & LOW32
        selector += 16
        load_flat(cython.address(s.segments[CS]), selector | 3, FLAT_CODE32 | DPL3)
    load_flat(cython.address(s.segments[SS]), (selector + 8) | 3, FLAT_DATA | DPL3)
    s.cpl = 3
    update_mode(s)
    return DONE


def swapgs(s, insn):
    base: uint64_t
    if insn.code_size != 8:
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    base = s.segments[GS].base
    s.segments[GS].base = s.kernel_gs_base
    s.kernel_gs_base = base
    return finish(s, insn)


# System segments and tables


def umip(s):
    """SGDT, SIDT, SLDT, STR and SMSW are refused to user code."""
    return s.cpl > 0 and (s.cr4 & CR4_UMIP) != 0


def system_descriptor(s, selector, descriptor, address, segment):
    """For LLDT and LTR: a descriptor in the GDT, 16 bytes long in long mode; #GP(selector)."""
    upper: uint64_t = 0
    error: uint32_t = selector & 0xFFFC
    if selector & SELECTOR_TI or not descriptor_address(s, selector, 16 if in_long_mode(s) else 8, address):
        return gp(s, error)
    if system_read(s, address[0], 8, descriptor) != DONE:
        return FAULT
    unpack_descriptor(descriptor[0], selector, segment)
    if in_long_mode(s):
        if system_read(s, address[0] + 8, 8, cython.address(upper)) != DONE:
            return FAULT
        segment.base |= (upper & LOW32) << 32
        if upper >> 40 & 0x1F or not is_canonical(segment.base):
            return gp(s, error)
    return DONE


def lldt(s, insn):
    segment: Segment
    selector: uint16_t = 0
    descriptor: uint64_t = 0
    address: uint64_t = 0
    status: cython.int
    if not protected_mode(s):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    status = read_word(s, insn, cython.address(selector))
    if status != DONE:
        return status
    if (selector & 0xFFFC) == 0:
        set_null(cython.address(s.ldtr), selector, 0)
        return finish(s, insn)
    if (
        system_descriptor(
            s, selector, cython.address(descriptor), cython.address(address), cython.address(segment)
        )
        != DONE
    ):
        return FAULT
    if (segment.access & (SEG_S | SEG_TYPE)) != TYPE_LDT:
        return gp(s, selector & 0xFFFC)
    if (segment.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, selector & 0xFFFC)
    s.ldtr = segment
    return finish(s, insn)


def ltr(s, insn):
    segment: Segment
    selector: uint16_t = 0
    descriptor: uint64_t = 0
    address: uint64_t = 0
    kind: uint32_t
    status: cython.int
    if not protected_mode(s):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    status = read_word(s, insn, cython.address(selector))
    if status != DONE:
        return status
    if (selector & 0xFFFC) == 0:
        return gp(s, 0)
    if (
        system_descriptor(
            s, selector, cython.address(descriptor), cython.address(address), cython.address(segment)
        )
        != DONE
    ):
        return FAULT
    kind = segment.access & (SEG_S | SEG_TYPE)
    if kind != TYPE_TSS and (kind != TYPE_TSS16 or in_long_mode(s)):
        return gp(s, selector & 0xFFFC)
    if (segment.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, selector & 0xFFFC)
    segment.access |= TYPE_BUSY
    if mem_write(s, address + 5, 1, MMU_KERNEL, segment.access & 0xFF) != DONE:
        return FAULT
    s.tr = segment
    return finish(s, insn)


def sldt(s, insn):
    if not protected_mode(s):
        return ud(s)
    if umip(s):
        return gp(s, 0)
    return finish(s, insn) if write_word(s, insn, s.ldtr.selector) == DONE else FAULT


def str_(s, insn):
    if not protected_mode(s):
        return ud(s)
    if umip(s):
        return gp(s, 0)
    return finish(s, insn) if write_word(s, insn, s.tr.selector) == DONE else FAULT


def store_table(s, insn, base, limit):
    va: uint64_t = 0
    size: uint32_t = 8 if insn.code_size == 8 else 4
    where: uint64_t
    if umip(s):
        return gp(s, 0)
    if (
        linear(s, insn.segment, effective_address(s, insn), size + 2, ACCESS_WRITE, cython.address(va)) != DONE
        or mem_probe(s, va, size + 2, ACCESS_WRITE, s.mmu_mode) != DONE
    ):
        return FAULT
    where = va + 2
    if size == 4:
        where &= LOW32
    if mem_write(s, va, 2, s.mmu_mode, limit) != DONE or mem_write(s, where, size, s.mmu_mode, base) != DONE:
        return FAULT
    return finish(s, insn)


def sgdt(s, insn):
    return store_table(s, insn, s.gdt_base, s.gdt_limit)


def sidt(s, insn):
    return store_table(s, insn, s.idt_base, s.idt_limit)


def load_table(s, insn, base, limit):
    va: uint64_t = 0
    size: uint32_t = 8 if insn.code_size == 8 else 4
    value: uint64_t = 0
    low: uint64_t = 0
    status: cython.int
    if s.cpl != 0:
        return gp(s, 0)
    if linear(s, insn.segment, effective_address(s, insn), size + 2, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    status = mem_read(s, va, 2, s.mmu_mode, cython.address(low))
    if status != DONE:
        return status
    va += 2
    if size == 4:
        va &= LOW32
    status = mem_read(s, va, size, s.mmu_mode, cython.address(value))
    if status != DONE:
        return status
    if size == 8 and not is_canonical(value):
        return gp(s, 0)
    if insn.opsize == 2 and size == 4:
        value &= 0xFFFFFF
    base[0] = value
    limit[0] = cython.cast(uint32_t, low)
    return finish(s, insn)


def lgdt(s, insn):
    return load_table(s, insn, cython.address(s.gdt_base), cython.address(s.gdt_limit))


def lidt(s, insn):
    return load_table(s, insn, cython.address(s.idt_base), cython.address(s.idt_limit))


# LAR, LSL, VERR, VERW, ARPL


def set_zf(s, zero):
    s.flags_arith = (s.flags_arith & ~cython.cast(uint64_t, FLAG_ZF)) | (FLAG_ZF if zero else 0)


def inspect(s, selector, system_types, segment, status):
    """Is the descriptor there, of a kind that may be asked about, and visible to CPL and RPL?"""
    descriptor: uint64_t = 0
    address: uint64_t = 0
    if (selector & 0xFFFC) == 0 or not descriptor_address(s, selector, 8, cython.address(address)):
        return False
    status[0] = system_read(s, address, 8, cython.address(descriptor))
    if status[0] != DONE:
        return False
    unpack_descriptor(descriptor, selector, segment)
    if segment.access & SEG_S:
        if (segment.access & (SEG_CODE | SEG_EXPAND_DOWN)) == (SEG_CODE | SEG_EXPAND_DOWN):
            return True
    elif (system_types >> (segment.access & SEG_TYPE) & 1) == 0:
        return False
    return s.cpl <= dpl(segment.access) and (selector & 3) <= dpl(segment.access)


def verify(s, insn, write):
    segment: Segment
    selector: uint16_t = 0
    status: cython.int
    ok: cython.bint
    if not protected_mode(s):
        return ud(s)
    status = read_word(s, insn, cython.address(selector))
    if status != DONE:
        return status
    ok = inspect(s, selector, 0, cython.address(segment), cython.address(status))
    if status != DONE:
        return status
    if ok and write:
        ok = (segment.access & (SEG_CODE | SEG_WRITABLE)) == SEG_WRITABLE
    elif ok:
        ok = (segment.access & (SEG_CODE | SEG_WRITABLE)) != SEG_CODE
    set_zf(s, ok)
    return finish(s, insn)


def verr(s, insn):
    return verify(s, insn, False)


def verw(s, insn):
    return verify(s, insn, True)


def look(s, insn, system_types, limit):
    segment: Segment
    result: uint32_t
    selector: uint16_t = 0
    status: cython.int
    ok: cython.bint
    if not protected_mode(s):
        return ud(s)
    status = read_word(s, insn, cython.address(selector))
    if status != DONE:
        return status
    ok = inspect(s, selector, system_types, cython.address(segment), cython.address(status))
    if status != DONE:
        return status
    if ok:
        if limit:
            result = segment.limit
        else:
            # The manual calls bits 16-19 undefined; processors give the limit's bits that are in the descriptor there.
            result = segment.access << 8
            result |= (segment.limit >> 12 if segment.access & SEG_G else segment.limit) & 0xF0000
        set_gpr(s, insn.reg, result, insn.opsize)
    set_zf(s, ok)
    return finish(s, insn)


def lar(s, insn):
    types: uint32_t = 1 << TYPE_LDT | 1 << TYPE_TSS | 1 << TYPE_TSS_BUSY | 1 << TYPE_CALL_GATE
    if not in_long_mode(s):
        types |= 1 << TYPE_TSS16 | 1 << TYPE_TSS16_BUSY | 1 << TYPE_CALL_GATE16 | 1 << TYPE_TASK_GATE
    return look(s, insn, types, False)


def lsl(s, insn):
    types: uint32_t = 1 << TYPE_LDT | 1 << TYPE_TSS | 1 << TYPE_TSS_BUSY
    if not in_long_mode(s):
        types |= 1 << TYPE_TSS16 | 1 << TYPE_TSS16_BUSY
    return look(s, insn, types, True)


def arpl(s, insn):
    selector: uint16_t = 0
    level: uint16_t = s.gpr[insn.reg] & 3
    status: cython.int
    if not protected_mode(s):
        return ud(s)
    status = read_word(s, insn, cython.address(selector))
    if status != DONE:
        return status
    if (selector & 3) >= level:
        set_zf(s, False)
        return finish(s, insn)
    selector = (selector & 0xFFFC) | level
    if insn.has_mem:
        if write_operand(s, insn, 2, selector) != DONE:
            return FAULT
    else:
        set_gpr(s, insn.rm, selector, 2)
    set_zf(s, True)
    return finish(s, insn)


# Tasks


def task_fault(s, vector, selector):
    return raise_fault(s, vector, True, selector & 0xFFFC)


def save_task(s, base, wide, rip, flags):
    """The dynamic fields of the old task's TSS (SDM Vol. 3A figures 7-2 and 7-10)."""
    i: uint32_t
    step: uint32_t = 4 if wide else 2
    at: uint64_t = base + (0x20 if wide else 0x0E)
    if (
        mem_write(s, at & LOW32, step, MMU_KERNEL, rip) != DONE
        or mem_write(s, (at + step) & LOW32, step, MMU_KERNEL, flags) != DONE
    ):
        return FAULT
    at += 2 * step
    for i in range(8):
        if mem_write(s, (at + i * step) & LOW32, step, MMU_KERNEL, s.gpr[i]) != DONE:
            return FAULT
    at += 8 * step
    for i in range(6 if wide else 4):
        if mem_write(s, (at + i * step) & LOW32, 2, MMU_KERNEL, s.segments[i].selector) != DONE:
            return FAULT
    return DONE


def load_task_segment(s, seg, selector):
    """A segment register of the new task, whose CPL is that of its CS selector already."""
    loaded: Segment
    descriptor: uint64_t = 0
    address: uint64_t = 0
    level: cython.int = selector & 3
    access: uint32_t
    if (selector & 0xFFFC) == 0:
        return task_fault(s, EXC_TS, selector) if seg == CS or seg == SS else DONE
    if read_descriptor(s, selector, EXC_TS, cython.address(descriptor), cython.address(address)) != DONE:
        return FAULT
    unpack_descriptor(descriptor, selector, cython.address(loaded))
    access = loaded.access
    if (access & SEG_S) == 0:
        return task_fault(s, EXC_TS, selector)
    if seg == CS:
        if (access & SEG_CODE) == 0 or (
            dpl(access) > level if access & SEG_EXPAND_DOWN else dpl(access) != level
        ):
            return task_fault(s, EXC_TS, selector)
    elif seg == SS:
        if level != s.cpl or dpl(access) != s.cpl or (access & (SEG_CODE | SEG_WRITABLE)) != SEG_WRITABLE:
            return task_fault(s, EXC_TS, selector)
    else:
        if (access & (SEG_CODE | SEG_WRITABLE)) == SEG_CODE:
            return task_fault(s, EXC_TS, selector)
        if (access & (SEG_CODE | SEG_EXPAND_DOWN)) != (SEG_CODE | SEG_EXPAND_DOWN) and (
            level > dpl(access) or s.cpl > dpl(access)
        ):
            return task_fault(s, EXC_TS, selector)
    if (access & SEG_PRESENT) == 0:
        return task_fault(s, EXC_SS if seg == SS else EXC_NP, selector)
    if mark_accessed(s, cython.address(loaded), address) != DONE:
        return FAULT
    s.segments[seg] = loaded
    return DONE


def task_switch(s, selector, kind, rip):
    segment: Segment
    fields: uint64_t[20]
    descriptor: uint64_t = 0
    address: uint64_t = 0
    old_address: uint64_t = 0
    byte: uint64_t = 0
    flags: uint64_t = get_rflags(s)
    at: uint64_t
    i: uint32_t
    step: uint32_t
    count: uint32_t
    ldt: uint16_t
    vector: uint8_t = EXC_TS if kind == SWITCH_RETURN else EXC_GP
    wide: cython.bint
    old_wide: cython.bint = (s.tr.access & (TYPE_TSS & ~1)) != 0

    # Everything that can go wrong in the old task.
    if (selector & 0xFFFC) == 0 or selector & SELECTOR_TI:
        return task_fault(s, vector, selector)
    if read_descriptor(s, selector, vector, cython.address(descriptor), cython.address(address)) != DONE:
        return FAULT
    unpack_descriptor(descriptor, selector, cython.address(segment))
    wide = (segment.access & (TYPE_TSS & ~1)) != 0
    if (segment.access & (SEG_S | SEG_TYPE) & ~(TYPE_TSS & ~1)) != (
        TYPE_TSS16_BUSY if kind == SWITCH_RETURN else TYPE_TSS16
    ):
        return task_fault(s, vector, selector)
    if (segment.access & SEG_PRESENT) == 0:
        return task_fault(s, EXC_NP, selector)
    if segment.limit < (0x67 if wide else 0x2B):
        return task_fault(s, EXC_TS, selector)
    if s.tr.access & SEG_UNUSABLE or s.tr.limit < (0x67 if old_wide else 0x2B):
        return task_fault(s, EXC_TS, s.tr.selector)
    if (
        mem_probe(s, s.tr.base & LOW32, 0x68 if old_wide else 0x2C, ACCESS_WRITE, MMU_KERNEL) != DONE
        or mem_probe(s, segment.base, 0x68 if wide else 0x2C, ACCESS_READ, MMU_KERNEL) != DONE
        or mem_probe(s, address + 5, 1, ACCESS_WRITE, MMU_KERNEL) != DONE
        or (kind == SWITCH_CALL and mem_probe(s, segment.base, 2, ACCESS_WRITE, MMU_KERNEL) != DONE)
    ):
        return FAULT

    # The old task: not busy unless the new one is nested in it; its registers.
    if kind != SWITCH_CALL and descriptor_address(s, s.tr.selector, 8, cython.address(old_address)):
        if system_read(s, old_address + 5, 1, cython.address(byte)) != DONE:
            return FAULT
        if mem_write(s, old_address + 5, 1, MMU_KERNEL, byte & ~cython.cast(uint64_t, TYPE_BUSY)) != DONE:
            return FAULT
    if kind == SWITCH_RETURN:
        flags &= ~cython.cast(uint64_t, FLAG_NT)
    if save_task(s, s.tr.base, old_wide, rip, flags) != DONE:
        return FAULT

    # The new task's fields: CR3, rip, flags, eight registers, six selectors, LDT; narrow ones have no CR3, FS, GS.
    step = 4 if wide else 2
    at = segment.base + (0x1C if wide else 0x0E)
    count = 18 if wide else 15
    for i in range(count):
        if system_read(s, (at + i * step) & LOW32, step, cython.address(fields[i])) != DONE:
            return FAULT
    if not wide:
        for i in range(15):
            fields[15 - i] = fields[14 - i]  # rip to DS move one up, as if there were a CR3
        ldt = fields[15] & 0xFFFF
        fields[15] = fields[16] = 0
    else:
        ldt = fields[17] & 0xFFFF
        if system_read(s, (segment.base + 0x64) & LOW32, 2, cython.address(byte)) != DONE:
            return FAULT
    if kind == SWITCH_CALL and mem_write(s, segment.base, 2, MMU_KERNEL, s.tr.selector) != DONE:
        return FAULT
    segment.access |= TYPE_BUSY
    if kind != SWITCH_RETURN and mem_write(s, address + 5, 1, MMU_KERNEL, segment.access & 0xFF) != DONE:
        return FAULT

    # From here on faults belong to the new task.
    s.tr = segment
    s.cr0 |= CR0_TS
    s.dr[7] &= ~cython.cast(uint64_t, 0x155)  # local breakpoints
    debug_update(s)
    if wide and s.cr0 & CR0_PG and set_cr3(s, fields[0]) != DONE:
        return FAULT
    s.rip = fields[1]
    set_rflags(s, fields[2] | (FLAG_NT if kind == SWITCH_CALL else 0))
    for i in range(8):
        s.gpr[i] = fields[3 + i] if wide else fields[3 + i] | UPPER_WORD  # as the 386 did; the manual leaves it open
    set_null(cython.address(s.ldtr), ldt, 0)
    s.cpl = 3 if s.flags_system & FLAG_VM else fields[11 + CS] & 3
    for i in range(6):
        set_null(cython.address(s.segments[i]), fields[11 + i] & 0xFFFF, s.cpl)
    update_mode(s)
    if ldt & 0xFFFC:
        if ldt & SELECTOR_TI:
            return task_fault(s, EXC_TS, ldt)
        if read_descriptor(s, ldt, EXC_TS, cython.address(descriptor), cython.address(address)) != DONE:
            return FAULT
        unpack_descriptor(descriptor, ldt, cython.address(segment))
        if (segment.access & (SEG_S | SEG_TYPE | SEG_PRESENT)) != (TYPE_LDT | SEG_PRESENT):
            return task_fault(s, EXC_TS, ldt)
        s.ldtr = segment
    if s.flags_system & FLAG_VM:
        for i in range(6):
            set_real(s, i, fields[11 + i] & 0xFFFF)
    else:
        if (
            load_task_segment(s, CS, fields[11 + CS] & 0xFFFF) != DONE
            or load_task_segment(s, SS, fields[11 + SS] & 0xFFFF) != DONE
            or load_task_segment(s, DS, fields[11 + DS] & 0xFFFF) != DONE
            or load_task_segment(s, ES, fields[11 + ES] & 0xFFFF) != DONE
            or load_task_segment(s, FS, fields[11 + FS] & 0xFFFF) != DONE
            or load_task_segment(s, GS, fields[11 + GS] & 0xFFFF) != DONE
        ):
            update_mode(s)
            return FAULT
    update_mode(s)
    if s.rip > s.segments[CS].limit:
        return gp(s, 0)
    if wide and byte & 1:
        s.dr[6] |= 0x8000  # BT: the TSS asks for a debug trap
        return raise_fault(s, EXC_DB, False, 0)
    return DONE


helpers.register("mov_to_sreg", mov_to_sreg)
helpers.register("mov_from_sreg", mov_from_sreg)
helpers.register("push_sreg", push_sreg)
helpers.register("pop_sreg", pop_sreg)
helpers.register("load_far", load_far)
helpers.register("jmp_far_imm", jmp_far_imm)
helpers.register("call_far_imm", call_far_imm)
helpers.register("jmp_far_mem", jmp_far_mem)
helpers.register("call_far_mem", call_far_mem)
helpers.register("retf", retf)
helpers.register("lldt", lldt)
helpers.register("ltr", ltr)
helpers.register("sldt", sldt)
helpers.register("str", str_)
helpers.register("verr", verr)
helpers.register("verw", verw)
helpers.register("lar", lar)
helpers.register("lsl", lsl)
helpers.register("sgdt", sgdt)
helpers.register("sidt", sidt)
helpers.register("lgdt", lgdt)
helpers.register("lidt", lidt)
helpers.register("syscall", syscall)
helpers.register("sysret", sysret)
helpers.register("sysenter", sysenter)
helpers.register("sysexit", sysexit)
helpers.register("arpl", arpl)
helpers.register("swapgs", swapgs)
