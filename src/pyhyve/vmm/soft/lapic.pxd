# The local APIC (SDM Vol. 3A chapter 11): registers in both modes, priorities, timer, IPIs.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine

cdef int lapic_create(CpuState *s) noexcept nogil            # 0, or -1 without memory
cdef void lapic_destroy(CpuState *s) noexcept nogil
cdef void lapic_reset(CpuState *s, bint init) noexcept nogil
# xAPIC page access: offset 0-0xFFF. 32-bit registers on 16-byte borders.
cdef uint32_t lapic_read(CpuState *s, uint32_t offset) noexcept nogil
cdef int lapic_write(CpuState *s, uint32_t offset, uint32_t value) noexcept nogil   # DONE, or LEAVE (SIPI to Python)
# x2APIC registers by MSR 0x800-0x8FF, checks included. DONE, FAULT or LEAVE.
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
cdef uint64_t lapic_next_deadline(CpuState *s) noexcept nogil  # TSC of the next timer event, 0 for none
# Any thread: a message-signalled interrupt enters the machine.
cdef void lapic_deliver_msi(Engine *e, uint64_t address, uint32_t data) noexcept nogil
cdef void wake(CpuState *s, uint32_t bits) noexcept nogil    # set pending bits and wake a halted vCPU (futex)
# The timer thread's body: waits for the earliest deadline of all vCPUs and sets PENDING_TIMER, until e.timer_stop.
cdef void timer_loop(Engine *e) noexcept nogil
