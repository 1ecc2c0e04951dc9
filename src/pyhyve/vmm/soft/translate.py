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
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import (
    NO_PAGE,
    Block,
    CodeCache,
    Link,
    MapEntry,
    block_find,
    block_insert,
    code_alloc,
    link_to,
)
from cython.cimports.pyhyve.vmm.soft.debug import MOST_CHECKS, armed_at, is_armed
from cython.cimports.pyhyve.vmm.soft.decode import (
    ATTR_V,
    DECODED,
    K_BT,
    K_CALL,
    K_CALL_IND,
    K_CLD,
    K_CLI,
    K_HELPER,
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
    K_NOP,
    K_PLAIN,
    K_POP,
    K_POP_MEM,
    K_PUSH,
    K_PUSH_IMM,
    K_PUSH_MEM,
    K_RDTSC,
    K_RET,
    K_STD,
    K_STI,
    K_STOS,
    K_UD,
    K_XCHG_A,
    K_XLAT,
    NEED_AVX,
    NEED_AVX512,
    NEED_FPU,
    NEED_MMX,
    NEED_SSE,
    NEED_WAIT,
    OP_READ,
    OP_WRITE,
    SZ_B,
    OpInfo,
    decode,
    operand_size,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.encode import (
    CC_AE,
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
    e8,
    e16,
    e32,
    e64,
    here,
    jcc_fwd,
    jmp_fwd,
    jmp_to,
    land,
    land_short,
    lea,
    load_gs,
    load_gs32,
    modrm_mem,
    mov,
    mov_imm32,
    mov_imm64,
    op_gs_index,
    op_mem,
    pext_gs,
    rex,
    rorx,
    short_fwd,
    store_gs,
    store_gs_imm8,
    store_gs_imm32,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.evex import evex_opcode, evex_what
from cython.cimports.pyhyve.vmm.soft.insn import MEM_NONE, MEM_READ, MEM_RMW, MEM_WRITE, NO_REG, REG_RIP, Insn
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CS,
    EXC_NM,
    EXC_UD,
    FLAGS_ARITH,
    FS,
    GS,
    LOW32,
    MMU_KERNEL,
    MMU_KERNEL_AC,
    MMU_USER,
    MODE_AC,
    MODE_ALIGN,
    MODE_AVX,
    MODE_AVX512,
    MODE_CODE32,
    MODE_CODE64,
    MODE_CS_PAGES,
    MODE_EM,
    MODE_FLAT,
    MODE_FS_OPEN,
    MODE_GS_OPEN,
    MODE_IOPL_OK,
    MODE_MP,
    MODE_SSE,
    MODE_STACK32,
    MODE_STEP,
    MODE_TS,
    MODE_TSC,
    MODE_USER,
    PAGE_MASK,
    RBP,
    RDI,
    RSI,
    RSP,
    SS,
    TLB_SIZE,
    CpuState,
    Engine,
)
from cython.cimports.pyhyve.vmm.soft.stubs import ACCESS_LOAD_FIRST, SLOW_SEGMENTED, host_reg, is_spilled, off
from cython.cimports.pyhyve.vmm.soft.cpuid import LEAF_EXTENDED, R_EDX, feature

# What the store of an instruction with several accesses writes: Context.part
PART_OPERAND = cython.declare(uint32_t, 0)
PART_PUSH = cython.declare(uint32_t, 1)


def crosses_page(code, avail, mode):
    insn: Insn
    return decode(code, avail, mode, cython.address(insn)) != DECODED


# --- operands ---------------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def gpr_off(x: cython.pointer(Context), reg: uint32_t) -> uint64_t:
    return off(x.s, cython.address(x.s.gpr[reg]))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def source(x: cython.pointer(Context), reg: uint32_t, temp: uint32_t) -> uint32_t:
    """The host register that holds guest register ``reg``: its own, or ``temp`` after loading it."""
    i: uint32_t
    if not is_spilled(reg):
        return host_reg(reg)
    if not x.holding:
        load_gs(cython.address(x.a), temp, gpr_off(x, reg))
        return temp
    if x.held[temp_index(temp)] == reg:
        return temp
    for i in range(3):
        if x.held[i] == reg:
            mov(cython.address(x.a), temp, T2 if i == 2 else T0 + i)
            break
    else:
        load_gs(cython.address(x.a), temp, gpr_off(x, reg))
    x.held[temp_index(temp)] = reg
    return temp


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def temp_index(temp: uint32_t) -> uint32_t:
    """The place of T0, T1 or T2 in ``Context.held``."""
    return 2 if temp == T2 else temp - T0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def forget_held(x: cython.pointer(Context)) -> cython.void:
    """T0, T1 and T2 are about to be used for something else."""
    x.holding = 0
    x.held[0] = x.held[1] = x.held[2] = NO_REG


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def hold(x: cython.pointer(Context), temp: uint32_t, reg: uint32_t) -> cython.void:
    """``temp`` has the value of guest register ``reg``, and nobody else has."""
    i: uint32_t
    for i in range(3):
        if x.held[i] == reg:
            x.held[i] = NO_REG
    x.held[temp_index(temp)] = reg


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_back(x: cython.pointer(Context), reg: uint32_t, temp: uint32_t) -> cython.void:
    """The guest register ``reg`` was written in the host register that ``source`` named."""
    if is_spilled(reg):
        store_gs(cython.address(x.a), temp, gpr_off(x, reg))
        if x.holding:
            hold(x, temp, reg)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_address(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """The effective address of the memory operand to T0, without the segment's base. Uses T1."""
    a: cython.pointer(Asm) = cython.address(x.a)
    base: uint32_t = insn.base
    index: uint32_t = insn.index
    disp: int64_t = insn.disp
    wide: uint32_t = 1 if insn.addrsize == 8 else 0
    if base == REG_RIP:
        load_gs(a, T0, off(x.s, cython.address(x.s.page_va)))
        disp += insn.page_offset + insn.length
        base = T0
    elif base != NO_REG:
        base = source(x, base, T0)
    if index != NO_REG:
        index = source(x, index, T1)
    if base == NO_REG and index == NO_REG:
        if wide:
            mov_imm64(a, T0, cython.cast(uint64_t, disp))
        else:
            mov_imm32(a, T0, cython.cast(uint64_t, disp) & (0xFFFF if insn.addrsize == 2 else cython.cast(uint64_t, LOW32)))
        return
    if disp != cython.cast(int32_t, disp):
        mov_imm64(a, T1, cython.cast(uint64_t, disp))
        lea(a, wide, T0, base, T1, 0, 0)
    elif wide and index == NO_REG and disp == 0:
        if base != T0:
            mov(a, T0, base)
    else:
        lea(a, wide, T0, base, index, insn.scale, disp)
    if insn.addrsize == 2:
        rex(a, 0, T0, 0, T0)  # movzx r10d, r10w
        e8(a, 0x0F)
        e8(a, 0xB7)
        e8(a, 0xC0 | ((T0 & 7) << 3) | (T0 & 7))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def add_cold(x: cython.pointer(Context), kind: uint32_t, rel32: cython.pointer(uint8_t), what: uint32_t,
             live: uint32_t) -> cython.void:
    cold: cython.pointer(Cold) = cython.address(x.cold[x.colds])
    cold.kind = kind
    cold.rel32 = rel32
    cold.insn = x.current
    cold.what = what
    cold.live = live
    cold.part = x.part
    cold.linked = 0
    cold.back = here(cython.address(x.a))
    x.colds += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_tlb(x: cython.pointer(Context), segment: uint32_t, size: uint32_t, access: uint32_t) -> cython.void:
    """From the effective address in T0 to ``[T0 + T2]``. T1 is free behind it.

    ``access`` is ACCESS_READ, ACCESS_WRITE, or ACCESS_WRITE | ACCESS_LOAD_FIRST for read-modify-write. A store's
    slow path performs the store (``emit_access``) and comes back behind it: ``finish_access`` marks the place.
    """
    a: cython.pointer(Asm) = cython.address(x.a)
    what: uint32_t = size | (access << 16) | (segment << 20) | x.masked
    write: uint32_t = access & ACCESS_WRITE
    kind: uint32_t = COLD_STORE if write else COLD_LOAD
    tag: uint64_t = x.tlb + (8 if write else 0)
    hit: cython.pointer(uint8_t)
    if x.mode & MODE_CODE64:
        if segment == FS or segment == GS:
            load_gs(a, T1, off(x.s, cython.address(x.s.segments[segment].base)))
            lea(a, 1, T0, T0, T1, 0, 0)
        if segmented(x, segment, access):
            mov_imm32(a, T1, what)
            call_to(a, x.c.stubs.slow)
            return
    elif segmented(x, segment, access):
        mov_imm32(a, T1, what | SLOW_SEGMENTED)
        call_to(a, x.c.stubs.slow)
        return
    elif segment == FS or segment == GS:
        load_gs(a, T1, off(x.s, cython.address(x.s.segments[segment].base)))
        lea(a, 0, T0, T0, T1, 0, 0)
    if x.live[x.current] == 0:
        rorx(a, T1, T0, 7)
        e8(a, 0x41)  # and r11d, (TLB_SIZE - 1) << 5
        e8(a, 0x81)
        e8(a, 0xE3)
        e32(a, (TLB_SIZE - 1) << 5)
        op_gs_index(a, 1, 0x8B, T2, T1, 0, tag)
        rex(a, 1, T0, 0, T2)  # xor r14, r10
        e8(a, 0x31)
        e8(a, 0xC0 | ((T0 & 7) << 3) | (T2 & 7))
        rex(a, 1, 0, 0, T2)  # cmp r14, 4097 - size
        e8(a, 0x81)
        e8(a, 0xF8 | (T2 & 7))
        e32(a, 4097 - size)
        hit = jcc_fwd(a, CC_AE)
        op_gs_index(a, 1, 0x8B, T2, T1, 0, x.tlb + 16)
        add_cold(x, kind, hit, what, 0)
        return
    pext_gs(a, T1, T0, off(x.s, cython.address(x.s.mask_index)))
    rex(a, 1, T1, T1, 0)  # lea r11, [r11*8]
    e8(a, 0x8D)
    modrm_mem(a, T1, NO_REG, T1, 3, 0)
    op_gs_index(a, 1, 0x8B, T2, T1, 2, tag)
    rex(a, 1, 0, 0, T2)  # not r14
    e8(a, 0xF7)
    e8(a, 0xD0 | (T2 & 7))
    lea(a, 1, T2, T2, T0, 0, size)
    pext_gs(a, T2, T2, off(x.s, cython.address(x.s.mask_high)))
    xchg(a, HRCX, T2)
    hit = short_fwd(a, 0xE3)
    rel: cython.pointer(uint8_t) = jmp_fwd(a)
    land_short(a, hit)
    mov(a, HRCX, T2)
    op_gs_index(a, 1, 0x8B, T2, T1, 2, x.tlb + 16)
    add_cold(x, kind, rel, what, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def segmented(x: cython.pointer(Context), segment: uint32_t, access: uint32_t) -> cython.bint:
    """Does ``emit_tlb`` call the slow path right there for such accesses in this segment?"""
    if x.mode & MODE_ALIGN:
        return True
    if x.mode & MODE_CODE64:
        return False
    if segment == CS and access & ACCESS_WRITE:
        return True  # a code segment is never writable
    if segment == FS:
        return (x.mode & MODE_FS_OPEN) == 0
    if segment == GS:
        return (x.mode & MODE_GS_OPEN) == 0
    return (x.mode & MODE_FLAT) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def finish_access(x: cython.pointer(Context), segment: uint32_t, access: uint32_t) -> cython.void:
    """Behind the instruction that used ``[T0 + T2]``."""
    if (access & ACCESS_WRITE) == 0:
        return
    if segmented(x, segment, access):
        call_to(cython.address(x.a), x.c.stubs.finish)
    else:
        x.cold[x.colds - 1].back = here(cython.address(x.a))


# --- plain instructions -----------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def high_byte(insn: cython.pointer(Insn), reg: uint32_t, size: uint32_t) -> cython.bint:
    """Is ``reg`` AH, CH, DH or BH?"""
    return size == SZ_B and insn.rex == 0 and insn.vex == 0 and 4 <= reg <= 7


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_opcode(x: cython.pointer(Context), insn: cython.pointer(Insn), reg: uint32_t, index: uint32_t, rm: uint32_t,
                vvvv: uint32_t, force_rex: cython.bint) -> cython.void:
    """Prefixes and opcode, up to the ModRM byte. ``reg``, ``index`` and ``rm`` are host register numbers."""
    a: cython.pointer(Asm) = cython.address(x.a)
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    bits: uint32_t
    if insn.vex == 2:
        evex_opcode(a, insn, reg, index, rm)
        return
    if insn.vex:
        e8(a, 0xC4)
        e8(a, (0 if reg & 8 else 0x80) | (0 if index & 8 else 0x40) | (0 if rm & 8 else 0x20) | insn.map)
        e8(a, (insn.rex_w << 7) | ((~vvvv & 15) << 3) | (insn.vex_l << 2) | insn.vex_pp)
        e8(a, insn.opcode)
        return
    if insn.lock:
        e8(a, 0xF0)
    if op.pp != 0xFF:
        if op.pp == 2:
            e8(a, 0xF3)
        elif op.pp == 3:
            e8(a, 0xF2)
    if op.pp == 1 or (insn.opsize == 2 and wants_opsize(insn, op)):
        e8(a, 0x66)
    bits = 0x40 | (insn.rex_w << 3) | ((reg >> 3) << 2) | ((index >> 3) << 1) | (rm >> 3)
    if bits != 0x40 or force_rex:
        e8(a, bits)
    if insn.map:
        e8(a, 0x0F)
        if insn.map == 2:
            e8(a, 0x38)
        elif insn.map == 3:
            e8(a, 0x3A)
    e8(a, insn.opcode)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def wants_opsize(insn: cython.pointer(Insn), op: cython.pointer(OpInfo)) -> cython.bint:
    """Does operand size 2 need a 66 prefix in 64-bit code?"""
    if op.attr & ATTR_V or (insn.map == 0 and (insn.opcode == 0x98 or insn.opcode == 0x99)):
        return True
    # x87 environments come in two sizes
    return insn.map == 0 and (insn.opcode == 0xD9 or insn.opcode == 0xDD) and insn.mem_size >= 14


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_immediate(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    a: cython.pointer(Asm) = cython.address(x.a)
    if insn.imm_size == 1:
        e8(a, cython.cast(uint32_t, insn.imm))
    elif insn.imm_size == 2:
        e16(a, cython.cast(uint32_t, insn.imm))
    elif insn.imm_size == 4:
        e32(a, insn.imm)
    elif insn.imm_size == 8:
        e64(a, insn.imm)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_mem_form(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """The instruction with ``[T0 + T2]`` as its memory operand; T1 is free."""
    a: cython.pointer(Asm) = cython.address(x.a)
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    reg: uint32_t = insn.reg
    vvvv: uint32_t = insn.vvvv
    base: uint32_t = T0
    index: uint32_t = T2
    high: cython.bint = False
    force: cython.bint = False
    if op.kind == K_MOFFS:
        reg = 0
    elif op.kind == K_XLAT:
        reg = 0
    elif op.reg_access:
        if high_byte(insn, reg, op.reg_size):
            high = True
        else:
            force = op.reg_size == SZ_B
            if op.kind == K_BT:
                reg = T1  # holds the bit's number already
            elif is_spilled(reg):
                if op.vvvv_access and is_spilled(vvvv):
                    lea(a, 1, T0, T0, T2, 0, 0)
                    index = NO_REG
                reg = source(x, reg, T1)
            else:
                reg = host_reg(reg)
    if op.vvvv_access:
        if is_spilled(vvvv):
            vvvv = source(x, vvvv, T2 if index == NO_REG else cython.cast(uint32_t, T1))
        else:
            vvvv = host_reg(vvvv)
    if high:
        store_gs(a, 6, off(x.s, cython.address(x.s.scratch[1])))
        lea(a, 1, 6, T0, T2, 0, 0)
        base = 6
        index = NO_REG
    if op.kind == K_MOFFS:
        if insn.opsize == 2 and insn.opcode & 1:
            e8(a, 0x66)
        rex(a, insn.rex_w, 0, T2, T0)
        e8(a, (0x8A if insn.opcode < 0xA2 else 0x88) | (insn.opcode & 1))
    elif op.kind == K_XLAT:
        rex(a, 0, 0, T2, T0)
        e8(a, 0x8A)
    else:
        emit_opcode(x, insn, reg, 0 if index == NO_REG else index, base, vvvv, force)
    modrm_mem(a, reg, base, index, 0, 0)
    if op.kind != K_MOFFS:
        emit_immediate(x, insn)
    if high:
        load_gs(a, 6, off(x.s, cython.address(x.s.scratch[1])))
    if op.vvvv_access & OP_WRITE:
        write_back(x, insn.vvvv, vvvv)  # first: MULX with one register for both halves keeps the high one
    if op.reg_access & OP_WRITE and not high and op.kind != K_BT:
        write_back(x, insn.reg, reg)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_reg_form(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """An instruction without memory operand."""
    a: cython.pointer(Asm) = cython.address(x.a)
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    reg: uint32_t = insn.reg
    rm: uint32_t = insn.rm
    vvvv: uint32_t = insn.vvvv
    force: cython.bint = False
    high: cython.bint = False
    if not insn.has_modrm:
        if op.z_access:
            if high_byte(insn, rm, op.z_size):
                emit_opcode(x, insn, 0, 0, 0, 0, False)
            else:
                rm = source(x, rm, T0)
                emit_opcode(x, insn, 0, 0, rm, 0, op.z_size == SZ_B)
                a.p -= 1
                e8(a, (insn.opcode & 0xF8) | (rm & 7))
        else:
            emit_opcode(x, insn, 0, 0, 0, 0, False)
        emit_immediate(x, insn)
        if op.z_access & OP_WRITE and not high_byte(insn, insn.rm, op.z_size):
            write_back(x, insn.rm, rm)
        return
    if op.reg_access:
        if high_byte(insn, reg, op.reg_size):
            high = True
        else:
            reg = source(x, reg, T1)
            force = op.reg_size == SZ_B
    if op.rm_access:
        if high_byte(insn, rm, op.rm_size):
            if reg >= 8 and op.reg_access:
                # MOVZX ESP, AH and the like: AH cannot be named beside R15
                rorx(a, T0, rm & 3, 8)
                x.held[0] = NO_REG
                rm = T0
            else:
                high = True
        else:
            rm = source(x, rm, T0)
            force = force or op.rm_size == SZ_B
    if op.vvvv_access:
        vvvv = source(x, vvvv, T2)
    # With a REX prefix AH to BH would be SPL to DIL. Byte registers beside them are AL to BL, which need none.
    emit_opcode(x, insn, reg, 0, rm, vvvv, force and not high)
    e8(a, 0xC0 | ((reg & 7) << 3) | (rm & 7))
    emit_immediate(x, insn)
    if op.vvvv_access & OP_WRITE:
        write_back(x, insn.vvvv, vvvv)
    if op.reg_access & OP_WRITE and not high_byte(insn, insn.reg, op.reg_size):
        write_back(x, insn.reg, reg)
    if op.rm_access & OP_WRITE and not high_byte(insn, insn.rm, op.rm_size):
        write_back(x, insn.rm, rm)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_bit_address(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """BT family with a register as bit number: move T0 to the word that holds the bit, its number to T1 later."""
    a: cython.pointer(Asm) = cython.address(x.a)
    shift: uint32_t = 6 if insn.opsize == 8 else (5 if insn.opsize == 4 else 4)
    scale: uint32_t = shift - 3
    reg: uint32_t = source(x, insn.reg, T1)
    mov_imm32(a, T2, shift)
    if insn.opsize == 2:
        rex(a, 1, T1, 0, reg)  # movsx r11, reg16
        e8(a, 0x0F)
        e8(a, 0xBF)
        e8(a, 0xC0 | ((T1 & 7) << 3) | (reg & 7))
    elif insn.opsize == 4:
        rex(a, 1, T1, 0, reg)  # movsxd r11, reg32
        e8(a, 0x63)
        e8(a, 0xC0 | ((T1 & 7) << 3) | (reg & 7))
    elif reg != T1:
        mov(a, T1, reg)
    e8(a, 0xC4)  # sarx r11, r11, r14
    e8(a, 0x40 | 2)
    e8(a, 0x80 | ((~T2 & 15) << 3) | 2)
    e8(a, 0xF7)
    e8(a, 0xC0 | ((T1 & 7) << 3) | (T1 & 7))
    lea(a, 1 if insn.addrsize == 8 else 0, T0, T0, T1, scale, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_return_address(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """Where a call comes back to, to T1."""
    load_gs(cython.address(x.a), T1, off(x.s, cython.address(x.s.page_va)))
    lea(cython.address(x.a), 1, T1, T1, NO_REG, 0, insn.page_offset + insn.length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_access(x: cython.pointer(Context), insn: cython.pointer(Insn), part: uint32_t) -> cython.void:
    """The access itself, on ``[T0 + T2]``: emitted in the hot path, and for stores again in the slow path."""
    a: cython.pointer(Asm) = cython.address(x.a)
    kind: uint32_t = ops[insn.op].kind
    if part == PART_PUSH and (x.mode & MODE_CODE64) == 0:
        emit_narrow_slot(x, insn)
        return
    if part == PART_PUSH:
        if kind == K_PUSH:
            op_mem(a, 1, 0x89, source(x, insn.rm, T1), T0, T2, 0)
        elif kind == K_PUSH_IMM:
            op_mem(a, 1, 0xC7, 0, T0, T2, 0)
            e32(a, insn.imm)
        elif kind == K_PUSH_MEM:
            load_gs(a, T1, off(x.s, cython.address(x.s.scratch[2])))
            op_mem(a, 1, 0x89, T1, T0, T2, 0)
        else:
            emit_return_address(x, insn)
            op_mem(a, 1, 0x89, T1, T0, T2, 0)
        return
    if kind == K_BT:
        # The bit's number inside its word
        pext_gs(a, T1, source(x, insn.reg, T1), off(x.s, cython.address(
            x.s.mask_bits[3 if insn.opsize == 8 else (2 if insn.opsize == 4 else 1)])))
    emit_mem_form(x, insn)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_operand(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """An instruction with a memory operand: address, TLB, access."""
    access: uint32_t = ACCESS_READ
    if insn.mem_access == MEM_WRITE:
        access = ACCESS_WRITE
    elif insn.mem_access == MEM_RMW:
        access = ACCESS_WRITE | ACCESS_LOAD_FIRST
    emit_address(x, insn)
    forget_held(x)
    if ops[insn.op].kind == K_BT:
        emit_bit_address(x, insn)
    x.part = PART_OPERAND
    x.masked = evex_what(insn)
    emit_tlb(x, insn.segment, insn.mem_size, access)
    x.masked = 0
    if ops[insn.op].kind != K_BT and access == ACCESS_READ:
        emit_mem_form(x, insn)
        if (ops[insn.op].reg_access & OP_WRITE and is_spilled(insn.reg)
                and not high_byte(insn, insn.reg, ops[insn.op].reg_size)):  # fmt: skip
            hold(x, T1, insn.reg)  # emit_mem_form had it there
        return
    emit_access(x, insn, PART_OPERAND)
    finish_access(x, insn.segment, access)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_push(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    a: cython.pointer(Asm) = cython.address(x.a)
    lea(a, 1, T0, GSP, NO_REG, 0, -8)
    x.part = PART_PUSH
    emit_tlb(x, SS, 8, ACCESS_WRITE)
    emit_access(x, insn, PART_PUSH)
    finish_access(x, SS, ACCESS_WRITE)
    lea(a, 1, GSP, GSP, NO_REG, 0, -8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_stack_load(x: cython.pointer(Context), address: uint32_t) -> cython.void:
    """Make ``[T0 + T2]`` the 8 bytes that host register ``address`` points to."""
    mov(cython.address(x.a), T0, address)
    x.part = PART_OPERAND
    emit_tlb(x, SS, 8, ACCESS_READ)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_string(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """STOS and MOVS upwards, with or without REP, where each operand lies in one page that the TLB has; else the helper."""
    a: cython.pointer(Asm) = cython.address(x.a)
    size: uint32_t = 1 if insn.opcode & 1 == 0 else insn.opsize
    live: cython.bint = x.live_out[x.current] != 0
    copies: cython.bint = ops[insn.op].kind == K_MOVS
    away: cython.pointer(uint8_t)[6]
    count: uint32_t = 0
    i: uint32_t
    done: cython.pointer(uint8_t)
    if insn.addrsize == 4:
        mov32(a, RDI, RDI)
        if copies:
            mov32(a, RSI, RSI)
        if insn.rep:
            mov32(a, HRCX, HRCX)
    if live:
        e8(a, 0x9C)  # pushfq
    e8(a, 0x65)  # cmp byte [gs:df], 0
    e8(a, 0x80)
    e8(a, 0x3C)
    e8(a, 0x25)
    e32(a, off(x.s, cython.address(x.s.df)))
    e8(a, 0)
    away[count] = jcc_fwd(a, CC_NZ)
    count += 1
    if insn.rep:
        cmp_imm32(a, HRCX, 4097)
        away[count] = jcc_fwd(a, CC_AE)
        count += 1
    away[count] = string_operand(x, insn, RDI, 8, size, cython.address(away[count + 1]))
    count += 2
    op_gs_index(a, 1, 0x8B, T0, T1, 0, x.tlb + 16)
    if copies:
        away[count] = string_operand(x, insn, RSI, 0, size, cython.address(away[count + 1]))
        count += 2
        op_gs_index(a, 1, 0x8B, T2, T1, 0, x.tlb + 16)
        lea(a, 1, RSI, RSI, T2, 0, 0)
    lea(a, 1, RDI, RDI, T0, 0, 0)
    if insn.rep:
        e8(a, 0xF3)
    if size == 2:
        e8(a, 0x66)
    elif size == 8:
        e8(a, 0x48)
    e8(a, insn.opcode)
    rex(a, 1, T0, 0, RDI)  # sub rdi, r10
    e8(a, 0x29)
    e8(a, 0xC0 | ((T0 & 7) << 3) | RDI)
    if copies:
        rex(a, 1, T2, 0, RSI)  # sub rsi, r14
        e8(a, 0x29)
        e8(a, 0xC0 | ((T2 & 7) << 3) | RSI)
    if insn.addrsize == 4:
        mov32(a, RDI, RDI)
        if copies:
            mov32(a, RSI, RSI)
    if live:
        e8(a, 0x9D)  # popfq
    done = short_fwd(a, 0xEB)
    for i in range(count):
        land(a, away[i])
    if live:
        e8(a, 0x9D)
    emit_helper(x, insn)
    land_short(a, done)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def string_operand(x: cython.pointer(Context), insn: cython.pointer(Insn), reg: uint32_t, tag: uint32_t, size: uint32_t,
                   second: cython.pointer(cython.pointer(uint8_t))) -> cython.pointer(uint8_t):
    """Look for the page of ``reg`` in the TLB; T1 is the entry then. The two jumps that are taken if it is not there, or
    the operand goes over its end."""
    a: cython.pointer(Asm) = cython.address(x.a)
    first: cython.pointer(uint8_t)
    rorx(a, T1, reg, 7)
    e8(a, 0x41)  # and r11d, (TLB_SIZE - 1) << 5
    e8(a, 0x81)
    e8(a, 0xE3)
    e32(a, (TLB_SIZE - 1) << 5)
    op_gs_index(a, 1, 0x8B, T2, T1, 0, x.tlb + tag)
    rex(a, 1, reg, 0, T2)  # xor r14, reg
    e8(a, 0x31)
    e8(a, 0xC0 | ((reg & 7) << 3) | (T2 & 7))
    cmp_imm32(a, T2, 4096)
    first = jcc_fwd(a, CC_AE)
    if insn.rep:
        lea(a, 1, T2, T2, HRCX, 3 if size == 8 else size >> 1, -1)
    else:
        lea(a, 1, T2, T2, NO_REG, 0, cython.cast(int64_t, size) - 1)
    cmp_imm32(a, T2, 4096)
    second[0] = jcc_fwd(a, CC_AE)
    return first


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def cmp_imm32(a: cython.pointer(Asm), reg: uint32_t, value: uint32_t) -> cython.void:
    rex(a, 1, 0, 0, reg)
    e8(a, 0x81)
    e8(a, 0xF8 | (reg & 7))
    e32(a, value)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def simple_lea(insn: cython.pointer(Insn)) -> cython.bint:
    """Is it one LEA of the host's?"""
    return (
        insn.opsize != 2
        and insn.addrsize != 2
        and insn.base != REG_RIP
        and (insn.base != NO_REG or insn.index != NO_REG)
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_lea(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    a: cython.pointer(Asm) = cython.address(x.a)
    reg: uint32_t
    if simple_lea(insn):
        base: uint32_t = NO_REG if insn.base == NO_REG else source(x, insn.base, T0)
        index: uint32_t = NO_REG if insn.index == NO_REG else source(x, insn.index, T1)
        reg = T1 if is_spilled(insn.reg) else host_reg(insn.reg)
        x.held[1] = NO_REG if reg == T1 else x.held[1]
        lea(a, 1 if insn.opsize == 8 and insn.addrsize == 8 else 0, reg, base, index, insn.scale, insn.disp)
        write_back(x, insn.reg, reg)
        return
    emit_address(x, insn)
    if insn.opsize == 2:
        reg = source(x, insn.reg, T1)
        e8(a, 0x66)
        rex(a, 0, T0, 0, reg)
        e8(a, 0x89)
        e8(a, 0xC0 | ((T0 & 7) << 3) | (reg & 7))
        write_back(x, insn.reg, reg)
        return
    reg = T1 if is_spilled(insn.reg) else host_reg(insn.reg)
    rex(a, 1 if insn.opsize == 8 else 0, T0, 0, reg)
    e8(a, 0x89)
    e8(a, 0xC0 | ((T0 & 7) << 3) | (reg & 7))
    write_back(x, insn.reg, reg)


# --- leaving the block ------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_event_check(x: cython.pointer(Context), target: uint32_t, live: uint32_t) -> cython.void:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_breakpoints(x: cython.pointer(Context), start: uint32_t) -> cython.void:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def op_load32_rcx(a: cython.pointer(Asm), offset: uint64_t) -> cython.void:
    load_gs32(a, HRCX, offset)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def target_live(x: cython.pointer(Context), target: int64_t) -> uint32_t:
    """The flags that matter at page offset ``target``, as far as is known."""
    b: cython.pointer(Block)
    if target < 0 or target > 4095:
        return FLAGS_ARITH
    if target == cython.cast(int64_t, x.insns[0].page_offset) and x.count:
        return x.block.flags_in
    b = block_find(x.c, x.page_gpa + cython.cast(uint64_t, target), x.mode)
    if b == cython.NULL or b.gpa2 != NO_PAGE:
        return FLAGS_ARITH
    if b.flags_in != FLAGS_ARITH:
        x.block.assumes = 1
    return b.flags_in


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_jump(x: cython.pointer(Context), insn: cython.pointer(Insn), target: int64_t) -> cython.void:
    """Go to page offset ``target``, which may lie in another page."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if 0 <= target <= 4095 and (x.mode & MODE_STEP) == 0:
        emit_chain(x, CC_ALWAYS, target, target <= cython.cast(int64_t, insn.page_offset))
        return
    emit_far_target(x, target)
    emit_far_jump(x)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_far_target(x: cython.pointer(Context), target: int64_t) -> cython.void:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_call(x: cython.pointer(Context), insn: cython.pointer(Insn), direct: cython.bint, target: int64_t) -> cython.void:
    """Behind the push of a call's return address, which is in T1 still: go to ``target``, or else to the address in T0.

    The host's own call does that, so that its return can come back here (``stack``).
    """
    a: cython.pointer(Asm) = cython.address(x.a)
    back: uint32_t = insn.page_offset + insn.length
    e8(a, 0x41)  # push r11
    e8(a, 0x53)
    if direct and 0 <= target <= 4095:
        emit_chain(x, CC_CALL, target, True)
    else:
        if direct:
            emit_far_target(x, target)
        call_to(a, x.c.stubs.jump[x.slot])
    # T0 is the return address here
    lea(a, 1, 4, 4, NO_REG, 0, 8)
    lea(a, 1, T1, T0, NO_REG, 0, -cython.cast(int64_t, back))
    store_gs(a, T1, off(x.s, cython.address(x.s.page_va)))
    emit_chain(x, CC_ALWAYS, back, False)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def foresees_returns(x: cython.pointer(Context)) -> cython.bint:
    """Does code of this mode use the host's stack for calls and returns, and one look-up for several pushes?"""
    return (x.mode & (MODE_CODE64 | MODE_STEP | MODE_ALIGN)) == MODE_CODE64


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def comes_back(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.bint:
    """May a call use the host's? Not where the instruction behind it may lie in two pages: jumps to that are not chained."""
    return (
        foresees_returns(x)
        and x.block.gpa2 == NO_PAGE
        and insn.page_offset + insn.length <= 4096 - 15
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_return(x: cython.pointer(Context)) -> cython.void:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_far_jump(x: cython.pointer(Context)) -> cython.void:
    """Go to the linear address in T0."""
    if x.mode & MODE_STEP:
        jmp_to(cython.address(x.a), x.c.stubs.exit_lookup)
    else:
        jmp_to(cython.address(x.a), x.c.stubs.jump[x.slot])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_chain(x: cython.pointer(Context), condition: uint32_t, target: int64_t, checked: cython.bint) -> cython.void:
    """Go to page offset ``target`` of this page if ``condition`` holds: at once, or when it is translated.

    ``checked``: look for events first. Whatever could go on for ever must do so.
    """
    a: cython.pointer(Asm) = cython.address(x.a)
    b: cython.pointer(Block) = cython.NULL
    gpa: uint64_t = x.page_gpa + cython.cast(uint64_t, target)
    rel32: cython.pointer(uint8_t)
    # translate() has made sure that there is room
    link: cython.pointer(Link) = cython.cast(cython.pointer(Link), code_alloc(x.c, cython.sizeof(Link)))
    if condition == CC_ALWAYS:
        align_patch(a, 1, 4)
        rel32 = jmp_fwd(a)
    elif condition == CC_CALL:
        align_patch(a, 1, 4)
        rel32 = call_fwd(a)
    else:
        align_patch(a, 2, 4)
        rel32 = jcc_fwd(a, condition)
    link.site = cython.cast(uint64_t, cython.cast(int64_t, rel32) + a.delta)
    link.next = cython.NULL
    link.checked = checked
    add_cold(x, COLD_CHAIN, rel32, cython.cast(uint32_t, target), 0)
    x.cold[x.colds - 1].back = cython.cast(uint64_t, link)
    if gpa == x.block.gpa and x.block.gpa2 == NO_PAGE:
        b = x.block
    else:
        b = block_find(x.c, gpa, x.mode)
    if b != cython.NULL and b.gpa2 == NO_PAGE:
        x.cold[x.colds - 1].linked = 1
        link_to(x.c, link, b)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_branch(x: cython.pointer(Context), insn: cython.pointer(Insn), condition: uint32_t,
                target: int64_t) -> cython.void:
    """Go to page offset ``target`` if ``condition`` (0-15) holds, else on."""
    a: cython.pointer(Asm) = cython.address(x.a)
    skip: cython.pointer(uint8_t)
    if 0 <= target <= 4095 and (x.mode & MODE_STEP) == 0:
        emit_chain(x, condition, target, target <= cython.cast(int64_t, insn.page_offset))
        return
    skip = jcc_fwd(a, condition ^ 1)
    emit_jump(x, insn, target)
    land(a, skip)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_helper(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """Leave for the helper of this instruction, which gets a copy of it that lives as long as the block."""
    a: cython.pointer(Asm) = cython.address(x.a)
    copy: cython.pointer(Insn) = cython.cast(cython.pointer(Insn), code_alloc(x.c, cython.sizeof(Insn)))
    if copy != cython.NULL:  # translate() has made sure that there is room
        copy[0] = insn[0]
    mov_imm32(a, T0, insn.page_offset)
    mov_imm64(a, T1, cython.cast(uint64_t, copy))
    jmp_to(a, x.c.stubs.exit_helper)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_raise(x: cython.pointer(Context), insn: cython.pointer(Insn), vector: uint32_t) -> cython.void:
    a: cython.pointer(Asm) = cython.address(x.a)
    mov_imm32(a, T0, insn.page_offset)
    mov_imm32(a, T1, vector)
    jmp_to(a, x.c.stubs.exit_raise)


# --- stack instructions and near jumps of 16- and 32-bit code ---------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_near_kind(kind: uint32_t) -> cython.bint:
    return (
        kind == K_PUSH or kind == K_POP or kind == K_PUSH_IMM or kind == K_PUSH_MEM or kind == K_POP_MEM or kind == K_RET
        or kind == K_LEAVE or kind == K_LOOP or kind == K_JCXZ or kind == K_CALL or kind == K_JMP or kind == K_CALL_IND
        or kind == K_JMP_IND or kind == K_JCC
    )  # fmt: skip


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_narrow(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.bint:
    """Does ``emit_narrow`` have this stack instruction or jump?

    Jumps only where code pages lie in CS as a whole: then neither the limit nor the end of a 16-bit segment matters
    inside the page. What leaves a 16-bit segment by a 32-bit jump is found at run time and goes to the helper.
    """
    kind: uint32_t = ops[insn.op].kind
    if kind == K_PUSH or kind == K_PUSH_IMM or kind == K_PUSH_MEM or kind == K_LEAVE:
        return True
    if kind == K_POP:
        return insn.rm != RSP
    if (x.mode & MODE_CS_PAGES) == 0:
        return False
    if x.mode & MODE_CODE32:
        return insn.opsize == 4
    return insn.opsize == 2 or kind != K_LOOP  # which cannot be done twice


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mov32(a: cython.pointer(Asm), dst: uint32_t, src: uint32_t) -> cython.void:
    """Zero-extends."""
    rex(a, 0, src, 0, dst)
    e8(a, 0x89)
    e8(a, 0xC0 | ((src & 7) << 3) | (dst & 7))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mov16(a: cython.pointer(Asm), dst: uint32_t, src: uint32_t) -> cython.void:
    """The lower 16 bits; the rest of ``dst`` stays."""
    e8(a, 0x66)
    mov32(a, dst, src)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def movzx16(a: cython.pointer(Asm), dst: uint32_t, src: uint32_t) -> cython.void:
    rex(a, 0, dst, 0, src)
    e8(a, 0x0F)
    e8(a, 0xB7)
    e8(a, 0xC0 | ((dst & 7) << 3) | (src & 7))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def load_word(a: cython.pointer(Asm), reg: uint32_t, size: uint32_t) -> cython.void:
    """``[T0 + T2]``, of 2 or 4 bytes, zero-extended."""
    if size == 4:
        op_mem(a, 0, 0x8B, reg, T0, T2, 0)
        return
    rex(a, 0, reg, T2, T0)
    e8(a, 0x0F)
    e8(a, 0xB7)
    modrm_mem(a, reg, T0, T2, 0, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stack_slot(x: cython.pointer(Context), base: uint32_t, delta: int64_t) -> cython.void:
    """The stack address in host register ``base``, plus ``delta``, to T0, as wide as SS has it."""
    lea(cython.address(x.a), 0, T0, base, NO_REG, 0, delta)
    if (x.mode & MODE_STACK32) == 0:
        movzx16(cython.address(x.a), T0, T0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_stack(x: cython.pointer(Context), base: uint32_t, delta: int64_t) -> cython.void:
    """The stack pointer becomes host register ``base`` plus ``delta``. Uses T2."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if x.mode & MODE_STACK32:
        lea(a, 0, GSP, base, NO_REG, 0, delta)
        return
    lea(a, 0, T2, base, NO_REG, 0, delta)
    mov16(a, GSP, T2)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_narrow_push(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    size: uint32_t = insn.opsize
    stack_slot(x, GSP, -cython.cast(int64_t, size))
    x.part = PART_PUSH
    emit_tlb(x, SS, size, ACCESS_WRITE)
    emit_access(x, insn, PART_PUSH)
    finish_access(x, SS, ACCESS_WRITE)
    set_stack(x, GSP, -cython.cast(int64_t, size))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_narrow_slot(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """The store of a push to ``[T0 + T2]``."""
    a: cython.pointer(Asm) = cython.address(x.a)
    kind: uint32_t = ops[insn.op].kind
    if kind != K_PUSH and kind != K_PUSH_IMM:
        load_gs(a, T1, off(x.s, cython.address(x.s.scratch[2])))
    if insn.opsize == 2:
        e8(a, 0x66)
    if kind == K_PUSH:
        op_mem(a, 0, 0x89, host_reg(insn.rm), T0, T2, 0)
    elif kind == K_PUSH_IMM:
        op_mem(a, 0, 0xC7, 0, T0, T2, 0)
        if insn.opsize == 2:
            e16(a, cython.cast(uint32_t, insn.imm))
        else:
            e32(a, insn.imm)
    else:
        op_mem(a, 0, 0x89, T1, T0, T2, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def offset_in_code(x: cython.pointer(Context), target: int64_t) -> cython.void:
    """The offset in CS of page offset ``target`` to T0, neither cut to 32 bits nor to 16. Uses T1."""
    a: cython.pointer(Asm) = cython.address(x.a)
    load_gs(a, T0, off(x.s, cython.address(x.s.page_va)))
    if (x.mode & MODE_FLAT) == 0:
        load_gs(a, T1, off(x.s, cython.address(x.s.segments[CS].base)))
        invert(a, T1)
        lea(a, 1, T0, T0, T1, 0, 1)
    lea(a, 1, T0, T0, NO_REG, 0, target)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def invert(a: cython.pointer(Asm), reg: uint32_t) -> cython.void:
    """NOT, which leaves flags alone."""
    rex(a, 1, 0, 0, reg)
    e8(a, 0xF7)
    e8(a, 0xD0 | (reg & 7))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def within_64k(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """Leave a 32-bit jump of 16-bit code to the helper if the offset in T0 has more than 16 bits."""
    a: cython.pointer(Asm) = cython.address(x.a)
    fits: cython.pointer(uint8_t)
    if x.mode & MODE_CODE32 or insn.opsize != 4:
        return
    movzx16(a, T1, T0)
    invert(a, T1)
    lea(a, 1, T1, T1, T0, 0, 1)
    xchg(a, HRCX, T1)
    fits = short_fwd(a, 0xE3)
    mov(a, HRCX, T1)
    emit_helper(x, insn)
    land_short(a, fits)
    mov(a, HRCX, T1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def jump_in_code(x: cython.pointer(Context)) -> cython.void:
    """Go to the offset in CS that is in T0."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if (x.mode & MODE_FLAT) == 0:
        load_gs(a, T1, off(x.s, cython.address(x.s.segments[CS].base)))
        lea(a, 0, T0, T0, T1, 0, 0)
    emit_far_jump(x)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stays_near(x: cython.pointer(Context), target: int64_t) -> cython.bint:
    """Is page offset ``target`` surely where the jump goes to, without a segment's end in between?"""
    return 0 <= target <= 4095 or (x.mode & MODE_CODE32) != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def narrow_jump(x: cython.pointer(Context), insn: cython.pointer(Insn), target: int64_t) -> cython.void:
    if stays_near(x, target):
        emit_jump(x, insn, target)
        return
    offset_in_code(x, target)
    if insn.opsize == 2:
        movzx16(cython.address(x.a), T0, T0)
    within_64k(x, insn)
    jump_in_code(x)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def narrow_branch(x: cython.pointer(Context), insn: cython.pointer(Insn), condition: uint32_t,
                  target: int64_t) -> cython.void:
    a: cython.pointer(Asm) = cython.address(x.a)
    skip: cython.pointer(uint8_t)
    if stays_near(x, target):
        emit_branch(x, insn, condition, target)
        return
    skip = jcc_fwd(a, condition ^ 1)
    narrow_jump(x, insn, target)
    land(a, skip)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def narrow_call(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """Push the offset of the next instruction."""
    a: cython.pointer(Asm) = cython.address(x.a)
    offset_in_code(x, insn.page_offset + insn.length)
    if (x.mode & MODE_CODE32) == 0:
        movzx16(a, T0, T0)
    store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
    emit_narrow_push(x, insn)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def narrow_operand(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.void:
    """The operand of an indirect jump or of PUSH to T0, zero-extended."""
    a: cython.pointer(Asm) = cython.address(x.a)
    if insn.has_mem:
        emit_address(x, insn)
        emit_tlb(x, insn.segment, insn.opsize, ACCESS_READ)
        load_word(a, T0, insn.opsize)
    elif insn.opsize == 2:
        movzx16(a, T0, host_reg(insn.rm))
    else:
        mov32(a, T0, host_reg(insn.rm))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def narrow_count(x: cython.pointer(Context), insn: cython.pointer(Insn), target: int64_t) -> cython.void:
    """LOOP and JCXZ."""
    a: cython.pointer(Asm) = cython.address(x.a)
    loops: cython.bint = ops[insn.op].kind == K_LOOP
    wide: cython.bint = insn.addrsize == 4
    zero: cython.pointer(uint8_t)
    end: cython.pointer(uint8_t)
    if loops:
        lea(a, 0, T1, HRCX, NO_REG, 0, -1)
        if wide:
            mov32(a, HRCX, T1)
        else:
            mov16(a, HRCX, T1)
    if wide:
        mov32(a, T1, HRCX)
    else:
        movzx16(a, T1, HRCX)
    xchg(a, HRCX, T1)
    zero = short_fwd(a, 0xE3)
    mov(a, HRCX, T1)
    if loops:
        if insn.opcode == 0xE2:
            narrow_jump(x, insn, target)
        else:
            narrow_branch(x, insn, 5 if insn.opcode == 0xE0 else 4, target)
            end = jmp_fwd(a)
            land_short(a, zero)
            mov(a, HRCX, T1)
            land(a, end)
            return
        land_short(a, zero)
        mov(a, HRCX, T1)
        return
    end = jmp_fwd(a)
    land_short(a, zero)
    mov(a, HRCX, T1)
    narrow_jump(x, insn, target)
    land(a, end)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_narrow(x: cython.pointer(Context), insn: cython.pointer(Insn), target: int64_t) -> cython.void:
    """A stack instruction or near jump of 16- or 32-bit code for which ``is_narrow`` holds."""
    a: cython.pointer(Asm) = cython.address(x.a)
    kind: uint32_t = ops[insn.op].kind
    size: uint32_t = insn.opsize
    if kind == K_PUSH or kind == K_PUSH_IMM:
        emit_narrow_push(x, insn)
    elif kind == K_PUSH_MEM:
        narrow_operand(x, insn)
        store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
        emit_narrow_push(x, insn)
    elif kind == K_POP:
        stack_slot(x, GSP, 0)
        emit_tlb(x, SS, size, ACCESS_READ)
        if size == 2:
            e8(a, 0x66)
        op_mem(a, 0, 0x8B, host_reg(insn.rm), T0, T2, 0)
        set_stack(x, GSP, size)
    elif kind == K_LEAVE:
        stack_slot(x, RBP, 0)
        emit_tlb(x, SS, size, ACCESS_READ)
        load_word(a, T1, size)
        set_stack(x, RBP, size)
        if size == 2:
            mov16(a, RBP, T1)
        else:
            mov32(a, RBP, T1)
    elif kind == K_JCC:
        narrow_branch(x, insn, insn.opcode & 15, target)
    elif kind == K_JMP:
        narrow_jump(x, insn, target)
    elif kind == K_LOOP or kind == K_JCXZ:
        narrow_count(x, insn, target)
    elif kind == K_CALL:
        if not stays_near(x, target):
            offset_in_code(x, target)
            within_64k(x, insn)
        narrow_call(x, insn)
        narrow_jump(x, insn, target)
    elif kind == K_RET:
        stack_slot(x, GSP, 0)
        emit_tlb(x, SS, size, ACCESS_READ)
        load_word(a, T0, size)
        within_64k(x, insn)
        set_stack(x, GSP, size + cython.cast(int64_t, insn.imm & 0xFFFF if insn.opcode == 0xC2 else 0))
        jump_in_code(x)
    else:  # indirect
        narrow_operand(x, insn)
        within_64k(x, insn)
        if kind == K_CALL_IND:
            store_gs(a, T0, off(x.s, cython.address(x.s.scratch[3])))
            narrow_call(x, insn)
            load_gs(a, T0, off(x.s, cython.address(x.s.scratch[3])))
        jump_in_code(x)


# --- one instruction --------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def trap_of(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> uint32_t:
    """The exception that the instruction raises in this mode whatever its operands are, or 0."""
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    need: uint32_t = op.need
    if op.kind == K_UD:
        return EXC_UD
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def goes_to_helper(x: cython.pointer(Context), insn: cython.pointer(Insn)) -> cython.bint:
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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_rdtscp(insn: cython.pointer(Insn)) -> cython.bint:
    """Which of the two that read the counter it is."""
    return insn.opcode != 0x31


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
    elif kind == K_LEA and simple_lea(insn):
        x.holding = 1
    else:
        forget_held(x)
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
            emit_address(x, insn)
            emit_tlb(x, insn.segment, 8, ACCESS_READ)
            op_mem(a, 1, 0x8B, T1, T0, T2, 0)
        else:
            reg = source(x, insn.rm, T1)
            if reg != T1:
                mov(a, T1, reg)
        store_gs(a, T1, off(x.s, cython.address(x.s.scratch[2])))
        emit_push(x, insn)
    elif kind == K_POP:
        emit_stack_load(x, GSP)
        if insn.rm == RSP:
            op_mem(a, 1, 0x8B, GSP, T0, T2, 0)
        else:
            reg = T1 if is_spilled(insn.rm) else host_reg(insn.rm)
            op_mem(a, 1, 0x8B, reg, T0, T2, 0)
            write_back(x, insn.rm, reg)
            lea(a, 1, GSP, GSP, NO_REG, 0, 8)
    elif kind == K_LEAVE:
        emit_stack_load(x, 5)
        op_mem(a, 1, 0x8B, T1, T0, T2, 0)
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
        emit_stack_load(x, GSP)
        op_mem(a, 1, 0x8B, T0, T0, T2, 0)
        lea(a, 1, GSP, GSP, NO_REG, 0, 8 + cython.cast(int64_t, insn.imm & 0xFFFF if insn.opcode == 0xC2 else 0))
        emit_return(x)
    elif kind == K_CALL_IND or kind == K_JMP_IND:
        if insn.has_mem:
            emit_address(x, insn)
            emit_tlb(x, insn.segment, 8, ACCESS_READ)
            op_mem(a, 1, 0x8B, T0, T0, T2, 0)
        else:
            reg = source(x, insn.rm, T0)
            if reg != T0:
                mov(a, T0, reg)
        if kind == K_CALL_IND:
            store_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
            emit_push(x, insn)
            load_gs(a, T0, off(x.s, cython.address(x.s.scratch[2])))
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
def group_length(x: cython.pointer(Context), first: uint32_t) -> uint32_t:
    """How many instructions from ``first`` on push registers, or pop them, the last of those perhaps a return."""
    kind: uint32_t = ops[x.insns[first].op].kind
    n: uint32_t = 0
    insn: cython.pointer(Insn)
    if not foresees_returns(x) or (kind != K_PUSH and kind != K_POP):
        return 1
    while first + n < x.count:
        insn = cython.address(x.insns[first + n])
        if kind == K_POP and n and ops[insn.op].kind == K_RET and not goes_to_helper(x, insn):
            return n + 1
        if ops[insn.op].kind != kind or insn.rm == RSP or goes_to_helper(x, insn) or trap_of(x, insn):
            break
        n += 1
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_group(x: cython.pointer(Context), first: uint32_t, n: uint32_t) -> cython.void:
    """``n`` pushes or pops at a time, where one look-up finds them all in one page; else one by one, in the cold part."""
    a: cython.pointer(Asm) = cython.address(x.a)
    pushes: cython.bint = ops[x.insns[first].op].kind == K_PUSH
    i: uint32_t
    reg: uint32_t
    number: uint32_t
    bytes_: int64_t = 8 * n
    insn: cython.pointer(Insn) = cython.address(x.insns[first + n - 1])
    returns: cython.bint = ops[insn.op].kind == K_RET
    forget_held(x)
    x.part = PART_OPERAND
    add_map(x, cython.address(x.insns[first]))
    lea(a, 1, T0, GSP, NO_REG, 0, -bytes_ if pushes else 0)
    emit_tlb(x, SS, 8 * n, cython.cast(uint32_t, ACCESS_WRITE) if pushes else ACCESS_READ)
    number = x.colds - 1
    x.cold[number].kind = COLD_GROUP
    x.cold[number].what = n
    for i in range(n - 1 if returns else n):
        insn = cython.address(x.insns[first + i])
        if pushes:
            op_mem(a, 1, 0x89, source(x, insn.rm, T1), T0, T2, bytes_ - 8 - 8 * cython.cast(int64_t, i))
            continue
        reg = T1 if is_spilled(insn.rm) else host_reg(insn.rm)
        op_mem(a, 1, 0x8B, reg, T0, T2, 8 * cython.cast(int64_t, i))
        write_back(x, insn.rm, reg)
    if returns:
        insn = cython.address(x.insns[first + n - 1])
        op_mem(a, 1, 0x8B, T0, T0, T2, bytes_ - 8)
        bytes_ += cython.cast(int64_t, insn.imm & 0xFFFF if insn.opcode == 0xC2 else 0)
    lea(a, 1, GSP, GSP, NO_REG, 0, -bytes_ if pushes else bytes_)
    x.cold[number].back = here(a)
    if returns:
        x.cold[number].back = 0
        emit_return(x)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def emit_cold(x: cython.pointer(Context), number: uint32_t) -> cython.void:
    """A slow path, behind the block."""
    a: cython.pointer(Asm) = cython.address(x.a)
    cold: cython.pointer(Cold) = cython.address(x.cold[number])
    i: uint32_t
    insn: cython.pointer(Insn) = cython.address(x.insns[cold.insn])
    add_map(x, insn)
    forget_held(x)
    if cold.kind == COLD_CHAIN:
        cython.cast(cython.pointer(Link), cold.back).cold = here(a)
    if cold.linked == 0:
        land(a, cold.rel32)
    if cold.kind == COLD_LOAD or cold.kind == COLD_STORE:
        if cold.live:
            xchg(a, HRCX, T2)
        mov_imm32(a, T1, cold.what)
        call_to(a, x.c.stubs.slow)
        if cold.kind == COLD_STORE:
            emit_access(x, insn, cold.part)
            call_to(a, x.c.stubs.finish)
            if cold.part == PART_PUSH and (ops[insn.op].kind == K_CALL or ops[insn.op].kind == K_CALL_IND):
                emit_return_address(x, insn)
        jmp_to(a, cold.back)
    elif cold.kind == COLD_GROUP:
        if cold.live:
            xchg(a, HRCX, T2)
        for i in range(cold.what):
            x.current = cold.insn + i
            add_map(x, cython.address(x.insns[x.current]))
            emit_instruction(x, cython.address(x.insns[x.current]))
        if cold.back:
            jmp_to(a, cold.back)
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


def translate(e, s, gpa, gpa2, code, avail, max_insns):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    context: Context
    x: cython.pointer(Context) = cython.address(context)
    a: cython.pointer(Asm) = cython.address(context.a)
    b: cython.pointer(Block)
    last: cython.pointer(Insn)
    i: uint32_t
    mmu: uint32_t = MMU_KERNEL
    start: uint32_t = gpa & 0xFFF
    next_offset: int64_t
    length: uint32_t
    if c.used + BLOCK_BYTES > c.size or c.data_used + 32768 > c.data_size:
        return cython.NULL
    b = cython.cast(cython.pointer(Block), code_alloc(c, cython.sizeof(Block)))
    x.s = s
    x.c = c
    x.block = b
    x.mode = s.mode | (MODE_STEP if max_insns == 1 else 0)
    x.slot = s.mode_slot
    x.count = 0
    x.colds = 0
    x.current = 0
    x.part = 0
    x.masked = 0
    forget_held(x)
    x.map_count = 0
    x.page_gpa = gpa & PAGE_MASK
    if s.mode & MODE_USER:
        mmu = MMU_USER
    elif s.mode & MODE_AC:
        mmu = MMU_KERNEL_AC
    x.tlb = off(s, cython.address(s.tlb[mmu][0]))
    a.p = c.rw + c.used
    a.delta = c.rx - cython.cast(uint64_t, c.rw)
    b.gpa = gpa
    b.gpa2 = gpa2
    b.mode = x.mode
    b.code = here(a)
    b.page_next = cython.NULL
    b.page2_next = cython.NULL
    b.hash_next = cython.NULL
    b.links = cython.NULL
    b.valid = 0
    b.assumes = 0
    b.size = decode_block(x, gpa, code, avail, max_insns if max_insns < MAX_INSNS else cython.cast(uint32_t, MAX_INSNS))
    b.insns = x.count
    find_live_flags(x)

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
        length = group_length(x, i)
        if length > 1:
            emit_group(x, i, length)
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
