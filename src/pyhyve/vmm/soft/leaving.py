"""How a block is left: jumps, calls and returns, looks at events, exits to helpers and exceptions.

Jumps inside the page are chained (``Link``), all others go through the jump cache; calls and returns of 64-bit code use
the host's stack (``stack``).
"""

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.ahead import live_ahead
from cython.cimports.pyhyve.vmm.soft.blocks import NO_PAGE, Block, Link, block_find, code_alloc, link_to
from cython.cimports.pyhyve.vmm.soft.crossings import NO_ROOM, new_crossing
from cython.cimports.pyhyve.vmm.soft.cpuid import LEAF_EXTENDED, R_EDX, feature
from cython.cimports.pyhyve.vmm.soft.debug import MOST_CHECKS, armed_at
from cython.cimports.pyhyve.vmm.soft.decode import (
    K_CLI,
    K_HELPER,
    K_JCXZ,
    K_LEAVE,
    K_LOOP,
    K_MOVS,
    K_POP,
    K_POP_MEM,
    K_PUSH,
    K_PUSH_IMM,
    K_PUSH_MEM,
    K_RDTSC,
    K_STI,
    K_STOS,
    K_UD,
    K_XLAT,
    NEED_AVX,
    NEED_AVX512,
    NEED_MMX,
    NEED_SSE,
    NEED_WAIT,
    OpInfo,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.encode import (
    CC_ALWAYS,
    CC_CALL,
    CC_NZ,
    GSP,
    HRCX,
    T0,
    T1,
    T2,
    Asm,
    align_patch,
    call_fwd,
    call_to,
    cmp_gs32_zero,
    e32,
    e8,
    jcc_fwd,
    jmp_fwd,
    jmp_to,
    land,
    land_short,
    lea,
    load_gs,
    load_gs32,
    mov,
    mov_imm32,
    mov_imm64,
    op_gs_index,
    op_mem,
    pext_gs,
    rex,
    short_fwd,
    store_gs,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, Insn
from cython.cimports.pyhyve.vmm.soft.narrow import is_narrow, is_near_kind
from cython.cimports.pyhyve.vmm.soft.operands import add_cold
from cython.cimports.pyhyve.vmm.soft.plain import emit_access, emit_push, emit_return_address
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_WRITE,
    EXC_GP,
    EXC_NM,
    EXC_UD,
    FLAGS_ARITH,
    FS,
    MODE_ALIGN,
    MODE_AVX,
    MODE_AVX512,
    MODE_CODE64,
    MODE_EM,
    MODE_FLAT,
    MODE_IOPL_OK,
    MODE_MP,
    MODE_SINGLY,
    MODE_SSE,
    MODE_STEP,
    MODE_TS,
    MODE_TSC,
    SS,
)
from cython.cimports.pyhyve.vmm.soft.stubs import off
from cython.cimports.pyhyve.vmm.soft.translate import (
    COLD_CHAIN,
    COLD_CROSSING,
    COLD_EVENT,
    COLD_KEEPING,
    COLD_RESTORE_EVENT,
    NO_SPAN,
    PART_PUSH,
)


def emit_event_check(x, target, live):
    """Leave at page offset ``target`` if an event is pending."""
    a: cython.pointer(Asm) = cython.address(x.a)
    pending: uint64_t = off(x.s, cython.address(x.s.pending))
    skip: cython.pointer(uint8_t)
    if live == 0:
        cmp_gs32_zero(a, pending)
        add_cold(x, COLD_EVENT, jcc_fwd(a, CC_NZ), target, 0)
        return
    rex(a, 1, T1, 0, HRCX)  # lea r11, [rcx + disp32] with 0: seven bytes, room for the jump of a dropped block
    e8(a, 0x8D)
    e8(a, 0x80 | ((T1 & 7) << 3) | HRCX)
    e32(a, 0)
    op_load32_rcx(a, pending)
    skip = short_fwd(a, 0xE3)
    add_cold(x, COLD_RESTORE_EVENT, jmp_fwd(a), target, 0)
    land_short(a, skip)
    mov(a, HRCX, T1)


def emit_breakpoints(x, start):
    """Leave for the loop if this is the page of a breakpoint at page offset ``start``. No flag is touched."""
    a: cython.pointer(Asm) = cython.address(x.a)
    found: uint64_t[MOST_CHECKS]
    n: uint32_t = armed_at(x.s.engine, start, found)
    i: uint32_t
    page: int64_t
    skip: cython.pointer(uint8_t)
    if n > MOST_CHECKS:
        add_cold(x, COLD_EVENT, jmp_fwd(a), start, 0)
        return
    for i in range(n):
        page = cython.cast(int64_t, found[i] - start)
        mov(a, T1, HRCX)
        load_gs(a, HRCX, off(x.s, cython.address(x.s.page_va)))
        if -page == cython.cast(int32_t, -page):
            lea(a, 1, HRCX, HRCX, NO_REG, 0, -page)
        else:
            mov_imm64(a, T2, cython.cast(uint64_t, -page))
            lea(a, 1, HRCX, HRCX, T2, 0, 0)
        skip = short_fwd(a, 0xE3)
        mov(a, HRCX, T1)
        rel: cython.pointer(uint8_t) = short_fwd(a, 0xEB)
        land_short(a, skip)
        add_cold(x, COLD_RESTORE_EVENT, jmp_fwd(a), start, 0)
        land_short(a, rel)


def op_load32_rcx(a, offset):
    load_gs32(a, HRCX, offset)


def target_live(x, target):
    """The flags that matter at page offset ``target``, as far as is known."""
    live: uint32_t
    b: cython.pointer(Block)
    if target < 0 or target > 4095 or x.mode & MODE_STEP:
        return FLAGS_ARITH
    if target == cython.cast(int64_t, x.insns[0].page_offset) and x.count:
        return x.block.flags_in
    b = block_find(x.c, x.page_gpa + cython.cast(uint64_t, target), x.mode)
    if b == cython.NULL:
        live = live_ahead(x, target)
        if live != FLAGS_ARITH:
            x.block.assumes = 1
        return live
    if b.gpa2 != NO_PAGE:
        return FLAGS_ARITH
    if b.flags_in != FLAGS_ARITH:
        x.block.assumes = 1
    return b.flags_in


def emit_jump(x, insn, target):
    """Go to page offset ``target``, which may lie in another page."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if 0 <= target <= 4095 and (x.mode & MODE_STEP) == 0:
        emit_chain(x, CC_ALWAYS, target, target <= cython.cast(int64_t, insn.page_offset))
        return
    emit_far_target(x, target)
    emit_crossing(x, False)


def emit_far_target(x, target):
    """The linear address of page offset ``target`` to T0."""
    a: cython.pointer(Asm) = cython.address(x.a)
    load_gs(a, T0, off(x.s, cython.address(x.s.page_va)))
    if target == cython.cast(int32_t, target):
        lea(a, 1, T0, T0, NO_REG, 0, target)
    else:
        mov_imm64(a, T1, cython.cast(uint64_t, target))
        lea(a, 1, T0, T0, T1, 0, 0)
    if (x.mode & MODE_CODE64) == 0:
        rex(a, 0, T0, 0, T0)  # mov r10d, r10d
        e8(a, 0x89)
        e8(a, 0xC0 | ((T0 & 7) << 3) | (T0 & 7))


def emit_push_keeping(x, insn):
    """Push the return address of a call whose target is in T0 and stays there: much waits for it. All flags are live."""
    a: cython.pointer(Asm) = cython.address(x.a)
    hit: cython.pointer(uint8_t)
    rel: cython.pointer(uint8_t)
    if x.stack_span[x.current] != NO_SPAN:
        emit_push(x, insn)
        return
    if not foresees_returns(x):
        store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
        emit_push(x, insn)
        load_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
        return
    lea(a, 1, T1, GSP, NO_REG, 0, -8)
    pext_gs(a, T1, T1, off(x.s, cython.address(x.s.mask_index)))
    lea(a, 1, T1, NO_REG, T1, 3, 0)
    op_gs_index(a, 1, 0x8B, T2, T1, 2, x.tlb + 8)
    rex(a, 1, 0, 0, T2)  # not r14
    e8(a, 0xF7)
    e8(a, 0xD0 | (T2 & 7))
    lea(a, 1, T2, T2, GSP, 0, 0)
    pext_gs(a, T2, T2, off(x.s, cython.address(x.s.mask_high)))
    xchg(a, HRCX, T2)
    hit = short_fwd(a, 0xE3)
    rel = jmp_fwd(a)
    land_short(a, hit)
    mov(a, HRCX, T2)
    op_gs_index(a, 1, 0x8B, T2, T1, 2, x.tlb + 16)
    emit_return_address(x, insn)
    op_mem(a, 1, 0x89, T1, GSP, T2, -8)
    add_cold(x, COLD_KEEPING, rel, 8 | (ACCESS_WRITE << 16) | (SS << 20), 1)
    lea(a, 1, GSP, GSP, NO_REG, 0, -8)


def emit_cold_push(x, insn, cold):
    """The slow path of that push."""
    a: cython.pointer(Asm) = cython.address(x.a)
    store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
    lea(a, 1, T0, GSP, NO_REG, 0, -8)
    xchg(a, HRCX, T2)
    mov_imm32(a, T1, cold.what)
    call_to(a, x.c.stubs.refill[x.mmu][1])
    emit_access(x, insn, PART_PUSH)
    call_to(a, x.c.stubs.finish)
    emit_return_address(x, insn)
    load_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
    jmp_to(a, cold.back)


def emit_call(x, insn, direct, target):
    """Behind the push of a call's return address, which is in T1 still: go to ``target``, or else to the address in T0.

    The host's own call does that, so that its return can come back here (``stack``).
    """
    a: cython.pointer(Asm) = cython.address(x.a)
    back: uint32_t = insn.page_offset + insn.length
    e8(a, 0x41)  # push r11
    e8(a, 0x53)
    if direct and 0 <= target <= 4095:
        emit_chain(x, CC_CALL, target, True)
    elif direct:
        emit_far_target(x, target)
        emit_crossing(x, True)
    else:
        call_to(a, x.c.stubs.jump[x.slot])
    # T0 is the return address here
    lea(a, 1, 4, 4, NO_REG, 0, 8)
    lea(a, 1, T1, T0, NO_REG, 0, -cython.cast(int64_t, back))
    store_gs(a, T1, off(x.s, cython.address(x.s.page_va)))
    emit_chain(x, CC_ALWAYS, back, False)


def foresees_returns(x):
    """Does code of this mode use the host's stack for calls and returns, and one look-up for several pushes?"""
    return (x.mode & (MODE_CODE64 | MODE_STEP | MODE_ALIGN)) == MODE_CODE64


def comes_back(x, insn):
    """May a call use the host's? Not where the instruction behind it may lie in two pages: jumps to that are not chained."""
    return (
        foresees_returns(x)
        and x.block.gpa2 == NO_PAGE
        and insn.page_offset + insn.length <= 4096 - 15
    )


def emit_return(x):
    """Return to the linear address in T0."""
    a: cython.pointer(Asm) = cython.address(x.a)
    hit: cython.pointer(uint8_t)
    if not foresees_returns(x):
        emit_far_jump(x)
        return
    mov(a, T2, HRCX)
    e8(a, 0x48)  # mov rcx, [rsp + 8]
    e8(a, 0x8B)
    e8(a, 0x4C)
    e8(a, 0x24)
    e8(a, 8)
    e8(a, 0x48)  # not rcx
    e8(a, 0xF7)
    e8(a, 0xD1)
    lea(a, 1, HRCX, HRCX, T0, 0, 1)
    hit = short_fwd(a, 0xE3)
    mov(a, HRCX, T2)
    jmp_to(a, x.c.stubs.missed[x.slot])
    land_short(a, hit)
    mov(a, HRCX, T2)
    e8(a, 0xC3)


def emit_far_jump(x):
    """Go to the linear address in T0."""
    if x.mode & MODE_STEP:
        jmp_to(cython.address(x.a), x.c.stubs.exit_lookup)
    else:
        jmp_to(cython.address(x.a), x.c.stubs.jump[x.slot])


def emit_crossing(x, calls):
    """Go to the linear address in T0, always the same for this page, or call what is there."""
    a: cython.pointer(Asm) = cython.address(x.a)
    number: uint32_t = NO_ROOM if x.mode & MODE_STEP else new_crossing(x.c)
    if number == NO_ROOM:
        if calls:
            call_to(a, x.c.stubs.jump[x.slot])
        else:
            emit_far_jump(x)
        return
    e8(a, 0x65)  # call or jmp [gs:crossing]
    e8(a, 0xFF)
    e8(a, 0x14 if calls else 0x24)
    e8(a, 0x25)
    e32(a, off(x.s, cython.address(x.s.crossing[number])))
    add_cold(x, COLD_CROSSING, cython.NULL, number, 0)
    x.cold[x.colds - 1].linked = 1


def emit_chain(x, condition, target, checked):
    """Go to page offset ``target`` of this page if ``condition`` holds: at once, or when it is translated.

    ``checked``: look for events first. Whatever could go on for ever must do so.
    """
    a: cython.pointer(Asm) = cython.address(x.a)
    rel32: cython.pointer(uint8_t)
    if condition == CC_ALWAYS:
        align_patch(a, 1, 4)
        rel32 = jmp_fwd(a)
    elif condition == CC_CALL:
        align_patch(a, 1, 4)
        rel32 = call_fwd(a)
    else:
        align_patch(a, 2, 4)
        rel32 = jcc_fwd(a, condition)
    add_chain(x, rel32, target, checked, False)


def add_chain(x, rel32, target, checked, singly):
    """Link the jump with this ``rel32``, or let it ask for a translation in its cold part."""
    b: cython.pointer(Block) = cython.NULL
    gpa: uint64_t = x.page_gpa + cython.cast(uint64_t, target)
    # translate() has made sure that there is room
    link: cython.pointer(Link) = cython.cast(cython.pointer(Link), code_alloc(x.c, cython.sizeof(Link)))
    link.site = cython.cast(uint64_t, cython.cast(int64_t, rel32) + x.a.delta)
    link.next = cython.NULL
    link.checked = checked
    link.singly = singly
    add_cold(x, COLD_CHAIN, rel32, cython.cast(uint32_t, target), 0)
    x.cold[x.colds - 1].back = cython.cast(uint64_t, link)
    if singly:
        b = block_find(x.c, gpa, x.mode | MODE_SINGLY)
    elif gpa == x.block.gpa and x.block.gpa2 == NO_PAGE and not x.singly:
        b = x.block
    else:
        b = block_find(x.c, gpa, x.mode)
    if b != cython.NULL and b.gpa2 == NO_PAGE:
        x.cold[x.colds - 1].linked = 1
        link_to(x.c, link, b)


def emit_singly(x, target):
    """Go on at page offset ``target`` in a block with look-ups for single accesses."""
    a: cython.pointer(Asm) = cython.address(x.a)
    rel32: cython.pointer(uint8_t)
    align_patch(a, 1, 4)
    rel32 = jmp_fwd(a)
    add_chain(x, rel32, target, False, True)


def emit_branch(x, insn, condition, target):
    """Go to page offset ``target`` if ``condition`` (0-15) holds, else on."""
    a: cython.pointer(Asm) = cython.address(x.a)
    skip: cython.pointer(uint8_t)
    if 0 <= target <= 4095 and (x.mode & MODE_STEP) == 0:
        emit_chain(x, condition, target, target <= cython.cast(int64_t, insn.page_offset))
        return
    skip = jcc_fwd(a, condition ^ 1)
    emit_jump(x, insn, target)
    land(a, skip)


def emit_helper(x, insn):
    """Leave for the helper of this instruction, which gets a copy of it that lives as long as the block."""
    a: cython.pointer(Asm) = cython.address(x.a)
    copy: cython.pointer(Insn) = cython.cast(cython.pointer(Insn), code_alloc(x.c, cython.sizeof(Insn)))
    if copy != cython.NULL:  # translate() has made sure that there is room
        copy[0] = insn[0]
    mov_imm32(a, T0, insn.page_offset)
    mov_imm64(a, T1, cython.cast(uint64_t, copy))
    jmp_to(a, x.c.stubs.exit_helper)


def emit_raise(x, insn, vector):
    a: cython.pointer(Asm) = cython.address(x.a)
    mov_imm32(a, T0, insn.page_offset)
    mov_imm32(a, T1, vector)
    jmp_to(a, x.c.stubs.exit_raise)


def trap_of(x, insn):
    """The exception that the instruction raises in this mode whatever its operands are, or 0."""
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    need: uint32_t = op.need
    if op.kind == K_UD:
        return EXC_GP if insn.too_long else cython.cast(uint32_t, EXC_UD)
    if need == 0:
        return 0
    if need & NEED_WAIT:
        return EXC_NM if (x.mode & (MODE_MP | MODE_TS)) == (MODE_MP | MODE_TS) else 0
    if need & NEED_AVX512:
        if (x.mode & MODE_AVX512) == 0:
            return EXC_UD
    elif need & NEED_AVX:
        if (x.mode & MODE_AVX) == 0:
            return EXC_UD
    elif need & NEED_SSE:
        if x.mode & MODE_EM or (x.mode & MODE_SSE) == 0:
            return EXC_UD
    elif need & NEED_MMX:
        if x.mode & MODE_EM:
            return EXC_UD
    elif x.mode & MODE_EM:
        return EXC_NM
    return EXC_NM if x.mode & MODE_TS else 0


def goes_to_helper(x, insn):
    """Is this instruction left to its helper in this mode?"""
    kind: uint32_t = ops[insn.op].kind
    if kind == K_HELPER:
        return True
    if kind == K_CLI or kind == K_STI:
        return (x.mode & MODE_IOPL_OK) == 0 or (kind == K_STI and (x.mode & MODE_STEP) != 0)
    if kind == K_STOS or kind == K_MOVS:
        if x.mode & (MODE_STEP | MODE_ALIGN) or insn.addrsize != (8 if x.mode & MODE_CODE64 else 4):
            return True
        if kind == K_MOVS and insn.segment_override != NO_REG and insn.segment_override >= FS:
            return True
        return (x.mode & MODE_FLAT) == 0
    if kind == K_RDTSC:
        return (x.mode & MODE_TSC) == 0 or (is_rdtscp(insn) and not feature(x.s.engine, LEAF_EXTENDED + 1, R_EDX, 27))
    if x.mode & MODE_CODE64:
        if kind == K_POP_MEM:
            return True
        if kind == K_PUSH or kind == K_POP or kind == K_PUSH_IMM or kind == K_PUSH_MEM:
            return insn.opsize != 8
        if kind == K_LOOP or kind == K_JCXZ or kind == K_XLAT:
            return insn.addrsize != 8
        if kind == K_LEAVE:
            return insn.opsize != 8
        return False
    if is_near_kind(kind):
        return kind == K_POP_MEM or not is_narrow(x, insn)
    return kind == K_XLAT


def is_rdtscp(insn):
    """Which of the two that read the counter it is."""
    return insn.opcode != 0x31
