"""The fixed machine code at the start of every code cache.

``enter`` loads the guest's registers and flags and jumps into a block; the exits store them and return a reason to
the engine's loop. Slow paths are called from blocks: they save what the C calling convention would lose, call the
MMU, and come back with the address to use, or leave through the exit with the reason that the MMU recorded.

Guest registers live in host registers of the same number, except RSP, which lives in the host's R15, and R10, R11,
R14 and R15, which stay in CpuState: the host's R10, R11 and R14 are the translator's scratch registers.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.encode import (
    GSP,
    HRCX,
    T0,
    T1,
    T2,
    call_to,
    cmp_gs32_zero,
    e8,
    e16,
    e32,
    here,
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
    movzx16,
    not_,
    op_gs_index,
    pdep_gs,
    pext_gs,
    rex,
    rorx,
    short_fwd,
    store_gs,
    store_gs32,
    store_gs_imm8,
    xchg,
)
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG
from cython.cimports.pyhyve.vmm.soft.state import (
    JUMP_SETS,
    MMU_MODES,
    MODE_SLOTS,
    RSP,
    STLB_BITS,
    TLB_SIZE,
    Site,
    StlbEntry,
    TlbEntry,
)


def off(s, field):
    """The offset of a field in CpuState: ``off(s, address(s.rip))``."""
    return cython.cast(uint64_t, field) - cython.cast(uint64_t, s)


def is_spilled(reg):
    """Guest registers that have no host register."""
    return reg == 10 or reg == 11 or reg == 14 or reg == 15


def host_reg(reg):
    """The host register of a guest register that is not spilled."""
    return cython.cast(uint32_t, GSP) if reg == RSP else reg


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _store_caller_saved(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    """Registers that a C function may change, and the flags, go to CpuState."""
    r: uint32_t
    for r in range(10):
        if r != 3 and r != 4 and r != 5:
            store_gs(a, r, off(s, cython.address(s.gpr[r])))
    _store_flags(a, s)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _load_caller_saved(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    r: uint32_t
    _load_flags(a, s)
    for r in range(10):
        if r != 3 and r != 4 and r != 5:
            load_gs(a, r, off(s, cython.address(s.gpr[r])))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _load_flags(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    """The arithmetic flags. RAX and RCX are lost. POPF does it too, and takes ten times as long."""
    load_gs32(a, 0, off(s, cython.address(s.flags_arith)))
    e16(a, 0xC189)  # mov ecx, eax
    e8(a, 0xC1)  # shr ecx, 11
    e16(a, 0x0BE9)
    e8(a, 0x83)  # and ecx, 1
    e16(a, 0x01E1)
    e8(a, 0xC1)  # shl eax, 8
    e16(a, 0x08E0)
    e8(a, 0x80)  # add cl, 127: OF
    e16(a, 0x7FC1)
    e8(a, 0x9E)  # sahf: the others


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _store_flags(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    e8(a, 0x9C)  # pushfq; pop qword [gs:flags_arith]
    e8(a, 0x65)
    e8(a, 0x8F)
    e8(a, 0x04)
    e8(a, 0x25)
    e32(a, off(s, cython.address(s.flags_arith)))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _store_callee_saved(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    store_gs(a, 3, off(s, cython.address(s.gpr[3])))
    store_gs(a, 5, off(s, cython.address(s.gpr[5])))
    store_gs(a, 12, off(s, cython.address(s.gpr[12])))
    store_gs(a, 13, off(s, cython.address(s.gpr[13])))
    store_gs(a, GSP, off(s, cython.address(s.gpr[RSP])))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _leave(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    """Back to the caller of ``enter``; EAX is the reason."""
    r: uint32_t
    load_gs(a, 4, off(s, cython.address(s.host_sp)))
    lea(a, 1, 4, 4, 0xFF, 0, 8)
    for r in range(4):  # pop r15, r14, r13, r12
        e8(a, 0x41)
        e8(a, 0x5F - r)
    e8(a, 0x5D)
    e8(a, 0x5B)
    e8(a, 0xC3)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _jump_gs(a: cython.pointer(Asm), index: uint32_t, offset: uint64_t) -> cython.void:
    """jmp [gs:index*8 + offset]"""
    e8(a, 0x65)
    rex(a, 0, 0, index, 0)
    e8(a, 0xFF)
    e8(a, 0x24)
    e8(a, 0xC0 | ((index & 7) << 3) | 5)
    e32(a, offset)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _call_c(a: cython.pointer(Asm), s: cython.pointer(CpuState), function: uint64_t) -> cython.void:
    """Call a C function on the thread's own stack."""
    store_gs(a, 4, off(s, cython.address(s.stack_at)))
    load_gs(a, 4, off(s, cython.address(s.host_sp)))
    mov_imm64(a, 0, function)
    e8(a, 0xFF)  # call rax
    e8(a, 0xD0)
    load_gs(a, 4, off(s, cython.address(s.stack_at)))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _emit_refill(a: cython.pointer(Asm), s: cython.pointer(CpuState), mode: uint32_t, write: uint32_t, slow: uint64_t,
                 span: cython.bint) -> cython.void:
    """What a miss of the TLB calls: T0 address, T1 what -> T2 what to add to T0. No flag is touched.

    The second TLB's entry for the page is copied to the first; without one ``slow`` does it all. For a store the write
    tag comes last, and then the key is looked at once more: see ``tlb.tlb_protect``. For a span T1 is 0 then.
    """
    miss: uint64_t
    found: cython.pointer(uint8_t)
    entry: cython.pointer(StlbEntry) = cython.address(s.stlb[mode][0])
    first: cython.pointer(TlbEntry) = cython.address(s.tlb[mode][0])
    key: uint64_t = off(s, cython.address(entry.write_key) if write else cython.address(entry.key))
    store_gs(a, HRCX, off(s, cython.address(s.kept[0])))
    store_gs(a, T1, off(s, cython.address(s.kept[1])))
    movzx16(a, HRCX, T1)
    lea(a, 1, HRCX, HRCX, T0, 0, 0)
    rorx(a, T1, T0, 12)  # its entry, times 32: tlb.stlb_entry
    rorx(a, T2, T0, 12 + STLB_BITS)
    lea(a, 1, T1, T1, T2, 0, 0)
    pdep_gs(a, T1, T1, off(s, cython.address(s.mask_stlb)))
    op_gs_index(a, 1, 0x8B, T2, T1, 0, off(s, cython.address(entry.page)))
    not_(a, T2)
    lea(a, 1, HRCX, HRCX, T2, 0, 0)
    pext_gs(a, HRCX, HRCX, off(s, cython.address(s.mask_high)))
    found = short_fwd(a, 0xE3)
    miss = here(a)
    load_gs(a, HRCX, off(s, cython.address(s.kept[0])))
    load_gs(a, T1, off(s, cython.address(s.kept[1])))
    jmp_to(a, slow)
    land_short(a, found)
    _compare_key(a, s, key)
    found = short_fwd(a, 0xE3)
    jmp_to(a, miss)
    land_short(a, found)
    _first_entry(a, s)
    op_gs_index(a, 1, 0x8B, T2, T1, 0, off(s, cython.address(entry.info)))
    op_gs_index(a, 1, 0x89, T2, HRCX, 2, off(s, cython.address(first.info)))
    op_gs_index(a, 1, 0x8B, T2, T1, 0, off(s, cython.address(entry.addend)))
    op_gs_index(a, 1, 0x89, T2, HRCX, 2, off(s, cython.address(first.addend)))
    op_gs_index(a, 1, 0x8B, T2, T1, 0, off(s, cython.address(entry.page)))
    op_gs_index(a, 1, 0x89, T2, HRCX, 2, off(s, cython.address(first.read_tag)))
    if write:
        # xchg: seen by all before the key is read
        op_gs_index(a, 1, 0x87, T2, HRCX, 2, off(s, cython.address(first.write_tag)))
        _compare_key(a, s, key)
        found = short_fwd(a, 0xE3)
        _first_entry(a, s)
        op_gs_index(a, 1, 0x8B, T2, HRCX, 2, off(s, cython.address(first.read_tag)))
        _store_empty(a, s, first)
        jmp_to(a, miss)
        land_short(a, found)
    else:
        _store_empty(a, s, first)
    op_gs_index(a, 1, 0x8B, T2, T1, 0, off(s, cython.address(entry.addend)))
    load_gs(a, HRCX, off(s, cython.address(s.kept[0])))
    if span:
        mov_imm32(a, T1, 0)
    e8(a, 0xC3)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _emit_site(a: cython.pointer(Asm), s: cython.pointer(CpuState), mode: uint32_t, write: uint32_t, slow: uint64_t,
               span: cython.bint) -> cython.void:
    """The same for a look-up that remembers its page: T2 is the number of its Site. ``slow`` is what a miss goes to."""
    found: cython.pointer(uint8_t)
    first: cython.pointer(TlbEntry) = cython.address(s.tlb[mode][0])
    site: cython.pointer(Site) = cython.address(s.sites[0][0])
    store_gs(a, HRCX, off(s, cython.address(s.kept[0])))
    store_gs(a, T1, off(s, cython.address(s.kept[1])))
    store_gs(a, T2, off(s, cython.address(s.kept[2])))
    movzx16(a, HRCX, T1)
    lea(a, 1, HRCX, HRCX, T0, 0, -1)
    pext_gs(a, T1, T0, off(s, cython.address(s.mask_index)))
    lea(a, 1, T1, NO_REG, T1, 3, 0)
    op_gs_index(a, 1, 0x8B, T2, T1, 2, off(s, cython.address(first.write_tag) if write else cython.address(first.read_tag)))
    not_(a, T2)
    lea(a, 1, T2, T2, NO_REG, 0, 1)
    lea(a, 1, HRCX, HRCX, T2, 0, 0)
    pext_gs(a, HRCX, HRCX, off(s, cython.address(s.mask_high)))
    found = short_fwd(a, 0xE3)
    load_gs(a, HRCX, off(s, cython.address(s.kept[0])))
    load_gs(a, T1, off(s, cython.address(s.kept[1])))
    jmp_to(a, slow)
    land_short(a, found)
    load_gs(a, HRCX, off(s, cython.address(s.kept[2])))
    op_gs_index(a, 1, 0x8B, T1, T1, 2, off(s, cython.address(first.addend)))
    e8(a, 0x65)  # mov byte [gs:rcx + sites_filled], 1
    e16(a, 0x81C6)
    e32(a, off(s, cython.address(s.sites_filled[0][0])))
    e8(a, 1)
    store_gs_imm8(a, off(s, cython.address(s.sites_used)), 1)
    lea(a, 1, HRCX, NO_REG, HRCX, 2, 0)
    op_gs_index(a, 1, 0x89, T2, HRCX, 3, off(s, cython.address(site.minus_page)))
    op_gs_index(a, 1, 0x89, T1, HRCX, 3, off(s, cython.address(site.addend)))
    not_(a, T2)
    lea(a, 1, T2, T2, T1, 0, 1)
    op_gs_index(a, 1, 0x89, T2, HRCX, 3, off(s, cython.address(site.host)))
    mov(a, T2, T1)
    load_gs(a, HRCX, off(s, cython.address(s.kept[0])))
    if span:
        mov_imm32(a, T1, 0)
    e8(a, 0xC3)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _compare_key(a: cython.pointer(Asm), s: cython.pointer(CpuState), key: uint64_t) -> cython.void:
    """RCX = 0 if the key at ``key`` of entry T1 is the one that counts for address T0. T2 is lost."""
    pext_gs(a, HRCX, T0, off(s, cython.address(s.mask_half)))
    op_gs_index(a, 0, 0x8B, HRCX, HRCX, 2, off(s, cython.address(s.stlb_key[0])))
    op_gs_index(a, 0, 0x8B, T2, T1, 0, key)
    not_(a, T2)
    lea(a, 0, HRCX, HRCX, T2, 0, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _first_entry(a: cython.pointer(Asm), s: cython.pointer(CpuState)) -> cython.void:
    """RCX = the number of T0's entry in the first TLB, times 8."""
    pext_gs(a, HRCX, T0, off(s, cython.address(s.mask_index)))
    lea(a, 1, HRCX, NO_REG, HRCX, 3, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _store_empty(a: cython.pointer(Asm), s: cython.pointer(CpuState), first: cython.pointer(TlbEntry)) -> cython.void:
    """The entry at RCX for page T2 gets a write tag that no address has which belongs there."""
    lea(a, 1, T2, T2, NO_REG, 0, TLB_SIZE << 11)
    op_gs_index(a, 1, 0x89, T2, HRCX, 2, off(s, cython.address(first.write_tag)))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _emit_find(a: cython.pointer(Asm), c: cython.pointer(CodeCache), s: cython.pointer(CpuState), slot: uint32_t,
               crosses: cython.bint) -> cython.void:
    """Go to linear address T0 by the jump cache of ``slot``. ``crosses``: and write it down where scratch[0] says."""
    hit: cython.pointer(uint8_t)
    hit2: cython.pointer(uint8_t)
    pext_gs(a, T1, T0, off(s, cython.address(s.mask_jump)))
    op_gs_index(a, 1, 0x8B, T2, T1, 3, off(s, cython.address(s.jump_not_rip[slot][0][0])))
    lea(a, 1, T2, T2, T0, 0, 1)
    xchg(a, HRCX, T2)
    hit = short_fwd(a, 0xE3)
    op_gs_index(a, 1, 0x8B, HRCX, T1, 3, off(s, cython.address(s.jump_not_rip[slot][1][0])))
    lea(a, 1, HRCX, HRCX, T0, 0, 1)
    hit2 = short_fwd(a, 0xE3)
    mov(a, HRCX, T2)
    jmp_to(a, c.stubs.exit_lookup)
    land_short(a, hit2)
    if crosses:
        lea(a, 1, T1, T1, NO_REG, 0, JUMP_SETS)  # the older entries lie behind the newer
    else:
        mov(a, HRCX, T2)
        _jump_gs(a, T1, off(s, cython.address(s.jump_code[slot][1][0])))
    land_short(a, hit)
    if crosses:
        op_gs_index(a, 1, 0x8B, T1, T1, 3, off(s, cython.address(s.jump_code[slot][0][0])))
        store_gs(a, T1, off(s, cython.address(s.scratch[1])))
        load_gs32(a, HRCX, off(s, cython.address(s.aliases_left[slot])))
        hit = short_fwd(a, 0xE3)
        load_gs(a, HRCX, off(s, cython.address(s.scratch[0])))
        op_gs_index(a, 1, 0x89, T1, HRCX, 0, 0)
        load_gs32(a, T1, off(s, cython.address(s.crossing_fills[slot])))
        op_gs_index(a, 0, 0x89, HRCX, T1, 2, off(s, cython.address(s.crossing_filled[slot][0])))
        lea(a, 1, T1, T1, NO_REG, 0, 1)
        store_gs32(a, T1, off(s, cython.address(s.crossing_fills[slot])))
        land_short(a, hit)
        mov(a, HRCX, T2)
        load_gs(a, T1, off(s, cython.address(s.scratch[1])))
        e8(a, 0x41)  # jmp r11
        e8(a, 0xFF)
        e8(a, 0xE3)
        return
    mov(a, HRCX, T2)
    _jump_gs(a, T1, off(s, cython.address(s.jump_code[slot][0][0])))


def emit_stubs(c, s, slow_access, span_access, slow_finish, fsgsbase):
    """Write every stub at the start of the cache and note the addresses in ``c.stubs``."""
    asm: Asm
    a: cython.pointer(Asm) = cython.address(asm)
    r: uint32_t
    i: uint32_t
    common: uint64_t
    span: uint64_t
    fail: cython.pointer(uint8_t)
    hit: cython.pointer(uint8_t)
    asm.p = c.rw
    asm.delta = c.rx - cython.cast(uint64_t, c.rw)

    # int enter(CpuState *s, code, rip)
    c.stubs.enter = here(a)
    e8(a, 0x53)
    e8(a, 0x55)
    for r in range(4):  # push r12 .. r15
        e8(a, 0x41)
        e8(a, 0x54 + r)
    lea(a, 1, 4, 4, 0xFF, 0, -8)
    if fsgsbase:
        e8(a, 0xF3)  # wrgsbase rdi
        e8(a, 0x48)
        e8(a, 0x0F)
        e8(a, 0xAE)
        e8(a, 0xDF)
    store_gs(a, 4, off(s, cython.address(s.host_sp)))
    mov(a, T2, 6)
    mov(a, T0, 2)
    _load_flags(a, s)
    for r in range(14):
        if not is_spilled(r) and r != RSP:
            load_gs(a, r, off(s, cython.address(s.gpr[r])))
    load_gs(a, GSP, off(s, cython.address(s.gpr[RSP])))
    load_gs(a, 4, off(s, cython.address(s.stack_base)))
    e8(a, 0x41)  # jmp r14
    e8(a, 0xFF)
    e8(a, 0xE6)

    c.stubs.host_fault = here(a)
    mov_imm32(a, T1, X_HOST_FAULT)
    common = here(a)  # T1 is the reason
    load_gs(a, 4, off(s, cython.address(s.host_sp)))
    for r in range(10):
        if r != 3 and r != 4 and r != 5:
            store_gs(a, r, off(s, cython.address(s.gpr[r])))
    _store_flags(a, s)
    _store_callee_saved(a, s)
    e8(a, 0x44)  # mov eax, r11d
    e8(a, 0x89)
    e8(a, 0xD8)
    _leave(a, s)

    c.stubs.exit_lookup = here(a)
    store_gs(a, T0, off(s, cython.address(s.exit_target)))
    mov_imm32(a, T1, X_LOOKUP)
    jmp_to(a, common)
    c.stubs.exit_chain = here(a)
    store_gs(a, T0, off(s, cython.address(s.exit_target)))
    store_gs(a, T1, off(s, cython.address(s.exit_link)))
    mov_imm32(a, T1, X_CHAIN)
    jmp_to(a, common)
    c.stubs.exit_event = here(a)
    store_gs(a, T0, off(s, cython.address(s.exit_target)))
    mov_imm32(a, T1, X_EVENT)
    jmp_to(a, common)
    c.stubs.exit_helper = here(a)
    store_gs(a, T0, off(s, cython.address(s.exit_target)))
    store_gs(a, T1, off(s, cython.address(s.exit_insn)))
    mov_imm32(a, T1, X_HELPER)
    jmp_to(a, common)
    c.stubs.exit_raise = here(a)
    store_gs(a, T0, off(s, cython.address(s.exit_target)))
    store_gs(a, T1, off(s, cython.address(s.exit_insn)))
    mov_imm32(a, T1, X_RAISE)
    jmp_to(a, common)

    # T0 address, T1 what -> T2 what to add to T0 (which a segment's base may have moved)
    c.stubs.slow = here(a)
    _store_caller_saved(a, s)
    store_gs(a, T0, off(s, cython.address(s.scratch[0])))
    load_gs(a, 7, off(s, cython.address(s.self)))
    mov(a, 6, T0)
    mov(a, 2, T1)
    e8(a, 0x48)  # mov rcx, [rsp]
    e8(a, 0x8B)
    e8(a, 0x0C)
    e8(a, 0x24)
    _call_c(a, s, slow_access)
    mov(a, T2, 0)
    cmp_gs32_zero(a, off(s, cython.address(s.slow_status)))
    fail = jcc_fwd(a, 5)
    _load_caller_saved(a, s)
    load_gs(a, T0, off(s, cython.address(s.scratch[0])))
    e8(a, 0xC3)
    land(a, fail)
    _store_callee_saved(a, s)
    mov_imm32(a, 0, X_SLOW)
    _leave(a, s)

    # T0 address, T1 what -> T2 what to add to T0, T1 0; or T1 something else
    span = here(a)
    _store_caller_saved(a, s)
    store_gs(a, T0, off(s, cython.address(s.scratch[0])))
    load_gs(a, 7, off(s, cython.address(s.self)))
    mov(a, 6, T0)
    mov(a, 2, T1)
    _call_c(a, s, span_access)
    mov(a, T2, 0)
    _load_caller_saved(a, s)
    load_gs(a, T0, off(s, cython.address(s.scratch[0])))
    load_gs32(a, T1, off(s, cython.address(s.slow_status)))
    e8(a, 0xC3)
    for i in range(MMU_MODES):
        for r in range(2):
            c.stubs.refill[i][r] = here(a)
            _emit_refill(a, s, i, r, c.stubs.slow, False)
            c.stubs.span[i][r] = here(a)
            _emit_refill(a, s, i, r, span, True)
            c.stubs.site[i][r] = here(a)
            _emit_site(a, s, i, r, c.stubs.refill[i][r], False)
            c.stubs.site_span[i][r] = here(a)
            _emit_site(a, s, i, r, c.stubs.span[i][r], True)

    # After a store: write a bounce buffer out, if one was in use
    c.stubs.finish = here(a)
    mov(a, T1, HRCX)
    load_gs32(a, HRCX, off(s, cython.address(s.bounce_active)))
    hit = short_fwd(a, 0xE3)
    fail = jmp_fwd(a)
    land_short(a, hit)
    mov(a, HRCX, T1)
    e8(a, 0xC3)
    land(a, fail)
    mov(a, HRCX, T1)
    _store_caller_saved(a, s)
    load_gs(a, 7, off(s, cython.address(s.self)))
    _call_c(a, s, slow_finish)
    _load_caller_saved(a, s)
    e8(a, 0xC3)

    # Jumps across pages and indirect ones: T0 is the linear target. No flag is touched.
    for i in range(MODE_SLOTS):
        c.stubs.jump[i] = here(a)
        _emit_find(a, c, s, i, False)
    for i in range(MODE_SLOTS):
        c.stubs.crossing[i] = here(a)
        store_gs(a, T1, off(s, cython.address(s.scratch[0])))
        _emit_find(a, c, s, i, True)
    for i in range(MODE_SLOTS):
        c.stubs.missed[i] = here(a)
        load_gs(a, 4, off(s, cython.address(s.stack_base)))
        jmp_to(a, c.stubs.jump[i])
    c.start = (cython.cast(uint64_t, asm.p) - cython.cast(uint64_t, c.rw) + 63) & ~cython.cast(uint64_t, 63)
    c.used = c.start
