"""Task switches.

Document: Intel SDM Vol. 3A chapter 7. What can go wrong in the old task is looked at first; faults that remain after the
first visible change happen in the new task.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.control import set_cr3
from cython.cimports.pyhyve.vmm.soft.debug import debug_update
from cython.cimports.pyhyve.vmm.soft.access import mem_probe, mem_write, system_read
from cython.cimports.pyhyve.vmm.soft.modes import update_mode
from cython.cimports.pyhyve.vmm.soft.segments import (
    SELECTOR_TI,
    TYPE_BUSY,
    TYPE_LDT,
    TYPE_TSS,
    TYPE_TSS16,
    TYPE_TSS16_BUSY,
    UPPER_WORD,
    change_type,
    descriptor_address,
    dpl,
    mark_accessed,
    read_descriptor,
    set_null,
    set_real,
    unpack_descriptor,
)
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR0_PG,
    CR0_TS,
    CS,
    DONE,
    DS,
    ES,
    EXC_DB,
    EXC_GP,
    EXC_NP,
    EXC_SS,
    EXC_TS,
    FAULT,
    FLAG_NT,
    FLAG_VM,
    FS,
    GS,
    LOW32,
    MMU_KERNEL,
    SEG_CODE,
    SEG_EXPAND_DOWN,
    SEG_PRESENT,
    SEG_S,
    SEG_TYPE,
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SS,
    Segment,
    get_rflags,
    gp,
    raise_fault,
    set_rflags,
)

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
        if change_type(s, old_address, 0, TYPE_BUSY) != DONE:
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
    if kind != SWITCH_RETURN and change_type(s, address, TYPE_BUSY, 0) != DONE:
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
