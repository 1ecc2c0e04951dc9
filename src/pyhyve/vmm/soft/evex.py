"""EVEX instructions (AVX-512) whose mask has a say in what memory is accessed.

Documents: Intel SDM Vol. 2, 2.7 (EVEX), 2.8 (exception classes), and the pages of VPGATHER, VPSCATTER and VPCOMPRESS.

An EVEX instruction runs on the host as it is, with its memory operand redirected. Where all of the operand lies in one
page that the TLB has, that is all there is to it, masked or not. Else a masked access comes to ``masked_access``: only
elements whose mask bit is set are looked up, can fault, are read from a device or stored; CR2 is the first byte that
cannot be accessed. If all enabled bytes are RAM of one page the instruction then runs in place, for the host's own mask
keeps it from the rest; else on the bounce buffer, into which the enabled bytes are gathered and out of which only they
are written.

Gathers and scatters go lane by lane and clear the mask's bits as they go; a fault leaves what is done done.
"""

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, WATCH_WRITE, watch_access
from cython.cimports.pyhyve.vmm.soft.decode import (
    EVEX_PACKED,
    EVEX_REPEATS,
    EVEX_WHOLE,
    SZ_NONE,
    SZ_X,
    OpInfo,
    operand_size,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, finish
from cython.cimports.pyhyve.vmm.soft.access import (
    mem_read,
    mem_write,
    next_page,
    overwrites_code,
    read_part,
    write_part,
)
from cython.cimports.pyhyve.vmm.soft.addresses import ACCESS_UNALIGNED, check_alignment, linear
from cython.cimports.pyhyve.vmm.soft.bounce import BOUNCED, CODE_WRITE, OPEN_STORE
from cython.cimports.pyhyve.vmm.soft.physical import PAGE, PAGE_OFFSET
from cython.cimports.pyhyve.vmm.soft.tlb import lookup, writable_now
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    DONE,
    FAULT,
    LEAVE,
    LOW32,
    MODE_ALIGN,
    ud,
)
from cython.cimports.pyhyve.vmm.soft.stubs import SLOW_PACKED, SLOW_SEGMENTED
from cython.cimports.pyhyve.vmm.soft.vector import VECTORS, get_lane, registers_from, registers_to, set_lane, vsib_address
from cython.cimports.pyhyve.vmm.soft.xstate import OPMASK, OPMASKS, ZMM_16, component_offset

# Which bytes of the operand


def log2_of(size):
    n: uint32_t = 0
    while size > 1:
        size >>= 1
        n += 1
    return n


def evex_what(insn):
    op: cython.pointer(OpInfo) = cython.address(ops[insn.op])
    element: uint32_t
    lanes: uint32_t
    mask: uint32_t = insn.evex[2] & 7
    if insn.vex != 2 or mask == 0 or op.mask_size == SZ_NONE:
        return 0
    element = operand_size(op.mask_size, insn)
    if op.evex & (EVEX_REPEATS | EVEX_PACKED):
        lanes = operand_size(SZ_X, insn) // element
    else:
        lanes = operand_size(op.mem_size, insn) // element
    if insn.evex[2] & 0x10:
        element = insn.mem_size  # broadcast
    return (
        (SLOW_PACKED if op.evex & EVEX_PACKED else 0)
        | (SLOW_WHOLE if op.evex & EVEX_WHOLE else 0)
        | (mask << 24)
        | (log2_of(element) << 27)
        | (log2_of(lanes) << 29)
    )


def enabled_bytes(what):
    """The bytes of the operand that are accessed, as bits. ``what`` as ``evex_what`` has it, with the size."""
    element: uint32_t = cython.cast(uint32_t, 1) << ((what >> 27) & 3)
    lanes: uint32_t = cython.cast(uint32_t, 1) << (what >> 29)
    count: uint32_t = (what & 0xFFFF) // element  # elements that memory has
    mask: uint64_t = native.opmask[(what >> 24) & 7]()
    bits: uint64_t = 0
    ones: uint64_t = 0
    i: uint32_t
    if lanes < 64:
        mask &= (cython.cast(uint64_t, 1) << lanes) - 1
    if what & SLOW_PACKED:
        while mask:
            mask &= mask - 1
            bits = (bits << 1) | 1
        mask = bits
        bits = 0
    while lanes > count:
        lanes >>= 1
        mask |= mask >> lanes
    if lanes < 64:
        mask &= (cython.cast(uint64_t, 1) << lanes) - 1
    if element == 1:
        return mask
    ones = (cython.cast(uint64_t, 1) << element) - 1
    for i in range(count):
        if (mask >> i) & 1:
            bits |= ones << (i * element)
    return bits


def lowest(bits):
    """The number of the lowest bit that is set."""
    n: uint32_t = 0
    while bits & 0xFF == 0:
        bits >>= 8
        n += 8
    while bits & 1 == 0:
        bits >>= 1
        n += 1
    return n


def run_length(bits):
    """How many bits are set from bit 0 on."""
    n: uint32_t = 0
    while bits & 1:
        bits >>= 1
        n += 1
    return n


# Masked accesses


def check_segment(s, va, what, enabled):
    """Segment's limit and rights for every enabled element; ``va`` from an effective to a linear address."""
    ea: uint64_t = va[0]
    segment: uint32_t = (what >> 20) & 7
    element: uint32_t = cython.cast(uint32_t, 1) << ((what >> 27) & 3)
    at: uint32_t = 0
    found: uint64_t = 0
    va[0] = (s.segments[segment].base + ea) & LOW32
    while at < what & 0xFFFF:
        if (enabled >> at) & 1 and (
            linear(s, segment, (ea + at) & LOW32, element, (what >> 16) & 3, cython.address(found)) != DONE
        ):
            return FAULT
        at += element
    return DONE


def check_elements(s, va, what, enabled):
    """Alignment of every enabled element."""
    element: uint32_t = cython.cast(uint32_t, 1) << ((what >> 27) & 3)
    at: uint32_t = 0
    while at < what & 0xFFFF:
        if (enabled >> at) & 1 and check_alignment(s, va + at, element, (what >> 16) & ACCESS_WRITE) != DONE:
            return FAULT
        at += element
    return DONE


def watched(s, va, bits, access):
    """``watch_access`` for the bytes at ``va`` that ``bits`` names."""
    at: uint32_t = 0
    length: uint32_t
    hit: cython.bint = False
    while bits >> at:
        at += lowest(bits >> at)
        length = run_length(bits >> at)
        hit = watch_access(s, va + at, length, 0, 0, WATCH_WRITE if access == ACCESS_WRITE else WATCH_READ) or hit
        at += length
        if at >= 64:
            break
    return hit


def in_parts(what):
    """Is it not one bit of the mask for each element that memory has? How the host then reads what is beyond is its own
    business, so it does not run where that is another page."""
    return what & SLOW_PACKED != 0 or (what & 0xFFFF) >> ((what >> 27) & 3) != cython.cast(uint32_t, 1) << (what >> 29)


def masked_access(s, va, what, status):
    size: uint32_t = what & 0xFFFF
    access: uint32_t = (what >> 16) & ACCESS_WRITE
    mode: cython.int = s.mmu_mode
    enabled: uint64_t = enabled_bytes(what)
    looked_at: uint64_t = enabled
    part: uint64_t[2]
    where: uint64_t
    buffer: cython.pointer(uint8_t)
    first: uint32_t
    skip: uint32_t
    at: uint32_t
    length: uint32_t
    i: cython.int
    own: cython.bint = False

    s.count_tlb_miss += 1
    if what & SLOW_WHOLE:
        looked_at = ~cython.cast(uint64_t, 0) >> (64 - size)
    if what & SLOW_SEGMENTED:
        if check_segment(s, cython.address(va), what, looked_at) != DONE:
            status[0] = FAULT
            return 0
        s.scratch[0] = va
    elif s.mode & MODE_ALIGN and check_elements(s, va, what, looked_at) != DONE:
        status[0] = FAULT
        return 0
    buffer = cython.address(s.bounce[va & 63])
    status[0] = DONE
    if looked_at == 0:
        return cython.cast(uint64_t, buffer) - va

    first = PAGE - (va & PAGE_OFFSET)
    part[0] = looked_at
    part[1] = 0
    if first < size:
        part[0] = looked_at & ((cython.cast(uint64_t, 1) << first) - 1)
        part[1] = looked_at >> first
    else:
        first = size
    for i in range(2):
        s.bounce_host[i] = s.bounce_gpa[i] = 0
        if part[i] == 0:
            continue
        where = va if i == 0 else next_page(s, va)
        skip = lowest(part[i])
        if lookup(s, where + skip, access, mode, cython.address(s.bounce_host[i]), cython.address(s.bounce_gpa[i])) != DONE:
            status[0] = FAULT
            return 0
        s.bounce_gpa[i] -= skip
        if s.bounce_host[i]:
            s.bounce_host[i] -= skip
    if s.watch_count:
        own = part[0] != 0 and watched(s, va, part[0], access)
        if (part[1] != 0 and watched(s, next_page(s, va), part[1], access)) or own:
            status[0] = CODE_WRITE
            return 0
    if access == ACCESS_WRITE:
        for i in range(2):
            if part[i] == 0:
                continue
            skip = lowest(part[i])
            length = (first if i == 0 else size - first) - skip
            if overwrites_code(s, s.bounce_host[i], s.bounce_gpa[i] + skip, length):
                own = True
        if own:
            status[0] = CODE_WRITE
            return 0

    if part[1] == 0 and s.bounce_host[0] and (first == size or not in_parts(what)):
        if access == ACCESS_WRITE and s.engine.cpu_count > 1 and not writable_now(s, mode, va):
            s.bounce_active = OPEN_STORE
            s.open_gpa = s.bounce_gpa[0]
            s.open_size = first
        return s.bounce_host[0] - va
    if access == ACCESS_WRITE:
        if enabled == 0:
            return cython.cast(uint64_t, buffer) - va
        s.bounce_active = BOUNCED
        s.bounce_size = size
        s.bounce_gva = va
        s.bounce_first = first
        s.bounce_mask = enabled
        return cython.cast(uint64_t, buffer) - va
    for i in range(2):
        at = 0
        while at < 64 and part[i] >> at:
            at += lowest(part[i] >> at)
            length = run_length(part[i] >> at)
            if read_part(s, s.bounce_host[i] + at if s.bounce_host[i] else 0, s.bounce_gpa[i] + at,
                         buffer + at + (first if i else 0), length) != DONE:  # fmt: skip
                status[0] = LEAVE
                return 0
            at += length
    return cython.cast(uint64_t, buffer) - va


def masked_finish(s):
    buffer: cython.pointer(uint8_t) = cython.address(s.bounce[s.bounce_gva & 63])
    enabled: uint64_t = s.bounce_mask
    at: uint32_t = 0
    length: uint32_t
    left: uint32_t
    i: cython.int
    offset: uint32_t
    s.bounce_mask = 0
    while at < s.bounce_size and enabled >> at:
        at += lowest(enabled >> at)
        length = run_length(enabled >> at)
        i = 0 if at < s.bounce_first else 1
        offset = at
        if i == 0:
            left = s.bounce_first - at
            length = left if length > left else length
        else:
            offset -= s.bounce_first
        write_part(s, s.bounce_host[i] + offset if s.bounce_host[i] else 0, s.bounce_gpa[i] + offset, buffer + at, length)
        at += length
        if at >= 64:
            break


# Gathers and scatters


def component_of(reg):
    """The state components that have a vector register."""
    return VECTORS if reg < 16 else cython.cast(uint64_t, 1) << ZMM_16


def opmask_of(s, insn):
    """The mask of the instruction in the vCPU's XSAVE area."""
    return cython.cast(cython.pointer(uint64_t), cython.address(s.xsave[component_offset[OPMASK] + 8 * (insn.evex[2] & 7)]))


def evex_gather(s, insn):
    """VPGATHER and VGATHER: opcode bit 0 says quadword indices, W quadword data.

    A device read leaves nothing done, for its log is replayed from the first lane.
    """
    size: uint32_t = 8 if insn.rex_w else 4
    index_size: uint32_t = 8 if insn.opcode & 1 else 4
    reg: uint32_t = insn.reg | (0 if insn.evex[0] & 0x10 else 16)
    length: uint32_t = cython.cast(uint32_t, 16) << insn.vex_l
    lanes: uint32_t = length // (size if size > index_size else index_size)
    lane: uint32_t
    va: uint64_t = 0
    value: uint64_t = 0
    mask: cython.pointer(uint64_t) = opmask_of(s, insn)
    status: cython.int = DONE
    done: cython.bint = False
    if insn.modrm & 7 != 4 or insn.addrsize == 2 or reg == insn.index:
        return ud(s)
    registers_to(s, component_of(reg) | component_of(insn.index) | OPMASKS)
    for lane in range(lanes):
        if (mask[0] >> lane) & 1 == 0:
            continue
        status = vsib_address(s, insn, lane, size, ACCESS_READ, cython.address(va))
        if status == DONE:
            status = mem_read(s, va, size, s.mmu_mode, cython.address(value))
        if status != DONE:
            break
        set_lane(s, reg, lane, size, value)
        done = True
        mask[0] &= ~(cython.cast(uint64_t, 1) << lane)
    if status == LEAVE:
        return LEAVE
    if status == DONE:
        mask[0] = 0
        for lane in range(lanes, 64 // size):
            set_lane(s, reg, lane, size, 0)
    elif done:
        # Each lane that is written is an instruction of this vector length.
        for lane in range(length // size, 64 // size):
            set_lane(s, reg, lane, size, 0)
    registers_from(s, component_of(reg) | OPMASKS)
    if status != DONE:
        return status
    return finish(s, insn)


def evex_scatter(s, insn):
    """VPSCATTER and VSCATTER, the lowest lane first."""
    size: uint32_t = 8 if insn.rex_w else 4
    index_size: uint32_t = 8 if insn.opcode & 1 else 4
    reg: uint32_t = insn.reg | (0 if insn.evex[0] & 0x10 else 16)
    lanes: uint32_t = (cython.cast(uint32_t, 16) << insn.vex_l) // (size if size > index_size else index_size)
    lane: uint32_t
    va: uint64_t = 0
    mask: cython.pointer(uint64_t) = opmask_of(s, insn)
    status: cython.int = DONE
    if insn.modrm & 7 != 4 or insn.addrsize == 2:
        return ud(s)
    registers_to(s, component_of(reg) | component_of(insn.index) | OPMASKS)
    for lane in range(lanes):
        if (mask[0] >> lane) & 1 == 0:
            continue
        status = vsib_address(s, insn, lane, size, ACCESS_WRITE, cython.address(va))
        if status == DONE:
            status = mem_write(s, va, size, s.mmu_mode, get_lane(s, reg, lane, size))
        if status != DONE:
            break
        mask[0] &= ~(cython.cast(uint64_t, 1) << lane)
    if status == DONE:
        mask[0] = 0
    registers_from(s, OPMASKS)
    if status != DONE:
        return status
    return finish(s, insn)


register("evex_gather", evex_gather)
register("evex_scatter", evex_scatter)
