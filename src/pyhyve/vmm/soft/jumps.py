"""Where code lies by its linear address.

A jump cache answers the jumps that lead out of a page and the indirect ones: host code by linear rip, two entries a set,
the newer first; bits of the address choose the set, for the host has an instruction to pick them that leaves flags
alone. Emitted code looks there by itself (``stubs``), the loop behind it. A vCPU has one such cache for each mode that
runs. When one has few entries, they are remembered by set, so that forgetting them all costs no more than they did.

What is not there is looked for by guest-physical address. For that the pages of code are cached, too: page walks are
dear.

All of this holds as long as the page tables do: it is dropped with the TLB. A load of CR3 leaves the entries of global
pages; a cache that has none but those stays as it is, which the kernel's do. INVLPG drops the user's caches or the
kernel's, where a filter of page numbers says that they may have something of that page.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.crossings import clear_crossings, crossings_init
from cython.cimports.pyhyve.vmm.soft.physical import FRAME, PAGE_OFFSET
from cython.cimports.pyhyve.vmm.soft.tlb import note_large
from cython.cimports.pyhyve.vmm.soft.walks import PAGE_GLOBAL, PAGE_HUGE, PAGE_LARGE, walk
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_EXEC,
    CODE_PAGES,
    DONE,
    FAULT,
    JUMP_FILLS,
    JUMP_SETS,
    JUMP_SHIFT,
    MMU_USER,
    MODE_SLOTS,
    MODE_USER,
    TLB_GLOBAL,
    PageEntry,
)


def jump_set(rip):
    return cython.cast(uint32_t, (rip >> JUMP_SHIFT) & (JUMP_SETS - 1))


def find_jump(s, rip):
    slot: uint32_t = s.mode_slot
    number: uint32_t = jump_set(rip)
    if s.jump_not_rip[slot][0][number] == ~rip:
        return s.jump_code[slot][0][number]
    return s.jump_code[slot][1][number] if s.jump_not_rip[slot][1][number] == ~rip else 0


def note_jump(s, rip, code):
    slot: uint32_t = s.mode_slot
    n: uint32_t = s.jump_fills[slot]
    number: uint32_t = jump_set(rip)
    if s.jump_not_rip[slot][0][number] != ~rip:
        if s.jump_not_rip[slot][1][number] != ~rip and n <= JUMP_FILLS:
            if n < JUMP_FILLS:
                s.jump_filled[slot][n] = cython.cast(uint16_t, number)
            s.jump_fills[slot] = n + 1
        s.jump_not_rip[slot][1][number] = s.jump_not_rip[slot][0][number]
        s.jump_code[slot][1][number] = s.jump_code[slot][0][number]
    s.jump_not_rip[slot][0][number] = ~rip
    s.jump_code[slot][0][number] = code
    s.jump_dirty[slot] = 1
    s.jump_user[slot] = s.mode & MODE_USER != 0
    if s.code_local:
        s.jump_local[slot] = 1


def code_page(s, va, user, gpa, flags):
    whose: cython.int = 1 if user == MMU_USER else 0
    entry: cython.pointer[PageEntry] = cython.address(s.code_page[whose][((va >> 12) ^ (va >> 19)) & (CODE_PAGES - 1)])
    tag: uint64_t = va - (va & PAGE_OFFSET)
    if entry.tag == tag:
        gpa[0] = (entry.info & FRAME) | (va & PAGE_OFFSET)
        flags[0] = PAGE_GLOBAL if entry.info & TLB_GLOBAL else 0
        return DONE
    if walk(s, va, ACCESS_EXEC, user, False, gpa, flags) != DONE:
        return FAULT
    if flags[0] & (PAGE_LARGE | PAGE_HUGE):
        note_large(s, va, flags[0])  # INVLPG of any address in it means this code too
    entry.tag = tag
    entry.info = (gpa[0] & FRAME) | (TLB_GLOBAL if flags[0] & PAGE_GLOBAL else 0)
    s.page_dirty[whose] = 1
    s.jump_pages[filter_of(whose, va)][(va >> 18) & 63] |= cython.cast(uint64_t, 1) << ((va >> 12) & 63)
    return DONE


def clear_jumps(s, keep_global):
    clear_jumps_of(s, False, keep_global)
    clear_jumps_of(s, True, keep_global)


def clear_jumps_of(s, user, keep_global):
    slot: uint32_t
    i: cython.int
    entry: cython.pointer[PageEntry]
    kept: cython.bint = False
    for slot in range(MODE_SLOTS):
        if s.jump_user[slot] == user and s.jump_dirty[slot]:
            if keep_global and not s.jump_local[slot]:
                kept = True
            else:
                clear_slot(s, slot)
    if s.page_dirty[user]:
        s.page_dirty[user] = 0
        for i in range(CODE_PAGES):
            entry = cython.address(s.code_page[user][i])
            if keep_global and entry.info & TLB_GLOBAL and entry.tag != NO_TAG:
                s.page_dirty[user] = 1
                kept = True
            else:
                entry.tag = NO_TAG
    if not kept:
        s.home_epoch[user] += 1
        for i in range(64):
            s.jump_pages[filter_of(user, 0)][i] = 0
            s.jump_pages[filter_of(user, cython.cast(uint64_t, -1))][i] = 0


def clear_slot(s, slot):
    i: uint32_t
    number: uint32_t
    clear_crossings(s, slot)
    if s.jump_fills[slot] <= JUMP_FILLS:
        for i in range(s.jump_fills[slot]):
            number = s.jump_filled[slot][i]
            s.jump_not_rip[slot][0][number] = s.jump_not_rip[slot][1][number] = 0
    else:
        native.fill64(
            cython.cast(cython.p_void, cython.address(s.jump_not_rip[slot][0][0])),
            0,
            JUMP_SETS * 2,
        )
    # An empty entry answers to rip ~0: give those where that belongs a rip that belongs elsewhere.
    number = jump_set(cython.cast(uint64_t, -1))
    s.jump_not_rip[slot][0][number] = s.jump_not_rip[slot][1][number] = cython.cast(uint64_t, -1)
    s.jump_fills[slot] = 0
    s.jump_dirty[slot] = 0
    s.jump_local[slot] = 0


def filter_of(user, va):
    if user:
        return 2
    return 0 if va >> 63 else 1


def has_jumps(s, user, va):
    return (s.jump_pages[filter_of(user, va)][(va >> 18) & 63] >> ((va >> 12) & 63)) & 1 != 0


def has_jumps_in(s, user, va, shift):
    # A word of the filter is 64 pages. A block that begins on the page before may end in the region.
    first: uint64_t = (va >> shift) << (shift - 18)
    i: uint64_t
    found: uint64_t = 0
    for i in range(64):
        if shift == 30 or i < cython.cast(uint64_t, 1) << (shift - 18):
            found |= s.jump_pages[filter_of(user, va)][(first + i) & 63]
    return found != 0 or has_jumps(s, user, ((va >> shift) << shift) - 4096)


def jumps_init(s):
    slot: uint32_t
    for slot in range(MODE_SLOTS):
        s.jump_fills[slot] = JUMP_FILLS + 1
        s.jump_dirty[slot] = 1
    s.page_dirty[0] = s.page_dirty[1] = 1
    clear_jumps(s, False)
    crossings_init(s)
