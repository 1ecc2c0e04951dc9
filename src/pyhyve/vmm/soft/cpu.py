"""The loop of one vCPU.

``cpu_run`` gives the host's vector registers to the guest and goes from block to block until something needs Python.
In between it carries out what emitted code cannot: look-ups and translation, chaining, helpers, exceptions, interrupts,
HLT. Device writes that emitted code made are queued and told to Python first, in order; a device read runs its
instruction again, alone in a block of its own, once the answer is there.
"""

import cython
from cython.cimports.libc.stdint import int32_t, uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import (
    NO_PAGE,
    Block,
    CodeCache,
    Link,
    MapEntry,
    block_at,
    block_find,
    claim_pages,
    code_flush,
    known_slot,
    link_to,
    map_at,
    mode_slot,
    retire,
)
from cython.cimports.pyhyve.vmm.soft.crossings import clear_crossings, note_home
from cython.cimports.pyhyve.vmm.soft.debug import (
    DR6_BS,
    STEP,
    STOP,
    TRAP,
    before_instruction,
    branch_step,
    interrupt_held,
    is_armed,
    left_to_python,
    pass_over,
    raise_debug,
    report_hits,
)
from cython.cimports.pyhyve.vmm.soft.decode import ops
from cython.cimports.pyhyve.vmm.soft.evex import masked_access
from cython.cimports.pyhyve.vmm.soft.events import deliver_exception, deliver_interrupt, deliver_nmi
from cython.cimports.pyhyve.vmm.soft.flags import virtual_due
from cython.cimports.pyhyve.vmm.soft.helpers import table
from cython.cimports.pyhyve.vmm.soft.insn import Insn
from cython.cimports.pyhyve.vmm.soft.jumps import code_page, find_jump, note_jump
from cython.cimports.pyhyve.vmm.soft.lapic import (
    lapic_accept,
    lapic_deliverable,
    lapic_extint_enabled,
    lapic_next_deadline,
    lapic_timer_expired,
)
from cython.cimports.pyhyve.vmm.soft.access import close_store
from cython.cimports.pyhyve.vmm.soft.addresses import check_alignment, linear
from cython.cimports.pyhyve.vmm.soft.bounce import ALONE, CODE_WRITE, bounce_finish, tlb_fill
from cython.cimports.pyhyve.vmm.soft.physical import ram_host
from cython.cimports.pyhyve.vmm.soft.tlb import lookup, refill
from cython.cimports.pyhyve.vmm.soft.walks import PAGE_GLOBAL
from cython.cimports.pyhyve.vmm.soft.native import FPU_ERROR, native
from cython.cimports.pyhyve.vmm.soft.stack import in_guard, use_signal_stack
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR4_OSXMMEXCPT,
    CS,
    DONE,
    EXC_AC,
    EXC_DE,
    EXC_GP,
    EXC_MF,
    EXC_SS,
    EXC_UD,
    EXC_XM,
    EXIT_DEBUG,
    EXIT_EOI,
    EXIT_FAILED,
    EXIT_HALTED,
    EXIT_HLT,
    EXIT_INTACK,
    EXIT_KICKED,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_NONE,
    EXIT_SIPI,
    EXIT_SPINDOWN,
    EXIT_STEP,
    FAULT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VIP,
    HIT_DEBUGGER,
    LEAVE,
    LOW32,
    MMU_KERNEL,
    MMU_USER,
    MODE_ALIGN,
    MODE_CODE64,
    MODE_CODE32,
    MODE_SINGLY,
    MODE_STEP,
    MODE_USER,
    PAGE_MASK,
    PENDING_DRAIN,
    PENDING_EXTINT,
    PENDING_INIT,
    PENDING_INTERRUPT,
    PENDING_KICK,
    PENDING_NMI,
    PENDING_TIMER,
    SHADOW_SS,
    SS,
    TLB_SIZE,
    CpuState,
    Engine,
    TlbEntry,
    __atomic_exchange_n,
    __atomic_fetch_or,
    __atomic_load_n,
    gp,
    is_canonical,
    raise_fault,
)
from cython.cimports.pyhyve.vmm.soft.stubs import (
    SLOW_MASKED,
    SLOW_SEGMENTED,
    SLOW_WAITING,
    X_CHAIN,
    X_EVENT,
    X_HELPER,
    X_HOST_FAULT,
    X_LOOKUP,
    X_RAISE,
    X_SLOW,
)
from cython.cimports.pyhyve.vmm.soft.modes import reset_cpu, update_mode
from cython.cimports.pyhyve.vmm.soft.msr import APIC_BSP
from cython.cimports.pyhyve.vmm.soft.sites import clear_sites
from cython.cimports.pyhyve.vmm.soft.threads import (
    lock_code,
    park,
    start_running,
    stop_running,
    unlock_code,
    world_go,
    world_stop,
)
from cython.cimports.pyhyve.vmm.soft.walks import swap32
from cython.cimports.pyhyve.vmm.soft.translate import MAX_INSNS, crosses_page, translate

# Synchronous host signals in emitted code
SIGILL = cython.declare(cython.int, 4)
SIGTRAP = cython.declare(cython.int, 5)
SIGBUS = cython.declare(cython.int, 7)
SIGFPE = cython.declare(cython.int, 8)
SIGSEGV = cython.declare(cython.int, 11)

region_start = cython.declare(uint64_t[REGIONS])
region_end = cython.declare(uint64_t[REGIONS])
region_stub = cython.declare(uint64_t[REGIONS])
old_actions = cython.declare(sigaction_s[32])
installed = cython.declare(cython.bint, False)
# XSTATE_BV 0: XRSTOR from it puts x87, SSE and AVX in their initial state. 64 bytes of room to align it.
clean_area = cython.declare(uint8_t[1152])


def fsgsbase_allowed():
    """Whether WRGSBASE may be used in user mode (AT_HWCAP2 bit 1)."""
    return (getauxval(26) & 2) != 0


# --- host faults ------------------------------------------------------------------------------------------------------


def on_host_fault(signum, info, context):
    """A synchronous signal: if it comes from a block, make the block leave; else let it do what it did before us."""
    uc: cython.pointer(ucontext_t) = cython.cast(cython.pointer(ucontext_t), context)
    pc: uint64_t = cython.cast(uint64_t, uc.uc_mcontext.gregs[16])
    s: cython.pointer(CpuState)
    i: cython.int
    for i in range(REGIONS):
        if region_start[i] and region_start[i] <= pc < region_end[i]:
            s = native.current()
            if signum == SIGSEGV and in_guard(s, cython.cast(uint64_t, info.si_addr)):
                uc.uc_mcontext.gregs[15] = cython.cast(cython.longlong, s.stack_base)  # REG_RSP: too many calls
                return
            s.fault_signal = signum
            s.fault_trap = cython.cast(uint32_t, uc.uc_mcontext.gregs[20])  # REG_TRAPNO: the exception's vector
            s.fault_pc = pc
            uc.uc_mcontext.gregs[16] = cython.cast(cython.longlong, region_stub[i])
            return
    sigaction(signum, cython.address(old_actions[signum]), cython.NULL)


def install_signals():
    global installed
    action: sigaction_s
    i: cython.int
    signals: cython.int[4]
    if installed:
        return
    signals[0] = SIGILL
    signals[1] = SIGBUS
    signals[2] = SIGFPE
    signals[3] = SIGSEGV
    action.sa_sigaction = on_host_fault
    action.sa_flags = 4 | 0x40000000 | 0x08000000  # SA_SIGINFO, SA_NODEFER, SA_ONSTACK
    sigemptyset(cython.address(action.sa_mask))
    for i in range(4):
        sigaction(signals[i], cython.address(action), cython.address(old_actions[signals[i]]))
    installed = True


def watch_region(start, end, stub):
    """Faults at host addresses in ``[start, end)`` are the guest's. False if there are too many machines."""
    i: cython.int
    install_signals()
    for i in range(REGIONS):
        if region_start[i] == 0:
            region_end[i] = end
            region_stub[i] = stub
            region_start[i] = start
            return True
    return False


def unwatch_region(start):
    i: cython.int
    for i in range(REGIONS):
        if region_start[i] == start:
            region_start[i] = 0


def handle_host_fault(s):
    """Turn a host signal into the guest's exception. False if it is none: then the exit is filled."""
    locate(s, s.fault_pc)
    s.bounce_active = 0  # the store that the buffer was for has not happened
    if (s.fault_trap == EXC_GP or s.fault_trap == EXC_SS) and not s.stepping:
        s.step_once = 1  # an empty Site may have let an address pass that is none: by itself the instruction tells
        return True
    if s.fault_trap == EXC_XM and (s.cr4 & CR4_OSXMMEXCPT) == 0:
        s.fault_trap = EXC_UD  # SDM Vol. 3A 2.5, OSXMMEXCPT
    if (s.fault_trap == EXC_DE or s.fault_trap == EXC_UD or s.fault_trap == EXC_MF or s.fault_trap == EXC_XM
            or s.fault_trap == EXC_GP or s.fault_trap == EXC_AC):  # fmt: skip
        raise_fault(s, s.fault_trap, s.fault_trap == EXC_GP or s.fault_trap == EXC_AC, 0)
        return True
    s.exit.kind = EXIT_FAILED
    s.exit.address = s.fault_pc
    s.exit.value = s.fault_signal
    s.exit.size = s.fault_trap
    return False


# --- slow paths of emitted code ---------------------------------------------------------------------------------------


def locate(s, host_pc):
    """Set rip to the instruction that the host code before ``host_pc`` belongs to."""
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), s.engine.code)
    b: cython.pointer(Block) = block_at(c, host_pc)
    entry: cython.pointer(MapEntry)
    if b == cython.NULL:
        return
    entry = map_at(b, host_pc)
    set_linear(s, s.page_va + entry.guest)


def slow_access(s, va, what, host_pc):
    status: cython.int = DONE
    size: uint32_t = what & 0xFFFF
    access: uint32_t = (what >> 16) & 7
    addend: uint64_t = 0
    insn_segment: uint32_t = (what >> 20) & 7
    s.host_pc = host_pc
    s.in_block = 1
    s.bounce_active = 0
    s.bounce_mask = 0
    if s.mmio_writes >= 8:
        # Tell Python of the queued writes before there are more than fit.
        locate(s, host_pc - 1)
        s.exit.kind = EXIT_NONE
        s.slow_status = LEAVE
        s.host_pc = s.in_block = 0
        return 0
    if what & SLOW_MASKED:
        addend = masked_access(s, va, what, cython.address(status))
    elif what & SLOW_SEGMENTED:
        status = linear(s, insn_segment, va, size, access & 3, cython.address(va))
        s.scratch[0] = va
    elif s.mode & MODE_ALIGN:
        status = check_alignment(s, va, size, access)
    if status == DONE and what & SLOW_MASKED == 0:
        addend = tlb_fill(s, va, size, access, cython.address(status))
    s.slow_status = status
    if status != DONE:
        locate(s, host_pc - 1)
        if status == FAULT and s.exc_vector == EXC_GP and insn_segment == SS and s.mode & MODE_CODE64:
            s.exc_vector = EXC_SS
        if status == FAULT and what & SLOW_MASKED == 0 and what & SLOW_WAITING and native.fnstsw() & FPU_ERROR:
            raise_fault(s, EXC_MF, False, 0)
    s.host_pc = s.in_block = 0
    return addend


def span_access(s, va, what):
    """Is all of a span (``spans``) in one page of memory that may be accessed so, as far as the TLB can be brought to know?

    Nothing is written: a page that is to be marked dirty first is none. ``slow_status`` says DONE or FAULT; no exception
    is recorded.
    """
    t: cython.pointer[TlbEntry] = cython.address(s.tlb[s.mmu_mode][(va >> 12) & (TLB_SIZE - 1)])
    page: uint64_t = va & PAGE_MASK
    host: uint64_t = 0
    gpa: uint64_t = 0
    s.slow_status = FAULT
    if (va & 0xFFF) + (what & 0xFFFF) > 4096:
        return 0
    if t.read_tag != page:
        s.count_tlb_miss += 1
        s.in_block = 1
        if lookup(s, va, ACCESS_READ, s.mmu_mode, cython.address(host), cython.address(gpa)) != DONE:
            s.exc_pending = 0
        s.in_block = 0
    if t.read_tag != page:
        return 0
    if what >> 16 & ACCESS_WRITE and t.write_tag != page and not refill(s, page, ACCESS_WRITE, s.mmu_mode):
        return 0
    s.slow_status = DONE
    return t.addend


def slow_finish(s):
    s.in_block = 1
    bounce_finish(s)
    s.in_block = 0
    if s.mmio_writes or s.eoi_count or s.exit.kind:
        __atomic_fetch_or(cython.address(s.pending), PENDING_DRAIN, 5)


# --- finding code -----------------------------------------------------------------------------------------------------


def linear_rip(s):
    if s.mode & MODE_CODE64:
        return s.rip
    return (s.rip + s.segments[CS].base) & LOW32


def set_linear(s, va):
    if s.mode & MODE_CODE64:
        s.rip = va
    elif s.mode & MODE_CODE32:
        s.rip = (va - s.segments[CS].base) & LOW32
    else:
        s.rip = (va - s.segments[CS].base) & 0xFFFF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def leave_unfetched(s: cython.pointer(CpuState), gpa: uint64_t) -> cython.int:
    """The guest runs where there is no RAM."""
    s.exit.kind = EXIT_FAILED
    s.exit.address = gpa
    s.exit.value = 0
    s.exit.size = 0
    return LEAVE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def next_code_page(s: cython.pointer(CpuState), va: uint64_t, user: cython.int, gpa2: cython.pointer(uint64_t)) -> cython.int:
    """The guest-physical page behind that of ``va``, into which an instruction reaches."""
    flags: uint32_t = 0
    gpa: uint64_t = 0
    following: uint64_t = (va & PAGE_MASK) + 4096
    if not s.mode & MODE_CODE64:
        following &= LOW32
    elif not is_canonical(following):
        return gp(s, 0)
    if code_page(s, following, user, cython.address(gpa), cython.address(flags)) != DONE:
        return FAULT
    if flags & PAGE_GLOBAL == 0:
        s.code_local = 1
    if ram_host(s.engine, gpa, False) == 0:
        return leave_unfetched(s, gpa)
    gpa2[0] = gpa & PAGE_MASK
    return DONE


def find_block(s, kind):
    """The block at rip, translated if need be; ``kind`` is 0, MODE_STEP or MODE_SINGLY.

    NULL: an exception is recorded, or the exit is filled.
    """
    e: cython.pointer(Engine) = s.engine
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    va: uint64_t = linear_rip(s)
    gpa: uint64_t = 0
    gpa2: uint64_t = NO_PAGE
    flags: uint32_t = 0
    host: uint64_t
    b: cython.pointer(Block) = cython.NULL
    user: cython.int = MMU_USER if s.mode & MODE_USER else cython.cast(cython.int, MMU_KERNEL)
    avail: uint32_t
    mode: uint32_t = s.mode | kind
    s.count_lookup += 1
    if s.mode & MODE_CODE64:
        if not is_canonical(va):
            gp(s, 0)
            return cython.NULL
    elif s.rip > s.segments[CS].limit:
        gp(s, 0)
        return cython.NULL
    while True:
        # All of it again where the cache has been flushed: the memory map may have changed meanwhile.
        choose_slot(s)
        if code_page(s, va, user, cython.address(gpa), cython.address(flags)) != DONE:
            return cython.NULL
        s.code_local = flags & PAGE_GLOBAL == 0
        host = ram_host(e, gpa, False)
        if host == 0:
            leave_unfetched(s, gpa)
            return cython.NULL
        avail = 4096 - (gpa & 0xFFF)
        b = block_find(c, gpa, mode)
        if b != cython.NULL and b.gpa2 == NO_PAGE:
            return b
        gpa2 = NO_PAGE
        if avail < 15 and crosses_page(cython.cast(cython.pointer(cython.const[uint8_t]), host), avail, mode):
            if next_code_page(s, va, user, cython.address(gpa2)) != DONE:
                return cython.NULL
        if b != cython.NULL and b.gpa2 == gpa2:
            return b
        b = make_block(s, gpa, gpa2, mode)
        if b != cython.NULL:
            return b


def make_block(s, gpa, gpa2, mode):
    """Translate the block at ``gpa``, unless another vCPU has done so meanwhile. NULL: look again.

    Then the code is not what it was, somebody has to go on first, or the cache has been flushed.
    """
    e: cython.pointer(Engine) = s.engine
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    b: cython.pointer(Block)
    code: uint8_t[COPIED_CODE]
    avail: uint32_t = 4096 - (gpa & 0xFFF)
    start: uint64_t = native.rdtsc()
    changed: cython.bint = False
    lock_code(e, s)
    b = block_find(c, gpa, mode)
    if b != cython.NULL and b.gpa2 != gpa2:
        retire(c, b)
        b = cython.NULL
    claimed: cython.int = claim_pages(e, s, gpa, gpa2) if b == cython.NULL else 0
    changed = claimed > 0
    if b == cython.NULL and claimed == 0:
        # From a copy: a store by another vCPU or a device may come at any time.
        copy_code(e, gpa, gpa2, code)
        changed = (avail < 15 and crosses_page(code, avail, mode)) != (gpa2 != NO_PAGE)
        if not changed:
            b = translate(e, s, gpa, gpa2, code, avail if gpa2 == NO_PAGE else 15, mode)
    unlock_code(e)
    if b == cython.NULL and not changed:
        flush_cache(s)
    s.tsc_translate += native.rdtsc() - start
    return b


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy_code(e: cython.pointer(Engine), gpa: uint64_t, gpa2: uint64_t, code: cython.pointer(uint8_t)) -> cython.void:
    """The bytes at ``gpa`` as far as a block can reach, up to the page's end or 15 of them into page ``gpa2``."""
    first: uint32_t = 4096 - (gpa & 0xFFF)
    if gpa2 != NO_PAGE:
        native.copy_up(code, cython.cast(cython.p_void, ram_host(e, gpa, False)), first)
        native.copy_up(code + first, cython.cast(cython.p_void, ram_host(e, gpa2, False)), 15 - first)
        return
    if first > COPIED_CODE - 15:
        first = COPIED_CODE - 15
    native.copy_up(code, cython.cast(cython.p_void, ram_host(e, gpa, False)), first)


def flush_cache(s):
    """The cache is full, or the mode slots are used up: begin anew. At a block border."""
    e: cython.pointer(Engine) = s.engine
    if s.alone or world_stop(e, s):
        lock_code(e, s)
        code_flush(e)
        unlock_code(e)
        s.count_code_flush += 1
    if s.alone == 0:
        world_go(e)


def choose_slot(s):
    """Have ``mode_slot`` be the slot of the jump caches for the mode of ``s``. A flush takes the slots away."""
    slot: cython.int
    while s.mode != s.slot_mode:
        slot = known_slot(cython.cast(cython.pointer(CodeCache), s.engine.code), s.mode)
        if slot >= 0:
            s.mode_slot = cython.cast(uint32_t, slot)
            s.slot_mode = s.mode
            return
        lock_code(s.engine, s)
        slot = mode_slot(s.engine, s.mode)
        unlock_code(s.engine)
        if slot < 0:
            flush_cache(s)
            continue
        s.mode_slot = cython.cast(uint32_t, slot)
        s.slot_mode = s.mode


# --- events -----------------------------------------------------------------------------------------------------------


def leave_with(s, kind, address, value):
    s.exit.kind = kind
    s.exit.address = address
    s.exit.value = value
    s.exit.size = 0
    return True


def take_pending(s):
    """Move what other threads have asked for to ``events``. PENDING_BORDER is answered by the border that follows."""
    bits: uint32_t = s.pending
    while True:
        if bits & (PENDING_NMI | PENDING_INIT):
            __atomic_exchange_n(cython.address(s.dead), 0, 5)  # before the bit is gone: see ``nobody_left``
        if swap32(cython.address(s.pending), cython.address(bits), 0, False, 5, 5):
            break
    if bits & PENDING_TIMER:
        lapic_timer_expired(s)
        bits |= PENDING_INTERRUPT
    s.events |= bits & (
        PENDING_KICK | PENDING_INTERRUPT | PENDING_NMI | PENDING_EXTINT | PENDING_INIT | PENDING_DRAIN
    )


def settle(s):
    """Deliver what may be delivered now. True: leave to Python (the exit is filled)."""
    vector: cython.int
    if s.events & PENDING_DRAIN:
        s.events &= ~cython.cast(uint32_t, PENDING_DRAIN)
        if s.exit.kind:
            return True
    if s.sipi_targets:
        return start_other(s)
    if s.eoi_count:
        s.eoi_count -= 1
        return leave_with(s, EXIT_EOI, s.eoi_vectors[s.eoi_count], 0)
    if s.mmio_writes:
        return leave_with(s, EXIT_NONE, 0, 0)
    if s.events & PENDING_KICK:
        s.events &= ~cython.cast(uint32_t, PENDING_KICK)
        return leave_with(s, EXIT_KICKED, 0, 0)
    if s.events & PENDING_INIT:
        s.events = 0
        reset_cpu(s, True)
        if begins_anew(s):
            if s.alone:
                s.alone = 0
                world_go(s.engine)
            return False
        __atomic_exchange_n(cython.address(s.down), 1, 5)
        return leave_with(s, EXIT_SPINDOWN, 0, 0)
    if s.inhibit:
        return False
    if s.intack_wait:
        s.intack_wait = 0
        s.answered = 0
        return deliver_interrupt(s, cython.cast(uint8_t, s.answer)) == LEAVE
    if s.events & PENDING_NMI and s.nmi_blocked == 0:
        s.events &= ~cython.cast(uint32_t, PENDING_NMI)
        return deliver_nmi(s) == LEAVE
    if s.events & (PENDING_INTERRUPT | PENDING_EXTINT) and not interrupt_held(s):
        vector = lapic_deliverable(s)
        if s.iff:
            if s.intr_line and lapic_extint_enabled(s):
                s.intack_wait = 1
                return leave_with(s, EXIT_INTACK, 0, 0)
            if vector >= 0:
                vector = lapic_accept(s)  # another thread may have sent one that comes before the one just seen
                return deliver_interrupt(s, cython.cast(uint8_t, vector)) == LEAVE
        if vector < 0 and s.intr_line == 0:
            s.events &= ~cython.cast(uint32_t, PENDING_INTERRUPT | PENDING_EXTINT)
        elif s.iff and vector < 0:
            # The PIC's line is up but LINT0 does not let it in: a change of LVT0 will say so.
            s.events &= ~cython.cast(uint32_t, PENDING_INTERRUPT | PENDING_EXTINT)
    return False


def begins_anew(s):
    """Does this vCPU go on behind an INIT without a start-up IPI? The boot processor does, at the reset vector (SDM Vol. 3A
    9.4.1), where firmware is there and it is not the only one that runs: the last one out is the machine's reset."""
    i: uint32_t
    if s.apic_base & APIC_BSP == 0 or ram_host(s.engine, RESET_VECTOR, False) == 0:
        return False
    for i in range(s.engine.cpu_count):
        if i != s.index and __atomic_load_n(cython.address(s.engine.cpus[i].down), 5) == 0:
            return True
    return False


def start_other(s):
    """Tell Python of one of the processors that this one's start-up IPI has started."""
    target: uint32_t = 0
    while (s.sipi_targets >> target) & 1 == 0:
        target += 1
    s.sipi_targets &= s.sipi_targets - 1
    if s.sipi_targets:
        s.events |= PENDING_DRAIN
    return leave_with(s, EXIT_SIPI, target, s.engine.cpus[target].sipi_vector)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def trap_follows(s: cython.pointer(CpuState), insn: cython.pointer(Insn)) -> cython.bint:
    """Does a single-step trap follow a helper's instruction that began with TF set (SDM Vol. 3B 17.3.1.4)?"""
    if s.inhibit and insn.opcode != 0xFB:
        return False  # MOV SS and POP SS hold it off; STI does not
    if s.flags_system & FLAG_TF:
        return True
    # POPF and IRET that clear TF are trapped still; an event or SYSCALL that clears it is not.
    return insn.map == 0 and (insn.opcode == 0x9D or insn.opcode == 0xCF)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def wakes(s: cython.pointer(CpuState)) -> cython.bint:
    """Is there an event that ends HLT?"""
    if s.events & (PENDING_KICK | PENDING_INIT) or (s.events & PENDING_NMI and s.nmi_blocked == 0):
        return True
    return s.iff != 0 and (lapic_deliverable(s) >= 0 or (s.intr_line != 0 and lapic_extint_enabled(s)))


def nobody_left(s):
    """Note that this vCPU has halted for good, as far as interrupts go. True if all have."""
    i: uint32_t
    other: cython.pointer(CpuState)
    if __atomic_exchange_n(cython.address(s.dead), 1, 5) == 1:
        return False  # said already, and the machine has gone on
    for i in range(s.engine.cpu_count):
        other = s.engine.cpus[i]
        if __atomic_load_n(cython.address(other.down), 5):
            continue
        if __atomic_load_n(cython.address(other.dead), 5) == 0:
            return False
        if __atomic_load_n(cython.address(other.pending), 5) & (PENDING_NMI | PENDING_INIT):
            return False  # it is about to be woken
    return True


def sleep_halted(s):
    """Wait for an event: a futex on ``pending``, with the local APIC's timer as its time limit."""
    deadline: uint64_t = lapic_next_deadline(s)
    now: uint64_t = native.rdtsc()
    spec: cython.long[2]
    ns: uint64_t = 1000000000
    ticks: uint64_t
    s.sleeping = 1
    if deadline:
        if deadline <= now:
            s.sleeping = 0
            __atomic_fetch_or(cython.address(s.pending), PENDING_TIMER, 5)
            return
        ticks = deadline - now
        if ticks < s.engine.tsc_hz:
            ns = ticks * 1000 / (s.engine.tsc_hz / 1000000) + 1
    if __atomic_load_n(cython.address(s.pending), 5) == 0:
        spec[0] = ns / 1000000000
        spec[1] = ns % 1000000000
        syscall(202, cython.address(s.pending), 128, 0, cython.address(spec[0]), cython.NULL, 0)
    s.sleeping = 0
    if deadline and native.rdtsc() >= deadline:
        __atomic_fetch_or(cython.address(s.pending), PENDING_TIMER, 5)


# --- the loop ---------------------------------------------------------------------------------------------------------


def run_loop(s):
    """Until the exit is filled. Vector registers hold guest state all the time, but for sleeping."""
    e: cython.pointer(Engine) = s.engine
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    b: cython.pointer(Block)
    insn: cython.pointer(Insn)
    enter: EnterFunction = cython.cast(EnterFunction, c.stubs.enter)
    why: cython.int
    status: cython.int
    va: uint64_t
    chain_to: uint64_t = 0
    code: uint64_t
    step: cython.bint
    trap: cython.bint
    taken: uint64_t
    length: uint32_t
    patch: cython.bint = False
    kind: uint32_t = 0
    patch_flushes: uint64_t = 0
    afresh: cython.bint = False
    while True:
        # Before the border is counted: a bit that is set later makes the vCPU come back here, one that is not was set
        # by a thread that sees this border.
        if s.pending:
            take_pending(s)
        s.border += 1
        if s.open_size:
            close_store(s)
        if s.alone and (s.step_once == 0 or s.exc_pending):
            s.alone = 0
            world_go(e)
        if e.stop and s.alone == 0:
            park(s)
        if s.watch_hits and report_hits(s):
            return True
        if s.exc_pending:
            s.count_exceptions += 1
            s.step_once = 0
            s.replay = 0
            s.passing = 0
            if deliver_exception(s) == LEAVE:
                return True
            if s.step_exit:
                return leave_with(s, EXIT_STEP, 0, 0)  # at the first instruction of the handler
        if s.passing:
            pass_over(s, linear_rip(s))
        if s.events or s.eoi_count or s.mmio_writes or s.intack_wait:
            taken = s.count_interrupts
            if settle(s):
                return True
            if s.exc_pending:
                continue
            if s.step_exit and taken != s.count_interrupts:
                return leave_with(s, EXIT_STEP, 0, 0)
        if s.watch_hits and s.inhibit != SHADOW_SS:
            continue
        if s.halted:
            if wakes(s):
                s.halted = 0
                continue
            if s.hlt_exit and s.iff == 0 and nobody_left(s):
                return leave_with(s, EXIT_HALTED, 0, 0)
            if s.pending == 0:
                native.xsave(s.xsave, e.xsave_mask)
                stop_running(s)
                sleep_halted(s)
                start_running(s)
                native.xrstor(s.xsave, e.xsave_mask)
            continue
        s.dead = 0
        if s.flags_system & FLAG_VIP and virtual_due(s):
            gp(s, 0)
            continue
        va = linear_rip(s)
        # An interrupt may have come between the unresolved jump and here: then nothing is chained.
        patch = patch and va == chain_to and s.mode == s.slot_mode
        choose_slot(s)
        trap = (s.flags_system & FLAG_TF) != 0
        step = trap or s.inhibit or s.step_once or s.step_exit or s.replay
        if is_armed(s.engine, va & 0xFFF):
            status = before_instruction(s, va)
            if status == STOP:
                return True
            if status == TRAP:
                continue
            step = step or status == STEP
        if step:
            b = find_block(s, MODE_STEP)
            code = b.code if b != cython.NULL else 0
        else:
            code = 0 if patch or afresh else find_jump(s, va)
            if not patch:
                kind = 0
            b = cython.NULL if code else find_block(s, kind)
            if b != cython.NULL:
                code = b.code
                if patch and b.gpa2 == NO_PAGE and patch_flushes == c.flushes:
                    # Let the jump that led here lead straight to the block from now on
                    chain(s, b)
                elif kind == 0:
                    note_home(s, b.gpa, va)
                    note_jump(s, va, code)
        patch = False
        afresh = False
        if code == 0:
            if s.exc_pending == 0:
                return True
            continue
        length = b.size if step else 0
        s.stepping = step
        s.mmio_cursor = 0
        s.flags_system &= ~cython.cast(uint64_t, FLAG_RF)
        if s.sites_used:
            clear_sites(s)
        s.count_enter += 1
        why = enter(s, code, va)
        if why == X_LOOKUP:
            set_linear(s, s.exit_target)
        elif why == X_CHAIN:
            set_linear(s, s.page_va + s.exit_target)
            chain_to = linear_rip(s)
            patch = True
            kind = MODE_SINGLY if cython.cast(cython.pointer(Link), s.exit_link).singly else 0
            patch_flushes = c.flushes
        elif why == X_EVENT:
            # An event, or the block has been retired: the jump cache may still name it.
            set_linear(s, s.page_va + s.exit_target)
            afresh = True
            if s.pending == 0:
                clear_crossings(s, s.mode_slot)  # so may one of these
            if step:
                s.step_once = 0
                continue
        elif why == X_HELPER:
            set_linear(s, s.page_va + s.exit_target)
            insn = cython.cast(cython.pointer(Insn), s.exit_insn)
            s.count_helper += 1
            if step:
                s.inhibit = 0
            status = table[ops[insn.op].helper](s, insn)
            if status == FAULT:
                continue
            if s.watch_hits and insn.rep and linear_rip(s) == s.page_va + s.exit_target:
                s.flags_system |= FLAG_RF  # between two iterations of a string instruction (17.3.1.1)
            if trap:
                trap = trap_follows(s, insn)
            if status == LEAVE:
                if s.exit.kind == EXIT_MMIO_READ:
                    s.replay = 1
                left_to_python(s, va, linear_rip(s), trap)
                return True
        elif why == X_RAISE:
            set_linear(s, s.page_va + s.exit_target)
            raise_fault(s, cython.cast(uint8_t, s.exit_insn), s.exit_insn == EXC_GP, 0)
            continue
        elif why == X_SLOW:
            status = s.slow_status
            if status == FAULT:
                continue
            if status == LEAVE:
                if s.exit.kind == EXIT_MMIO_READ:
                    s.replay = 1
                s.watch_hits = 0
                return True
            if status == ALONE:
                world_stop(e, s)
                s.alone = 1
            s.step_once = 1  # CODE_WRITE: the instruction that changes this block runs in a block of its own
            continue
        else:
            if handle_host_fault(s):
                continue
            return True
        if step:
            if why != X_HELPER:
                s.inhibit = 0
            s.step_once = 0
            s.replay = 0
            s.mmio_reads = 0
            if why == X_HELPER and insn.rep and linear_rip(s) == va:
                s.flags_system |= FLAG_RF
            else:
                s.passing = 0
            if trap and not branch_step(s, va, length):
                raise_debug(s, DR6_BS)
            if s.step_exit and (s.watch_hits & HIT_DEBUGGER) == 0:
                return leave_with(s, EXIT_STEP, 0, 0)


def chain(s, b):
    """Link the jump that left last with ``b``, if that is still there and the jump leads nowhere yet."""
    e: cython.pointer(Engine) = s.engine
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    link: cython.pointer(Link) = cython.cast(cython.pointer(Link), s.exit_link)
    origin: cython.pointer(Block) = block_at(c, link.site)
    if origin == cython.NULL or (origin.gpa ^ b.gpa) & PAGE_MASK or (origin.mode ^ b.mode) & ~MODE_SINGLY:
        return  # the page tables have changed between the two: elsewhere this jump leads elsewhere
    lock_code(e, s)
    if b.valid and rel32_at(c.rw + (link.site - c.rx)) == cython.cast(int32_t, link.cold - (link.site + 4)):
        link_to(c, link, b)
        s.count_chain += 1
    unlock_code(e)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rel32_at(where: cython.pointer(uint8_t)) -> int32_t:
    return cython.cast(cython.pointer(int32_t), where)[0]


def cpu_run(s):
    area: cython.pointer(uint8_t) = cython.cast(
        cython.pointer(uint8_t), (cython.cast(uint64_t, cython.address(clean_area[0])) + 63) & ~cython.cast(uint64_t, 63)
    )
    start: uint64_t
    # Device writes come first, one a call; then the exit that waited behind them.
    if s.mmio_write_cursor < s.mmio_writes:
        next_write(s)
        return
    s.mmio_writes = 0
    s.mmio_write_cursor = 0
    if s.held.kind:
        s.exit = s.held
        s.held.kind = EXIT_NONE
        return
    s.exit.kind = EXIT_NONE
    if s.replay and s.answered:
        s.mmio_read[s.mmio_reads - 1].value = s.answer
        s.answered = 0
    if s.exc_pending:
        s.trap_after = s.step_after = 0  # what the machine injects takes the place of the instruction's end
    if s.trap_after:
        s.trap_after = 0
        raise_debug(s, DR6_BS)
    if s.step_after:
        s.step_after = 0
        if s.step_exit and (s.watch_hits & HIT_DEBUGGER) == 0:
            s.passing = 1
            leave_with(s, EXIT_STEP, 0, 0)
            return
    if not fsgsbase_allowed():
        syscall(158, 0x1001, s)  # arch_prctl(ARCH_SET_GS)
    use_signal_stack()
    s.count_exits += 1
    start = native.rdtsc()
    start_running(s)
    native.xrstor(s.xsave, s.engine.xsave_mask)
    run_loop(s)
    native.xsave(s.xsave, s.engine.xsave_mask)
    if s.open_size:
        close_store(s)
    if s.alone:
        s.alone = 0
        world_go(s.engine)
    stop_running(s)
    native.xrstor(area, s.engine.xsave_mask)
    s.tsc_run += native.rdtsc() - start
    if s.exit.kind == EXIT_DEBUG or s.exit.kind == EXIT_STEP:
        s.passing = 1
    if s.mmio_writes:
        s.held = s.exit
        next_write(s)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def next_write(s: cython.pointer(CpuState)) -> cython.void:
    s.exit.kind = EXIT_MMIO_WRITE
    s.exit.address = s.mmio_write[s.mmio_write_cursor].gpa
    s.exit.value = s.mmio_write[s.mmio_write_cursor].value
    s.exit.size = s.mmio_write[s.mmio_write_cursor].size
    s.mmio_write_cursor += 1


clean_area[((64 - cython.cast(uint64_t, cython.address(clean_area[0])) % 64) % 64) + 24] = 0x80  # MXCSR 1F80h
clean_area[((64 - cython.cast(uint64_t, cython.address(clean_area[0])) % 64) % 64) + 25] = 0x1F
