"""Breakpoints and watchpoints: the debugger's points, and the guest's own debug registers.

Document: Intel SDM Vol. 3B chapter 17 (debug registers, RF, DR6), Vol. 3A 6.8.3 (the shadow of MOV SS), table 6-2.

**Breakpoints.** Blocks are shared by all vCPUs and address spaces; breakpoints are linear addresses of one vCPU. What
both have in common is the offset within a page. The machine has one list of *armed* addresses, those of all vCPUs and
of all enabled debug registers. A block ends before an instruction at the page offset of an armed address; a block that
starts there compares its page with the armed one and, if it is that one, goes back to the loop. The loop asks
``before_instruction`` of whom the breakpoint is: stop, #DB, or none of this vCPU's, and then the instruction runs in
step mode, whose blocks look for nothing. A new armed address drops the pages of code that have something at its
offset. So a breakpoint costs nothing but a comparison at one instruction in four thousand.

**Watchpoints.** A page with watched bytes has no tags in the vCPU's TLB, so that every access comes to ``bounce`` or ``access``,
which call ``watch_access`` with the exact bytes. Inside a block of several instructions the access is not made: the
instruction runs again in step mode, and there it is noted in ``watch_hits``. The loop looks at that behind every
instruction and event, and ``report_hits`` stops or raises #DB. What an instruction noted that then faults, or that
waits for a device's answer and runs again, is forgotten.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import offsets_changed
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush, tlb_flush_page
from cython.cimports.pyhyve.vmm.soft.state import (
    CR4_DE,
    CS,
    EXC_DB,
    EXIT_DEBUG,
    EXIT_IN,
    EXIT_MMIO_READ,
    EXIT_RDMSR,
    FLAG_RF,
    HIT_DEBUGGER,
    HIT_REGISTERS,
    LOW32,
    MAX_ARMED,
    MODE_CODE64,
    PAGE_MASK,
    SHADOW_SS,
    SHADOW_STI,
    Watch,
    raise_fault,
)
from cython.cimports.pyhyve.vmm.soft.threads import lock_code, unlock_code

# --- what is armed ----------------------------------------------------------------------------------------------------


def apply_changes(s, changed):
    """The armed addresses have changed: what follows for the code at the page offsets ``changed``."""
    i: uint32_t
    some: uint64_t = 0
    for i in range(64):
        some |= changed[i]
    if some:
        offsets_changed(s.engine, s, changed)


def set_offset(offsets, va):
    """Set the bit of a page offset."""
    offsets[(va >> 6) & 63] |= cython.cast(uint64_t, 1) << (va & 63)


def arm(e, va, changed):
    """Let translated code look for ``va``."""
    i: uint32_t
    for i in range(e.armed_count):
        if e.armed[i] == va:
            return
    if e.armed_count == MAX_ARMED:
        # What debug registers have named since the debugger's points last changed. All that is wanted now fits.
        drop_unwanted(e, changed)
    e.armed[e.armed_count] = va
    e.armed_count += 1
    set_offset(e.armed_offsets, va)
    set_offset(changed, va)


def drop_unwanted(e, changed):
    """Disarm what no vCPU wants any more."""
    i: uint32_t = 0
    n: uint32_t
    wanted: cython.bint
    while i < e.armed_count:
        wanted = False
        for n in range(e.cpu_count):
            if has_point(e.cpus[n], e.armed[i]) or register_breaks(e.cpus[n], e.armed[i]):
                wanted = True
        if wanted:
            i += 1
            continue
        set_offset(changed, e.armed[i])
        e.armed_count -= 1
        e.armed[i] = e.armed[e.armed_count]
    for i in range(64):
        e.armed_offsets[i] = 0
    for i in range(e.armed_count):
        set_offset(e.armed_offsets, e.armed[i])


def armed_at(e, offset, found):
    i: uint32_t
    n: uint32_t = 0
    if not is_armed(e, offset):
        return 0
    for i in range(e.armed_count):
        if e.armed[i] & 0xFFF == offset:
            if n == MOST_CHECKS:
                return MOST_CHECKS + 1
            found[n] = e.armed[i]
            n += 1
    return n


def has_point(s, va):
    """Has the debugger a breakpoint at linear ``va`` on this vCPU?"""
    i: uint32_t
    for i in range(s.point_count):
        if s.points[i] == va:
            return True
    return False


def points_changed(s):
    i: uint32_t
    changed: uint64_t[64]
    for i in range(64):
        changed[i] = 0
    lock_code(s.engine, s)  # translation reads the list
    drop_unwanted(s.engine, changed)
    for i in range(s.point_count):
        arm(s.engine, s.points[i], changed)
    unlock_code(s.engine)
    apply_changes(s, changed)
    debug_update(s)
    tlb_flush(s, False)


# --- the guest's debug registers --------------------------------------------------------------------------------------


def register_enabled(s, i):
    return (s.dr[7] >> (2 * i) & 3) != 0


def register_kind(s, i):
    return s.dr[7] >> (16 + 4 * i) & 3


def register_size(s, i):
    code: uint32_t = s.dr[7] >> (18 + 4 * i) & 3
    if code == 2:
        return 8
    return code + 1


def register_breaks(s, va):
    """Which of DR0-DR3 are instruction breakpoints at ``va``, as bits of DR6."""
    i: cython.int
    found: uint32_t = 0
    for i in range(4):
        if s.dr[i] == va and register_enabled(s, i) and register_kind(s, i) == RW_EXECUTE:
            found |= 1 << i
    return found


def debug_update(s):
    i: cython.int
    kind: uint32_t
    watch: cython.pointer(Watch)
    changed: uint64_t[64]
    s.watch_count = s.watch_own
    if s.dr[7] & DR7_ENABLED == 0:
        return
    for i in range(64):
        changed[i] = 0
    lock_code(s.engine, s)  # translation reads the list
    for i in range(4):
        if not register_enabled(s, i):
            continue
        kind = register_kind(s, i)
        if kind == RW_EXECUTE:
            arm(s.engine, s.dr[i], changed)
        elif kind != RW_PORT:
            watch = cython.address(s.watches[s.watch_count])
            s.watch_count += 1
            watch.size = register_size(s, i)
            watch.gva = s.dr[i] & ~cython.cast(uint64_t, watch.size - 1)
            watch.kinds = WATCH_WRITE if kind == RW_WRITE else WATCH_WRITE | WATCH_READ
            watch.hit = 1 << i
            tlb_flush_page(s, watch.gva)
    unlock_code(s.engine)
    apply_changes(s, changed)


def port_access(s, port, size):
    """I/O breakpoints (CR4.DE)."""
    i: cython.int
    length: uint32_t
    if (s.cr4 & CR4_DE) == 0:
        return
    for i in range(4):
        if register_enabled(s, i) and register_kind(s, i) == RW_PORT:
            length = register_size(s, i)
            if overlaps(s.dr[i] & ~cython.cast(uint64_t, length - 1), length, port, size):
                s.watch_hits |= 1 << i


def raise_debug(s, bits):
    """#DB for the conditions ``bits`` of DR6; several at one instruction are one exception."""
    if s.exc_pending == 0:
        s.dr[6] &= ~cython.cast(uint64_t, DR6_TRAPS)
        raise_fault(s, EXC_DB, False, 0)
    s.dr[6] |= bits


def branch_step(s, va, length):
    """Does IA32_DEBUGCTL.BTF hold back the single-step trap of an instruction that was no branch?"""
    now: uint64_t = s.rip if s.mode & MODE_CODE64 else (s.rip + s.segments[CS].base) & LOW32
    return (s.debugctl & DEBUGCTL_BTF) != 0 and now == va + length


# --- watched bytes ----------------------------------------------------------------------------------------------------


def overlaps(a, a_size, b, b_size):
    return a - b < b_size or b - a < a_size


def watched_page(s, page):
    i: uint32_t
    found: uint32_t = 0
    for i in range(s.watch_count):
        if overlaps(page, 4096, s.watches[i].gva, s.watches[i].size):
            found |= s.watches[i].kinds
    return found


def watch_covers(s, va, size, kind):
    i: uint32_t
    for i in range(s.watch_count):
        if s.watches[i].kinds & kind and overlaps(va, size, s.watches[i].gva, s.watches[i].size):
            return True
    return False


def note_hits(s, va, size, kind):
    i: uint32_t
    watch: cython.pointer(Watch)
    for i in range(s.watch_count):
        watch = cython.address(s.watches[i])
        if watch.kinds & kind and overlaps(va, size, watch.gva, watch.size):
            if watch.hit == HIT_DEBUGGER and s.watch_hits & HIT_DEBUGGER == 0:
                s.watch_hit = watch.gva
            s.watch_hits |= watch.hit


def watch_access(s, va, first, va2, rest, kind):
    if s.host_pc != 0 and not s.stepping:
        return watch_covers(s, va, first, kind) or (rest != 0 and watch_covers(s, va2, rest, kind))
    note_hits(s, va, first, kind)
    if rest:
        note_hits(s, va2, rest, kind)
    return False


# --- in the loop ------------------------------------------------------------------------------------------------------


def report_hits(s):
    """Something watched was touched. True: leave to Python (the exit is filled)."""
    if s.exc_pending and s.exc_vector != EXC_DB:
        s.watch_hits = 0  # the instruction has faulted: it was not executed
        return False
    if s.watch_hits & HIT_REGISTERS and s.inhibit != SHADOW_SS:
        raise_debug(s, s.watch_hits & HIT_REGISTERS)
        s.watch_hits &= HIT_DEBUGGER
    if s.watch_hits & HIT_DEBUGGER:
        s.watch_hits &= HIT_REGISTERS
        s.exit.kind = EXIT_DEBUG
        s.exit.address = s.watch_hit
        s.exit.value = 1
        return True
    return False


def pass_over(s, va):
    """The vCPU goes on from a stop: if a point is there the instruction comes first, then interrupts."""
    if s.halted or not has_point(s, va):
        s.passing = 0
    elif s.inhibit == 0:
        s.inhibit = SHADOW_STI


def before_instruction(s, va):
    """A breakpoint is armed at this page offset: RUN, STEP, STOP or TRAP."""
    found: uint64_t[MOST_CHECKS]
    bits: uint32_t
    n: uint32_t
    i: uint32_t
    if not s.passing and has_point(s, va):
        s.exit.kind = EXIT_DEBUG
        s.exit.value = 0
        return STOP
    if (s.flags_system & FLAG_RF) == 0 and s.inhibit != SHADOW_SS:
        bits = register_breaks(s, va)
        if bits:
            raise_debug(s, bits)
            return TRAP
    n = armed_at(s.engine, va & 0xFFF, found)
    if n > MOST_CHECKS:
        return STEP
    for i in range(n):
        if found[i] == va:
            return STEP
    return RUN


def left_to_python(s, va, now, trap):
    """A helper left. ``va`` was the instruction's linear address, ``now`` is where it goes on."""
    if s.exit.kind == EXIT_IN or s.exit.kind == EXIT_RDMSR or s.exit.kind == EXIT_MMIO_READ:
        s.watch_hits = 0  # it waits for an answer and runs again
        return
    if trap and (s.debugctl & DEBUGCTL_BTF) == 0:
        s.trap_after = 1
    if s.step_exit:
        s.step_after = 1
    if now != va:
        s.passing = 0


def interrupt_held(s):
    """Does an interrupt wait because the debugger steps? Else every step of a stopped guest would be into a handler."""
    if not s.step_exit or s.halted or s.steps_held >= MOST_HELD:
        s.steps_held = 0
        return False
    s.steps_held += 1
    return True
