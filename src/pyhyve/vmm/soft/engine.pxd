# The engine's face towards Python.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine, Segment

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **where, size_t alignment, size_t size) noexcept

cdef class SoftMachine:
    cdef Engine *e
    cdef readonly object provides
    cdef readonly object name
    cdef object memory
    cdef public object cpus
    cdef object cpuid_rows
    cdef object doorbells
    cdef object code_seen            # the bytes of the pages with code, at the last device_wrote
    cdef object timer
    cdef object lock
    cdef bint closed
    cpdef object start_timer(self)

cdef class SoftCpu:
    cdef CpuState *s
    cdef SoftMachine machine
    cdef readonly int index
    cdef Segment *_segment(self, object name) except NULL
