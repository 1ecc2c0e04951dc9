# Task switches.

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    # Why a task is switched to.
    SWITCH_JUMP = 0
    SWITCH_CALL = 1          # nests: CALL, and interrupts through a task gate
    SWITCH_RETURN = 2


# Task switch (SDM Vol. 3A 7.3) to the TSS `selector`, SWITCH_*; rip is what the old task goes on with. DONE, or
# FAULT, which may already be in the new task.
cdef int task_switch(CpuState *s, uint16_t selector, int kind, uint64_t rip) noexcept nogil

# Used inside this module only.
cdef int load_task_segment(CpuState *s, int seg, uint16_t selector) noexcept nogil
cdef int task_fault(CpuState *s, uint8_t vector, uint16_t selector) noexcept nogil
cdef int save_task(CpuState *s, uint64_t base, bint wide, uint64_t rip, uint64_t flags) noexcept nogil
