# Typed accesses to guest memory by linear address.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState


# A store through mem_pointer, or one of emitted code that the slow path let through, is done: forget what another vCPU
# translated from there meanwhile.
cdef void close_store(CpuState *s) noexcept nogil

# Linear-address accesses of 1 to 8 bytes with the rights of `mode` (MMU_*): DONE, FAULT or LEAVE (a device read that
# Python must answer; the caller returns LEAVE with rip unchanged and is run again, then the value comes from the
# replay log). Pages may be crossed. A write to a device is queued in s.mmio_write and counts as DONE: mem_write never
# returns LEAVE.
cdef int mem_read(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t *value) noexcept nogil
cdef int mem_write(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t value) noexcept nogil

# The same read for what the processor reads by itself (descriptor tables, TSS), with supervisor rights: DONE or FAULT.
# Device memory is not asked and reads as all ones.
cdef int system_read(CpuState *s, uint64_t va, uint32_t size, uint64_t *value) noexcept nogil

# Check that a write of `size` bytes at `va` would not fault (for instructions that must be all or nothing).
cdef int mem_probe(CpuState *s, uint64_t va, uint32_t size, int access, int mode) noexcept nogil

# Host pointer to linear `va`, valid up to the end of its page, or NULL: then *status is FAULT (recorded) or
# LEAVE (not RAM: use mem_read / mem_write). A pointer for writing has already invalidated the translated code that
# lies in the `size` bytes from va (and only those may be written, before the next call or the end of the helper).
cdef uint8_t *mem_pointer(CpuState *s, uint64_t va, uint32_t size, int access, int mode, int *status) noexcept nogil

# One page of an access, memory or a device; for the bounce buffer too.
cdef int read_part(CpuState *s, uint64_t host, uint64_t gpa, uint8_t *buffer, uint32_t size) noexcept nogil
cdef void write_part(CpuState *s, uint64_t host, uint64_t gpa, uint8_t *buffer, uint32_t size) noexcept nogil
cdef uint64_t next_page(CpuState *s, uint64_t va) noexcept nogil
cdef bint overwrites_code(CpuState *s, uint64_t host, uint64_t gpa, uint32_t size) noexcept nogil
cdef void wrote_memory(CpuState *s, uint64_t gpa, uint32_t size) noexcept nogil

# Used inside this module only.
cdef int device_read(CpuState *s, uint64_t gpa, uint32_t size, uint64_t *value) noexcept nogil
cdef void device_write(CpuState *s, uint64_t gpa, uint32_t size, uint64_t value) noexcept nogil
cdef int read_slow(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t *value) noexcept nogil
cdef int write_slow(CpuState *s, uint64_t va, uint32_t size, int mode, uint64_t value) noexcept nogil
