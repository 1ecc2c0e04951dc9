"""GDT, IDT, LDT and task register: loaded, stored, and looked into.

Documents: Intel SDM Vol. 3A 2.4 (registers), 3.5 (descriptors of system segments), Vol. 2 for LGDT, LIDT, LLDT, LTR, SGDT,
SIDT, SLDT, STR, LAR, LSL, VERR, VERW, ARPL.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import mem_probe, mem_read, mem_write, system_read
from cython.cimports.pyhyve.vmm.soft.addresses import effective_address, linear, write_operand
from cython.cimports.pyhyve.vmm.soft.segments import (
    SELECTOR_TI,
    TYPE_BUSY,
    TYPE_CALL_GATE,
    TYPE_CALL_GATE16,
    TYPE_LDT,
    TYPE_TASK_GATE,
    TYPE_TSS,
    TYPE_TSS16,
    TYPE_TSS16_BUSY,
    TYPE_TSS_BUSY,
    change_type,
    descriptor_address,
    dpl,
    in_long_mode,
    protected_mode,
    read_word,
    set_null,
    unpack_descriptor,
    write_word,
)
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR4_UMIP,
    DONE,
    EXC_NP,
    FAULT,
    FLAG_ZF,
    LOW32,
    MMU_KERNEL,
    SEG_CODE,
    SEG_EXPAND_DOWN,
    SEG_G,
    SEG_PRESENT,
    SEG_S,
    SEG_TYPE,
    SEG_WRITABLE,
    Segment,
    gp,
    is_canonical,
    raise_fault,
    ud,
)

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


def read_system_selector(s, insn, selector):
    if not protected_mode(s):
        return ud(s)
    if s.cpl != 0:
        return gp(s, 0)
    return read_word(s, insn, selector)


def lldt(s, insn):
    segment: Segment
    selector: uint16_t = 0
    descriptor: uint64_t = 0
    address: uint64_t = 0
    status: cython.int = read_system_selector(s, insn, cython.address(selector))
    if status != DONE:
        return status
    if (selector & 0xFFFC) == 0:
        set_null(cython.address(s.ldtr), selector, 0)
        return finish(s, insn)
    if (
        system_descriptor(s, selector, cython.address(descriptor), cython.address(address), cython.address(segment))
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
    status: cython.int = read_system_selector(s, insn, cython.address(selector))
    if status != DONE:
        return status
    if (selector & 0xFFFC) == 0:
        return gp(s, 0)
    if (
        system_descriptor(s, selector, cython.address(descriptor), cython.address(address), cython.address(segment))
        != DONE
    ):
        return FAULT
    kind = segment.access & (SEG_S | SEG_TYPE)
    if kind != TYPE_TSS and (kind != TYPE_TSS16 or in_long_mode(s)):
        return gp(s, selector & 0xFFFC)
    if (segment.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, selector & 0xFFFC)
    segment.access |= TYPE_BUSY
    if change_type(s, address, TYPE_BUSY, 0) != DONE:
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


register("lldt", lldt)
register("ltr", ltr)
register("sldt", sldt)
register("str", str_)
register("sgdt", sgdt)
register("sidt", sidt)
register("lgdt", lgdt)
register("lidt", lidt)
register("verr", verr)
register("verw", verw)
register("lar", lar)
register("lsl", lsl)
register("arpl", arpl)
