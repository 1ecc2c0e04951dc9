"""Vector and x87 state in memory: FXSAVE, XSAVE and their relatives, FNSAVE.

Documents: Intel SDM Vol. 1 chapter 13 (XSAVE), 10.5 (FXSAVE); Vol. 2, each instruction.

The guest's registers are live in the host's while this runs. State that is saved goes by the host's own instruction
into the vCPU's bounce buffer and from there into guest memory, part by part as the manual says which parts are
written; state that is restored is read into the buffer, checked there, and only then given to the host's instruction:
what the guest can still change is never trusted. Instruction and data pointers of the x87 unit would tell host
addresses, so the guest sees zeros there.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.cpuid import xsave_extra
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish
from cython.cimports.pyhyve.vmm.soft.access import mem_pointer, mem_probe, mem_read, mem_write, next_page
from cython.cimports.pyhyve.vmm.soft.addresses import effective_address, linear
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.physical import PAGE, PAGE_OFFSET
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR0_EM,
    CR0_TS,
    CR4_OSXSAVE,
    DONE,
    EXC_NM,
    FAULT,
    LOW32,
    MODE_CODE64,
    RAX,
    RDX,
    gp,
    raise_fault,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.xstate import (
    COMPONENTS,
    EXTRA_C,
    EXTRA_OPT,
    EXTRA_S,
    LEGACY_END,
    OPMASK,
    ZMM_16,
    ZMM_HIGH,
    compacted_offset,
    component_offset,
    component_size,
    xsave_size,
)

# Areas in guest memory


def word(area, offset):
    return cython.cast(cython.pointer[uint32_t], area + offset)


def quad(area, offset):
    return cython.cast(cython.pointer[uint64_t], area + offset)


def area_address(s, insn, size, alignment, access, va):
    """The linear address of the operand, all of whose pages allow the access."""
    if linear(s, insn.segment, effective_address(s, insn), size, access, va) != DONE:
        return FAULT
    if va[0] & (alignment - 1):
        return gp(s, 0)
    return mem_probe(s, va[0], size, access, s.mmu_mode)


def copy_area(s, va, begin, end, access):
    """Bytes ``begin`` to ``end`` (multiples of 8) of the area at ``va``: into the same place of the bounce buffer, or, with
    ACCESS_WRITE, out of it."""
    host: cython.pointer[uint8_t] = cython.NULL
    at: uint64_t = va + begin
    offset: uint32_t = begin
    step: uint32_t
    status: cython.int = DONE
    write: cython.bint = access & ACCESS_WRITE != 0
    own: cython.pointer[uint8_t]
    if begin == end:
        return DONE
    host = mem_pointer(s, at, end - begin, access, s.mmu_mode, cython.address(status))
    while offset < end:
        if offset != begin and at & PAGE_OFFSET == 0:
            at = next_page(s, at - 1)
            host = mem_pointer(s, at, end - offset, access, s.mmu_mode, cython.address(status))
        if status == FAULT:
            return FAULT
        own = cython.address(s.bounce[offset])
        step = 8
        if host != cython.NULL:
            step = in_page(at, end - offset)
            native.copy_up(host if write else own, own if write else host, step)
        else:
            if write:
                status = mem_write(s, at, 8, s.mmu_mode, quad(own, 0)[0])
            else:
                status = mem_read(s, at, 8, s.mmu_mode, quad(own, 0))
            if status != DONE:
                return status
        offset += step
        at += step
    return DONE


def in_page(at, size):
    """How many of ``size`` bytes lie in the page of ``at``."""
    left: uint32_t = PAGE - (at & PAGE_OFFSET)
    return size if size < left else left


def read_area(s, va, begin, end):
    return copy_area(s, va, begin, end, ACCESS_READ)


def write_area(s, va, begin, end):
    return copy_area(s, va, begin, end, ACCESS_WRITE)


def clear_header(area):
    i: uint32_t
    for i in range(AREA_HEADER, AREA_HEADER_END, 8):
        quad(area, i)[0] = 0


def vector_registers(s):
    """How many vector registers there are in this mode: the others' places in memory are left alone."""
    return 16 if s.mode & MODE_CODE64 else 8


def part_size(s, number):
    """Bytes of an AVX-512 component that there are in this mode."""
    if s.mode & MODE_CODE64 or number == OPMASK:
        return component_size[number]
    return component_size[number] // 2 if number == ZMM_HIGH else 0


def mxcsr_valid(s, mxcsr):
    """No reserved bit of MXCSR may be set. The host's own MXCSR_MASK stands in every image that XSAVE has made."""
    mask: uint32_t = word(cython.address(s.bounce[0]), AREA_MXCSR_MASK)[0]
    if mask == 0:
        mask = MXCSR_MASK_DEFAULT
    return mxcsr & ~mask == 0


# FXSAVE, FXRSTOR


def fxsave(s, insn):
    va: uint64_t = 0
    status: cython.int
    if s.cr0 & (CR0_EM | CR0_TS):
        return raise_fault(s, EXC_NM, False, 0)
    status = area_address(s, insn, FXSAVE_SIZE, 16, ACCESS_WRITE, cython.address(va))
    if status != DONE:
        return status
    native.fxsave(cython.address(s.bounce[0]))
    quad(cython.address(s.bounce[0]), AREA_FIP)[0] = 0
    quad(cython.address(s.bounce[0]), AREA_FIP + 8)[0] = 0
    status = write_area(s, va, 0, AREA_XMM + 16 * vector_registers(s))
    if status != DONE:
        return status
    return finish(s, insn)


def fxrstor(s, insn):
    va: uint64_t = 0
    mask: uint32_t
    status: cython.int
    if s.cr0 & (CR0_EM | CR0_TS):
        return raise_fault(s, EXC_NM, False, 0)
    status = area_address(s, insn, FXSAVE_SIZE, 16, ACCESS_READ, cython.address(va))
    if status != DONE:
        return status
    # Over the present state, so that registers which this mode does not have keep their values.
    native.fxsave(cython.address(s.bounce[0]))
    mask = word(cython.address(s.bounce[0]), AREA_MXCSR_MASK)[0]
    status = read_area(s, va, 0, AREA_XMM + 16 * vector_registers(s))
    if status != DONE:
        return status
    word(cython.address(s.bounce[0]), AREA_MXCSR_MASK)[0] = mask
    if not mxcsr_valid(s, word(cython.address(s.bounce[0]), AREA_MXCSR)[0]):
        return gp(s, 0)
    quad(cython.address(s.bounce[0]), AREA_FIP)[0] = 0
    quad(cython.address(s.bounce[0]), AREA_FIP + 8)[0] = 0
    native.fxrstor(cython.address(s.bounce[0]))
    return finish(s, insn)


# The XSAVE family


def xsave_checks(s):
    if s.cr4 & CR4_OSXSAVE == 0:
        return ud(s)
    if s.cr0 & CR0_TS:
        return raise_fault(s, EXC_NM, False, 0)
    return DONE


def save(s, insn, compacted):
    """XSAVE and XSAVEOPT (standard format), XSAVEC and XSAVES (compacted)."""
    area: cython.pointer[uint8_t] = cython.address(s.bounce[0])
    wanted: uint64_t = ((s.gpr[RDX] << 32) | (s.gpr[RAX] & LOW32)) & s.xcr0
    written: uint64_t
    va: uint64_t = 0
    old: uint64_t = 0
    registers: uint32_t = vector_registers(s)
    number: uint32_t
    place: uint32_t
    status: cython.int
    if xsave_checks(s) != DONE:
        return FAULT
    status = area_address(s, insn, xsave_size(wanted, compacted), 64, ACCESS_WRITE, cython.address(va))
    if status != DONE:
        return status

    clear_header(area)
    if compacted:
        native.xsavec(area, wanted)
        written = quad(area, AREA_HEADER)[0] & wanted
        quad(area, AREA_HEADER)[0] = written
        quad(area, AREA_XCOMP)[0] = wanted | (cython.cast(uint64_t, 1) << COMPACTED)
    else:
        # Bits of components that are not asked for keep their value in the header.
        status = mem_read(s, va + AREA_HEADER, 8, s.mmu_mode, cython.address(old))
        if status != DONE:
            return status
        native.xsave(area, wanted)
        written = wanted
        quad(area, AREA_HEADER)[0] = (quad(area, AREA_HEADER)[0] & wanted) | (old & ~wanted)

    if written & X87:
        quad(area, AREA_FIP)[0] = 0
        quad(area, AREA_FIP + 8)[0] = 0
        status = write_area(s, va, 0, AREA_MXCSR)
        if status == DONE:
            status = write_area(s, va, AREA_ST, AREA_XMM)
    if status == DONE and (written & SSE or (written & AVX and not compacted)):
        status = write_area(s, va, AREA_MXCSR, AREA_ST)
    if status == DONE and written & SSE:
        status = write_area(s, va, AREA_XMM, AREA_XMM + 16 * registers)
    if status == DONE and written & AVX:
        status = write_area(s, va, AREA_YMM, AREA_YMM + 16 * registers)
    for number in range(OPMASK, COMPONENTS):
        if status == DONE and (written >> number) & 1:
            place = compacted_offset(wanted, number) if compacted else component_offset[number]
            status = write_area(s, va, place, place + part_size(s, number))
    if status == DONE:
        status = write_area(s, va, AREA_HEADER, AREA_HEADER + 16 if compacted else AREA_XCOMP)
    if status != DONE:
        return status
    return finish(s, insn)


def xsave(s, insn):
    return save(s, insn, False)


def xsaveopt(s, insn):
    # Writing all of it is one of the ways to do it.
    return save(s, insn, False) if xsave_extra(s.engine, EXTRA_OPT) else ud(s)


def xsavec(s, insn):
    return save(s, insn, True) if xsave_extra(s.engine, EXTRA_C) else ud(s)


def supervisor_checks(s):
    """XSAVES and XRSTORS. IA32_XSS, which would add to XCR0, has no bit that can be set."""
    if not xsave_extra(s.engine, EXTRA_S):
        return ud(s)
    if xsave_checks(s) != DONE:
        return FAULT
    return DONE if s.cpl == 0 else gp(s, 0)


def xsaves(s, insn):
    return FAULT if supervisor_checks(s) != DONE else save(s, insn, True)


def xrstors(s, insn):
    return FAULT if supervisor_checks(s) != DONE else restore(s, insn, True)


def xrstor(s, insn):
    return restore(s, insn, False)


def restore(s, insn, compacted_only):
    """XRSTOR takes both formats, XRSTORS the compacted one only."""
    area: cython.pointer[uint8_t] = cython.address(s.bounce[0])
    wanted: uint64_t = ((s.gpr[RDX] << 32) | (s.gpr[RAX] & LOW32)) & s.xcr0
    present: uint64_t
    format_: uint64_t
    compacted: cython.bint
    va: uint64_t = 0
    i: uint32_t
    registers: uint32_t = vector_registers(s)
    mask: uint32_t
    mxcsr: uint32_t
    number: uint32_t
    place: uint32_t
    end: uint32_t = LEGACY_END
    status: cython.int
    if xsave_checks(s) != DONE:
        return FAULT
    status = area_address(s, insn, AREA_HEADER_END, 64, ACCESS_READ, cython.address(va))
    if status != DONE:
        return status
    status = read_area(s, va, AREA_HEADER, AREA_HEADER_END)
    if status != DONE:
        return status

    # The header (13.8)
    present = quad(area, AREA_HEADER)[0]
    format_ = quad(area, AREA_XCOMP)[0]
    compacted = format_ >> COMPACTED != 0
    if not compacted and compacted_only:
        return gp(s, 0)
    format_ &= ~(cython.cast(uint64_t, 1) << COMPACTED)
    if compacted:
        if format_ & ~s.xcr0 or present & ~format_:
            return gp(s, 0)
    elif present & ~s.xcr0 or format_ != 0:
        return gp(s, 0)
    for i in range(AREA_HEADER + 16, AREA_HEADER_END if compacted else AREA_HEADER + 24, 8):
        if quad(area, i)[0] != 0:
            return gp(s, 0)
    for number in range(2, COMPONENTS):
        if (wanted & present) >> number & 1:
            place = compacted_offset(format_, number) if compacted else component_offset[number]
            end = place + component_size[number] if place + component_size[number] > end else end
    if end > LEGACY_END:
        status = area_address(s, insn, end, 64, ACCESS_READ, cython.address(va))
        if status != DONE:
            return status

    # The present state below, the parts that are restored above it.
    clear_header(area)
    native.xsave(area, s.engine.xsave_mask)
    mask = word(area, AREA_MXCSR_MASK)[0]
    mxcsr = word(area, AREA_MXCSR)[0]
    if wanted & X87 and present & X87:
        status = read_area(s, va, 0, AREA_MXCSR)
        if status == DONE:
            status = read_area(s, va, AREA_ST, AREA_XMM)
        quad(area, AREA_FIP)[0] = 0
        quad(area, AREA_FIP + 8)[0] = 0
    if status == DONE and (wanted & present & SSE if compacted else wanted & (SSE | AVX)):
        status = read_area(s, va, AREA_MXCSR, AREA_ST)
        mxcsr = word(area, AREA_MXCSR)[0]
        word(area, AREA_MXCSR_MASK)[0] = mask
        if status == DONE and not mxcsr_valid(s, mxcsr):
            return gp(s, 0)
    elif compacted and wanted & SSE:
        mxcsr = MXCSR_RESET
    if status == DONE and wanted & present & SSE:
        status = read_area(s, va, AREA_XMM, AREA_XMM + 16 * registers)
    if status == DONE and wanted & present & AVX:
        status = read_area(s, va, AREA_YMM, AREA_YMM + 16 * registers)
    for number in range(OPMASK, COMPONENTS):
        if status == DONE and (wanted & present) >> number & 1:
            # A compacted image has it elsewhere than the buffer.
            place = component_offset[number]
            end = compacted_offset(format_, number) if compacted else place
            status = read_area(s, va + end - place, place, place + part_size(s, number))
    if status != DONE:
        return status
    # What has its initial value: in 64-bit mode the host's instruction makes it so, else only the lower registers.
    if registers < 16:
        for i in range(0, 16 * registers, 8):
            if wanted & ~present & SSE:
                quad(area, AREA_XMM + i)[0] = 0
            if wanted & ~present & AVX:
                quad(area, AREA_YMM + i)[0] = 0
        if (wanted & ~present) >> ZMM_HIGH & 1:
            for i in range(0, part_size(s, ZMM_HIGH), 8):
                quad(area, component_offset[ZMM_HIGH] + i)[0] = 0
        present |= SSE | AVX | (cython.cast(uint64_t, 1) << ZMM_HIGH)
        wanted &= ~(cython.cast(uint64_t, 1) << ZMM_16)
    word(area, AREA_MXCSR)[0] = mxcsr
    quad(area, AREA_HEADER)[0] = present & wanted
    quad(area, AREA_XCOMP)[0] = 0
    native.xrstor(area, wanted)
    return finish(s, insn)


# x87 environment


def store_x87(s, insn, size):
    """The first ``size`` bytes of the bounce buffer to guest memory, in pieces of 2, without the host's pointers."""
    va: uint64_t = 0
    offset: uint32_t
    first: uint32_t = 6 if insn.opsize == 2 else 12
    end: uint32_t = 14 if insn.opsize == 2 else 28
    status: cython.int = area_address(s, insn, size, 1, ACCESS_WRITE, cython.address(va))
    value: uint64_t
    if status != DONE:
        return status
    x87_out(s, insn, size)
    for offset in range(0, size, 2):
        value = cython.cast(cython.pointer[uint16_t], cython.address(s.bounce[offset]))[0]
        if first <= offset < end:
            value = 0
        status = mem_write(s, va + offset, 2, s.mmu_mode, value)
        if status != DONE:
            return status
    return finish(s, insn)


def x87_out(s, insn, size):
    if size >= 94:
        if insn.opsize == 2:
            native.fnsave16(s.bounce)
        else:
            native.fnsave32(s.bounce)
    elif insn.opsize == 2:
        native.fnstenv16(s.bounce)
    else:
        native.fnstenv32(s.bounce)


def fnstenv(s, insn):
    return store_x87(s, insn, 14 if insn.opsize == 2 else 28)


def fnsave(s, insn):
    return store_x87(s, insn, 94 if insn.opsize == 2 else 108)


register("fxsave", fxsave)
register("fxrstor", fxrstor)
register("xsave", xsave)
register("xsaveopt", xsaveopt)
register("xsavec", xsavec)
register("xsaves", xsaves)
register("xrstor", xrstor)
register("xrstors", xrstors)
register("fnstenv", fnstenv)
register("fnsave", fnsave)
