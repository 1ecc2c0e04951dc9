"""Operands: where guest registers are, and the look-up of memory in the TLB, as emitted code.

T0 is the linear address; behind ``emit_tlb`` the operand is ``[T0 + T2]``. Slow paths are noted in ``Context.cold``.
"""

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.encode import (
    CC_AE,
    HRCX,
    T0,
    T1,
    T2,
    Asm,
    call_to,
    cmp_imm32,
    e32,
    e8,
    here,
    jcc_fwd,
    jmp_fwd,
    land_short,
    lea,
    load_gs,
    modrm_mem,
    mov,
    mov_imm32,
    mov_imm64,
    op_gs,
    op_gs_index,
    pext_gs,
    rex,
    rorx,
    short_fwd,
    store_gs,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, REG_RIP
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_WRITE,
    CS,
    FS,
    GS,
    LOW32,
    MODE_ALIGN,
    MODE_CODE64,
    MODE_FLAT,
    MODE_FS_OPEN,
    MODE_GS_OPEN,
    TLB_SIZE,
    Site,
)
from cython.cimports.pyhyve.vmm.soft.stubs import SLOW_SEGMENTED, host_reg, is_spilled, off
from cython.cimports.pyhyve.vmm.soft.translate import COLD_LOAD, COLD_SPAN, COLD_STORE, SPAN_HELD, Cold


def gpr_off(x, reg):
    return off(x.s, cython.address(x.s.gpr[reg]))


def source(x, reg, temp):
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


def temp_index(temp):
    """The place of T0, T1 or T2 in ``Context.held``."""
    return 2 if temp == T2 else temp - T0


def forget_held(x):
    """T0, T1 and T2 are about to be used for something else."""
    forget_registers(x)
    x.held[2] = NO_REG


def forget_registers(x):
    """T0, T1 and T2 have no guest registers any more, but T2 may still find a span."""
    x.holding = 0
    x.held[0] = x.held[1] = NO_REG
    if x.held[2] < SPAN_HELD:
        x.held[2] = NO_REG


def hold(x, temp, reg):
    """``temp`` has the value of guest register ``reg``, and nobody else has."""
    i: uint32_t
    for i in range(3):
        if x.held[i] == reg:
            x.held[i] = NO_REG
    x.held[temp_index(temp)] = reg


def write_back(x, reg, temp):
    """The guest register ``reg`` was written in the host register that ``source`` named."""
    if is_spilled(reg):
        store_gs(cython.address(x.a), temp, gpr_off(x, reg))
        if x.holding:
            hold(x, temp, reg)


def emit_address(x, insn):
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


def use_address(x):
    """Let the memory operand of ``emit_mem_form`` be ``[T0 + T2]``."""
    x.base = T0
    x.index = T2
    x.disp = 0


def add_cold(x, kind, rel32, what, live):
    cold: cython.pointer(Cold) = cython.address(x.cold[x.colds])
    cold.kind = kind
    cold.rel32 = rel32
    cold.insn = x.current
    cold.what = what
    cold.live = live
    cold.part = x.part
    cold.site = cold.inside = 0
    cold.linked = 0
    cold.back = here(cython.address(x.a))
    x.colds += 1


def emit_tlb(x, segment, size, access):
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
    x.held[2] = NO_REG
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
    if x.site:
        emit_site(x, kind, what, size)
        return
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
        cmp_imm32(a, T2, 4097 - size)
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


def emit_site(x, kind, what, size):
    """The look-up of ``emit_tlb`` where it has a ``Site``."""
    a: cython.pointer(Asm) = cython.address(x.a)
    rest: uint32_t = T0 if x.inside else cython.cast(uint32_t, T2)
    if x.inside:
        op_gs(a, 1, 0x03, T0, x.site)  # minus_page
    else:
        load_gs(a, T2, x.site)
        rex(a, 1, T0, 0, T2)  # add r14, r10
        e8(a, 0x01)
        e8(a, 0xC0 | ((T0 & 7) << 3) | (T2 & 7))
    cmp_imm32(a, rest, 4097 - size)
    add_cold(x, kind, jcc_fwd(a, CC_AE), what, 0)
    load_gs(a, T2, x.site + (8 if x.inside else 16))  # host, addend
    x.cold[x.colds - 1].back = here(a)
    x.cold[x.colds - 1].site = cython.cast(uint32_t, x.site)
    x.cold[x.colds - 1].inside = x.inside
    x.site = 0


def call_refill(x, cold):
    """The look-up as slow as need be, in the cold part: from T0 to T2."""
    a: cython.pointer(Asm) = cython.address(x.a)
    write: uint32_t = 1 if cold.what >> 16 & ACCESS_WRITE else 0
    span: cython.bint = cold.kind == COLD_SPAN
    mov_imm32(a, T1, cold.what)
    if cold.site:
        mov_imm32(a, T2, (cold.site - off(x.s, cython.address(x.s.sites[0][0]))) // cython.sizeof(Site))
        call_to(a, x.c.stubs.site_span[x.mmu][write] if span else x.c.stubs.site[x.mmu][write])
    else:
        call_to(a, x.c.stubs.span[x.mmu][write] if span else x.c.stubs.refill[x.mmu][write])


def segmented(x, segment, access):
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


def finish_access(x, segment, access):
    """Behind the instruction that used ``[T0 + T2]``."""
    if (access & ACCESS_WRITE) == 0:
        return
    if segmented(x, segment, access):
        call_to(cython.address(x.a), x.c.stubs.finish)
    else:
        x.cold[x.colds - 1].back = here(cython.address(x.a))
