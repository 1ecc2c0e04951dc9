# Exceptions and interrupts through the IDT in every mode, IRET.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.segments cimport dpl, in_long_mode
from pyhyve.vmm.soft.state cimport CpuState, Segment

# Deliver the exception recorded in s.exc_* (s.rip is the faulting instruction's). Handles double and triple fault:
# DONE, or LEAVE with EXIT_TRIPLE_FAULT. Sets CR2 for #PF. rip, cs, flags and stack are the handler's afterwards.
cdef int deliver_exception(CpuState *s) noexcept nogil
# Deliver an external interrupt or NMI; clears s.halted.
cdef int deliver_interrupt(CpuState *s, uint8_t vector) noexcept nogil
cdef int deliver_nmi(CpuState *s) noexcept nogil


cdef enum:
    # Error code bits (SDM Vol. 3A 6.13).
    ERROR_EXT = 1
    ERROR_IDT = 2

    # Where an event comes from: INT n, INT3 and INTO respect the gate's DPL; the others set EXT in error codes.
    SOURCE_HARDWARE = 0
    SOURCE_SOFTWARE = 1

    # How exceptions combine to a double fault (SDM Vol. 3A table 6-5).
    CLASS_BENIGN = 0
    CLASS_CONTRIBUTORY = 1
    CLASS_PAGE_FAULT = 2
    CLASS_DOUBLE_FAULT = 3

    IRET_COMMON = 0x4DD5     # CF PF AF ZF SF TF DF OF NT
    IRET_WIDE = 0x250000     # RF AC ID
    IRET_VIRTUAL = 0x180000  # VIF VIP


# Everything between a vector and its handler's first instruction. FAULT: an exception is recorded and nothing has
# changed, but for a switched task.
cdef int enter(CpuState *s, uint8_t vector, int source, uint64_t rip, uint64_t flags, bint has_error,
               uint32_t error) noexcept nogil

# Used inside this module only.
cdef int enter_long(CpuState *s, uint8_t vector, int source, uint64_t rip, uint64_t flags, bint has_error,
                    uint32_t error) noexcept nogil
cdef int enter_protected(CpuState *s, uint8_t vector, int source, uint64_t rip, uint64_t flags, bint has_error,
                         uint32_t error) noexcept nogil
cdef int enter_real(CpuState *s, uint8_t vector, uint64_t rip, uint64_t flags) noexcept nogil
cdef int enter_8086(CpuState *s, uint64_t where, uint64_t rip, uint64_t flags) noexcept nogil
cdef int is_redirected(CpuState *s, uint8_t vector, bint *own) noexcept nogil
cdef int enter_redirected(CpuState *s, uint8_t vector, uint64_t rip) noexcept nogil
cdef int enter_task(CpuState *s, uint16_t selector, uint64_t rip, uint64_t flags, bint has_error,
                    uint32_t error) noexcept nogil
cdef int check_handler(CpuState *s, uint16_t selector, Segment *cs, uint64_t *address) noexcept nogil
cdef void begin_handler(CpuState *s, bint interrupt_gate) noexcept nogil
cdef int fault_class(uint8_t vector) noexcept nogil
cdef int software_interrupt(CpuState *s, Insn *insn, uint8_t vector) noexcept nogil
cdef void restore_flags(CpuState *s, uint64_t value, uint32_t size, int level) noexcept nogil
cdef int iret_real(CpuState *s, Insn *insn) noexcept nogil
cdef int iret_long(CpuState *s, Insn *insn) noexcept nogil
cdef int iret_protected(CpuState *s, Insn *insn) noexcept nogil
cdef int iret_vm86(CpuState *s, uint64_t sp, uint64_t rip, uint64_t cs, uint64_t flags) noexcept nogil
cdef int iret_task(CpuState *s, Insn *insn) noexcept nogil

cdef int iret(CpuState *s, Insn *insn) noexcept nogil
cdef int int_n(CpuState *s, Insn *insn) noexcept nogil
cdef int int3(CpuState *s, Insn *insn) noexcept nogil
cdef int into(CpuState *s, Insn *insn) noexcept nogil
cdef int int1(CpuState *s, Insn *insn) noexcept nogil
