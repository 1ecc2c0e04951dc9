# Crossings: direct jumps and calls that lead to another page.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.blocks cimport CodeCache
from pyhyve.vmm.soft.state cimport CpuState, Engine

cdef enum:
    NO_ROOM = 0xFFFFFFFF
    MOST_ALIASES = 32


# The number of a new crossing, or NO_ROOM. With the code lock, as the next.
cdef uint32_t new_crossing(CodeCache *c) noexcept nogil
# Where it leads while a vCPU has not found its target.
cdef void start_crossing(Engine *e, uint32_t number, uint64_t cold) noexcept nogil
# Let all crossings of a mode slot lead to their cold parts again.
cdef void clear_crossings(CpuState *s, uint32_t slot) noexcept nogil
# Once, for a vCPU that is new.
cdef void crossings_init(CpuState *s) noexcept nogil
# Code at guest-physical `gpa` is about to be found at linear `va` by the jump cache of the mode that runs.
cdef void note_home(CpuState *s, uint64_t gpa, uint64_t va) noexcept nogil

cdef uint64_t home_of(CpuState *s, uint32_t user, uint64_t va) noexcept nogil
