"""The local APIC of each vCPU.

Document: Intel SDM Vol. 3A chapter 11 (xAPIC, x2APIC in 11.12, the timer in 11.5.4, message-signalled interrupts in
11.11).

An interrupt enters through ``lapic_deliver_msi`` (from a device or the I/O APIC model, on any thread) or through the
interrupt command register of another vCPU. ``distribute`` finds the vCPUs that the destination names, ``deliver``
sets a bit in IRR (or an event in ``pending``), and ``wake`` makes the vCPU look: it tells emitted code to come out,
and a sleeping thread to go on. The vCPU asks ``lapic_deliverable`` and takes the vector with ``lapic_accept``. The
end of a level-triggered interrupt goes into ``eoi_vectors``, from where the machine's I/O APIC hears of it.

The timer counts the engine's APIC clock (``apic_hz``) and is never ticked: its registers say when it began and when
it ends, in the host's TSC, and counts are computed when they are read. One thread for the machine, ``timer_loop``,
sleeps until the earliest ``deadline`` and sets PENDING_TIMER; the vCPU then calls ``lapic_timer_expired``, which
interrupts and arms the next period on the grid of the first, leaving out those that are past.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_flush
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.physical import PHYSICAL
from cython.cimports.pyhyve.vmm.soft.state import (
    ATOMIC,
    DONE,
    LOW32,
    PENDING_DRAIN,
    PENDING_EXTINT,
    PENDING_INIT,
    PENDING_INTERRUPT,
    PENDING_NMI,
    PENDING_TIMER,
    CpuState,
    Engine,
    __atomic_exchange_n,
    __atomic_fetch_and,
    __atomic_fetch_or,
    __atomic_load_n,
    gp,
)
from cython.cimports.pyhyve.vmm.soft.cpuid import R_ECX, feature


def chip(s):
    return cython.cast(cython.pointer[Lapic], s.lapic)


def scale(value, multiplier, divisor):
    """value * multiplier / divisor without overflow, for multiplier * divisor < 2^64."""
    return value // divisor * multiplier + value % divisor * multiplier // divisor


# Life


def lapic_create(s):
    s.lapic = calloc(1, cython.sizeof(Lapic))
    if s.lapic == cython.NULL:
        return -1
    lapic_reset(s, False)
    return 0


def lapic_destroy(s):
    free(s.lapic)
    s.lapic = cython.NULL


def lapic_reset(s, init):
    """Power-up and INIT leave the same (11.4.7.1); IA32_APIC_BASE is not touched."""
    a: cython.pointer[Lapic] = chip(s)
    i: cython.int
    for i in range(8):
        a.irr[i] = a.isr[i] = a.tmr[i] = 0
    a.tpr = a.ldr = 0
    a.dfr = LOW32
    a.svr = 0xFF
    a.esr = a.esr_new = 0
    a.icr_low = a.icr_high = 0
    for i in range(LVT_COUNT):
        a.lvt[i] = LVT_MASKED
    if s.index == 0 and not init:
        # Firmware leaves the boot processor so: the PIC reaches it through LINT0.
        a.lvt[LVT_LINT0] = DELIVER_EXTINT << 8
    a.divide = 0
    a.initial = 0
    a.timer_base = a.timer_ticks = 0
    a.deadline_msr = 0
    a.deadline = a.signalled = 0
    if not init:
        a.waiting = WAITS_FROM_RESET if s.index != 0 else 0
    s.cr8 = 0


def lapic_started(s):
    """A start-up IPI sets the vCPU, which nobody runs, going: the INIT before it is done."""
    __atomic_exchange_n(cython.address(s.pending), 0, ATOMIC)
    if __atomic_exchange_n(cython.address(chip(s).waiting), 0, ATOMIC) == WAITS_FROM_INIT:
        # An INIT has come behind the start-up IPI: it is the next thing that happens.
        __atomic_exchange_n(cython.address(chip(s).waiting), WAITS_FROM_INIT, ATOMIC)
        __atomic_fetch_or(cython.address(s.pending), PENDING_INIT, ATOMIC)
    s.events = 0
    s.down = s.dead = 0
    lapic_reset(s, True)


# Priorities


def highest_bit(bits):
    """The highest set bit of 256, or -1."""
    i: cython.int
    word: uint32_t
    for i in range(7, -1, -1):
        word = __atomic_load_n(bits + i, ATOMIC)
        if word:
            return i * 32 + 31 - leading_zeros(word)
    return -1


def processor_priority(a):
    served: cython.int = highest_bit(a.isr)
    if served >= 0 and cython.cast(uint32_t, served & 0xF0) > (a.tpr & 0xF0):
        return served & 0xF0
    return a.tpr


def lapic_deliverable(s):
    a: cython.pointer[Lapic] = chip(s)
    vector: cython.int
    if s.apic_base & BASE_ENABLED == 0:
        return -1
    vector = highest_bit(a.irr)
    if vector >= 0 and cython.cast(uint32_t, vector & 0xF0) > (processor_priority(a) & 0xF0):
        return vector
    return -1


def lapic_accept(s):
    a: cython.pointer[Lapic] = chip(s)
    vector: cython.int = lapic_deliverable(s)
    if vector >= 0:
        __atomic_fetch_and(cython.address(a.irr[vector >> 5]), ~(cython.cast(uint32_t, 1) << (vector & 31)), ATOMIC)
        a.isr[vector >> 5] |= cython.cast(uint32_t, 1) << (vector & 31)
    return vector


def look_again(s):
    """A priority changed: let the vCPU, whose own doing it was, see what may be delivered now."""
    if lapic_deliverable(s) >= 0:
        __atomic_fetch_or(cython.address(s.pending), PENDING_INTERRUPT, ATOMIC)


def lapic_get_tpr(s):
    return chip(s).tpr >> 4


def lapic_set_tpr(s, cr8):
    chip(s).tpr = (cr8 & 15) << 4
    s.cr8 = cr8 & 15
    look_again(s)


def end_of_interrupt(s):
    a: cython.pointer[Lapic] = chip(s)
    vector: cython.int = highest_bit(a.isr)
    bit: uint32_t
    i: uint32_t
    if vector < 0:
        return
    bit = cython.cast(uint32_t, 1) << (vector & 31)
    a.isr[vector >> 5] &= ~bit
    if __atomic_load_n(cython.address(a.tmr[vector >> 5]), ATOMIC) & bit:
        for i in range(s.eoi_count):
            if s.eoi_vectors[i] == cython.cast(uint8_t, vector):
                break
        else:
            if s.eoi_count < 64:
                s.eoi_vectors[s.eoi_count] = cython.cast(uint8_t, vector)
                s.eoi_count += 1
        __atomic_fetch_or(cython.address(s.pending), PENDING_INTERRUPT, ATOMIC)
    look_again(s)


def lapic_extint_enabled(s):
    if s.apic_base & BASE_ENABLED == 0:
        return True
    return chip(s).lvt[LVT_LINT0] & (LVT_MASKED | LVT_DELIVERY) == DELIVER_EXTINT << 8


# Delivery


def wake(s, bits):
    __atomic_fetch_or(cython.address(s.pending), bits, ATOMIC)
    if s.sleeping:
        syscall(SYS_FUTEX, cython.address(s.pending), FUTEX_WAKE_PRIVATE, 1, cython.NULL, cython.NULL, 0)


def in_x2apic_mode(s):
    return s.apic_base & (BASE_ENABLED | BASE_X2APIC) == BASE_ENABLED | BASE_X2APIC


def software_enabled(s):
    return s.apic_base & BASE_ENABLED != 0 and chip(s).svr & SVR_ENABLED != 0


def error(s, bits):
    """An error for ESR, from any thread; the first since ESR was last written interrupts."""
    a: cython.pointer[Lapic] = chip(s)
    if __atomic_fetch_or(cython.address(a.esr_new), bits, ATOMIC) == 0:
        if a.lvt[LVT_ERROR] & LVT_MASKED == 0 and a.lvt[LVT_ERROR] & 0xFF > 15:
            accept_fixed(s, a.lvt[LVT_ERROR] & 0xFF, False)


def accept_fixed(s, vector, level):
    a: cython.pointer[Lapic] = chip(s)
    bit: uint32_t = cython.cast(uint32_t, 1) << (vector & 31)
    word: uint32_t = (vector >> 5) & 7
    if not software_enabled(s):
        return
    if vector < 16:
        error(s, ESR_RECEIVE_VECTOR)
        return
    # The trigger mode must be there before the interrupt can be taken.
    if level:
        __atomic_fetch_or(cython.address(a.tmr[word]), bit, ATOMIC)
    else:
        __atomic_fetch_and(cython.address(a.tmr[word]), ~bit, ATOMIC)
    __atomic_fetch_or(cython.address(a.irr[word]), bit, ATOMIC)
    wake(s, PENDING_INTERRUPT)


def deliver(sender, s, mode, vector, level):
    if mode == DELIVER_FIXED or mode == DELIVER_LOWEST:
        accept_fixed(s, vector, level)
    elif mode == DELIVER_NMI:
        wake(s, PENDING_NMI)
    elif mode == DELIVER_INIT:
        __atomic_exchange_n(cython.address(chip(s).waiting), 0 if s.apic_base & BASE_BSP else WAITS_FROM_INIT, ATOMIC)
        wake(s, PENDING_INIT)
    elif mode == DELIVER_SIPI:
        # Only a processor that waits for it takes a start-up IPI (9.4.4): systems send two. Its thread is started by
        # Python, which hears of it from the sender.
        if sender != cython.NULL and __atomic_exchange_n(cython.address(chip(s).waiting), 0, ATOMIC):
            s.sipi_vector = vector
            sender.sipi_targets |= cython.cast(uint32_t, 1) << s.index
            __atomic_fetch_or(cython.address(sender.pending), PENDING_DRAIN, ATOMIC)
    elif mode == DELIVER_EXTINT:
        wake(s, PENDING_EXTINT)


def logical_id(s):
    if in_x2apic_mode(s):
        return ((s.index >> 4) << 16) | (cython.cast(uint32_t, 1) << (s.index & 15))
    return chip(s).ldr


def addressed(s, destination, logical, broadcast):
    """Is this vCPU among those that the destination names? ``broadcast`` is all ones in the sender's width."""
    a: cython.pointer[Lapic] = chip(s)
    own: uint32_t
    if s.apic_base & BASE_ENABLED == 0:
        return False
    if destination == broadcast:
        return True
    if not logical:
        return destination == s.index
    own = logical_id(s)
    if in_x2apic_mode(s):
        return own >> 16 == destination >> 16 and own & destination & 0xFFFF != 0
    own >>= 24
    if a.dfr >> 28 == 0xF:
        return own & destination & 0xFF != 0
    # Cluster model: the high four bits name the cluster, the low ones its members.
    return own >> 4 == (destination >> 4) & 0xF and own & destination & 0xF != 0


def distribute(e, sender, mode, vector, level, destination, logical, broadcast):
    i: uint32_t
    s: cython.pointer[CpuState]
    best: cython.pointer[CpuState] = cython.NULL
    for i in range(e.cpu_count):
        s = e.cpus[i]
        if s == cython.NULL or s.lapic == cython.NULL or not addressed(s, destination, logical, broadcast):
            continue
        if mode != DELIVER_LOWEST:
            deliver(sender, s, mode, vector, level)
        elif software_enabled(s) and (
            best == cython.NULL or processor_priority(chip(s)) < processor_priority(chip(best))
        ):
            best = s
    if best != cython.NULL:
        deliver(sender, best, DELIVER_FIXED, vector, level)


def lapic_deliver_msi(e, address, data):
    if (address >> 20) & 0xFFF != MSI_PREFIX:
        return
    distribute(
        e,
        cython.NULL,
        (data >> 8) & 7,
        data & 0xFF,
        data & ICR_LEVEL != 0,
        (address >> 12) & 0xFF,
        address & 4 != 0,
        0xFF,
    )


def send_ipi(s, command, destination):
    """A write to the interrupt command register (11.6)."""
    e: cython.pointer[Engine] = s.engine
    mode: uint32_t = (command >> 8) & 7
    vector: uint32_t = command & 0xFF
    shorthand: uint32_t = command & ICR_SHORTHAND
    i: uint32_t
    if mode == DELIVER_SMI or mode == 3 or mode == DELIVER_EXTINT:
        return
    if mode == DELIVER_INIT and command & (ICR_ASSERT | ICR_LEVEL) == ICR_LEVEL:
        return  # the de-assert of old APICs
    if mode <= DELIVER_LOWEST and vector < 16:
        error(s, ESR_SEND_VECTOR)
        return
    if shorthand == 0:
        distribute(
            e,
            s,
            mode,
            vector,
            False,
            destination,
            command & ICR_LOGICAL != 0,
            BROADCAST_X2APIC if in_x2apic_mode(s) else 0xFF,
        )
        return
    if shorthand == ICR_SELF:
        deliver(s, s, mode, vector, False)
        return
    for i in range(e.cpu_count):
        if e.cpus[i] == cython.NULL or e.cpus[i].lapic == cython.NULL or e.cpus[i].apic_base & BASE_ENABLED == 0:
            continue
        if e.cpus[i] != s or shorthand == ICR_ALL:
            deliver(s, e.cpus[i], mode, vector, False)


# Local vector table


def lvt_valid(entry):
    """The bits that can be written: mask, vector, and what the entry has besides."""
    if entry == LVT_TIMER:
        return LVT_MASKED | 0xFF | TIMER_MODE
    if entry == LVT_LINT0 or entry == LVT_LINT1:
        return LVT_MASKED | 0xFF | LVT_DELIVERY | 0xA000  # polarity and trigger mode
    if entry == LVT_ERROR:
        return LVT_MASKED | 0xFF
    return LVT_MASKED | 0xFF | LVT_DELIVERY


def raise_lvt(s, entry):
    if chip(s).lvt[entry] & LVT_MASKED == 0:
        accept_fixed(s, chip(s).lvt[entry] & 0xFF, False)


def write_lvt(s, entry, value):
    a: cython.pointer[Lapic] = chip(s)
    old: uint32_t = a.lvt[entry]
    value &= lvt_valid(entry)
    if a.svr & SVR_ENABLED == 0:
        value |= LVT_MASKED
    a.lvt[entry] = value
    if entry == LVT_TIMER and (old ^ value) & TIMER_DEADLINE:
        # Between counting and deadline mode the timer is disarmed (11.5.4.1).
        a.initial = 0
        a.deadline_msr = 0
        set_deadline(s, 0)
    if entry == LVT_LINT0 and old & LVT_MASKED and value & LVT_MASKED == 0:
        __atomic_fetch_or(cython.address(s.pending), PENDING_EXTINT, ATOMIC)


def write_svr(s, value):
    a: cython.pointer[Lapic] = chip(s)
    i: cython.int
    a.svr = value & SVR_VALID
    if value & SVR_ENABLED == 0:
        for i in range(LVT_COUNT):
            a.lvt[i] |= LVT_MASKED


# Timer


def divisor(a):
    """The divide configuration register: bits 3, 1, 0 give 2, 4 ... 128, 1."""
    shift: uint32_t = (((a.divide >> 1) & 4) | (a.divide & 3)) + 1
    return cython.cast(uint64_t, 1) << (shift & 7)


def ticks_now(s):
    """Ticks of the APIC's clock since timer_base."""
    a: cython.pointer[Lapic] = chip(s)
    elapsed: int64_t = cython.cast(int64_t, native.rdtsc() - a.timer_base)
    if elapsed < 0:
        return 0
    return scale(cython.cast(uint64_t, elapsed), s.engine.apic_hz, s.engine.tsc_hz)


def current_count(s):
    a: cython.pointer[Lapic] = chip(s)
    by: uint64_t = divisor(a)
    now: uint64_t
    left: uint64_t
    period: uint64_t = a.initial * by
    if period == 0 or a.lvt[LVT_TIMER] & TIMER_DEADLINE:
        return 0
    now = ticks_now(s)
    if now < a.timer_ticks:
        left = a.timer_ticks - now
    elif a.lvt[LVT_TIMER] & TIMER_PERIODIC:
        left = period - (now - a.timer_ticks) % period
    else:
        return 0
    return cython.cast(uint32_t, (left + by - 1) // by)


def set_deadline(s, tsc):
    """Publish the next timer event. The timer thread is told only if it would sleep too long."""
    a: cython.pointer[Lapic] = chip(s)
    exchange64(cython.address(a.deadline), tsc, ATOMIC)
    if tsc != 0 and tsc < load64(cython.address(s.engine.timer_planned), ATOMIC):
        timer_poke(s.engine)


def arm_count(s):
    a: cython.pointer[Lapic] = chip(s)
    set_deadline(s, a.timer_base + scale(a.timer_ticks, s.engine.tsc_hz, s.engine.apic_hz) + 1)


def start_count(s, count):
    """Count down from ``count`` now."""
    a: cython.pointer[Lapic] = chip(s)
    if count == 0:
        set_deadline(s, 0)
        return
    a.timer_base = native.rdtsc()
    a.timer_ticks = count * divisor(a)
    arm_count(s)


def lapic_timer_expired(s):
    a: cython.pointer[Lapic] = chip(s)
    deadline: uint64_t = a.deadline
    period: uint64_t
    now: uint64_t
    # The timer thread's word counts too, so that clocks that differ a little between processors do not matter.
    if deadline == 0 or (native.rdtsc() < deadline and load64(cython.address(a.signalled), ATOMIC) != deadline):
        return
    if a.lvt[LVT_TIMER] & TIMER_DEADLINE:
        a.deadline_msr = 0
        set_deadline(s, 0)
    elif a.lvt[LVT_TIMER] & TIMER_PERIODIC and a.initial != 0:
        period = a.initial * divisor(a)
        now = ticks_now(s)
        # Leave out periods that are past or too close, but stay on the grid.
        a.timer_ticks += period
        if a.timer_ticks < now + FASTEST_PERIOD_NS:
            if period < FASTEST_PERIOD_NS:
                now += FASTEST_PERIOD_NS
            if a.timer_ticks < now:
                a.timer_ticks += (now - a.timer_ticks + period - 1) // period * period
        arm_count(s)
    else:
        set_deadline(s, 0)
    raise_lvt(s, LVT_TIMER)


def lapic_next_deadline(s):
    return chip(s).deadline


def lapic_deadline_read(s):
    return chip(s).deadline_msr


def lapic_deadline_write(s, tsc):
    a: cython.pointer[Lapic] = chip(s)
    deadline: int64_t
    if a.lvt[LVT_TIMER] & TIMER_MODE != TIMER_DEADLINE:
        return DONE
    a.deadline_msr = tsc
    if tsc == 0:
        set_deadline(s, 0)
        return DONE
    deadline = cython.cast(int64_t, tsc - s.tsc_offset)
    if deadline <= 0 or cython.cast(uint64_t, deadline) <= native.rdtsc():
        # Due already: no need to ask the timer thread.
        a.deadline_msr = 0
        set_deadline(s, 0)
        raise_lvt(s, LVT_TIMER)
    else:
        set_deadline(s, cython.cast(uint64_t, deadline))
    return DONE


def timer_poke(e):
    fetch_add(cython.address(e.timer_wake), 1, ATOMIC)
    syscall(SYS_FUTEX, cython.address(e.timer_wake), FUTEX_WAKE_PRIVATE, 1, cython.NULL, cython.NULL, 0)


def timer_loop(e):
    seen: uint32_t
    i: uint32_t
    now: uint64_t
    deadline: uint64_t
    earliest: uint64_t
    sleep: uint64_t
    s: cython.pointer[CpuState]
    a: cython.pointer[Lapic]
    timeout: Timespec
    name: cython.p_char = b"timer"
    syscall(SYS_PRCTL, PR_SET_NAME, name, 0, 0, 0)
    syscall(SYS_PRCTL, PR_SET_TIMERSLACK, 1, 0, 0, 0)
    while True:
        # Whoever sets a deadline after `seen` was read and before the plan is known pokes in any case.
        seen = __atomic_load_n(cython.address(e.timer_wake), ATOMIC)
        exchange64(cython.address(e.timer_planned), NEVER, ATOMIC)
        if __atomic_load_n(cython.address(e.timer_stop), ATOMIC):
            return
        now = native.rdtsc()
        earliest = NEVER
        for i in range(e.cpu_count):
            s = e.cpus[i]
            if s == cython.NULL or s.lapic == cython.NULL:
                continue
            a = chip(s)
            deadline = load64(cython.address(a.deadline), ATOMIC)
            if deadline == 0 or deadline == a.signalled:
                continue
            if deadline <= now:
                exchange64(cython.address(a.signalled), deadline, ATOMIC)
                wake(s, PENDING_TIMER)
            elif deadline < earliest:
                earliest = deadline
        sleep = LONGEST_SLEEP_NS
        if earliest != NEVER:
            now = native.rdtsc()
            sleep = 0
            if earliest > now:
                sleep = scale(earliest - now, NS_PER_S, e.tsc_hz) + 1
            if sleep > LONGEST_SLEEP_NS:
                sleep = LONGEST_SLEEP_NS
        exchange64(cython.address(e.timer_planned), earliest, ATOMIC)
        if sleep == 0:
            continue
        timeout.seconds = cython.cast(int64_t, sleep // NS_PER_S)
        timeout.nanoseconds = cython.cast(int64_t, sleep % NS_PER_S)
        syscall(
            SYS_FUTEX,
            cython.address(e.timer_wake),
            FUTEX_WAIT_PRIVATE,
            seen,
            cython.address(timeout),
            cython.NULL,
            0,
        )


# Registers


def register_read(s, offset):
    """The 32-bit register at ``offset``, a multiple of 16; those that are not there read 0."""
    a: cython.pointer[Lapic] = chip(s)
    if APIC_ISR <= offset < APIC_TMR:
        return a.isr[(offset >> 4) & 7]
    if APIC_TMR <= offset < APIC_IRR:
        return __atomic_load_n(cython.address(a.tmr[(offset >> 4) & 7]), ATOMIC)
    if APIC_IRR <= offset < APIC_ESR:
        return __atomic_load_n(cython.address(a.irr[(offset >> 4) & 7]), ATOMIC)
    if APIC_LVT_TIMER <= offset <= APIC_LVT_ERROR:
        return a.lvt[(offset - APIC_LVT_TIMER) >> 4]
    if offset == APIC_ID:
        return s.index if in_x2apic_mode(s) else s.index << 24
    if offset == APIC_VERSION:
        return VERSION_VALUE
    if offset == APIC_TPR:
        return a.tpr
    if offset == APIC_PPR:
        return processor_priority(a)
    if offset == APIC_LDR:
        return logical_id(s)
    if offset == APIC_DFR:
        return a.dfr
    if offset == APIC_SVR:
        return a.svr
    if offset == APIC_ESR:
        return a.esr
    if offset == APIC_ICR_LOW:
        return a.icr_low
    if offset == APIC_ICR_HIGH:
        return a.icr_high
    if offset == APIC_TIMER_INITIAL:
        return a.initial
    if offset == APIC_TIMER_CURRENT:
        return current_count(s)
    if offset == APIC_TIMER_DIVIDE:
        return a.divide
    return 0


def register_write(s, offset, value):
    a: cython.pointer[Lapic] = chip(s)
    count: uint32_t
    if APIC_LVT_TIMER <= offset <= APIC_LVT_ERROR:
        write_lvt(s, (offset - APIC_LVT_TIMER) >> 4, value)
    elif offset == APIC_TPR:
        a.tpr = value & 0xFF
        s.cr8 = a.tpr >> 4
        look_again(s)
    elif offset == APIC_EOI:
        end_of_interrupt(s)
    elif offset == APIC_LDR:
        a.ldr = value & (LOW32 - 0xFFFFFF)
    elif offset == APIC_DFR:
        a.dfr = value | 0xFFFFFFF
    elif offset == APIC_SVR:
        write_svr(s, value)
    elif offset == APIC_ESR:
        a.esr = __atomic_exchange_n(cython.address(a.esr_new), 0, ATOMIC)
    elif offset == APIC_ICR_LOW:
        a.icr_low = value & ICR_VALID
        send_ipi(s, a.icr_low, a.icr_high >> 24)
    elif offset == APIC_ICR_HIGH:
        a.icr_high = value
    elif offset == APIC_TIMER_INITIAL:
        if a.lvt[LVT_TIMER] & TIMER_DEADLINE == 0:
            a.initial = value
            start_count(s, value)
    elif offset == APIC_TIMER_DIVIDE:
        count = current_count(s)
        a.divide = value & 0xB
        if count != 0:
            start_count(s, count)


def lapic_read(s, offset):
    if (offset & 0xF) >= 4:
        return 0
    return register_read(s, offset & 0xFF0) >> (8 * (offset & 3))


def lapic_write(s, offset, value):
    if offset & 0xF == 0:
        register_write(s, offset, value)


def lapic_msr_read(s, index, value):
    offset: uint32_t = (index & 0xFF) << 4
    if not in_x2apic_mode(s):
        return gp(s, 0)
    if offset == APIC_ICR_LOW:
        value[0] = (cython.cast(uint64_t, chip(s).icr_high) << 32) | chip(s).icr_low
        return DONE
    if (
        offset == APIC_ID
        or offset == APIC_VERSION
        or offset == APIC_TPR
        or offset == APIC_PPR
        or offset == APIC_LDR
        or offset == APIC_SVR
        or APIC_ISR <= offset <= APIC_ESR
        or APIC_LVT_TIMER <= offset <= APIC_TIMER_CURRENT
        or offset == APIC_TIMER_DIVIDE
    ):
        value[0] = register_read(s, offset)
        return DONE
    return gp(s, 0)


def lapic_msr_write(s, index, value):
    a: cython.pointer[Lapic] = chip(s)
    offset: uint32_t = (index & 0xFF) << 4
    valid: uint64_t
    if not in_x2apic_mode(s):
        return gp(s, 0)
    if offset == APIC_ICR_LOW:
        if value & (LOW32 - ICR_VALID):
            return gp(s, 0)
        a.icr_low = cython.cast(uint32_t, value)
        a.icr_high = cython.cast(uint32_t, value >> 32)
        send_ipi(s, a.icr_low, a.icr_high)
        return DONE
    if offset == APIC_SELF_IPI:
        if value > 0xFF:
            return gp(s, 0)
        send_ipi(s, ICR_SELF | cython.cast(uint32_t, value), 0)
        return DONE
    if offset == APIC_TPR:
        valid = 0xFF
    elif offset == APIC_EOI or offset == APIC_ESR:
        valid = 0
    elif offset == APIC_SVR:
        valid = SVR_VALID
    elif APIC_LVT_TIMER <= offset <= APIC_LVT_ERROR:
        valid = lvt_valid((offset - APIC_LVT_TIMER) >> 4) | 0x5000  # delivery status and remote IRR are read-only
    elif offset == APIC_TIMER_INITIAL:
        valid = LOW32
    elif offset == APIC_TIMER_DIVIDE:
        valid = 0xB
    else:
        return gp(s, 0)
    if value & ~valid:
        return gp(s, 0)
    register_write(s, offset, cython.cast(uint32_t, value))
    return DONE


def lapic_set_base(s, value):
    old: uint64_t = s.apic_base
    modes: uint64_t = value & (BASE_ENABLED | BASE_X2APIC)
    before: uint64_t = old & (BASE_ENABLED | BASE_X2APIC)
    if value & BASE_RESERVED_LOW or value & ~cython.cast(uint64_t, PHYSICAL):
        return gp(s, 0)
    if modes == BASE_X2APIC or (modes & BASE_X2APIC and not feature(s.engine, 1, R_ECX, 21)):
        return gp(s, 0)
    # From x2APIC mode only off; into it only from xAPIC mode (figure 11-27).
    if before & BASE_X2APIC and modes == BASE_ENABLED:
        return gp(s, 0)
    if before == 0 and modes & BASE_X2APIC:
        return gp(s, 0)
    s.apic_base = (value & ~cython.cast(uint64_t, BASE_BSP)) | (old & BASE_BSP)
    if before and not modes:
        lapic_reset(s, True)
    if modes & BASE_X2APIC and not before & BASE_X2APIC:
        chip(s).icr_high = 0
    if s.apic_base != old:
        tlb_flush(s, False)
    return DONE


# Saving and restoring


def lapic_get_page(s, page):
    a: cython.pointer[Lapic] = chip(s)
    i: uint32_t
    for i in range(256):
        page[i] = 0 if i & 3 else register_read(s, i << 2)
    page[APIC_ESR >> 2] = a.esr


def lapic_set_page(s, page):
    a: cython.pointer[Lapic] = chip(s)
    i: uint32_t
    for i in range(8):
        a.isr[i] = page[(APIC_ISR >> 2) + 4 * i]
        a.tmr[i] = page[(APIC_TMR >> 2) + 4 * i]
        a.irr[i] = page[(APIC_IRR >> 2) + 4 * i]
    # Vectors below 16 are reserved.
    a.isr[0] &= LOW32 - 0xFFFF
    a.irr[0] &= LOW32 - 0xFFFF
    a.tpr = page[APIC_TPR >> 2] & 0xFF
    s.cr8 = a.tpr >> 4
    a.ldr = page[APIC_LDR >> 2] & (LOW32 - 0xFFFFFF)
    a.dfr = page[APIC_DFR >> 2] | 0xFFFFFFF
    a.svr = page[APIC_SVR >> 2] & SVR_VALID
    a.esr = page[APIC_ESR >> 2]
    a.esr_new = 0
    a.icr_low = page[APIC_ICR_LOW >> 2] & ICR_VALID
    a.icr_high = page[APIC_ICR_HIGH >> 2]
    for i in range(LVT_COUNT):
        a.lvt[i] = page[(APIC_LVT_TIMER >> 2) + 4 * i] & lvt_valid(i)
    a.divide = page[APIC_TIMER_DIVIDE >> 2] & 0xB
    a.initial = page[APIC_TIMER_INITIAL >> 2]
    a.deadline_msr = 0
    start_count(s, page[APIC_TIMER_CURRENT >> 2])
    __atomic_fetch_or(cython.address(s.pending), PENDING_INTERRUPT | PENDING_EXTINT, ATOMIC)
