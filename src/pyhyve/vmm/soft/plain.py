"""Instructions that do here what they do there: the same opcode, with registers renamed and memory redirected.

Pushes, string instructions and LEA are here too. What only leaves a block is in ``leaving``.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.decode import (
    ATTR_V,
    K_BT,
    K_MOFFS,
    K_MOVS,
    K_PUSH,
    K_PUSH_IMM,
    K_PUSH_MEM,
    K_XLAT,
    NEED_FPU,
    NEED_MMX,
    NEED_SSE,
    OP_WRITE,
    SZ_B,
    OpInfo,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.encode import (
    CC_AE,
    CC_NZ,
    GSP,
    HRCX,
    T0,
    T1,
    T2,
    Asm,
    cmp_imm32,
    e16,
    e32,
    e64,
    e8,
    jcc_fwd,
    land,
    land_short,
    lea,
    load_gs,
    modrm_far,
    modrm_mem,
    mov,
    mov_imm32,
    op_gs_index,
    op_mem,
    pext_gs,
    rex,
    rorx,
    short_fwd,
    store_gs,
)
from cython.cimports.pyhyve.vmm.soft.evex import evex_opcode, evex_what
from cython.cimports.pyhyve.vmm.soft.insn import MEM_RMW, MEM_WRITE, NO_REG, REG_RIP
from cython.cimports.pyhyve.vmm.soft.leaving import emit_helper
from cython.cimports.pyhyve.vmm.soft.narrow import emit_narrow_slot, mov32
from cython.cimports.pyhyve.vmm.soft.operands import (
    emit_address,
    emit_tlb,
    finish_access,
    forget_held,
    hold,
    source,
    use_address,
    write_back,
)
from cython.cimports.pyhyve.vmm.soft.state import ACCESS_READ, ACCESS_WRITE, MODE_CODE64, RDI, RSI, SS, TLB_SIZE
from cython.cimports.pyhyve.vmm.soft.stubs import ACCESS_LOAD_FIRST, SLOW_WAITING, host_reg, is_spilled, off
from cython.cimports.pyhyve.vmm.soft.sites import new_site
from cython.cimports.pyhyve.vmm.soft.spans import use_operand, use_span
from cython.cimports.pyhyve.vmm.soft.translate import NO_SPAN, PART_OPERAND, PART_PUSH


def high_byte(insn, reg, size):
    """Is ``reg`` AH, CH, DH or BH?"""
    return size == SZ_B and insn.rex == 0 and insn.vex == 0 and 4 <= reg <= 7


def emit_opcode(x, insn, reg, index, rm, vvvv, force_rex):
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


def wants_opsize(insn, op):
    """Does operand size 2 need a 66 prefix in 64-bit code?"""
    if op.attr & ATTR_V or (insn.map == 0 and (insn.opcode == 0x98 or insn.opcode == 0x99)):
        return True
    # x87 environments come in two sizes
    return insn.map == 0 and (insn.opcode == 0xD9 or insn.opcode == 0xDD) and insn.mem_size >= 14


def emit_immediate(x, insn):
    a: cython.pointer(Asm) = cython.address(x.a)
    if insn.imm_size == 1:
        e8(a, cython.cast(uint32_t, insn.imm))
    elif insn.imm_size == 2:
        e16(a, cython.cast(uint32_t, insn.imm))
    elif insn.imm_size == 4:
        e32(a, insn.imm)
    elif insn.imm_size == 8:
        e64(a, insn.imm)


def emit_mem_form(x, insn):
    """The instruction with its memory operand where the context says: ``[T0 + T2]``, or in a span. T0, if it is free there,
    and T1 are used."""
    a: cython.pointer(Asm) = cython.address(x.a)
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    reg: uint32_t = insn.reg
    vvvv: uint32_t = insn.vvvv
    base: uint32_t = x.base
    index: uint32_t = x.index
    disp: int64_t = x.disp
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
                    lea(a, 1, T0, base, index, 0, x.disp)
                    forget_held(x)
                    base = T0
                    index = NO_REG
                    disp = 0
                reg = source(x, reg, T1)
            else:
                reg = host_reg(reg)
    if op.vvvv_access:
        if is_spilled(vvvv):
            vvvv = source(x, vvvv, T2 if base == T0 and index == NO_REG else cython.cast(uint32_t, T1))
        else:
            vvvv = host_reg(vvvv)
    if high:
        store_gs(a, 6, off(x.s, cython.address(x.s.scratch[1])))
        lea(a, 1, 6, base, index, 0, disp)
        base = 6
        index = NO_REG
        disp = 0
    if op.kind == K_MOFFS:
        if insn.opsize == 2 and insn.opcode & 1:
            e8(a, 0x66)
        rex(a, insn.rex_w, 0, index, base)
        e8(a, (0x8A if insn.opcode < 0xA2 else 0x88) | (insn.opcode & 1))
    elif op.kind == K_XLAT:
        rex(a, 0, 0, index, base)
        e8(a, 0x8A)
    else:
        emit_opcode(x, insn, reg, 0 if index == NO_REG else index, base, vvvv, force)
    if insn.vex == 2 and disp:
        modrm_far(a, reg, base, index, disp)
    else:
        modrm_mem(a, reg, base, index, 0, disp)
    if op.kind != K_MOFFS:
        emit_immediate(x, insn)
    if high:
        load_gs(a, 6, off(x.s, cython.address(x.s.scratch[1])))
    if op.vvvv_access & OP_WRITE:
        write_back(x, insn.vvvv, vvvv)  # first: MULX with one register for both halves keeps the high one
    if op.reg_access & OP_WRITE and not high and op.kind != K_BT:
        write_back(x, insn.reg, reg)


def emit_reg_form(x, insn):
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


def emit_bit_address(x, insn):
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


def emit_return_address(x, insn):
    """Where a call comes back to, to T1."""
    load_gs(cython.address(x.a), T1, off(x.s, cython.address(x.s.page_va)))
    lea(cython.address(x.a), 1, T1, T1, NO_REG, 0, insn.page_offset + insn.length)


def emit_access(x, insn, part):
    """The access itself: emitted in the hot path, and for stores again in the slow path."""
    a: cython.pointer(Asm) = cython.address(x.a)
    kind: uint32_t = ops[insn.op].kind
    if part == PART_PUSH and (x.mode & MODE_CODE64) == 0:
        emit_narrow_slot(x, insn)
        return
    if part == PART_PUSH:
        if kind == K_PUSH:
            op_mem(a, 1, 0x89, source(x, insn.rm, T1), x.base, x.index, x.disp)
        elif kind == K_PUSH_IMM:
            op_mem(a, 1, 0xC7, 0, x.base, x.index, x.disp)
            e32(a, insn.imm)
        elif kind == K_PUSH_MEM:
            load_gs(a, T1, off(x.s, cython.address(x.s.scratch[2])))
            op_mem(a, 1, 0x89, T1, x.base, x.index, x.disp)
        else:
            emit_return_address(x, insn)
            op_mem(a, 1, 0x89, T1, x.base, x.index, x.disp)
        return
    if kind == K_BT:
        # The bit's number inside its word
        pext_gs(a, T1, source(x, insn.reg, T1), off(x.s, cython.address(
            x.s.mask_bits[3 if insn.opsize == 8 else (2 if insn.opsize == 4 else 1)])))
    emit_mem_form(x, insn)


def waiting(insn):
    """SLOW_WAITING for MMX and x87 instructions; not for FNSTENV, FNSTCW, FNSAVE, FNSTSW, CVTPI2PS and CVTPI2PD."""
    need: uint32_t = ops[insn.op].need
    group: uint32_t = insn.modrm >> 3 & 7
    if (need & NEED_MMX == 0 or need & NEED_SSE) and (need & NEED_FPU == 0 or ((insn.opcode & 0xFB) == 0xD9 and group >= 6)):
        return 0
    return cython.cast(uint32_t, SLOW_WAITING)


def emit_operand(x, insn):
    """An instruction with a memory operand: address, TLB, access."""
    access: uint32_t = ACCESS_READ
    if x.operand_span[x.current] != NO_SPAN:
        use_operand(x, insn)
        emit_mem_form(x, insn)
        use_address(x)
        return
    if insn.mem_access == MEM_WRITE:
        access = ACCESS_WRITE
    elif insn.mem_access == MEM_RMW:
        access = ACCESS_WRITE | ACCESS_LOAD_FIRST
    emit_address(x, insn)
    forget_held(x)
    if ops[insn.op].kind == K_BT:
        emit_bit_address(x, insn)
    x.part = PART_OPERAND
    x.masked = evex_what(insn) | waiting(insn)
    if ops[insn.op].kind != K_BT:
        x.site = new_site(x, insn.base, insn.index, insn.scale, 1 if access & ACCESS_WRITE else 0)
        x.inside = 1
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


def emit_push(x, insn):
    a: cython.pointer(Asm) = cython.address(x.a)
    if x.stack_span[x.current] != NO_SPAN:
        use_span(x, x.stack_span[x.current], -8)
        emit_access(x, insn, PART_PUSH)
        use_address(x)
        lea(a, 1, GSP, GSP, NO_REG, 0, -8)
        return
    lea(a, 1, T0, GSP, NO_REG, 0, -8)
    x.part = PART_PUSH
    emit_tlb(x, SS, 8, ACCESS_WRITE)
    emit_access(x, insn, PART_PUSH)
    finish_access(x, SS, ACCESS_WRITE)
    lea(a, 1, GSP, GSP, NO_REG, 0, -8)


def emit_load(x, insn, reg):
    """Load 8 bytes that the instruction's memory operand has to a host register."""
    if x.operand_span[x.current] != NO_SPAN:
        use_operand(x, insn)
    else:
        emit_address(x, insn)
        x.part = PART_OPERAND
        emit_tlb(x, insn.segment, 8, ACCESS_READ)
    op_mem(cython.address(x.a), 1, 0x8B, reg, x.base, x.index, x.disp)
    use_address(x)


def emit_stack_load(x, reg):
    """Load the 8 bytes that the guest's RSP points to to a host register."""
    if x.stack_span[x.current] != NO_SPAN:
        use_span(x, x.stack_span[x.current], 0)
    else:
        mov(cython.address(x.a), T0, GSP)
        x.part = PART_OPERAND
        emit_tlb(x, SS, 8, ACCESS_READ)
    op_mem(cython.address(x.a), 1, 0x8B, reg, x.base, x.index, x.disp)
    use_address(x)


def emit_string(x, insn):
    """STOS and MOVS upwards, with or without REP, where each operand lies in one page that the TLB has; else the helper."""
    a: cython.pointer(Asm) = cython.address(x.a)
    size: uint32_t = 1 if insn.opcode & 1 == 0 else insn.opsize
    live: cython.bint = x.live_out[x.current] != 0
    copies: cython.bint = ops[insn.op].kind == K_MOVS
    away: cython.pointer(uint8_t)[6]
    count: uint32_t = 0
    i: uint32_t
    done: cython.pointer(uint8_t)
    forget_held(x)
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


def string_operand(x, insn, reg, tag, size, second):
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


def simple_lea(insn):
    """Is it one LEA of the host's?"""
    return (
        insn.opsize != 2
        and insn.addrsize != 2
        and insn.base != REG_RIP
        and (insn.base != NO_REG or insn.index != NO_REG)
    )


def emit_lea(x, insn):
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
