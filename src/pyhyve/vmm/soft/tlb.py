"""The software TLBs: filling them, dropping what they hold.

Document: Intel SDM Vol. 3A 4.10.

A linear address is looked up in the TLB of the rights it is used with (``s.tlb[MMU_*]``). Emitted code does that inline; on
a miss it asks the second TLB (``s.stlb``, a stub) and then calls ``bounce.tlb_fill``; helpers use ``access``; all of them
end in ``lookup``, which asks the second TLB too, and then walks the page tables, checks rights, sets the accessed and
dirty flags and fills both TLBs. A page has a write tag only while it is writable RAM, its dirty flag is set and no code
has been translated from it; every other store comes here.

What the second TLB has counts under the key of its half of the addresses only: to drop everything is to take the key
away.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.addresses import linear
from cython.cimports.pyhyve.vmm.soft.blocks import has_code
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, watched_page
from cython.cimports.pyhyve.vmm.soft.jumps import clear_jumps, clear_jumps_of, has_jumps, has_jumps_in, jumps_init
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.physical import FRAME, PAGE, PAGE_OFFSET, is_apic, load, piece, ram_host
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    ATOMIC,
    DONE,
    FAULT,
    MMU_MODES,
    NO_KEY,
    SITES,
    STLB_BITS,
    STLB_KEYS,
    STLB_SIZE,
    TLB_GLOBAL,
    TLB_MARKS,
    TLB_SIZE,
    Engine,
    StlbEntry,
    TlbEntry,
    __atomic_exchange_n,
    __atomic_load_n,
)
from cython.cimports.pyhyve.vmm.soft.walks import PAGE_GLOBAL, PAGE_HUGE, PAGE_LARGE, PAGE_WRITABLE, walk, walk_entry


def lookup(s, va, access, mode, host, gpa):
    """Where linear ``va`` lies: host address (0 if not RAM, or ROM that is to be written) and guest-physical address.

    ``access`` is ACCESS_READ or ACCESS_WRITE. Fills the TLB. The caller looks for translated code before it writes.
    """
    t: cython.pointer[TlbEntry] = cython.address(s.tlb[mode][(va >> 12) & (TLB_SIZE - 1)])
    page: uint64_t = va - (va & PAGE_OFFSET)
    if (t.write_tag if access == ACCESS_WRITE else t.read_tag) != page and not refill(s, page, access, mode):
        return fill(s, va, access, mode, host, gpa)
    host[0] = va + t.addend
    gpa[0] = (t.info & FRAME) | (va & PAGE_OFFSET)
    return DONE


def empty_tag(index):
    """A tag for entry ``index`` that no address has which belongs there."""
    return (index ^ (TLB_SIZE // 2)) << 12


def stlb_entry(s, mode, page):
    return cython.address(s.stlb[mode][((page >> 12) + (page >> (12 + STLB_BITS))) & (STLB_SIZE - 1)])


def refill(s, page, access, mode):
    """Copy a page's entry from the second TLB to the first, as emitted code does by itself. False: it is not there.

    A load does not bring the write tag back, for that has its price: see ``tlb_protect``.
    """
    index: uint64_t = (page >> 12) & (TLB_SIZE - 1)
    t: cython.pointer[TlbEntry] = cython.address(s.tlb[mode][index])
    f: cython.pointer[StlbEntry] = stlb_entry(s, mode, page)
    key: uint32_t = __atomic_load_n(cython.address(s.stlb_key[page >> 63]), ATOMIC)
    if f.page != page or (f.write_key if access == ACCESS_WRITE else f.key) != key:
        return False
    t.write_tag = empty_tag(index)
    t.info = f.info
    t.addend = f.addend
    t.read_tag = page
    if access == ACCESS_WRITE:
        t.write_tag = page
        fence(ATOMIC)
        if __atomic_load_n(cython.address(s.stlb_key[page >> 63]), ATOMIC) != key:
            t.write_tag = empty_tag(index)
            return False
    return True


def fill(s, va, access, mode, host, gpa):
    """Walk, and fill both TLBs."""
    index: uint64_t = (va >> 12) & (TLB_SIZE - 1)
    page: uint64_t = va - (va & PAGE_OFFSET)
    t: cython.pointer[TlbEntry] = cython.address(s.tlb[mode][index])
    f: cython.pointer[StlbEntry] = stlb_entry(s, mode, page)
    e: cython.pointer[Engine] = s.engine
    flags: uint32_t = 0
    frame: uint64_t
    address: uint64_t
    info: uint64_t
    key: uint32_t
    writable: cython.bint

    if walk(s, va, access, mode, False, gpa, cython.address(flags)) != DONE:
        return FAULT
    frame = gpa[0] & FRAME
    host[0] = 0
    if is_apic(s, frame):
        return DONE
    address = ram_host(e, frame, True)
    writable = address != 0 and flags & PAGE_WRITABLE != 0
    if address == 0:
        address = ram_host(e, frame, False)
        if address == 0:
            return DONE
    if writable or access != ACCESS_WRITE:
        host[0] = address + (va & PAGE_OFFSET)

    info = frame
    if flags & PAGE_GLOBAL:
        info |= TLB_GLOBAL
    else:
        mark_local(s, mode, index)
        if page >> 63:
            s.stlb_local = 1
    if flags & (PAGE_LARGE | PAGE_HUGE):
        note_large(s, va, flags)
    s.tlb_dirty[mode] = 1
    t.write_tag = empty_tag(index)
    t.info = info
    t.addend = address - page
    t.read_tag = page
    key = current_key(s, page)  # first, for it may clear all
    f.page = page
    f.addend = t.addend
    f.info = info
    f.key = key
    f.write_key = 0
    if writable and not has_code(e, frame):
        # Another vCPU may be translating from this page right now: it marks the page first and looks through the TLBs
        # then, we fill first and look for the mark then; so one of us sees the other.
        t.write_tag = page
        f.write_key = key
        if e.cpu_count > 1:
            fence(ATOMIC)
            if has_code(e, frame):
                t.write_tag = empty_tag(index)
                f.write_key = 0
    if s.watch_count:
        watched: uint32_t = watched_page(s, page)
        if watched:
            f.key = f.write_key = 0
        if watched & WATCH_READ:
            t.read_tag = empty_tag(index)
        if watched:
            t.write_tag = empty_tag(index)
    return DONE


def current_key(s, page):
    """The key of this half of the addresses in the second TLB; a new one, if everything there has been dropped."""
    half: uint64_t = page >> 63
    key: uint32_t = __atomic_load_n(cython.address(s.stlb_key[half]), ATOMIC)
    if key == NO_KEY:
        if s.stlb_last == STLB_KEYS:
            native.fill64(
                cython.cast(cython.p_void, cython.address(s.stlb[0][0])),
                0,
                MMU_MODES * STLB_SIZE * cython.sizeof(StlbEntry) // 8,
            )
            s.stlb_last = NO_KEY
            drop_key(s, 1 - half)
        s.stlb_last += 1
        key = s.stlb_last
        __atomic_exchange_n(cython.address(s.stlb_key[half]), key, ATOMIC)
    return key


def drop_key(s, half):
    """Drop all that the second TLB has of one half of the addresses."""
    if __atomic_load_n(cython.address(s.stlb_key[half]), ATOMIC) != NO_KEY:
        __atomic_exchange_n(cython.address(s.stlb_key[half]), NO_KEY, ATOMIC)


def forget_page(s, va):
    """A page fault invalidates what is cached of its address (SDM Vol. 3A 4.10.4.1): the handler may just mend the tables."""
    page: uint64_t = va - (va & PAGE_OFFSET)
    index: uint64_t = (va >> 12) & (TLB_SIZE - 1)
    mode: cython.int
    f: cython.pointer[StlbEntry]
    walk_entry(s, va).key = 0
    for mode in range(MMU_MODES):
        f = stlb_entry(s, mode, page)
        if f.page == page:
            f.key = f.write_key = 0
        if s.tlb[mode][index].read_tag == page:
            clear_entry(cython.address(s.tlb[mode][index]), index)


def large_hash(va, shift):
    # Multiplicative hashing; 9 bits choose one of the filter's 512.
    key: uint64_t = (va >> shift) + shift
    return (key * GOLDEN) >> 23 & 511


def clear_entry(t, index):
    t.read_tag = t.write_tag = empty_tag(index)
    t.info = 0


def mark_local(s, mode, index):
    """A change of CR3 must look at this entry, which may leave for the second TLB and come back before."""
    cython.cast(cython.pointer[uint8_t], cython.address(s.tlb_local[mode][0]))[index >> 3] = 1


def note_large(s, va, flags):
    """Remember that the TLB has a piece of a large page, for INVLPG of any other address in it."""
    bit: uint32_t = large_hash(va, 22 if flags & PAGE_LARGE else 30)
    s.tlb_large[1 if flags & PAGE_GLOBAL else 0][va >> 63][bit >> 6] |= cython.cast(uint64_t, 1) << (bit & 63)


def maybe_large(s, va, shift):
    bit: uint32_t = large_hash(va, shift)
    half: uint64_t = va >> 63
    return ((s.tlb_large[0][half][bit >> 6] | s.tlb_large[1][half][bit >> 6]) >> (bit & 63) & 1) != 0


def flush_region(s, va, shift):
    """Drop every entry of the region of ``1 << shift`` bytes around ``va``, and where code in it lies."""
    mode: cython.int
    i: uint64_t
    for mode in range(MMU_MODES):
        if s.tlb_dirty[mode]:
            for i in range(TLB_SIZE):
                if (s.tlb[mode][i].read_tag ^ va) >> shift == 0:
                    clear_entry(cython.address(s.tlb[mode][i]), i)
    drop_key(s, va >> 63)
    if has_jumps_in(s, False, va, shift):
        clear_jumps_of(s, False, False)
    if has_jumps_in(s, True, va, shift):
        clear_jumps_of(s, True, False)


def tlb_init(s):
    mode: cython.int
    i: uint32_t
    for mode in range(MMU_MODES):
        s.tlb_dirty[mode] = 1
    s.stlb_last = NO_KEY
    for i in range(SITES):
        s.sites_filled[0][i] = s.sites_filled[1][i] = 1
    s.sites_used = 1
    jumps_init(s)
    tlb_flush(s, False)


def tlb_flush(s, keep_global):
    mode: cython.int
    i: uint64_t
    s.count_tlb_flush += 1
    s.walk_key += 1
    drop_key(s, 0)
    if not keep_global or s.stlb_local:
        drop_key(s, 1)
        s.stlb_local = 0
    for i in range(8):
        s.tlb_large[0][0][i] = s.tlb_large[0][1][i] = 0
        if not keep_global:
            s.tlb_large[1][0][i] = s.tlb_large[1][1][i] = 0
    for mode in range(MMU_MODES):
        if not s.tlb_dirty[mode]:
            continue
        if keep_global:
            flush_marked(s, mode)
        else:
            for i in range(TLB_SIZE):
                clear_entry(cython.address(s.tlb[mode][i]), i)
            s.tlb_dirty[mode] = 0
        for i in range(TLB_MARKS // 8):
            s.tlb_local[mode][i] = 0
    clear_jumps(s, keep_global)


def flush_marked(s, mode):
    """Drop what is not global: only marked groups have such entries."""
    word: uint64_t
    marks: uint64_t
    first: uint64_t
    i: uint64_t
    for word in range(TLB_MARKS // 8):
        marks = s.tlb_local[mode][word]
        first = word * 64
        while marks:
            if marks & 1:
                for i in range(first, first + 8):
                    if s.tlb[mode][i].info & TLB_GLOBAL == 0:
                        clear_entry(cython.address(s.tlb[mode][i]), i)
            marks >>= 8
            first += 8


def tlb_flush_page(s, va):
    index: uint64_t = (va >> 12) & (TLB_SIZE - 1)
    page: uint64_t = va - (va & PAGE_OFFSET)
    mode: cython.int
    user: cython.int
    t: cython.pointer[TlbEntry]
    f: cython.pointer[StlbEntry]
    s.walk_key += 1  # INVLPG means the upper levels of all addresses
    if maybe_large(s, va, 30):
        flush_region(s, va, 30)
        return
    if maybe_large(s, va, 22):
        flush_region(s, va, 22)
        return
    for mode in range(MMU_MODES):
        t = cython.address(s.tlb[mode][index])
        if t.read_tag == page:
            clear_entry(t, index)
        f = stlb_entry(s, mode, page)
        if f.page == page:
            f.key = f.write_key = 0
    # A block that begins on the page before may end on this one.
    for user in range(2):
        if has_jumps(s, user, page) or has_jumps(s, user, page - PAGE):
            clear_jumps_of(s, user, False)


def tlb_protect(e, gpa):
    page: uint64_t = gpa & FRAME
    cpu: uint32_t
    mode: cython.int
    i: uint64_t
    s: cython.pointer[CpuState]
    t: cython.pointer[TlbEntry]
    # The page's mark must be seen before its entries are looked for (see ``fill``), and the key be gone: who brings an
    # entry back from the second TLB writes the tag first and looks at the key then.
    fence(ATOMIC)
    for cpu in range(e.cpu_count):
        s = e.cpus[cpu]
        drop_key(s, 0)
        drop_key(s, 1)
        for mode in range(MMU_MODES):
            if not s.tlb_dirty[mode]:
                continue
            for i in range(TLB_SIZE):
                t = cython.address(s.tlb[mode][i])
                if t.info & FRAME == page and (t.write_tag >> 12) & (TLB_SIZE - 1) == i:
                    t.write_tag = empty_tag(i)


def writable_now(s, mode, va):
    """Has the TLB a write tag for the page? If not, it may hold code."""
    return s.tlb[mode][(va >> 12) & (TLB_SIZE - 1)].write_tag == va - (va & PAGE_OFFSET)
