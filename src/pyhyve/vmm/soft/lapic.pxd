# The local APIC (SDM Vol. 3A chapter 11): registers in both modes, priorities, timer, IPIs.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine


cdef extern from *:
    # GCC builtins for operand types that state.pxd does not declare.
    uint64_t load64 "__atomic_load_n"(uint64_t *where, int order) noexcept nogil
    uint64_t exchange64 "__atomic_exchange_n"(uint64_t *where, uint64_t value, int order) noexcept nogil
    int leading_zeros "__builtin_clz"(uint32_t value) noexcept nogil
    uint32_t fetch_add "__atomic_fetch_add"(uint32_t *where, uint32_t value, int order) noexcept nogil


cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...) noexcept


cdef enum:
    SYS_FUTEX = 202
    SYS_PRCTL = 157
    FUTEX_WAIT_PRIVATE = 128
    FUTEX_WAKE_PRIVATE = 129
    PR_SET_NAME = 15
    PR_SET_TIMERSLACK = 29

    # Registers, as offsets in the xAPIC page (SDM Vol. 3A table 11-1).
    APIC_ID = 0x20
    APIC_VERSION = 0x30
    APIC_TPR = 0x80
    APIC_APR = 0x90
    APIC_PPR = 0xA0
    APIC_EOI = 0xB0
    APIC_RRD = 0xC0
    APIC_LDR = 0xD0
    APIC_DFR = 0xE0
    APIC_SVR = 0xF0
    APIC_ISR = 0x100
    APIC_TMR = 0x180
    APIC_IRR = 0x200
    APIC_ESR = 0x280
    APIC_ICR_LOW = 0x300
    APIC_ICR_HIGH = 0x310
    APIC_LVT_TIMER = 0x320
    APIC_LVT_ERROR = 0x370
    APIC_TIMER_INITIAL = 0x380
    APIC_TIMER_CURRENT = 0x390
    APIC_TIMER_DIVIDE = 0x3E0
    APIC_SELF_IPI = 0x3F0

    # Local vector table, in register order.
    LVT_TIMER = 0
    LVT_THERMAL = 1
    LVT_PERFORMANCE = 2
    LVT_LINT0 = 3
    LVT_LINT1 = 4
    LVT_ERROR = 5
    LVT_COUNT = 6
    LVT_MASKED = 0x10000
    LVT_DELIVERY = 0x700

    TIMER_MODE = 0x60000
    TIMER_ONE_SHOT = 0
    TIMER_PERIODIC = 0x20000
    TIMER_DEADLINE = 0x40000

    # Delivery modes (bits 8-10 of ICR, LVT and MSI data).
    DELIVER_FIXED = 0
    DELIVER_LOWEST = 1
    DELIVER_SMI = 2
    DELIVER_NMI = 4
    DELIVER_INIT = 5
    DELIVER_SIPI = 6
    DELIVER_EXTINT = 7

    ICR_LOGICAL = 0x800
    ICR_ASSERT = 0x4000
    ICR_LEVEL = 0x8000
    ICR_SHORTHAND = 0xC0000
    ICR_SELF = 0x40000
    ICR_ALL = 0x80000
    ICR_OTHERS = 0xC0000
    ICR_VALID = 0xCCFFF

    SVR_ENABLED = 0x100
    SVR_VALID = 0x3FF             # vector, enable, focus checking

    # Lapic.waiting
    WAITS_FROM_RESET = 1
    WAITS_FROM_INIT = 2

    ESR_SEND_VECTOR = 0x20
    ESR_RECEIVE_VECTOR = 0x40
    ESR_ILLEGAL_REGISTER = 0x80

    BASE_BSP = 0x100
    BASE_X2APIC = 0x400
    BASE_ENABLED = 0x800
    BASE_RESERVED_LOW = 0x2FF     # bits 0-9 but for BSP

    VERSION_VALUE = 0x50014       # six LVT entries, integrated APIC
    BROADCAST_X2APIC = 0xFFFFFFFF
    MSI_PREFIX = 0xFEE            # bits 20-31 of an MSI's address
    NS_PER_S = 1000000000
    FASTEST_PERIOD_NS = 20000     # a periodic timer does not interrupt more often than this (at 1 GHz: ticks)
    LONGEST_SLEEP_NS = 100000000000
    NEVER = 0xFFFFFFFFFFFFFFFF


cdef struct Lapic:
    uint32_t irr[8]               # set by any thread
    uint32_t tmr[8]
    uint32_t isr[8]               # from here on the vCPU's own, others only look
    uint32_t tpr, ldr, dfr, svr
    uint32_t esr, esr_new         # as read; what the next write to ESR will show (set by any thread)
    uint32_t icr_low, icr_high
    uint32_t lvt[6]
    uint32_t waiting              # for a start-up IPI: WAITS_*; set when INIT is sent, cleared by the first SIPI (any thread)
    uint32_t divide               # the register
    uint32_t initial              # timer's initial count
    # The count runs from timer_base (TSC); it reaches zero timer_ticks of the APIC's clock later.
    uint64_t timer_base
    uint64_t timer_ticks
    uint64_t deadline_msr         # IA32_TSC_DEADLINE (guest TSC)
    uint64_t deadline             # host TSC of the next timer event, 0: none. The timer thread looks at it
    uint64_t signalled            # the deadline that the timer thread has told


cdef struct Timespec:
    int64_t seconds
    int64_t nanoseconds


cdef int lapic_create(CpuState *s) noexcept nogil            # 0, or -1 without memory
cdef void lapic_destroy(CpuState *s) noexcept nogil
cdef void lapic_reset(CpuState *s, bint init) noexcept nogil
cdef void lapic_started(CpuState *s) noexcept nogil
# xAPIC page access: offset 0-0xFFF. 32-bit registers on 16-byte borders.
cdef uint32_t lapic_read(CpuState *s, uint32_t offset) noexcept nogil
# A start-up IPI makes the vCPU leave behind the instruction (sipi_targets).
cdef void lapic_write(CpuState *s, uint32_t offset, uint32_t value) noexcept nogil
# x2APIC registers by MSR 0x800-0x8FF, checks included. DONE or FAULT.
cdef int lapic_msr_read(CpuState *s, uint32_t index, uint64_t *value) noexcept nogil
cdef int lapic_msr_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
cdef int lapic_set_base(CpuState *s, uint64_t value) noexcept nogil     # IA32_APIC_BASE with its mode rules
cdef uint64_t lapic_get_tpr(CpuState *s) noexcept nogil                  # CR8
cdef void lapic_set_tpr(CpuState *s, uint64_t cr8) noexcept nogil
cdef int lapic_deadline_write(CpuState *s, uint64_t tsc) noexcept nogil  # IA32_TSC_DEADLINE
cdef uint64_t lapic_deadline_read(CpuState *s) noexcept nogil
# The highest vector that may be delivered now by priority (not looking at IF), or -1.
cdef int lapic_deliverable(CpuState *s) noexcept nogil
cdef int lapic_accept(CpuState *s) noexcept nogil            # take it: IRR to ISR; returns the vector, or -1
cdef bint lapic_extint_enabled(CpuState *s) noexcept nogil   # LVT0 in ExtINT mode and unmasked (or APIC disabled)
cdef void lapic_timer_expired(CpuState *s) noexcept nogil    # PENDING_TIMER was seen: fire if really due, rearm
cdef uint64_t lapic_next_deadline(CpuState *s) noexcept nogil  # host TSC of the next timer event, 0 for none
# Any thread: a message-signalled interrupt enters the machine.
cdef void lapic_deliver_msi(Engine *e, uint64_t address, uint32_t data) noexcept nogil
cdef void wake(CpuState *s, uint32_t bits) noexcept nogil    # set pending bits and wake a halted vCPU (futex)
# The timer thread's body: waits for the earliest deadline of all vCPUs and sets PENDING_TIMER, until e.timer_stop.
cdef void timer_loop(Engine *e) noexcept nogil
# Make the timer thread look again (also after setting e.timer_stop).
cdef void timer_poke(Engine *e) noexcept nogil
# The registers as the first 1024 bytes of the xAPIC page, for saving and restoring; the vCPU is not running.
cdef void lapic_get_page(CpuState *s, uint32_t *page) noexcept nogil
cdef void lapic_set_page(CpuState *s, uint32_t *page) noexcept nogil

# Used inside this module only.
cdef Lapic *chip(CpuState *s) noexcept nogil
cdef uint64_t scale(uint64_t value, uint64_t multiplier, uint64_t divisor) noexcept nogil
cdef int highest_bit(uint32_t *bits) noexcept nogil
cdef uint32_t processor_priority(Lapic *a) noexcept nogil
cdef void look_again(CpuState *s) noexcept nogil
cdef bint in_x2apic_mode(CpuState *s) noexcept nogil
cdef bint software_enabled(CpuState *s) noexcept nogil
cdef void error(CpuState *s, uint32_t bits) noexcept nogil
cdef void accept_fixed(CpuState *s, uint32_t vector, bint level) noexcept nogil
cdef void deliver(CpuState *sender, CpuState *s, uint32_t mode, uint32_t vector, bint level) noexcept nogil
cdef bint addressed(CpuState *s, uint32_t destination, bint logical, uint32_t broadcast) noexcept nogil
cdef void distribute(Engine *e, CpuState *sender, uint32_t mode, uint32_t vector, bint level, uint32_t destination,
                     bint logical, uint32_t broadcast) noexcept nogil
cdef void send_ipi(CpuState *s, uint32_t command, uint32_t destination) noexcept nogil
cdef void end_of_interrupt(CpuState *s) noexcept nogil
cdef void raise_lvt(CpuState *s, int entry) noexcept nogil
cdef void write_lvt(CpuState *s, int entry, uint32_t value) noexcept nogil
cdef uint32_t lvt_valid(int entry) noexcept nogil
cdef void write_svr(CpuState *s, uint32_t value) noexcept nogil
cdef uint32_t logical_id(CpuState *s) noexcept nogil
cdef uint32_t register_read(CpuState *s, uint32_t offset) noexcept nogil
cdef void register_write(CpuState *s, uint32_t offset, uint32_t value) noexcept nogil
cdef uint64_t divisor(Lapic *a) noexcept nogil
cdef uint64_t ticks_now(CpuState *s) noexcept nogil
cdef uint32_t current_count(CpuState *s) noexcept nogil
cdef void start_count(CpuState *s, uint32_t count) noexcept nogil
cdef void set_deadline(CpuState *s, uint64_t tsc) noexcept nogil
cdef void arm_count(CpuState *s) noexcept nogil
