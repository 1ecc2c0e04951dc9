# The code cache as the rest of the engine sees it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine

# Does this guest-physical page hold translated code? (Then stores to it must take the slow path.)
cdef bint has_code(Engine *e, uint64_t gpa) noexcept nogil
# `size` bytes at `gpa` (not crossing a page) are about to be written by vCPU `s` (NULL: by the VMM): drop what was
# translated from them. True if that is the block which runs, so that it must be left before the write.
cdef bint code_written(Engine *e, CpuState *s, uint64_t gpa, uint32_t size) noexcept nogil
