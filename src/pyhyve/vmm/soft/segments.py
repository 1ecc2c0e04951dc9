"""Segment registers: descriptors, the checks of their loads, stacks of other levels, and MOV, PUSH, POP, LDS.

Documents: Intel SDM Vol. 3A 3.4-3.5 (descriptors), 5.5-5.8 (privilege checks), and the operation sections of Vol. 2 for
each instruction.

A descriptor is found in the GDT or LDT by its selector, read with supervisor rights, unpacked into a ``Segment``
and checked; only then anything changes. In real and virtual-8086 mode a selector is the base, divided by 16. Far
transfers are in ``transfers``, tasks in ``tasks``, system segments in ``tables``.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import close_store, mem_pointer, mem_read, mem_write, system_read
from cython.cimports.pyhyve.vmm.soft.addresses import effective_address, linear, read_operand, write_operand
from cython.cimports.pyhyve.vmm.soft.modes import update_mode
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    ATOMIC,
    CR0_PE,
    CS,
    DONE,
    DS,
    ES,
    EXC_GP,
    EXC_NP,
    EXC_SS,
    EXC_TS,
    FAULT,
    FLAG_VM,
    FS,
    GS,
    LOW32,
    MMU_KERNEL,
    MODE_CODE64,
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
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SHADOW_SS,
    SS,
    Segment,
    gp,
    is_canonical,
    raise_fault,
    ud,
)

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
    return change_type(s, address, SEG_ACCESSED, 0)


def change_type(s, address, set, clear):
    status: cython.int = DONE
    old: uint64_t = 0
    place: cython.pointer(uint8_t) = mem_pointer(s, address + 5, 1, ACCESS_WRITE, MMU_KERNEL, cython.address(status))
    if place == cython.NULL:
        if status == FAULT or system_read(s, address + 5, 1, cython.address(old)) != DONE:
            return FAULT
        return mem_write(s, address + 5, 1, MMU_KERNEL, (old | set) & ~cython.cast(uint64_t, clear))
    if set:
        fetch_or8(place, set, ATOMIC)
    if clear:
        fetch_and8(place, 0xFF ^ clear, ATOMIC)
    if s.open_size:
        close_store(s)
    return DONE


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
        update_mode(s)
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
    if (s.mode & MODE_CODE64) == 0:
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


def check_return(s, cs, cs_address, rip, selector, ss):
    ss_address: uint64_t = 0
    if (
        read_return_ss(s, selector, cs, ss, cython.address(ss_address)) != DONE
        or check_rip(s, cs, rip) != DONE
        or mark_accessed(s, cs, cs_address) != DONE
        or ((ss.access & SEG_UNUSABLE) == 0 and mark_accessed(s, ss, ss_address) != DONE)
    ):
        return FAULT
    return DONE


def enter_return(s, cs, ss, rip, sp):
    level: cython.int = cs.selector & 3
    outer: cython.bint = level != s.cpl
    s.segments[SS] = ss[0]
    s.cpl = level
    if outer:
        drop_segments(s)
    enter_code(s, cs, level, rip)
    set_sp(s, sp, stack_mask(s))


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


register("mov_to_sreg", mov_to_sreg)
register("mov_from_sreg", mov_from_sreg)
register("push_sreg", push_sreg)
register("pop_sreg", pop_sreg)
register("load_far", load_far)
