# KVM's paravirtual clock.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine


cdef enum:
    MSR_WALL_CLOCK = 0x4B564D00
    MSR_SYSTEM_TIME = 0x4B564D01
    LEAF_FEATURES = 0x40000101
    FEATURE_CLOCK = 3            # EAX: KVM_FEATURE_CLOCKSOURCE2

    TIME_ENABLED = 1             # of MSR_SYSTEM_TIME
    TIME_STABLE = 0x100          # PVCLOCK_TSC_STABLE_BIT of `flags`, in the word that begins with the shift
    SECOND_NS = 1000000000


# Are the MSRs there?
cdef bint pvclock_announced(Engine *e) noexcept nogil
# DONE, or FAULT with #GP.
cdef int pvclock_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
# Tell the guest's memory the time again: the TSC has been changed.
cdef void pvclock_update(CpuState *s) noexcept nogil

# Used inside this module only.
cdef void put(CpuState *s, uint64_t gpa, uint32_t value) noexcept nogil
cdef uint64_t scale(Engine *e, uint32_t *shift) noexcept nogil
cdef void write_time(CpuState *s, uint64_t gpa) noexcept nogil
cdef void write_wall(CpuState *s, uint64_t gpa) noexcept nogil
