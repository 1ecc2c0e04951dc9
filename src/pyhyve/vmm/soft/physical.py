"""Guest memory by guest-physical and by host address.

Document: Intel SDM Vol. 3A 10.4.1 (the local APIC's page).
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.state import MemoryRegion


def ram_host(e, gpa, write):
    # Whole pages only: every caller may go on to the end of the page.
    page: uint64_t = gpa & FRAME
    i: uint32_t = 0
    region: cython.pointer[MemoryRegion]
    offset: uint64_t
    while i < e.region_count:
        region = cython.address(e.regions[i])
        offset = page - region.gpa
        if offset < region.size and region.size - offset >= PAGE and (gpa >> 52) == 0:
            if write and region.readonly:
                return 0
            return region.host + offset + (gpa & PAGE_OFFSET)
        i += 1
    return 0


def is_apic(s, gpa):
    """Does the local APIC, enabled and in xAPIC mode, cover this guest-physical page?"""
    return (s.apic_base & 0xC00) == 0x800 and ((s.apic_base ^ gpa) & FRAME) == 0


def load(host, size):
    value: uint64_t = 0
    i: uint32_t
    if size == 8:
        return cython.cast(cython.pointer[uint64_t], host)[0]
    if size == 4:
        return cython.cast(cython.pointer[uint32_t], host)[0]
    if size == 2:
        return cython.cast(cython.pointer[uint16_t], host)[0]
    if size == 1:
        return cython.cast(cython.pointer[uint8_t], host)[0]
    for i in range(size):
        value |= cython.cast(uint64_t, cython.cast(cython.pointer[uint8_t], host)[i]) << (8 * i)
    return value


def store(host, size, value):
    i: uint32_t
    if size == 8:
        cython.cast(cython.pointer[uint64_t], host)[0] = value
    elif size == 4:
        cython.cast(cython.pointer[uint32_t], host)[0] = cython.cast(uint32_t, value)
    elif size == 2:
        cython.cast(cython.pointer[uint16_t], host)[0] = cython.cast(uint16_t, value)
    elif size == 1:
        cython.cast(cython.pointer[uint8_t], host)[0] = cython.cast(uint8_t, value)
    else:
        for i in range(size):
            cython.cast(cython.pointer[uint8_t], host)[i] = cython.cast(uint8_t, value >> (8 * i))


def piece(size):
    """The largest access of 1, 2, 4 or 8 bytes that fits."""
    if size >= 8:
        return 8
    if size >= 4:
        return 4
    return 2 if size >= 2 else 1
