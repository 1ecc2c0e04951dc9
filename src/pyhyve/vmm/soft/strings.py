"""String instructions: MOVS, STOS, LODS, SCAS, CMPS, alone and repeated.

Document: Intel SDM Vol. 2, each instruction and REP; Vol. 1 7.3.9.

A repeated instruction is done in runs: as many elements as lie, for each of its operands, in RAM before the page, the
segment or the address size ends (``run_length`` gives a host pointer to the first). What has no pointer (devices,
ROM, an element across two pages) is done by single elements through ``mem_read`` and ``mem_write``, one for each
execution of the instruction, for then the log of device reads stays short. After each run the registers say how far
the work is, so that a fault in the middle finds them as the manual asks; and the instruction stops, with rip
unchanged, when events wait or a budget is used up, to go on when it is executed again.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, WATCH_WRITE, watch_covers
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, finish, get_gpr, set_gpr
from cython.cimports.pyhyve.vmm.soft.access import mem_pointer, mem_probe, mem_read, mem_write
from cython.cimports.pyhyve.vmm.soft.addresses import linear
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    DONE,
    DS,
    ES,
    FAULT,
    FLAG_AF,
    FLAG_CF,
    FLAG_OF,
    FLAG_PF,
    FLAG_SF,
    FLAG_TF,
    FLAG_ZF,
    FS,
    LEAVE,
    LOW32,
    MODE_CODE64,
    MODE_FLAT,
    RAX,
    RCX,
    RDI,
    RSI,
)

# The instruction and its operands


def begin(s, insn, w):
    w.size = 1 if insn.opcode & 1 == 0 else insn.opsize
    w.address_size = insn.addrsize
    if insn.addrsize == 8:
        w.mask = cython.cast(uint64_t, -1)
    elif insn.addrsize == 4:
        w.mask = LOW32
    else:
        w.mask = 0xFFFF
    w.down = s.df
    w.repeat = insn.rep
    w.left = s.gpr[RCX] & w.mask if insn.rep else 1


def source(s, insn, w, stream):
    stream.reg = RSI
    stream.segment = DS if insn.segment_override == NO_REG else insn.segment_override
    stream.access = ACCESS_READ
    stream.ea = s.gpr[RSI] & w.mask


def destination(s, w, stream, access):
    stream.reg = RDI
    stream.segment = ES
    stream.access = access
    stream.ea = s.gpr[RDI] & w.mask


def advance(s, w, stream, n):
    """The operand's register moves by ``n`` elements."""
    delta: uint64_t = n * w.size
    stream.ea = (stream.ea - delta if w.down else stream.ea + delta) & w.mask
    set_gpr(s, stream.reg, stream.ea, w.address_size)


def count_down(s, w, n):
    w.left -= n
    if w.repeat:
        set_gpr(s, RCX, w.left, w.address_size)


def wanted(s, w, moved):
    """How many elements the next run may have: 0 when it is time to look at events."""
    if w.left == 0 or moved >= BUDGET or (moved != 0 and s.pending != 0):
        return 0
    if s.flags_system & FLAG_TF or s.step_exit:
        return 1 if moved == 0 else 0  # each iteration is a step
    return w.left


def pause_or_finish(s, insn, w):
    """Registers are up to date: done, or rip stays and the instruction goes on when it is executed again."""
    if w.left == 0:
        return finish(s, insn)
    return DONE


def element_address(s, w, stream, va):
    return linear(s, stream.segment, stream.ea, w.size, stream.access, va)


def run_length(s, w, stream, n, status):
    """How many of the next ``n`` elements can be reached through ``stream.host``, a pointer to the first of them.

    0: ``status`` is FAULT (recorded), or LEAVE where there is no pointer and a single element has to be tried.
    """
    size: uint64_t = w.size
    va: uint64_t = 0
    lowest: uint64_t
    offset: uint64_t
    room: uint64_t
    span: uint64_t
    host: cython.pointer[uint8_t]

    status[0] = element_address(s, w, stream, cython.address(va))
    if status[0] != DONE:
        return 0
    status[0] = LEAVE
    offset = va & PAGE_OFFSET
    if offset + size > PAGE or w.mask - stream.ea < size - 1:
        return 0
    # Up to the end of the page and of the addresses.
    if w.down:
        room = offset // size + 1
        if stream.ea // size < room - 1:
            room = stream.ea // size + 1
    else:
        room = (PAGE - offset) // size
        if (w.mask - stream.ea - (size - 1)) // size < room - 1:
            room = (w.mask - stream.ea - (size - 1)) // size + 1
    if n > room:
        n = room
    span = (n - 1) * size
    if n > 1 and s.mode & MODE_CODE64 == 0 and (s.mode & MODE_FLAT == 0 or stream.segment >= FS):
        # The whole run must lie within the segment; if not, go on by single elements up to the fault.
        lowest = stream.ea - span if w.down else stream.ea
        if linear(s, stream.segment, lowest, n * size, stream.access, cython.address(lowest)) != DONE:
            s.exc_pending = 0
            n = 1
            span = 0
    lowest = va - span if w.down else va
    if s.watch_count and watch_covers(s, lowest, n * size, WATCH_WRITE if stream.access & ACCESS_WRITE else WATCH_READ):
        return 0  # by single elements, to stop behind the one that touches watched bytes
    host = mem_pointer(s, lowest, n * size, stream.access, s.mmu_mode, status)
    if host == cython.NULL:
        if status[0] == FAULT and lowest != va:
            mem_pointer(s, va, size, stream.access, s.mmu_mode, status)  # record the address of the element itself
        return 0
    stream.host = host + span if w.down else host
    return n


# Elements


def load_element(host, size):
    if size == 1:
        return host[0]
    if size == 2:
        return cython.cast(cython.pointer[uint16_t], host)[0]
    if size == 4:
        return cython.cast(cython.pointer[uint32_t], host)[0]
    return cython.cast(cython.pointer[uint64_t], host)[0]


def store_element(host, size, value):
    if size == 1:
        host[0] = cython.cast(uint8_t, value)
    elif size == 2:
        cython.cast(cython.pointer[uint16_t], host)[0] = cython.cast(uint16_t, value)
    elif size == 4:
        cython.cast(cython.pointer[uint32_t], host)[0] = cython.cast(uint32_t, value)
    else:
        cython.cast(cython.pointer[uint64_t], host)[0] = value


def copy_run(w, dst, src, n):
    """Copy ``n`` elements as MOVS does: one after the other, so that what is written may be read again."""
    d: uint64_t = cython.cast(uint64_t, dst)
    o: uint64_t = cython.cast(uint64_t, src)
    ahead: uint64_t = o - d if w.down else d - o
    i: uint64_t
    if ahead != 0 and ahead < w.size:
        # An element overlaps the one it is copied to: byte by byte would be something else.
        for i in range(n):
            store_element(dst, w.size, load_element(src, w.size))
            if w.down:
                dst -= w.size
                src -= w.size
            else:
                dst += w.size
                src += w.size
    elif w.down:
        native.copy_down(dst + (w.size - 1), src + (w.size - 1), n * w.size)
    else:
        native.copy_up(dst, src, n * w.size)


def fill_run(w, dst, value, n):
    if w.down:
        dst -= (n - 1) * w.size
    if w.size == 1:
        native.fill8(dst, value, n)
    elif w.size == 2:
        native.fill16(dst, value, n)
    elif w.size == 4:
        native.fill32(dst, value, n)
    else:
        native.fill64(dst, value, n)


def compare_flags(a, b, size):
    bits: uint32_t = size * 8
    mask: uint64_t = cython.cast(uint64_t, -1) >> (64 - bits)
    result: uint64_t
    parity: uint64_t
    flags: uint64_t = 0
    a &= mask
    b &= mask
    result = (a - b) & mask
    if a < b:
        flags |= FLAG_CF
    if result == 0:
        flags |= FLAG_ZF
    if result >> (bits - 1):
        flags |= FLAG_SF
    if ((a ^ b) & (a ^ result)) >> (bits - 1):
        flags |= FLAG_OF
    if (a ^ b ^ result) & 0x10:
        flags |= FLAG_AF
    parity = result ^ (result >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    if parity & 1 == 0:
        flags |= FLAG_PF
    return flags


# Helpers


def movs(s, insn):
    w: Work
    src: Stream
    dst: Stream
    n: uint64_t
    moved: uint64_t = 0
    from_va: uint64_t = 0
    to_va: uint64_t = 0
    value: uint64_t = 0
    status: cython.int = DONE
    begin(s, insn, cython.address(w))
    source(s, insn, cython.address(w), cython.address(src))
    destination(s, cython.address(w), cython.address(dst), ACCESS_WRITE)
    while True:
        n = wanted(s, cython.address(w), moved)
        if n == 0:
            return pause_or_finish(s, insn, cython.address(w))
        n = run_length(s, cython.address(w), cython.address(src), n, cython.address(status))
        if status == DONE:
            n = run_length(s, cython.address(w), cython.address(dst), n, cython.address(status))
        if status == FAULT:
            return FAULT
        if status == LEAVE:
            break
        copy_run(cython.address(w), dst.host, src.host, n)
        advance(s, cython.address(w), cython.address(src), n)
        advance(s, cython.address(w), cython.address(dst), n)
        count_down(s, cython.address(w), n)
        moved += n * w.size

    if moved != 0:
        return DONE  # the single element is the next execution's
    if element_address(s, cython.address(w), cython.address(src), cython.address(from_va)) != DONE:
        return FAULT
    if element_address(s, cython.address(w), cython.address(dst), cython.address(to_va)) != DONE:
        return FAULT
    # A device must not be read in vain.
    if mem_probe(s, from_va, w.size, ACCESS_READ, s.mmu_mode) != DONE:
        return FAULT
    if mem_probe(s, to_va, w.size, ACCESS_WRITE, s.mmu_mode) != DONE:
        return FAULT
    status = mem_read(s, from_va, w.size, s.mmu_mode, cython.address(value))
    if status == DONE:
        status = mem_write(s, to_va, w.size, s.mmu_mode, value)
    if status != DONE:
        return status
    advance(s, cython.address(w), cython.address(src), 1)
    advance(s, cython.address(w), cython.address(dst), 1)
    count_down(s, cython.address(w), 1)
    return pause_or_finish(s, insn, cython.address(w))


def stos(s, insn):
    w: Work
    dst: Stream
    n: uint64_t
    moved: uint64_t = 0
    va: uint64_t = 0
    status: cython.int = DONE
    begin(s, insn, cython.address(w))
    destination(s, cython.address(w), cython.address(dst), ACCESS_WRITE)
    while True:
        n = wanted(s, cython.address(w), moved)
        if n == 0:
            return pause_or_finish(s, insn, cython.address(w))
        n = run_length(s, cython.address(w), cython.address(dst), n, cython.address(status))
        if status == FAULT:
            return FAULT
        if status == LEAVE:
            break
        fill_run(cython.address(w), dst.host, s.gpr[RAX], n)
        advance(s, cython.address(w), cython.address(dst), n)
        count_down(s, cython.address(w), n)
        moved += n * w.size

    if moved != 0:
        return DONE
    status = element_address(s, cython.address(w), cython.address(dst), cython.address(va))
    if status == DONE:
        status = mem_write(s, va, w.size, s.mmu_mode, s.gpr[RAX])
    if status != DONE:
        return status
    advance(s, cython.address(w), cython.address(dst), 1)
    count_down(s, cython.address(w), 1)
    return pause_or_finish(s, insn, cython.address(w))


def lods(s, insn):
    w: Work
    src: Stream
    n: uint64_t
    moved: uint64_t = 0
    va: uint64_t = 0
    value: uint64_t = 0
    last: cython.pointer[uint8_t]
    status: cython.int = DONE
    begin(s, insn, cython.address(w))
    source(s, insn, cython.address(w), cython.address(src))
    while True:
        n = wanted(s, cython.address(w), moved)
        if n == 0:
            return pause_or_finish(s, insn, cython.address(w))
        n = run_length(s, cython.address(w), cython.address(src), n, cython.address(status))
        if status == FAULT:
            return FAULT
        if status == LEAVE:
            break
        # Only the last element of a run is seen.
        last = src.host - (n - 1) * w.size if w.down else src.host + (n - 1) * w.size
        set_gpr(s, RAX, load_element(last, w.size), w.size)
        advance(s, cython.address(w), cython.address(src), n)
        count_down(s, cython.address(w), n)
        moved += n * w.size

    if moved != 0:
        return DONE
    status = element_address(s, cython.address(w), cython.address(src), cython.address(va))
    if status == DONE:
        status = mem_read(s, va, w.size, s.mmu_mode, cython.address(value))
    if status != DONE:
        return status
    set_gpr(s, RAX, value, w.size)
    advance(s, cython.address(w), cython.address(src), 1)
    count_down(s, cython.address(w), 1)
    return pause_or_finish(s, insn, cython.address(w))


def goes_on(w, flags):
    """Does a repeated comparison with this result ask for another?"""
    if w.repeat == REPE:
        return flags & FLAG_ZF != 0
    return flags & FLAG_ZF == 0


def compare(s, insn, two):
    """CMPS (``two`` operands in memory) and SCAS.

    Flags are written when the instruction ends or pauses; a fault leaves them as they were (Vol. 2, REP).
    """
    w: Work
    src: Stream
    dst: Stream
    n: uint64_t
    i: uint64_t
    step: uint64_t
    flags: uint64_t = s.flags_arith
    moved: uint64_t = 0
    va: uint64_t = 0
    a: uint64_t = 0
    b: uint64_t = 0
    status: cython.int = DONE
    ended: cython.bint = False
    begin(s, insn, cython.address(w))
    if two:
        source(s, insn, cython.address(w), cython.address(src))
    else:
        a = get_gpr(s, RAX, w.size)
    destination(s, cython.address(w), cython.address(dst), ACCESS_READ)
    while True:
        n = 0 if ended else wanted(s, cython.address(w), moved)
        if n == 0:
            s.flags_arith = flags
            return finish(s, insn) if ended else pause_or_finish(s, insn, cython.address(w))
        if two:
            n = run_length(s, cython.address(w), cython.address(src), n, cython.address(status))
        if status == DONE:
            n = run_length(s, cython.address(w), cython.address(dst), n, cython.address(status))
        if status == FAULT:
            return FAULT
        if status == LEAVE:
            break
        step = cython.cast(uint64_t, 0) - w.size if w.down else w.size
        i = 0
        while i < n:
            if two:
                a = load_element(src.host, w.size)
                src.host += step
            b = load_element(dst.host, w.size)
            dst.host += step
            i += 1
            if w.repeat and (a == b) != (w.repeat == REPE):
                ended = True
                break
        flags = compare_flags(a, b, w.size)
        if two:
            advance(s, cython.address(w), cython.address(src), i)
        advance(s, cython.address(w), cython.address(dst), i)
        count_down(s, cython.address(w), i)
        moved += i * w.size

    if moved != 0:
        s.flags_arith = flags
        return DONE
    if two:
        status = element_address(s, cython.address(w), cython.address(src), cython.address(va))
        if status == DONE:
            status = mem_read(s, va, w.size, s.mmu_mode, cython.address(a))
        if status != DONE:
            return status
    status = element_address(s, cython.address(w), cython.address(dst), cython.address(va))
    if status == DONE:
        status = mem_read(s, va, w.size, s.mmu_mode, cython.address(b))
    if status != DONE:
        return status
    flags = compare_flags(a, b, w.size)
    if two:
        advance(s, cython.address(w), cython.address(src), 1)
    advance(s, cython.address(w), cython.address(dst), 1)
    count_down(s, cython.address(w), 1)
    s.flags_arith = flags
    if w.repeat and not goes_on(cython.address(w), flags):
        return finish(s, insn)
    return pause_or_finish(s, insn, cython.address(w))


def scas(s, insn):
    return compare(s, insn, False)


def cmps(s, insn):
    return compare(s, insn, True)


register("movs", movs)
register("stos", stos)
register("lods", lods)
register("scas", scas)
register("cmps", cmps)
