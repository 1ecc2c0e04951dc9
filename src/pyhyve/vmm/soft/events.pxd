# Exceptions and interrupts through the IDT in every mode, IRET.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState

# Deliver the exception recorded in s.exc_* (s.rip is the faulting instruction's). Handles double and triple fault:
# DONE, or LEAVE with EXIT_TRIPLE_FAULT. Sets CR2 for #PF. rip, cs, flags and stack are the handler's afterwards.
cdef int deliver_exception(CpuState *s) noexcept nogil
# Deliver an external interrupt or NMI; clears s.halted.
cdef int deliver_interrupt(CpuState *s, uint8_t vector) noexcept nogil
cdef int deliver_nmi(CpuState *s) noexcept nogil
