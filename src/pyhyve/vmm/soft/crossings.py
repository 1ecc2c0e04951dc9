"""Crossings: direct jumps and calls that lead to another page.

Where such a jump leads depends on page tables, which each vCPU has its own of, and is always the same as long as they
hold. So every vCPU has a table of host addresses with a place for each crossing, and the jump goes through it: one
instruction. At first it leads to a cold part of the block, which looks into the jump cache and writes down what it finds
there (``stubs``). What is in the table therefore comes from the jump cache, and goes with it (``clear_slot``).

A crossing is a distance, not an address: it leads to one place only as long as its page runs at one linear address. So
each page of code knows at which one, for each vCPU. When code of it is found at another (*alias*), everything that was
known of where code lies is forgotten. A guest that goes on like that does without crossings: they stay with the jump
cache in the mode in question, until that is dropped for another reason.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import CodeCache, CodePage
from cython.cimports.pyhyve.vmm.soft.jumps import clear_jumps_of
from cython.cimports.pyhyve.vmm.soft.physical import PAGE_OFFSET
from cython.cimports.pyhyve.vmm.soft.state import CROSSINGS, MODE_USER, PAGE_MASK


def new_crossing(c):
    if c.crossing_count == CROSSINGS:
        return NO_ROOM
    c.crossing_count += 1
    return c.crossing_count - 1


def start_crossing(e, number, cold):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    i: uint32_t
    c.crossing_cold[number] = cold
    for i in range(e.cpu_count):
        e.cpus[i].crossing[number] = cold


def crossings_init(s):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), s.engine.code)
    i: uint32_t
    for i in range(c.crossing_count):
        s.crossing[i] = c.crossing_cold[i]


def clear_crossings(s, slot):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), s.engine.code)
    first: uint64_t = cython.cast(uint64_t, cython.address(s.crossing[0])) - cython.cast(uint64_t, s)
    number: uint64_t
    i: uint32_t
    for i in range(s.crossing_fills[slot]):
        number = (s.crossing_filled[slot][i] - first) >> 3
        s.crossing[number] = c.crossing_cold[number]
    s.crossing_fills[slot] = 0
    s.aliases_left[slot] = MOST_ALIASES


def note_home(s, gpa, va):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), s.engine.code)
    page: cython.pointer(CodePage) = c.pages[gpa >> 12]
    user: uint32_t = s.mode & MODE_USER != 0
    slot: uint32_t = s.mode_slot
    left: uint32_t = s.aliases_left[slot]
    home: cython.pointer(uint64_t) = cython.address(page.homes[s.index][user])
    here: uint64_t = home_of(s, user, va)
    if home[0] == here or left == 0:
        return
    if (home[0] ^ here) & PAGE_OFFSET == 0:
        clear_jumps_of(s, user, False)  # and begins an epoch
        s.aliases_left[slot] = left - 1
        here = home_of(s, user, va)
    home[0] = here


def home_of(s, user, va):
    # Never 0, which is nobody's
    return (va & PAGE_MASK) | 0x800 | (s.home_epoch[user] & 0x7FF)
