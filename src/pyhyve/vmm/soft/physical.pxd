# Guest memory by guest-physical and by host address.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine


cdef enum:
    PAGE = 0x1000
    PAGE_OFFSET = 0xFFF
    FRAME = 0xFFFFFFFFFF000      # bits 12-51
    PHYSICAL = 0xFFFFFFFFFF      # MAXPHYADDR is 40, as announce.py says: devices end below 1 TiB


# Guest-physical to host address, or 0 where there is no RAM (or, for a write, only ROM).
cdef uint64_t ram_host(Engine *e, uint64_t gpa, bint write) noexcept nogil

# Does the local APIC, enabled and in xAPIC mode, cover this guest-physical page?
cdef bint is_apic(CpuState *s, uint64_t gpa) noexcept nogil

# Memory of 1 to 8 bytes by host address; `piece` is the largest access of 1, 2, 4 or 8 bytes that fits.
cdef uint64_t load(uint64_t host, uint32_t size) noexcept nogil
cdef void store(uint64_t host, uint32_t size, uint64_t value) noexcept nogil
cdef uint32_t piece(uint32_t size) noexcept nogil
