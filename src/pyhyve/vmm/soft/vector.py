"""Gathers and masked moves: vector instructions that touch memory lane by lane (SDM Vol. 2, each instruction).

The guest's registers are live in the host's while this runs. The lanes are those in the vCPU's XSAVE area, which is
free meanwhile: registers out, lanes changed, registers back in.
"""

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, finish
from cython.cimports.pyhyve.vmm.soft.access import mem_probe, mem_read, mem_write
from cython.cimports.pyhyve.vmm.soft.addresses import ACCESS_UNALIGNED, effective_address, linear
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR0_EM,
    CR0_TS,
    CR4_OSFXSR,
    DONE,
    DS,
    EXC_MF,
    EXC_NM,
    FAULT,
    LEAVE,
    LOW32,
    MODE_AVX,
    MODE_PROTECTED,
    RDI,
    raise_fault,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.xsave import (
    AREA_FSW,
    AREA_FTW,
    AREA_HEADER,
    AREA_ST,
    AREA_XMM,
    AREA_YMM,
    FSW_SUMMARY,
    SSE,
    X87,
    clear_header,
    quad,
    word,
)
from cython.cimports.pyhyve.vmm.soft.xstate import AVX512_STATE, ZMM_16, ZMM_HIGH, component_offset


def avx_checks(s):
    if s.mode & MODE_AVX == 0 or s.mode & MODE_PROTECTED == 0:
        return ud(s)
    if s.cr0 & CR0_TS:
        return raise_fault(s, EXC_NM, False, 0)
    return DONE


def registers_to(s, components):
    """Live registers into the XSAVE area."""
    clear_header(cython.address(s.xsave[0]))
    native.xsave(cython.address(s.xsave[0]), components & s.engine.xsave_mask)


def registers_from(s, components):
    """These parts of the XSAVE area into the registers."""
    quad(cython.address(s.xsave[0]), AREA_HEADER)[0] |= components & s.engine.xsave_mask
    native.xrstor(cython.address(s.xsave[0]), components & s.engine.xsave_mask)


def vector_bytes(s):
    """How wide the vector registers are."""
    return 64 if s.engine.xsave_mask & AVX512_STATE else 32


def lane_place(reg, offset):
    """Where the byte at ``offset`` of vector register ``reg`` lies in the XSAVE area."""
    if reg >= 16:
        return component_offset[ZMM_16] + 64 * (reg & 15) + offset
    if offset < 16:
        return AREA_XMM + 16 * reg + offset
    if offset < 32:
        return AREA_YMM + 16 * reg + offset - 16
    return component_offset[ZMM_HIGH] + 32 * reg + offset - 32


def get_lane(s, reg, lane, size):
    offset: uint32_t = lane_place(reg, lane * size)
    area: cython.pointer[uint8_t] = cython.address(s.xsave[0])
    if size == 8:
        return quad(area, offset)[0]
    return word(area, offset)[0]


def set_lane(s, reg, lane, size, value):
    offset: uint32_t = lane_place(reg, lane * size)
    area: cython.pointer[uint8_t] = cython.address(s.xsave[0])
    if size == 8:
        quad(area, offset)[0] = value
    else:
        word(area, offset)[0] = cython.cast(uint32_t, value)


def vsib_address(s, insn, lane, size, access, va):
    """The linear address of an element."""
    ea: uint64_t = cython.cast(uint64_t, insn.disp)
    index: int64_t
    if insn.base != NO_REG:
        ea += s.gpr[insn.base & 15]
    if insn.opcode & 1:
        index = cython.cast(int64_t, get_lane(s, insn.index, lane, 8))
    else:
        index = cython.cast(int32_t, get_lane(s, insn.index, lane, 4))
    ea += cython.cast(uint64_t, index) << (insn.scale & 3)
    if insn.addrsize == 4:
        ea &= LOW32
    return linear(s, insn.segment, ea, size, access | ACCESS_UNALIGNED, va)


def vgather(s, insn):
    """VPGATHERDD, DQ, QD, QQ and VGATHERDPS, DPD, QPS, QPD: opcode bit 0 says quadword indices, W quadword data.

    The mask tells which lanes are still to come. A fault leaves the lanes done so far done and their mask clear; a
    device read leaves nothing done, for its log is replayed from the first lane.
    """
    size: uint32_t = 8 if insn.rex_w else 4
    index_size: uint32_t = 8 if insn.opcode & 1 else 4
    bytes_: uint32_t = 32 if insn.vex_l else 16
    lanes: uint32_t = bytes_ // (size if size > index_size else index_size)
    lane: uint32_t
    va: uint64_t = 0
    value: uint64_t = 0
    status: cython.int = DONE
    if insn.modrm & 7 != 4 or insn.addrsize == 2:
        return ud(s)  # no VSIB byte
    if insn.reg == insn.vvvv or insn.reg == insn.index or insn.index == insn.vvvv:
        return ud(s)
    if avx_checks(s) != DONE:
        return FAULT

    registers_to(s, VECTORS)
    for lane in range(lanes):
        # The first bit of a mask lane stands for all of it.
        if get_lane(s, insn.vvvv, lane, size) >> (8 * size - 1):
            set_lane(s, insn.vvvv, lane, size, cython.cast(uint64_t, -1))
        else:
            set_lane(s, insn.vvvv, lane, size, 0)
    for lane in range(lanes):
        if get_lane(s, insn.vvvv, lane, size) == 0:
            continue
        status = vsib_address(s, insn, lane, size, ACCESS_READ, cython.address(va))
        if status == DONE:
            status = mem_read(s, va, size, s.mmu_mode, cython.address(value))
        if status != DONE:
            break
        set_lane(s, insn.reg, lane, size, value)
        set_lane(s, insn.vvvv, lane, size, 0)
    if status == LEAVE:
        return LEAVE
    if status == DONE:
        # All the mask is clear now, and what lies beyond the lanes is too.
        for lane in range(vector_bytes(s) // size):
            set_lane(s, insn.vvvv, lane, size, 0)
            if lane >= lanes:
                set_lane(s, insn.reg, lane, size, 0)
    registers_from(s, VECTORS)
    if status != DONE:
        return status
    return finish(s, insn)


def vmaskmov(s, insn):
    """VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ, load and store. Lanes masked out touch no memory."""
    store: cython.bint = insn.opcode == 0x2E or insn.opcode == 0x2F or insn.opcode == 0x8E
    access: cython.int = ACCESS_WRITE if store else ACCESS_READ
    size: uint32_t = 4
    lanes: uint32_t
    lane: uint32_t
    ea: uint64_t
    va: uint64_t = 0
    value: uint64_t = 0
    status: cython.int
    loaded = cython.declare(uint64_t[8])
    if insn.opcode >= 0x8C:
        if insn.rex_w:
            size = 8
    elif insn.rex_w:
        return ud(s)
    elif insn.opcode & 1:
        size = 8
    lanes = (32 if insn.vex_l else 16) // size
    if avx_checks(s) != DONE:
        return FAULT
    ea = effective_address(s, insn)

    registers_to(s, VECTORS)
    for lane in range(lanes):
        loaded[lane] = 0
        if get_lane(s, insn.vvvv, lane, size) >> (8 * size - 1) == 0:
            continue
        status = linear(s, insn.segment, ea + lane * size, size, access | ACCESS_UNALIGNED, cython.address(va))
        if status == DONE and store:
            status = mem_probe(s, va, size, ACCESS_WRITE, s.mmu_mode)
        elif status == DONE:
            status = mem_read(s, va, size, s.mmu_mode, cython.address(value))
            loaded[lane] = value
        if status != DONE:
            return status
    if store:
        for lane in range(lanes):
            if get_lane(s, insn.vvvv, lane, size) >> (8 * size - 1) == 0:
                continue
            status = linear(s, insn.segment, ea + lane * size, size, access | ACCESS_UNALIGNED, cython.address(va))
            if status == DONE:
                status = mem_write(s, va, size, s.mmu_mode, get_lane(s, insn.reg, lane, size))
            if status != DONE:
                return status
    else:
        for lane in range(vector_bytes(s) // size):
            set_lane(s, insn.reg, lane, size, loaded[lane] if lane < lanes else 0)
        registers_from(s, VECTORS)
    return finish(s, insn)


def masked_store(s, insn, data, mask, size):
    """Store those of ``size`` bytes to DS:rDI whose mask byte has its sign set."""
    ea: uint64_t = s.gpr[RDI]
    segment: uint8_t = DS if insn.segment_override == NO_REG else insn.segment_override
    va: uint64_t = 0
    i: uint32_t
    if insn.addrsize == 4:
        ea &= LOW32
    elif insn.addrsize == 2:
        ea &= 0xFFFF
    if linear(s, segment, ea, size, ACCESS_WRITE, cython.address(va)) != DONE:
        return FAULT
    for i in range(size):
        if mask[i] & 0x80 and mem_probe(s, va + i, 1, ACCESS_WRITE, s.mmu_mode) != DONE:
            return FAULT
    for i in range(size):
        if mask[i] & 0x80 and mem_write(s, va + i, 1, s.mmu_mode, data[i]) != DONE:
            return FAULT
    return DONE


def maskmovdqu(s, insn):
    area: cython.pointer[uint8_t] = cython.address(s.xsave[0])
    if insn.vex:
        if insn.vex_l:
            return ud(s)
        if avx_checks(s) != DONE:
            return FAULT
    elif s.cr0 & CR0_EM or s.cr4 & CR4_OSFXSR == 0:
        return ud(s)
    elif s.cr0 & CR0_TS:
        return raise_fault(s, EXC_NM, False, 0)
    registers_to(s, X87 | SSE)
    if masked_store(s, insn, area + AREA_XMM + 16 * insn.reg, area + AREA_XMM + 16 * insn.rm, 16) != DONE:
        return FAULT
    return finish(s, insn)


def maskmovq(s, insn):
    area: cython.pointer[uint8_t] = cython.address(s.xsave[0])
    top: uint32_t
    i: uint32_t
    low = cython.declare(uint64_t[8])
    high = cython.declare(uint64_t[8])
    if s.cr0 & CR0_EM:
        return ud(s)
    if s.cr0 & CR0_TS:
        return raise_fault(s, EXC_NM, False, 0)
    registers_to(s, X87 | SSE)
    if cython.cast(cython.pointer[uint16_t], area + AREA_FSW)[0] & FSW_SUMMARY:
        return raise_fault(s, EXC_MF, False, 0)
    # The area holds ST(0) first; MMX registers are the physical ones.
    top = (cython.cast(cython.pointer[uint16_t], area + AREA_FSW)[0] >> 11) & 7
    for i in range(8):
        low[i] = quad(area, AREA_ST + 16 * ((i - top) & 7))[0]
        high[i] = quad(area, AREA_ST + 16 * ((i - top) & 7) + 8)[0]
    if (
        masked_store(
            s,
            insn,
            cython.cast(cython.pointer[uint8_t], cython.address(low[insn.reg & 7])),
            cython.cast(cython.pointer[uint8_t], cython.address(low[insn.rm & 7])),
            8,
        )
        != DONE
    ):
        return FAULT
    # As every MMX instruction: top of stack 0, all registers in use.
    for i in range(8):
        quad(area, AREA_ST + 16 * i)[0] = low[i]
        quad(area, AREA_ST + 16 * i + 8)[0] = high[i]
    cython.cast(cython.pointer[uint16_t], area + AREA_FSW)[0] &= 0xC7FF
    area[AREA_FTW] = 0xFF
    quad(area, AREA_HEADER)[0] |= X87
    native.xrstor(area, X87)
    return finish(s, insn)


register("vgather", vgather)
register("vmaskmov", vmaskmov)
register("maskmovq", maskmovq)
register("maskmovdqu", maskmovdqu)
