"""The translator: a block of guest instructions becomes host code that does the same.

Nearly every instruction is emitted again as it is, with registers renamed (see ``stubs``) and its memory operand
replaced by ``[T0 + T2]``: T0 the linear address, T2 the difference to the host's, found in the TLB by a few
instructions inline. Flags live in the host's EFLAGS. A backward pass finds where they are dead: there the TLB look-up
uses compares; elsewhere PEXT, LEA and JRCXZ, which leave flags alone.

A block runs from its entry through conditional jumps to the first instruction that surely goes elsewhere, at most to
the end of its page. Jumps inside the page are chained directly; all others go through the jump cache. What cannot run
as host code ends the block with an exit to a helper.

Hot code comes first, slow paths behind it. ``Block.map`` tells for every host address which instruction it belongs to.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.blocks import (
    NO_PAGE,
    Block,
    CodeCache,
    Link,
    MapEntry,
    block_find,
    block_insert,
    code_alloc,
)
from cython.cimports.pyhyve.vmm.soft.crossings import start_crossing
from cython.cimports.pyhyve.vmm.soft.debug import is_armed
from cython.cimports.pyhyve.vmm.soft.decode import (
    DECODED,
    K_BT,
    K_CALL,
    K_CALL_IND,
    K_CLD,
    K_CLI,
    K_INCDEC,
    K_JCC,
    K_JCXZ,
    K_JMP,
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
    K_STD,
    K_STI,
    K_STOS,
    K_XCHG_A,
    K_XLAT,
    OpInfo,
    decode,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.encode import (
    CC_ALWAYS,
    GSP,
    HRCX,
    T0,
    T1,
    T2,
    Asm,
    align_patch,
    call_to,
    e8,
    here,
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
    op_gs,
    op_mem,
    rex,
    short_fwd,
    store_gs,
    store_gs_imm8,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.insn import MEM_NONE, MEM_READ, NO_REG, Insn
from cython.cimports.pyhyve.vmm.soft.leaving import (
    comes_back,
    emit_branch,
    emit_breakpoints,
    emit_call,
    emit_chain,
    emit_cold_push,
    emit_event_check,
    emit_far_jump,
    emit_helper,
    emit_jump,
    emit_push_keeping,
    emit_raise,
    emit_return,
    goes_to_helper,
    is_rdtscp,
    target_live,
    trap_of,
)
from cython.cimports.pyhyve.vmm.soft.narrow import emit_narrow, is_near_kind
from cython.cimports.pyhyve.vmm.soft.operands import (
    call_refill,
    emit_address,
    emit_tlb,
    finish_access,
    forget_held,
    forget_registers,
    source,
    use_address,
    write_back,
)
from cython.cimports.pyhyve.vmm.soft.plain import (
    emit_access,
    emit_lea,
    emit_load,
    emit_mem_form,
    emit_operand,
    emit_push,
    emit_reg_form,
    emit_return_address,
    emit_stack_load,
    emit_string,
    simple_lea,
)
from cython.cimports.pyhyve.vmm.soft.sites import find_steps
from cython.cimports.pyhyve.vmm.soft.spans import (
    emit_looks,
    emit_missing,
    find_spans,
    forget_unused,
    looks_at,
    use_operand,
    use_span,
)
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    FLAGS_ARITH,
    MMU_KERNEL,
    MMU_KERNEL_AC,
    MMU_USER,
    MODE_AC,
    MODE_CODE64,
    MODE_SINGLY,
    MODE_STEP,
    MODE_USER,
    PAGE_MASK,
    RSP,
    SS,
)
from cython.cimports.pyhyve.vmm.soft.stubs import host_reg, is_spilled, off


def crosses_page(code, avail, mode):
    insn: Insn
    return decode(code, avail, mode, cython.address(insn)) != DECODED


# --- one instruction --------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ends_block(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.bint:
    kind: uint32_t = ops[insn.op].kind
    return (
        kind == K_JMP or kind == K_CALL or kind == K_RET or kind == K_CALL_IND or kind == K_JMP_IND
        or goes_to_helper(x, insn) or trap_of(x, insn) != 0
    )  # fmt: skip


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_instruction(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    a: cython.pointer(Asm) = cython.address(x.a)
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    kind: uint32_t = op.kind
    trap: uint32_t = trap_of(x, insn)
    target: int64_t = cython.cast(int64_t, insn.page_offset) + insn.length + cython.cast(int64_t, insn.imm)
    skip: cython.pointer(uint8_t)
    skip2: cython.pointer(uint8_t)
    reg: uint32_t
    x.part = PART_OPERAND
    if (kind == K_PLAIN or kind == K_BT) and not trap and not goes_to_helper(x, insn):
        x.holding = 1
    elif (kind == K_LEA and simple_lea(insn)) or (kind == K_JCC and x.mode & MODE_CODE64):
        x.holding = 1
    else:
        forget_registers(x)
    if trap:
        emit_raise(x, insn, trap)
    elif goes_to_helper(x, insn):
        emit_helper(x, insn)
    elif is_near_kind(kind) and (x.mode & MODE_CODE64) == 0:
        emit_narrow(x, insn, target)
    elif kind == K_RDTSC:
        e8(a, 0x0F)
        if is_rdtscp(insn):
            e8(a, 0x01)
            e8(a, 0xF9)
            load_gs32(a, HRCX, off(x.s, cython.address(x.s.tsc_aux)))
        else:
            e8(a, 0x31)
    elif kind == K_STOS or kind == K_MOVS:
        emit_string(x, insn)
    elif kind == K_PLAIN or kind == K_BT:
        if insn.has_mem and insn.mem_access != MEM_NONE:
            emit_operand(x, insn)
        else:
            emit_reg_form(x, insn)
    elif kind == K_MOFFS:
        mov_imm64(a, T0, cython.cast(uint64_t, insn.disp))
        emit_tlb(x, insn.segment, insn.mem_size, ACCESS_READ if insn.mem_access == MEM_READ else cython.cast(uint32_t, ACCESS_WRITE))
        emit_mem_form(x, insn)
        finish_access(x, insn.segment, ACCESS_READ if insn.mem_access == MEM_READ else cython.cast(uint32_t, ACCESS_WRITE))
    elif kind == K_LEA:
        emit_lea(x, insn)
    elif kind == K_PUSH or kind == K_PUSH_IMM:
        emit_push(x, insn)
    elif kind == K_PUSH_MEM:
        if insn.has_mem:
            emit_load(x, insn, T1)
        else:
            reg = source(x, insn.rm, T1)
            if reg != T1:
                mov(a, T1, reg)
        store_gs(a, T1, off(x.s, cython.address(x.s.scratch[2])))
        emit_push(x, insn)
    elif kind == K_POP:
        reg = T1 if is_spilled(insn.rm) else host_reg(insn.rm)
        emit_stack_load(x, reg)
        if insn.rm != RSP:
            write_back(x, insn.rm, reg)
            lea(a, 1, GSP, GSP, NO_REG, 0, 8)
    elif kind == K_LEAVE:
        if x.operand_span[x.current] != NO_SPAN:
            use_operand(x, insn)
        else:
            mov(a, T0, 5)
            emit_tlb(x, SS, 8, ACCESS_READ)
        op_mem(a, 1, 0x8B, T1, x.base, x.index, x.disp)
        use_address(x)
        lea(a, 1, GSP, 5, NO_REG, 0, 8)
        mov(a, 5, T1)
    elif kind == K_XLAT:
        rex(a, 0, T1, 0, 0)  # movzx r11d, al
        e8(a, 0x0F)
        e8(a, 0xB6)
        e8(a, 0xC0 | ((T1 & 7) << 3))
        lea(a, 1, T0, 3, T1, 0, 0)
        emit_tlb(x, insn.segment, 1, ACCESS_READ)
        emit_mem_form(x, insn)
    elif kind == K_INCDEC:
        reg = source(x, insn.rm, T0)
        if insn.opsize == 2:
            e8(a, 0x66)
        rex(a, 0, 0, 0, reg)
        e8(a, 0xFF)
        e8(a, (0xC0 if insn.opcode < 0x48 else 0xC8) | (reg & 7))
        write_back(x, insn.rm, reg)
    elif kind == K_XCHG_A:
        if insn.rm != 0:
            reg = source(x, insn.rm, T0)
            if insn.opsize == 2:
                e8(a, 0x66)
            rex(a, insn.rex_w, 0, 0, reg)
            e8(a, 0x87)
            e8(a, 0xC0 | (reg & 7))
            write_back(x, insn.rm, reg)
    elif kind == K_CLI:
        store_gs_imm8(a, off(x.s, cython.address(x.s.iff)), 0)
    elif kind == K_STI:
        mov(a, T1, HRCX)
        load_gs32(a, HRCX, off(x.s, cython.address(x.s.events)))
        skip = short_fwd(a, 0xE3)
        mov(a, HRCX, T1)
        emit_helper(x, insn)
        land_short(a, skip)
        mov(a, HRCX, T1)
        store_gs_imm8(a, off(x.s, cython.address(x.s.iff)), 1)
    elif kind == K_CLD or kind == K_STD:
        store_gs_imm8(a, off(x.s, cython.address(x.s.df)), 1 if kind == K_STD else 0)
    elif kind == K_JMP:
        emit_jump(x, insn, target)
    elif kind == K_JCC:
        emit_branch(x, insn, insn.opcode & 15, target)
    elif kind == K_LOOP:
        lea(a, 1, HRCX, HRCX, NO_REG, 0, -1)
        skip = short_fwd(a, 0xE3)  # jrcxz out
        if insn.opcode == 0xE2:
            emit_jump(x, insn, target)
        else:
            emit_branch(x, insn, 5 if insn.opcode == 0xE0 else 4, target)
        land_short(a, skip)
    elif kind == K_JCXZ:
        skip = short_fwd(a, 0xE3)
        skip2 = jmp_fwd(a)
        land_short(a, skip)
        emit_jump(x, insn, target)
        land(a, skip2)
    elif kind == K_CALL:
        emit_push(x, insn)
        if comes_back(x, insn):
            emit_call(x, insn, True, target)
        else:
            emit_jump(x, insn, target)
    elif kind == K_RET:
        emit_stack_load(x, T0)
        lea(a, 1, GSP, GSP, NO_REG, 0, 8 + cython.cast(int64_t, insn.imm & 0xFFFF if insn.opcode == 0xC2 else 0))
        emit_return(x)
    elif kind == K_CALL_IND or kind == K_JMP_IND:
        if insn.has_mem:
            emit_load(x, insn, T0)
        else:
            reg = source(x, insn.rm, T0)
            if reg != T0:
                mov(a, T0, reg)
        if kind == K_CALL_IND:
            emit_push_keeping(x, insn)
            if comes_back(x, insn):
                emit_call(x, insn, False, 0)
                return
        emit_far_jump(x)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def add_map(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    entry: cython.pointer(MapEntry) = cython.address(x.map[x.map_count])
    entry.host = cython.cast(uint32_t, here(cython.address(x.a)) - x.block.code)
    entry.guest = insn.page_offset
    entry.length = insn.length
    x.map_count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def run_length(x: cython.pointer(Context), first: uint32_t) -> uint32_t:
    """How many instructions from ``first`` on push registers to one span, or pop them, the last of those perhaps a return."""
    kind: uint32_t = ops[x.insns[first].op].kind
    n: uint32_t = 0
    insn: cython.pointer(Insn)
    if x.stack_span[first] == NO_SPAN or (kind != K_PUSH and kind != K_POP):
        return 1
    while first + n < x.count:
        insn = cython.address(x.insns[first + n])
        if x.stack_span[first + n] != x.stack_span[first] or (n and looks_at(x, first + n)):
            break
        if kind == K_POP and n and ops[insn.op].kind == K_RET:
            return n + 1
        if ops[insn.op].kind != kind or insn.rm == RSP:
            break
        n += 1
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_run(x: cython.pointer(Context), first: uint32_t, n: uint32_t) -> cython.void:
    """``n`` pushes or pops: RSP moves once."""
    a: cython.pointer(Asm) = cython.address(x.a)
    pushes: cython.bint = ops[x.insns[first].op].kind == K_PUSH
    i: uint32_t
    reg: uint32_t
    bytes_: int64_t = 8 * n
    insn: cython.pointer(Insn) = cython.address(x.insns[first + n - 1])
    returns: cython.bint = ops[insn.op].kind == K_RET
    add_map(x, cython.address(x.insns[first]))
    forget_registers(x)
    use_span(x, x.stack_span[first], 0)
    for i in range(n - 1 if returns else n):
        insn = cython.address(x.insns[first + i])
        if pushes:
            op_mem(a, 1, 0x89, source(x, insn.rm, T1), x.base, x.index, -8 - 8 * cython.cast(int64_t, i))
            continue
        reg = T1 if is_spilled(insn.rm) else host_reg(insn.rm)
        op_mem(a, 1, 0x8B, reg, x.base, x.index, 8 * cython.cast(int64_t, i))
        write_back(x, insn.rm, reg)
    if returns:
        insn = cython.address(x.insns[first + n - 1])
        op_mem(a, 1, 0x8B, T0, x.base, x.index, bytes_ - 8)
        bytes_ += cython.cast(int64_t, insn.imm & 0xFFFF if insn.opcode == 0xC2 else 0)
    use_address(x)
    lea(a, 1, GSP, GSP, NO_REG, 0, -bytes_ if pushes else bytes_)
    if returns:
        emit_return(x)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_cold(x: cython.pointer(Context), number: uint32_t) -> cython.void:
    """A slow path, behind the block."""
    a: cython.pointer(Asm) = cython.address(x.a)
    cold: cython.pointer(Cold) = cython.address(x.cold[number])
    insn: cython.pointer(Insn) = cython.address(x.insns[cold.insn])
    add_map(x, insn)
    forget_held(x)
    x.current = cold.insn
    if cold.kind == COLD_CHAIN:
        cython.cast(cython.pointer(Link), cold.back).cold = here(a)
    if cold.linked == 0:
        land(a, cold.rel32)
    if cold.kind == COLD_LOAD or cold.kind == COLD_STORE:
        if cold.live:
            xchg(a, HRCX, T2)
        if cold.inside:
            op_gs(a, 1, 0x2B, T0, cold.site)
        call_refill(x, cold)
        if cold.kind == COLD_STORE:
            emit_access(x, insn, cold.part)
            call_to(a, x.c.stubs.finish)
            if cold.part == PART_PUSH and (ops[insn.op].kind == K_CALL or ops[insn.op].kind == K_CALL_IND):
                emit_return_address(x, insn)
        jmp_to(a, cold.back)
    elif cold.kind == COLD_SPAN:
        emit_missing(x, cold)
    elif cold.kind == COLD_KEEPING:
        emit_cold_push(x, insn, cold)
    elif cold.kind == COLD_CROSSING:
        start_crossing(x.s.engine, cold.what, here(a))
        mov_imm32(a, T1, off(x.s, cython.address(x.s.crossing[cold.what])))
        jmp_to(a, x.c.stubs.crossing[x.slot])
    elif cold.kind == COLD_CHAIN:
        mov_imm32(a, T0, cold.what)
        mov_imm64(a, T1, cold.back)
        jmp_to(a, x.c.stubs.exit_chain)
    else:
        if cold.kind == COLD_RESTORE_EVENT:
            mov(a, HRCX, T1)
        mov_imm32(a, T0, cold.what)
        jmp_to(a, x.c.stubs.exit_event)


# --- the block --------------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def decode_block(x: cython.pointer(Context), gpa: uint64_t, code: cython.pointer(cython.const[uint8_t]), avail: uint32_t,
                 max_insns: uint32_t) -> uint32_t:
    """Fill ``x.insns``. Returns the guest bytes of the block."""
    at: uint32_t = 0
    start: uint32_t = gpa & 0xFFF
    insn: cython.pointer(Insn)
    while x.count < max_insns:
        if x.count and block_find(x.c, gpa + at, x.mode) != cython.NULL:
            break
        if x.count and is_armed(x.s.engine, start + at):
            break  # a breakpoint is looked for where a block starts
        insn = cython.address(x.insns[x.count])
        if at >= avail or decode(code + at, avail - at, x.mode, insn) != DECODED:
            break
        insn.page_offset = start + at
        at += insn.length
        x.count += 1
        if ends_block(x, insn):
            break
        if x.block.gpa2 != NO_PAGE:
            break
    return at


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find_live_flags(x: cython.pointer(Context)) -> cython.void:
    """The backward pass: which arithmetic flags matter where."""
    i: uint32_t
    n: uint32_t
    live: uint32_t
    last: cython.pointer(Insn) = cython.address(x.insns[x.count - 1])
    insn: cython.pointer(Insn)
    op: cython.pointer(OpInfo)
    target: int64_t
    kind: uint32_t
    x.block.flags_in = FLAGS_ARITH
    live = FLAGS_ARITH
    if not ends_block(x, last):
        live = target_live(x, cython.cast(int64_t, last.page_offset) + last.length)
    for n in range(x.count):
        i = x.count - 1 - n
        insn = cython.address(x.insns[i])
        op = cython.address(ops[insn.op])
        kind = op.kind
        target = cython.cast(int64_t, insn.page_offset) + insn.length + cython.cast(int64_t, insn.imm)
        if goes_to_helper(x, insn) or trap_of(x, insn):
            live = FLAGS_ARITH
        elif kind == K_JMP:
            live = target_live(x, target)
        elif kind == K_JCC or kind == K_LOOP or kind == K_JCXZ:
            live |= target_live(x, target)
        elif kind == K_CALL and x.mode & MODE_CODE64:
            live = target_live(x, target)
        elif kind == K_CALL or kind == K_RET or kind == K_CALL_IND or kind == K_JMP_IND or kind == K_STI:
            live = FLAGS_ARITH
        x.live_out[i] = live
        live = (live & ~cython.cast(uint32_t, op.flags_kill)) | op.flags_read
        x.live[i] = live
        if x.mode & MODE_STEP:
            x.live[i] = FLAGS_ARITH
            live = FLAGS_ARITH
    if is_armed(x.s.engine, x.insns[0].page_offset):
        live = FLAGS_ARITH  # who stops there wants to see them
    x.block.flags_in = live


def translate(e, s, gpa, gpa2, code, avail, mode):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    context: Context
    x: cython.pointer(Context) = cython.address(context)
    a: cython.pointer(Asm) = cython.address(context.a)
    b: cython.pointer(Block)
    last: cython.pointer(Insn)
    i: uint32_t
    start: uint32_t = gpa & 0xFFF
    next_offset: int64_t
    length: uint32_t
    if c.used + BLOCK_BYTES > c.size or c.data_used + 32768 > c.data_size:
        return cython.NULL
    b = cython.cast(cython.pointer(Block), code_alloc(c, cython.sizeof(Block)))
    x.s = s
    x.c = c
    x.block = b
    x.mode = mode & ~cython.cast(uint32_t, MODE_SINGLY)
    x.singly = mode & MODE_SINGLY
    x.slot = s.mode_slot
    x.count = 0
    x.colds = 0
    x.current = 0
    x.part = 0
    x.masked = 0
    x.site = 0
    use_address(x)
    forget_held(x)
    x.map_count = 0
    x.page_gpa = gpa & PAGE_MASK
    x.mmu = MMU_KERNEL
    if s.mode & MODE_USER:
        x.mmu = MMU_USER
    elif s.mode & MODE_AC:
        x.mmu = MMU_KERNEL_AC
    x.tlb = off(s, cython.address(s.tlb[x.mmu][0]))
    a.p = c.rw + c.used
    a.delta = c.rx - cython.cast(uint64_t, c.rw)
    b.gpa = gpa
    b.gpa2 = gpa2
    b.mode = mode
    b.code = here(a)
    b.page_next = cython.NULL
    b.page2_next = cython.NULL
    b.hash_next = cython.NULL
    b.links = cython.NULL
    b.valid = 0
    b.assumes = 0
    b.size = decode_block(x, gpa, code, avail, 1 if mode & MODE_STEP else cython.cast(uint32_t, MAX_INSNS))
    b.insns = x.count
    find_live_flags(x)
    find_spans(x)
    find_steps(x)

    # The entry for jumps from elsewhere: T0 is the linear address of this block
    lea(a, 1, T1, T0, NO_REG, 0, -cython.cast(int64_t, start))
    store_gs(a, T1, off(s, cython.address(s.page_va)))
    align_patch(a, 0, 5)
    b.check = here(a)
    if x.mode & MODE_STEP == 0:  # a step runs with events put off
        emit_event_check(x, start, b.flags_in)
    b.chained = here(a)
    if not x.mode & MODE_STEP:
        emit_breakpoints(x, start)
    i = 0
    while i < x.count:
        x.current = i
        emit_looks(x, i)
        length = run_length(x, i)
        if length > 1:
            emit_run(x, i, length)
            i += length
            continue
        add_map(x, cython.address(x.insns[i]))
        emit_instruction(x, cython.address(x.insns[i]))
        i += 1
    last = cython.address(x.insns[x.count - 1])
    if not ends_block(x, last):
        next_offset = cython.cast(int64_t, last.page_offset) + last.length
        if 0 <= next_offset <= 4095 and gpa2 == NO_PAGE and (x.mode & MODE_STEP) == 0:
            if at_page_end(x, code, avail, cython.cast(uint32_t, next_offset) - start):
                # An instruction that crosses the page comes next: never chained
                load_gs(a, T0, off(s, cython.address(s.page_va)))
                lea(a, 1, T0, T0, NO_REG, 0, next_offset)
                emit_far_jump(x)
            else:
                emit_chain(x, CC_ALWAYS, next_offset, False)
        else:
            emit_jump(x, last, next_offset)
    forget_unused(x)
    i = 0
    while i < x.colds:  # a slow path may need slow paths itself
        if i == 0 and x.mode & MODE_STEP == 0:
            # The event check's: behind the instruction that restores RCX, if there is one
            b.cold_exit = here(a) + (3 if x.cold[0].kind == COLD_RESTORE_EVENT else 0)
        emit_cold(x, i)
        i += 1
    b.host_end = here(a)
    b.map = cython.cast(cython.pointer(MapEntry), code_alloc(c, x.map_count * cython.sizeof(MapEntry)))
    if b.map == cython.NULL:
        return cython.NULL
    for i in range(x.map_count):
        b.map[i] = x.map[i]
    b.map_count = x.map_count
    if block_insert(e, b) < 0:
        return cython.NULL
    c.used = (cython.cast(uint64_t, a.p) - cython.cast(uint64_t, c.rw) + 15) & ~cython.cast(uint64_t, 15)
    s.count_blocks += 1
    s.count_block_bytes += b.size
    s.count_insns += b.insns
    return b


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def at_page_end(x: cython.pointer(Context), code: cython.pointer(cython.const[uint8_t]), avail: uint32_t,
                at: uint32_t) -> cython.bint:
    """Does the instruction at ``code + at`` reach into the next page?"""
    insn: Insn
    if x.count >= MAX_INSNS:
        return avail - at < 15 and decode(code + at, avail - at, x.mode, cython.address(insn)) != DECODED
    return block_find(x.c, x.block.gpa + at, x.mode) == cython.NULL
