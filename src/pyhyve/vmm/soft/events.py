"""Exceptions and interrupts: through the IDT to their handlers in every mode, and back by IRET.

Documents: Intel SDM Vol. 3A chapter 6 (6.12 protected mode, 6.13 error codes, 6.14 long mode, table 6-5 double faults),
20.1.4 and 20.3 (real and virtual-8086 mode), Vol. 2 INT n and IRET.

An instruction that faults records the exception in ``s.exc_*``; the engine calls ``deliver_exception``. ``enter`` reads
the gate, checks it, finds the stack, pushes the frame and only then changes registers, so that a fault on the way finds
the state of the interrupted instruction; what that second fault becomes is decided by the classes of both. A vector
that software asks for is delivered by the instruction's helper itself.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.flags import has_virtual_if, set_virtual_if, virtual_image, virtual_refused
from cython.cimports.pyhyve.vmm.soft.insn import next_rip
from cython.cimports.pyhyve.vmm.soft.access import mem_write, system_read
from cython.cimports.pyhyve.vmm.soft.portio import TSS_IO_MAP
from cython.cimports.pyhyve.vmm.soft.segments import (
    TYPE_INTERRUPT_GATE,
    TYPE_INTERRUPT_GATE16,
    TYPE_TASK_GATE,
    TYPE_TRAP_GATE,
    TYPE_TRAP_GATE16,
    TYPE_TSS,
    check_return,
    check_rip,
    enter_code,
    enter_return,
    inner_stack,
    mark_accessed,
    push_new,
    read_code,
    read_return_cs,
    read_stack,
    set_new_stack,
    set_null,
    set_real,
    set_sp,
    stack_mask,
    tss_rsp,
    write_stack,
)
from cython.cimports.pyhyve.vmm.soft.tasks import SWITCH_CALL, SWITCH_RETURN, task_switch
from cython.cimports.pyhyve.vmm.soft.state import (
    CR0_PE,
    CR4_VME,
    CS,
    DONE,
    DS,
    ES,
    EXC_BP,
    EXC_DB,
    EXC_DE,
    EXC_DF,
    EXC_GP,
    EXC_NMI,
    EXC_NP,
    EXC_OF,
    EXC_PF,
    EXC_SS,
    EXC_TS,
    EXIT_TRIPLE_FAULT,
    FAULT,
    FLAG_AC,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_OF,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FS,
    GS,
    LEAVE,
    LOW32,
    MMU_KERNEL,
    MMU_USER,
    MODE_CODE64,
    RSP,
    SEG_DB,
    SEG_EXPAND_DOWN,
    SEG_L,
    SEG_PRESENT,
    SEG_TYPE,
    SEG_UNUSABLE,
    SS,
    Segment,
    get_rflags,
    gp,
    is_canonical,
    raise_fault,
    set_rflags,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.modes import update_mode

from cython.cimports.pyhyve.vmm.soft import helpers

# Delivery


def fault_class(vector):
    if vector == EXC_PF:
        return CLASS_PAGE_FAULT
    if vector == EXC_DF:
        return CLASS_DOUBLE_FAULT
    if vector == EXC_DE or EXC_TS <= vector <= EXC_GP:
        return CLASS_CONTRIBUTORY
    return CLASS_BENIGN


def deliver_exception(s):
    vector: uint8_t = s.exc_vector
    has_error: cython.bint = s.exc_has_error
    error: uint32_t = s.exc_error
    rip: uint64_t = s.rip
    source: cython.int = SOURCE_HARDWARE
    first: cython.int = CLASS_BENIGN
    second: cython.int
    tries: cython.int
    flags: uint64_t
    if s.exc_soft:
        source = SOURCE_SOFTWARE
        rip = s.exc_next_rip
    # Four faults in a row are possible. More come only from a guest that changes tables under its own feet.
    for tries in range(8):
        s.exc_pending = 0
        s.exc_soft = 0
        s.count_exceptions += 1
        second = fault_class(vector)
        if vector == EXC_PF:
            s.cr2 = s.exc_cr2
        if first == CLASS_DOUBLE_FAULT and second != CLASS_BENIGN:
            break
        if (first == CLASS_CONTRIBUTORY and second == CLASS_CONTRIBUTORY) or (
            first == CLASS_PAGE_FAULT and (second == CLASS_CONTRIBUTORY or second == CLASS_PAGE_FAULT)
        ):
            vector = EXC_DF
            has_error = True
            error = 0
            second = CLASS_DOUBLE_FAULT
        first = second
        flags = get_rflags(s)
        if source == SOURCE_HARDWARE and vector != EXC_DB and vector != EXC_BP and vector != EXC_OF:
            flags |= FLAG_RF  # a fault: the instruction is tried again, and its breakpoint not
        if vector == EXC_DB:
            s.dr[7] &= ~cython.cast(uint64_t, 0x2000)  # GD
            s.debugctl = 0  # LBR and BTF
        if enter(s, vector, source, rip, flags, has_error, error) == DONE:
            return DONE
        vector = s.exc_vector
        has_error = s.exc_has_error
        error = s.exc_error
        rip = s.rip
        source = SOURCE_HARDWARE
    s.exc_pending = 0
    s.watch_hits = 0
    s.exit.kind = EXIT_TRIPLE_FAULT
    s.exit.address = s.rip
    return LEAVE


def deliver_interrupt(s, vector):
    s.count_interrupts += 1
    s.halted = 0
    if enter(s, vector, SOURCE_HARDWARE, s.rip, get_rflags(s), False, 0) == DONE:
        return DONE
    return deliver_exception(s)


def deliver_nmi(s):
    s.nmi_blocked = 1
    return deliver_interrupt(s, EXC_NMI)


def enter(s, vector, source, rip, flags, has_error, error):
    status: cython.int
    if (s.cr0 & CR0_PE) == 0:
        status = enter_real(s, vector, rip, flags)
    elif in_long_mode(s):
        status = enter_long(s, vector, source, rip, flags, has_error, error)
    else:
        status = enter_protected(s, vector, source, rip, flags, has_error, error)
    if status == DONE:
        s.inhibit = 0
    elif source == SOURCE_HARDWARE and EXC_TS <= s.exc_vector <= EXC_GP:
        s.exc_error |= ERROR_EXT
    return status


def begin_handler(s, interrupt_gate):
    s.flags_system &= ~cython.cast(uint64_t, FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM)
    if interrupt_gate:
        s.iff = 0


def check_handler(s, selector, cs, address):
    """The gate's code segment: present code (64-bit in long mode), not less privileged than what it interrupts."""
    if read_code(s, selector, cs, address) != DONE:
        return FAULT
    if dpl(cs.access) > s.cpl or (in_long_mode(s) and (cs.access & (SEG_L | SEG_DB)) != SEG_L):
        return gp(s, selector & 0xFFFC)
    if (cs.access & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, selector & 0xFFFC)
    return DONE


def enter_long(s, vector, source, rip, flags, has_error, error):
    cs: Segment
    gate: uint64_t = 0
    upper: uint64_t = 0
    address: uint64_t = 0
    offset: uint64_t
    sp: uint64_t = s.gpr[RSP]
    where: uint32_t = vector * 16
    code: uint32_t = vector * 8 + ERROR_IDT
    kind: uint32_t
    ist: uint32_t
    level: cython.int
    mode: cython.int
    if where + 15 > s.idt_limit:
        return gp(s, code)
    if (
        system_read(s, s.idt_base + where, 8, cython.address(gate)) != DONE
        or system_read(s, s.idt_base + where + 8, 8, cython.address(upper)) != DONE
    ):
        return FAULT
    kind = gate >> 40 & 0x1F
    if kind != TYPE_INTERRUPT_GATE and kind != TYPE_TRAP_GATE:
        return gp(s, code)
    if source == SOURCE_SOFTWARE and (gate >> 45 & 3) < s.cpl:
        return gp(s, code)
    if (gate >> 40 & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, code)
    if check_handler(s, gate >> 16 & 0xFFFF, cython.address(cs), cython.address(address)) != DONE:
        return FAULT
    offset = (gate & 0xFFFF) | (gate >> 48) << 16 | (upper & LOW32) << 32
    if not is_canonical(offset):
        return gp(s, 0)

    level = s.cpl if cs.access & SEG_EXPAND_DOWN else dpl(cs.access)
    ist = gate >> 32 & 7
    if ist != 0:
        if tss_rsp(s, 0x1C + 8 * ist, cython.address(sp)) != DONE:
            return FAULT
    elif level != s.cpl and tss_rsp(s, 4 + 8 * level, cython.address(sp)) != DONE:
        return FAULT
    sp &= ~cython.cast(uint64_t, 15)
    if not (is_canonical(sp - 1) and is_canonical(sp - 48)):
        return raise_fault(s, EXC_SS, True, 0)
    mode = MMU_USER if level == 3 else MMU_KERNEL
    if (
        mem_write(s, sp - 8, 8, mode, s.segments[SS].selector) != DONE
        or mem_write(s, sp - 16, 8, mode, s.gpr[RSP]) != DONE
        or mem_write(s, sp - 24, 8, mode, flags) != DONE
        or mem_write(s, sp - 32, 8, mode, s.segments[CS].selector) != DONE
        or mem_write(s, sp - 40, 8, mode, rip) != DONE
        or (has_error and mem_write(s, sp - 48, 8, mode, error) != DONE)
        or mark_accessed(s, cython.address(cs), address) != DONE
    ):
        return FAULT
    s.gpr[RSP] = sp - (48 if has_error else 40)
    if level != s.cpl:
        set_null(cython.address(s.segments[SS]), level, level)
    begin_handler(s, kind == TYPE_INTERRUPT_GATE)
    enter_code(s, cython.address(cs), level, offset)
    return DONE


def enter_protected(s, vector, source, rip, flags, has_error, error):
    cs: Segment
    ss: Segment
    frame: uint64_t[10]
    gate: uint64_t = 0
    address: uint64_t = 0
    offset: uint64_t
    sp: uint64_t = 0
    mask: uint64_t
    where: uint32_t = vector * 8
    code: uint32_t = vector * 8 + ERROR_IDT
    kind: uint32_t
    size: uint32_t = 4
    count: cython.int = 0
    i: cython.int
    level: cython.int
    virtual: cython.bint = (flags & FLAG_VM) != 0
    if where + 7 > s.idt_limit:
        return gp(s, code)
    if system_read(s, (s.idt_base + where) & LOW32, 8, cython.address(gate)) != DONE:
        return FAULT
    kind = gate >> 40 & 0x1F
    if (
        kind != TYPE_INTERRUPT_GATE
        and kind != TYPE_TRAP_GATE
        and kind != TYPE_INTERRUPT_GATE16
        and kind != TYPE_TRAP_GATE16
        and kind != TYPE_TASK_GATE
    ):
        return gp(s, code)
    if source == SOURCE_SOFTWARE and (gate >> 45 & 3) < s.cpl:
        return gp(s, code)
    if (gate >> 40 & SEG_PRESENT) == 0:
        return raise_fault(s, EXC_NP, True, code)
    if kind == TYPE_TASK_GATE:
        return enter_task(s, gate >> 16 & 0xFFFF, rip, flags, has_error, error)
    if check_handler(s, gate >> 16 & 0xFFFF, cython.address(cs), cython.address(address)) != DONE:
        return FAULT
    level = s.cpl if cs.access & SEG_EXPAND_DOWN else dpl(cs.access)
    if virtual and level != 0:
        return gp(s, cs.selector & 0xFFFC)
    offset = gate & 0xFFFF
    if kind == TYPE_INTERRUPT_GATE16 or kind == TYPE_TRAP_GATE16:
        size = 2
    else:
        offset |= (gate >> 48) << 16
    if offset > cs.limit:
        return gp(s, 0)

    if virtual:
        frame[0] = s.segments[GS].selector
        frame[1] = s.segments[FS].selector
        frame[2] = s.segments[DS].selector
        frame[3] = s.segments[ES].selector
        count = 4
    if level != s.cpl:
        if inner_stack(s, level, cython.address(ss), cython.address(sp)) != DONE:
            return FAULT
        frame[count] = s.segments[SS].selector
        frame[count + 1] = s.gpr[RSP]
        count += 2
    frame[count] = flags
    frame[count + 1] = s.segments[CS].selector
    frame[count + 2] = rip
    frame[count + 3] = error
    count += 4 if has_error else 3
    if mark_accessed(s, cython.address(cs), address) != DONE:
        return FAULT
    if level != s.cpl:
        for i in range(count):
            if push_new(s, cython.address(ss), cython.address(sp), size, frame[i]) != DONE:
                return FAULT
        set_new_stack(s, cython.address(ss), sp)
    else:
        mask = stack_mask(s)
        sp = s.gpr[RSP]
        for i in range(count):
            sp = (sp - size) & mask
            if write_stack(s, sp, size, frame[i]) != DONE:
                return FAULT
        set_sp(s, sp, mask)
    if virtual:
        set_null(cython.address(s.segments[GS]), 0, 0)
        set_null(cython.address(s.segments[FS]), 0, 0)
        set_null(cython.address(s.segments[DS]), 0, 0)
        set_null(cython.address(s.segments[ES]), 0, 0)
    begin_handler(s, kind == TYPE_INTERRUPT_GATE or kind == TYPE_INTERRUPT_GATE16)
    enter_code(s, cython.address(cs), level, offset)
    return DONE


def enter_task(s, selector, rip, flags, has_error, error):
    """Through a task gate: the handler is a task of its own."""
    mask: uint64_t
    sp: uint64_t
    size: uint32_t
    s.flags_system |= flags & FLAG_RF  # goes into the old task's TSS
    if task_switch(s, selector, SWITCH_CALL, rip) != DONE:
        return FAULT
    if has_error:
        size = 4 if s.tr.access & (TYPE_TSS & ~1) else 2
        mask = stack_mask(s)
        sp = (s.gpr[RSP] - size) & mask
        if write_stack(s, sp, size, error) != DONE:
            return FAULT
        set_sp(s, sp, mask)
    return DONE


def enter_real(s, vector, rip, flags):
    where: uint32_t = vector * 4
    if where + 3 > s.idt_limit:
        return gp(s, vector * 8 + ERROR_IDT)
    if enter_8086(s, (s.idt_base + where) & LOW32, rip, flags) != DONE:
        return FAULT
    s.iff = 0
    s.flags_system &= ~cython.cast(uint64_t, FLAG_AC)
    update_mode(s)
    return DONE


def enter_8086(s, where, rip, flags):
    """A frame of three words, and CS:IP from the vector's entry at ``where``. The caller clears IF, and updates the mode."""
    vector_entry: uint64_t = 0
    sp: uint64_t = s.gpr[RSP]
    mask: uint64_t = stack_mask(s)
    if system_read(s, where, 4, cython.address(vector_entry)) != DONE:
        return FAULT
    if (
        write_stack(s, (sp - 2) & mask, 2, flags) != DONE
        or write_stack(s, (sp - 4) & mask, 2, s.segments[CS].selector) != DONE
        or write_stack(s, (sp - 6) & mask, 2, rip) != DONE
    ):
        return FAULT
    set_sp(s, sp - 6, mask)
    s.flags_system &= ~cython.cast(uint64_t, FLAG_TF | FLAG_RF)
    set_real(s, CS, vector_entry >> 16 & 0xFFFF)
    s.rip = vector_entry & 0xFFFF
    return DONE


# INT n and its kin


def software_interrupt(s, insn, vector):
    return enter(s, vector, SOURCE_SOFTWARE, next_rip(s, insn), get_rflags(s), False, 0)


def int_n(s, insn):
    own: cython.bint = False
    if s.flags_system & FLAG_VM:
        if s.cr4 & CR4_VME and is_redirected(s, insn.imm & 0xFF, cython.address(own)) != DONE:
            return FAULT
        if own:
            return enter_redirected(s, insn.imm & 0xFF, next_rip(s, insn))
        if (s.flags_system & FLAG_IOPL) != FLAG_IOPL:
            return gp(s, 0)
    return software_interrupt(s, insn, insn.imm & 0xFF)


def is_redirected(s, vector, own):
    """Does the TSS leave this vector to the 8086 program itself (SDM Vol. 3A 20.3.3)? The 256 bits are in front of the I/O map."""
    base: uint64_t = 0
    bits: uint64_t = 0
    if s.tr.limit < TSS_IO_MAP + 1:
        return gp(s, 0)
    if system_read(s, s.tr.base + TSS_IO_MAP, 2, cython.address(base)) != DONE:
        return FAULT
    base = (base - 32 + (vector >> 3)) & LOW32
    if base > s.tr.limit:
        return gp(s, 0)
    if system_read(s, s.tr.base + base, 1, cython.address(bits)) != DONE:
        return FAULT
    own[0] = (bits >> (vector & 7)) & 1 == 0
    return DONE


def enter_redirected(s, vector, rip):
    """To the handler that the program's own vectors name, which lie at linear address 0."""
    flags: uint64_t = get_rflags(s)
    virtual: cython.bint = (flags & FLAG_IOPL) != FLAG_IOPL
    if enter_8086(s, vector * 4, rip, virtual_image(flags) if virtual else flags) != DONE:
        return FAULT
    if virtual:
        set_virtual_if(s, False)
    else:
        s.iff = 0
    s.inhibit = 0
    update_mode(s)
    return DONE


def int3(s, insn):
    return software_interrupt(s, insn, EXC_BP)


def into(s, insn):
    if (s.flags_arith & FLAG_OF) == 0:
        s.rip = next_rip(s, insn)
        return DONE
    return software_interrupt(s, insn, EXC_OF)


def int1(s, insn):
    # The gate's DPL does not matter to INT1 (SDM Vol. 2, INT n).
    return enter(s, EXC_DB, SOURCE_HARDWARE, next_rip(s, insn), get_rflags(s), False, 0)


# IRET


def restore_flags(s, value, size, level):
    """What IRET of ``size`` bytes at CPL ``level`` may change of RFLAGS."""
    mask: uint64_t = IRET_COMMON
    iopl: cython.int = s.flags_system >> 12 & 3
    if level <= iopl:
        mask |= FLAG_IF
    if level == 0:
        mask |= FLAG_IOPL
    if size >= 4:
        mask |= IRET_WIDE
        if level == 0:
            mask |= IRET_VIRTUAL
    set_rflags(s, (get_rflags(s) & ~mask) | (value & mask))


def iret(s, insn):
    status: cython.int
    if (s.cr0 & CR0_PE) == 0 or s.flags_system & FLAG_VM:
        status = iret_real(s, insn)
    elif s.flags_system & FLAG_NT:
        status = gp(s, 0) if in_long_mode(s) else iret_task(s, insn)
    elif s.mode & MODE_CODE64:
        status = iret_long(s, insn)
    else:
        status = iret_protected(s, insn)
    if status == DONE:
        s.nmi_blocked = 0
    return status


def iret_real(s, insn):
    """Real mode, and virtual-8086 mode, where IOPL stays and must be 3, or VIF is there in IF's place."""
    size: uint32_t = insn.opsize
    mask: uint64_t = stack_mask(s)
    sp: uint64_t = s.gpr[RSP]
    rip: uint64_t = 0
    selector: uint64_t = 0
    flags: uint64_t = 0
    status: cython.int
    keep: uint64_t = IRET_COMMON
    virtual: cython.bint = (s.flags_system & FLAG_VM) != 0
    virtual_if: cython.bint = virtual and (s.flags_system & FLAG_IOPL) != FLAG_IOPL
    if virtual_if and (not has_virtual_if(s) or size != 2):
        return gp(s, 0)
    status = read_stack(s, sp & mask, size, cython.address(rip))
    if status == DONE:
        status = read_stack(s, (sp + size) & mask, size, cython.address(selector))
    if status == DONE:
        status = read_stack(s, (sp + 2 * size) & mask, size, cython.address(flags))
    if status != DONE:
        return status
    if rip > s.segments[CS].limit or (virtual_if and virtual_refused(s, flags)):
        return gp(s, 0)
    set_real(s, CS, selector & 0xFFFF)
    s.rip = rip
    set_sp(s, sp + 3 * size, mask)
    if virtual_if:
        set_virtual_if(s, flags & FLAG_IF != 0)
    else:
        keep |= FLAG_IF
    if not virtual:
        keep |= FLAG_IOPL
    if size == 4:
        keep |= IRET_WIDE
    set_rflags(s, (get_rflags(s) & ~keep) | (flags & keep))
    update_mode(s)
    return DONE


def iret_long(s, insn):
    """64-bit mode: SS:RSP is popped always."""
    cs: Segment
    ss: Segment
    size: uint32_t = insn.opsize
    sp: uint64_t = s.gpr[RSP]
    rip: uint64_t = 0
    selector: uint64_t = 0
    flags: uint64_t = 0
    new_sp: uint64_t = 0
    new_ss: uint64_t = 0
    cs_address: uint64_t = 0
    status: cython.int
    status = read_stack(s, sp, size, cython.address(rip))
    if status == DONE:
        status = read_stack(s, sp + size, size, cython.address(selector))
    if status == DONE:
        status = read_stack(s, sp + 2 * size, size, cython.address(flags))
    if status == DONE:
        status = read_stack(s, sp + 3 * size, size, cython.address(new_sp))
    if status == DONE:
        status = read_stack(s, sp + 4 * size, size, cython.address(new_ss))
    if status != DONE:
        return status
    status = read_return_cs(s, selector & 0xFFFF, cython.address(cs), cython.address(cs_address))
    if status == DONE:
        status = check_return(
            s, cython.address(cs), cs_address, cython.address(rip), new_ss & 0xFFFF, cython.address(ss)
        )
    if status == DONE:
        restore_flags(s, flags, size, s.cpl)
        enter_return(s, cython.address(cs), cython.address(ss), rip, new_sp)
    return status


def iret_protected(s, insn):
    """16- and 32-bit protected mode, compatibility mode included."""
    cs: Segment
    ss: Segment
    size: uint32_t = insn.opsize
    mask: uint64_t = stack_mask(s)
    sp: uint64_t = s.gpr[RSP]
    rip: uint64_t = 0
    selector: uint64_t = 0
    flags: uint64_t = 0
    new_sp: uint64_t = 0
    new_ss: uint64_t = 0
    cs_address: uint64_t = 0
    status: cython.int
    level: cython.int
    old_level: cython.int = s.cpl
    status = read_stack(s, sp & mask, size, cython.address(rip))
    if status == DONE:
        status = read_stack(s, (sp + size) & mask, size, cython.address(selector))
    if status == DONE:
        status = read_stack(s, (sp + 2 * size) & mask, size, cython.address(flags))
    if status != DONE:
        return status
    if flags & FLAG_VM and size == 4 and old_level == 0 and not in_long_mode(s):
        return iret_vm86(s, sp + 12, rip, selector, flags)
    if read_return_cs(s, selector & 0xFFFF, cython.address(cs), cython.address(cs_address)) != DONE:
        return FAULT
    level = selector & 3
    if level == old_level:
        if (
            check_rip(s, cython.address(cs), cython.address(rip)) != DONE
            or mark_accessed(s, cython.address(cs), cs_address) != DONE
        ):
            return FAULT
        set_sp(s, sp + 3 * size, mask)
        restore_flags(s, flags, size, old_level)
        enter_code(s, cython.address(cs), level, rip)
        return DONE

    status = read_stack(s, (sp + 3 * size) & mask, size, cython.address(new_sp))
    if status == DONE:
        status = read_stack(s, (sp + 4 * size) & mask, size, cython.address(new_ss))
    if status != DONE:
        return status
    status = check_return(s, cython.address(cs), cs_address, cython.address(rip), new_ss & 0xFFFF, cython.address(ss))
    if status == DONE:
        restore_flags(s, flags, size, old_level)
        enter_return(s, cython.address(cs), cython.address(ss), rip, new_sp)
    return status


def iret_vm86(s, sp, rip, cs, flags):
    """Back to virtual-8086 mode: ESP, SS, ES, DS, FS and GS follow EFLAGS on the stack."""
    values: uint64_t[6]
    mask: uint64_t = stack_mask(s)
    i: uint32_t
    status: cython.int
    for i in range(6):
        status = read_stack(s, (sp + 4 * i) & mask, 4, cython.address(values[i]))
        if status != DONE:
            return status
    if rip > 0xFFFF:
        return gp(s, 0)
    set_rflags(s, flags)
    set_real(s, CS, cs & 0xFFFF)
    set_real(s, SS, values[1] & 0xFFFF)
    set_real(s, ES, values[2] & 0xFFFF)
    set_real(s, DS, values[3] & 0xFFFF)
    set_real(s, FS, values[4] & 0xFFFF)
    set_real(s, GS, values[5] & 0xFFFF)
    s.gpr[RSP] = values[0]
    s.rip = rip
    s.cpl = 3
    update_mode(s)
    return DONE


def iret_task(s, insn):
    """NT is set: back to the task that the current TSS links to."""
    link: uint64_t = 0
    if system_read(s, s.tr.base & LOW32, 2, cython.address(link)) != DONE:
        return FAULT
    return task_switch(s, link & 0xFFFF, SWITCH_RETURN, next_rip(s, insn))


helpers.register("iret", iret)
helpers.register("int_n", int_n)
helpers.register("int3", int3)
helpers.register("into", into)
helpers.register("int1", int1)
