"""Spans: memory around a register that instructions of a block access with one look-up.

Code goes to memory by few registers: the fields of a structure, the slots of a stack frame, what lies beside other data
of a program. Between two changes of a register, accesses to ``[register + constant]`` are taken together as a span. RSP
may change by constants meanwhile, so pushes, pops, calls and returns belong to the span of the frame; addresses by RIP
never change. One look-up in the TLB finds out whether all of the span lies in one page that may be accessed so; each access
is then one instruction more than the guest's own: it loads what finds the memory (``CpuState.span``) into T2.

The look-up stands where no flag matters, if there is such a place not far ahead: there it is short.

Where it fails the page is looked for (``cpu.span_access``), without side effects: the instructions may never come to their
accesses. If the page is not there, not to be written as it is, no memory at all, or if the span goes over its end, the block
is left in front of the look-up for one in which each access has a look-up of its own (MODE_SINGLY).
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.decode import (
    K_CALL,
    K_CALL_IND,
    K_JCC,
    K_JCXZ,
    K_JMP_IND,
    K_LEA,
    K_LEAVE,
    K_LOOP,
    K_MOFFS,
    K_MOVS,
    K_PLAIN,
    K_POP,
    K_PUSH,
    K_PUSH_IMM,
    K_PUSH_MEM,
    K_RDTSC,
    K_RET,
    K_STOS,
    K_XCHG_A,
    K_XLAT,
    OP_WRITE,
    OpInfo,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.encode import (
    CC_AE,
    HRCX,
    T0,
    T1,
    T2,
    Asm,
    e32,
    e8,
    jcc_fwd,
    jmp_to,
    land,
    land_short,
    lea,
    load_gs,
    mov,
    short_fwd,
    store_gs,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.evex import evex_what
from cython.cimports.pyhyve.vmm.soft.insn import MEM_NONE, MEM_READ, NO_REG, REG_RIP, Insn
from cython.cimports.pyhyve.vmm.soft.leaving import emit_singly, foresees_returns, goes_to_helper, trap_of
from cython.cimports.pyhyve.vmm.soft.operands import call_refill, emit_tlb, forget_held, source
from cython.cimports.pyhyve.vmm.soft.plain import high_byte
from cython.cimports.pyhyve.vmm.soft.sites import new_site
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    FS,
    RAX,
    RBP,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    SS,
)
from cython.cimports.pyhyve.vmm.soft.stubs import host_reg, is_spilled, off
from cython.cimports.pyhyve.vmm.soft.translate import COLD_SPAN, NO_SPAN, PART_OPERAND, SPAN_HELD, Cold, Span


# --- what an instruction does -----------------------------------------------------------------------------------------


def has_operand(x, insn):
    """Does the instruction access memory by a register, or by RIP, and a constant?"""
    kind: uint32_t = ops[insn.op].kind
    if kind == K_LEAVE:
        return True
    return (
        (kind == K_PLAIN or kind == K_PUSH_MEM or kind == K_CALL_IND or kind == K_JMP_IND)
        and insn.has_mem != 0
        and insn.mem_access != MEM_NONE
        and evex_what(insn) == 0
        and insn.addrsize == 8
        and insn.base != NO_REG
        and insn.index == NO_REG
        and insn.segment < FS
    )


def general(access, reg, high):
    """The general register that an operand writes, as a bit."""
    return cython.cast(uint32_t, 1) << (reg & 3 if high else reg) if access & OP_WRITE else 0


def changed(insn):
    """The general registers that an instruction of the translator's own kinds may change, as bits; too many do no harm."""
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    kind: uint32_t = op.kind
    some: uint32_t = 1 << RAX | 1 << RCX | 1 << RDX
    mask: uint32_t = general(op.reg_access, insn.reg, high_byte(insn, insn.reg, op.reg_size))
    mask |= general(op.z_access, insn.rm, high_byte(insn, insn.rm, op.z_size))
    mask |= general(op.vvvv_access, insn.vvvv, False)
    if not insn.has_mem:
        mask |= general(op.rm_access, insn.rm, high_byte(insn, insn.rm, op.rm_size))
    if kind == K_STOS or kind == K_MOVS:
        return mask | 1 << RCX | 1 << RSI | 1 << RDI
    if kind == K_LEAVE:
        return mask | 1 << RBP | 1 << RSP
    if kind == K_LEA:
        return mask | cython.cast(uint32_t, 1) << insn.reg
    if kind == K_POP or kind == K_XCHG_A:
        return mask | 1 << RAX | cython.cast(uint32_t, 1) << insn.rm
    if kind == K_MOFFS or kind == K_XLAT or kind == K_LOOP or kind == K_RDTSC:
        return mask | some
    if kind != K_PLAIN or insn.vex:
        return mask | (some if insn.vex and insn.map == 3 else 0)
    # What is not among the operands of the table: the accumulator, MUL to IDIV, FNSTSW; CMPXCHG and CMPXCHG8B; PCMPESTRI
    if not insn.has_modrm or insn.map == 3:
        return mask | some
    if insn.map == 0 and ((insn.opcode & 0xFE) == 0xF6 or insn.opcode == 0xDF):
        return mask | some
    if insn.map == 1 and ((insn.opcode & 0xFE) == 0xB0 or insn.opcode == 0xC7):
        return mask | some
    return mask


def moves_rsp(insn, by):
    """Does the instruction only add a constant to RSP?"""
    kind: uint32_t = ops[insn.op].kind
    by[0] = 0
    if kind == K_PUSH or kind == K_PUSH_IMM or kind == K_PUSH_MEM:
        by[0] = -8
        return True
    if kind == K_POP and insn.rm != RSP:
        by[0] = 8
        return True
    if kind == K_LEA and insn.reg == RSP and insn.base == RSP and insn.index == NO_REG:
        by[0] = insn.disp
        return insn.opsize == 8 and insn.addrsize == 8
    if kind == K_PLAIN and insn.map == 0 and (insn.opcode == 0x83 or insn.opcode == 0x81) and insn.vex == 0:
        if insn.has_mem or insn.rm != RSP or insn.opsize != 8:
            return False
        by[0] = cython.cast(int64_t, insn.imm)
        if (insn.modrm >> 3 & 7) == 5:
            by[0] = -by[0]
        return (insn.modrm >> 3 & 7) == 5 or (insn.modrm >> 3 & 7) == 0
    return False


# --- the spans of a block ---------------------------------------------------------------------------------------------


def join(x, open, since, base, low, size, writes):
    """The span that has ``size`` bytes at ``low`` from ``base`` as its newest: the open one of this register, or a new one."""
    number: uint32_t = open[base]
    span: cython.pointer(Span)
    high: int64_t = low + size
    if size == 0 or size > 64 or low < -FAR or low > FAR:
        return NO_SPAN
    if number != NO_SPAN:
        span = cython.address(x.spans[number])
        if (
            (span.high if span.high > high else high) - (span.low if span.low < low else low) <= WIDEST
            and (base == RSP or span.writes or not writes or not span.branch)
        ):  # fmt: skip
            span.low = cython.cast(int32_t, low) if low < span.low else span.low
            span.high = cython.cast(int32_t, high) if high > span.high else span.high
            span.writes |= writes
            span.last = x.current
            span.accesses += 1
            return number
    if x.span_count == MAX_SPANS:
        return NO_SPAN
    number = x.span_count
    x.span_count += 1
    open[base] = number
    span = cython.address(x.spans[number])
    span.base = base
    span.low = cython.cast(int32_t, low)
    span.high = cython.cast(int32_t, high)
    span.first = span.last = x.current
    span.accesses = 1
    span.writes = writes
    span.branch = 0
    span.kept = cython.NULL
    place(x, since, number)
    return number


def place(x, since, number):
    """Where the look-up stands: where no flag matters, not before the register has its value, nor too far ahead."""
    span: cython.pointer(Span) = cython.address(x.spans[number])
    at: uint32_t = span.first
    span.at = at
    while x.live[at] != 0:
        if at == since[span.base] or span.first - at == FARTHEST:
            return
        at -= 1
    span.at = at


def find_spans(x):
    i: uint32_t
    j: uint32_t
    kind: uint32_t
    mask: uint32_t
    insn: cython.pointer(Insn)
    moved: int64_t = 0
    by: int64_t = 0
    low: int64_t
    moves: cython.bint
    open: uint32_t[17]
    since: uint32_t[17]
    span: cython.pointer(Span)
    x.span_count = 0
    for i in range(x.count):
        x.operand_span[i] = x.stack_span[i] = NO_SPAN
    if x.singly or not foresees_returns(x):
        return
    for i in range(17):
        open[i] = NO_SPAN
        since[i] = 0
    for i in range(x.count):
        insn = cython.address(x.insns[i])
        kind = ops[insn.op].kind
        x.current = i
        x.moved[i] = cython.cast(int32_t, moved)
        if goes_to_helper(x, insn) or trap_of(x, insn):
            break
        if kind == K_LEAVE:
            x.operand_span[i] = cython.cast(uint8_t, join(x, open, since, RBP, 0, 8, False))
        elif has_operand(x, insn):
            low = insn.disp
            if insn.base == RSP:
                low += moved
            elif insn.base == REG_RIP:
                low += insn.page_offset + insn.length
            x.operand_span[i] = cython.cast(
                uint8_t, join(x, open, since, insn.base, low, insn.mem_size, insn.mem_access != MEM_READ)
            )
        if kind == K_PUSH or kind == K_PUSH_IMM or kind == K_PUSH_MEM or kind == K_CALL or kind == K_CALL_IND:
            x.stack_span[i] = cython.cast(uint8_t, join(x, open, since, RSP, moved - 8, 8, True))
        elif kind == K_POP or kind == K_RET:
            x.stack_span[i] = cython.cast(uint8_t, join(x, open, since, RSP, moved, 8, False))
        elif kind == K_JCC or kind == K_LOOP or kind == K_JCXZ:
            for j in range(17):
                if open[j] != NO_SPAN:
                    x.spans[open[j]].branch = 1
        mask = changed(insn)
        moves = moves_rsp(insn, cython.address(by))
        if moves:
            moved += by
            mask &= ~cython.cast(uint32_t, 1 << RSP)
        if moved < -FAR or moved > FAR:
            moved = 0
            mask |= 1 << RSP
        for j in range(16):
            if mask >> j & 1:
                open[j] = NO_SPAN
                since[j] = i + 1
    x.current = 0
    # A span of one access gains nothing but where its look-up stands.
    for i in range(x.count):
        for j in range(2):
            mask = x.stack_span[i] if j else x.operand_span[i]
            if mask == NO_SPAN:
                continue
            span = cython.address(x.spans[mask])
            if span.accesses == 1 and (x.live[span.first] == 0 or x.live[span.at] != 0):
                if j:
                    x.stack_span[i] = NO_SPAN
                else:
                    x.operand_span[i] = NO_SPAN


# --- as code ----------------------------------------------------------------------------------------------------------


def is_used(x, span, number):
    return x.operand_span[span.first] == number or x.stack_span[span.first] == number


def looks_at(x, number):
    i: uint32_t
    for i in range(x.span_count):
        if x.spans[i].at == number and is_used(x, cython.address(x.spans[i]), i):
            return True
    return False


def emit_looks(x, number):
    a: cython.pointer(Asm) = cython.address(x.a)
    i: uint32_t
    base: uint32_t
    low: int64_t
    size: uint32_t
    access: uint32_t
    span: cython.pointer(Span)
    for i in range(x.span_count):
        span = cython.address(x.spans[i])
        if span.at != number or not is_used(x, span, i):
            continue
        forget_held(x)
        x.part = PART_OPERAND
        low = span.low
        size = span.high - span.low
        access = ACCESS_WRITE if span.writes else cython.cast(uint32_t, ACCESS_READ)
        if span.base == REG_RIP:
            base = T0
            load_gs(a, T0, off(x.s, cython.address(x.s.page_va)))
        else:
            base = source(x, span.base, T0)
            if span.base == RSP:
                low -= x.moved[number]
        if low:
            lea(a, 1, T0, base, NO_REG, 0, low)
        elif base != T0:
            mov(a, T0, base)  # which the host does by renaming
        x.site = new_site(x, span.base, NO_REG, 0, 1 if span.writes else 0)
        x.inside = 0
        emit_tlb(x, SS, size, access)
        x.cold[x.colds - 1].kind = COLD_SPAN
        x.cold[x.colds - 1].what = size | access << 16
        if span.base == REG_RIP or is_spilled(span.base):
            lea(a, 1, T2, T2, T0, 0, -low)
        span.kept = a.p
        store_gs(a, T2, off(x.s, cython.address(x.s.span[i])))
        x.held[2] = SPAN_HELD + i


def use_span(x, number, disp):
    base: uint32_t = x.spans[number].base
    if x.held[2] != SPAN_HELD + number:
        load_gs(cython.address(x.a), T2, off(x.s, cython.address(x.s.span[number])))
        x.spans[number].kept = cython.NULL
        x.held[2] = SPAN_HELD + number
    x.disp = disp
    if base == REG_RIP or is_spilled(base):
        x.base = T2
        x.index = NO_REG
    else:
        x.base = host_reg(base)
        x.index = T2


def forget_unused(x):
    i: uint32_t
    at: cython.pointer(uint8_t)
    for i in range(x.span_count):
        at = x.spans[i].kept
        if is_used(x, cython.address(x.spans[i]), i) and at != cython.NULL:
            # a NOP of the length of `store_gs`
            at[0] = 0x66
            at[1] = 0x0F
            at[2] = 0x1F
            at[3] = 0x84
            at[4] = at[5] = at[6] = at[7] = at[8] = 0


def use_operand(x, insn):
    number: uint32_t = x.operand_span[x.current]
    if ops[insn.op].kind == K_LEAVE:
        use_span(x, number, 0)
    else:
        use_span(x, number, insn.disp + (insn.page_offset + insn.length if insn.base == REG_RIP else 0))


def emit_missing(x, cold):
    a: cython.pointer(Asm) = cython.address(x.a)
    crosses: cython.pointer(uint8_t) = cython.NULL
    found: cython.pointer(uint8_t)
    if cold.live:
        xchg(a, HRCX, T2)
    else:
        # Over the page's end?
        mov(a, T1, T0)
        e8(a, 0x41)  # and r11d, 0xFFF
        e8(a, 0x81)
        e8(a, 0xE3)
        e32(a, 0xFFF)
        e8(a, 0x41)  # cmp r11d, 4097 - size
        e8(a, 0x81)
        e8(a, 0xFB)
        e32(a, 4097 - (cold.what & 0xFFFF))
        crosses = jcc_fwd(a, CC_AE)
    call_refill(x, cold)
    xchg(a, HRCX, T1)
    found = short_fwd(a, 0xE3)
    xchg(a, HRCX, T1)
    if crosses != cython.NULL:
        land(a, crosses)
    emit_singly(x, x.insns[cold.insn].page_offset)
    land_short(a, found)
    xchg(a, HRCX, T1)
    jmp_to(a, cold.back)
