"""Guest memory as the running code sees it: page walks, the software TLB, typed accesses.

Documents: Intel SDM Vol. 3A chapter 4 (paging: 32-bit with 4 MiB pages, PAE, 4-level), 4.6 (access rights), 4.8
(accessed and dirty flags), 4.10 (TLBs); 10.4.1 (the local APIC's page).

A linear address is looked up in the TLB of the rights it is used with (``s.tlb[MMU_*]``). Emitted code does that
inline; on a miss it asks the second TLB (``s.stlb``, a stub) and then calls ``tlb_fill``, helpers call ``mem_read`` and
``mem_write``, and all of them end in ``lookup``, which asks the second TLB too, and then walks the page tables, checks
rights, sets the accessed and dirty flags and fills both TLBs. A page has a write tag only while it is writable RAM, its
dirty flag is set and no code has been translated from it; every other store comes here.

What the second TLB has counts under the key of its half of the addresses only: to drop everything is to take the key
away. Where the upper levels of a page walk led is remembered too (``s.walks``), until a load of CR3 or INVLPG.

What the TLB cannot hold (devices, stores to ROM, accesses that cross a page) runs on the bounce buffer of the vCPU,
whose contents are gathered before the instruction and written out behind it by ``bounce_finish``. Reads of devices are
answered by Python: the vCPU leaves, the answer goes into a log, and the instruction runs again with the log at hand.
Writes are queued and told behind the instruction. Only the local APIC's page is served right here.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import code_written, has_code
from cython.cimports.pyhyve.vmm.soft.evex import masked_finish
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, WATCH_WRITE, watch_access, watched_page
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, REG_RIP
from cython.cimports.pyhyve.vmm.soft.jumps import clear_jumps, clear_jumps_of, has_jumps, has_jumps_in, jumps_init
from cython.cimports.pyhyve.vmm.soft.lapic import lapic_read, lapic_write
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_EXEC,
    ACCESS_READ,
    ACCESS_WRITE,
    ATOMIC,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    DONE,
    EFER_LMA,
    EFER_NXE,
    EXC_AC,
    EXC_GP,
    EXC_PF,
    EXC_SS,
    EXIT_MMIO_READ,
    EXIT_NONE,
    FAULT,
    FS,
    LEAVE,
    LOW32,
    MMIO_LOG,
    MMU_KERNEL,
    MMU_MODES,
    MMU_USER,
    MODE_ALIGN,
    MODE_CODE64,
    MODE_PROTECTED,
    NO_KEY,
    PF_FETCH,
    PF_PRESENT,
    PF_RESERVED,
    PF_USER,
    PF_WRITE,
    SEG_CODE,
    SEG_DB,
    SEG_EXPAND_DOWN,
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SS,
    SITES,
    STLB_BITS,
    STLB_KEYS,
    STLB_SIZE,
    TLB_GLOBAL,
    TLB_MARKS,
    TLB_SIZE,
    WALKS,
    Engine,
    MemoryRegion,
    StlbEntry,
    TlbEntry,
    WalkEntry,
    __atomic_compare_exchange_n,
    __atomic_exchange_n,
    __atomic_load_n,
    gp,
    is_canonical,
    raise_fault,
)


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


# Page walks


def page_table_entry(e, gpa, size):
    """A paging-structure entry; outside RAM all ones, which is what nobody's memory reads as."""
    host: uint64_t = ram_host(e, gpa, False)
    if host == 0:
        return cython.cast(uint64_t, -1) if size == 8 else LOW32
    if size == 8:
        return load64(cython.cast(cython.pointer[uint64_t], host), ATOMIC)
    return cython.cast(cython.pointer[uint32_t], host)[0]


def mark_entry(s, gpa, size, entry, bits):
    """Set accessed and dirty flags if the entry is still what the walk saw; False: walk again."""
    e: cython.pointer[Engine] = s.engine
    host: uint64_t
    expected: uint64_t = entry
    expected32: uint32_t = entry
    done: cython.bint
    if (entry & bits) == bits:
        return True
    host = ram_host(e, gpa, True)
    if host == 0:
        return True  # tables in ROM stay as they are
    if size == 8:
        done = __atomic_compare_exchange_n(
            cython.cast(cython.pointer[uint64_t], host), cython.address(expected), entry | bits, False, ATOMIC, ATOMIC
        )
    else:
        done = swap32(
            cython.cast(cython.pointer[uint32_t], host), cython.address(expected32), entry | bits, False, ATOMIC, ATOMIC
        )
    if done and has_code(e, gpa):
        code_written(e, s, gpa, size)  # a table that is executed, too
    return done


def page_fault(s, va, access, mode, quiet, error):
    if quiet:
        return FAULT
    if access == ACCESS_WRITE:
        error |= PF_WRITE
    elif access == ACCESS_EXEC and (s.cr4 & CR4_SMEP or (s.cr4 & CR4_PAE and s.efer & EFER_NXE)):
        error |= PF_FETCH
    if mode == MMU_USER:
        error |= PF_USER
    forget_page(s, va)
    s.exc_cr2 = va
    return raise_fault(s, EXC_PF, True, error)


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


def permitted(s, access, mode, rights, nx):
    """SDM Vol. 3A 4.6.1. ``rights``: the AND of all levels' entries; ``nx``: execute-disable anywhere."""
    if access == ACCESS_EXEC and nx:
        return False
    if mode == MMU_USER:
        return (rights & PTE_U) != 0 and (access != ACCESS_WRITE or (rights & PTE_W) != 0)
    if rights & PTE_U:
        if access == ACCESS_EXEC:
            return (s.cr4 & CR4_SMEP) == 0
        if mode == MMU_KERNEL and s.cr4 & CR4_SMAP:
            return False
    return access != ACCESS_WRITE or (rights & PTE_W) != 0 or (s.cr0 & CR0_WP) == 0


def page_flags(s, mode, rights, entry, size):
    result: uint32_t = size
    if rights & PTE_U:
        result |= PAGE_USER
    if entry & PTE_G and s.cr4 & CR4_PGE:
        result |= PAGE_GLOBAL
    if entry & PTE_D and permitted(s, ACCESS_WRITE, mode, rights, False):
        result |= PAGE_WRITABLE
    return result


def walk_entry(s, va):
    return cython.address(s.walks[(va >> 21) & (WALKS - 1)])


def short_walk(s, va, access, mode, gpa, flags):
    """A walk whose upper levels are known (SDM Vol. 3A 4.10.3). False: it takes a long one.

    That also finds the faults, and sets accessed and dirty flags. With paging off nothing is known.
    """
    w: cython.pointer[WalkEntry] = walk_entry(s, va)
    entry: uint64_t = w.entry
    rights: uint64_t = w.rights
    nx: cython.bint = w.nx
    if w.region != va >> 21 or w.key != s.walk_key:
        return False
    if w.table:
        entry = load64(cython.cast(cython.pointer[uint64_t], w.table) + ((va >> 12) & 0x1FF), ATOMIC)
        if (entry & (PTE_P | PTE_A)) != PTE_P | PTE_A or entry & w.reserved:
            return False
        rights &= entry
        nx = nx or (entry >> NX_SHIFT) != 0
        gpa[0] = (entry & FRAME) | (va & PAGE_OFFSET)
    else:
        gpa[0] = (entry & FRAME) | (va & OFFSET_2M)
    if (access == ACCESS_WRITE and (entry & PTE_D) == 0) or not permitted(s, access, mode, rights, nx):
        return False
    flags[0] = page_flags(s, mode, rights, entry, w.size)
    return True


def walk(s, va, access, mode, quiet, gpa, flags):
    if not quiet and short_walk(s, va, access, mode, gpa, flags):
        return DONE
    return long_walk(s, va, access, mode, quiet, gpa, flags)


def long_walk(s, va, access, mode, quiet, gpa, flags):
    e: cython.pointer[Engine] = s.engine
    w: cython.pointer[WalkEntry]
    above: uint64_t = 0
    nx_above: cython.bint = False
    address: uint64_t[4]
    entries: uint64_t[4]
    entry: uint64_t
    table: uint64_t
    rights: uint64_t
    reserved: uint64_t
    offset_mask: uint64_t
    bits: uint64_t
    result: uint32_t  # PAGE_LARGE, PAGE_HUGE or 0
    size: uint32_t
    shift: cython.int
    level: cython.int
    i: cython.int
    tries: cython.int = 0
    nx: cython.bint
    ok: cython.bint

    if (s.cr0 & CR0_PG) == 0:
        gpa[0] = va & LOW32
        flags[0] = PAGE_WRITABLE | PAGE_USER
        return DONE
    if s.efer & EFER_LMA and not is_canonical(va):
        return FAULT if quiet else gp(s, 0)

    while True:
        rights = PTE_W | PTE_U
        nx = False
        level = 0
        result = 0
        if s.cr4 & CR4_PAE:
            size = 8
            if s.efer & EFER_LMA:
                table = s.cr3 & FRAME
                shift = 39
                reserved = RESERVED_4LEVEL
            else:
                # The four PDPTEs have no rights and no flags; CR3 loads have checked their reserved bits.
                entry = page_table_entry(e, (s.cr3 & PDPT_BASE) | ((va >> 27) & 0x18), 8)
                if (entry & PTE_P) == 0:
                    return page_fault(s, va, access, mode, quiet, 0)
                table = entry & FRAME
                shift = 21
                reserved = RESERVED_PAE
            if (s.efer & EFER_NXE) == 0:
                reserved |= cython.cast(uint64_t, 1) << NX_SHIFT
            while True:
                address[level] = table | (((va >> shift) & 0x1FF) << 3)
                entry = page_table_entry(e, address[level], 8)
                entries[level] = entry
                if (entry & PTE_P) == 0:
                    return page_fault(s, va, access, mode, quiet, 0)
                if entry & reserved:
                    return page_fault(s, va, access, mode, quiet, PF_PRESENT | PF_RESERVED)
                above = rights
                nx_above = nx
                rights &= entry
                nx = nx or (entry >> NX_SHIFT) != 0
                if shift == 12:
                    break
                if entry & PTE_PS:
                    # Bit 12 is PAT; bits 13 to the page size are reserved. A PML4 entry has no page size.
                    if shift == 39 or entry & FRAME & ((cython.cast(uint64_t, 1) << shift) - 0x2000):
                        return page_fault(s, va, access, mode, quiet, PF_PRESENT | PF_RESERVED)
                    result = PAGE_LARGE if shift == 21 else PAGE_HUGE
                    break
                table = entry & FRAME
                shift -= 9
                level += 1
            offset_mask = (cython.cast(uint64_t, 1) << shift) - 1
            gpa[0] = (entry & FRAME & ~offset_mask) | (va & offset_mask)
        else:
            size = 4
            address[0] = (s.cr3 & FRAME32) | ((va >> 20) & 0xFFC)
            entry = page_table_entry(e, address[0], 4)
            entries[0] = entry
            if (entry & PTE_P) == 0:
                return page_fault(s, va, access, mode, quiet, 0)
            rights &= entry
            if entry & PTE_PS and s.cr4 & CR4_PSE:
                # PSE-36: bits 13-20 are address bits 32-39, bit 21 is reserved.
                if entry & 0x200000:
                    return page_fault(s, va, access, mode, quiet, PF_PRESENT | PF_RESERVED)
                result = PAGE_LARGE
                gpa[0] = (entry & FRAME_4M) | ((entry & 0x1FE000) << 19) | (va & 0x3FFFFF)
            else:
                level = 1
                address[1] = (entry & FRAME32) | ((va >> 10) & 0xFFC)
                entry = page_table_entry(e, address[1], 4)
                entries[1] = entry
                if (entry & PTE_P) == 0:
                    return page_fault(s, va, access, mode, quiet, 0)
                rights &= entry
                gpa[0] = (entry & FRAME32) | (va & PAGE_OFFSET)

        if not permitted(s, access, mode, rights, nx):
            return page_fault(s, va, access, mode, quiet, PF_PRESENT)

        bits = PTE_A
        if access == ACCESS_WRITE:
            bits |= PTE_D
        if not quiet:
            ok = True
            for i in range(level):
                ok = ok and mark_entry(s, address[i], size, entries[i], PTE_A)
            tries += 1
            if not (ok and mark_entry(s, address[level], size, entry, bits)) and tries < WALK_TRIES:
                continue  # somebody changed an entry meanwhile
            entry |= bits
            if size == 8:
                w = walk_entry(s, va)
                w.region = va >> 21
                w.key = s.walk_key
                w.reserved = reserved
                w.size = result
                w.table = 0
                w.rights = rights
                w.nx = nx
                w.entry = (gpa[0] & FRAME & ~cython.cast(uint64_t, OFFSET_2M)) | (entry & PAGE_OFFSET)
                if result == 0:
                    w.table = ram_host(e, table, False)
                    w.rights = above
                    w.nx = nx_above
                    if w.table == 0:
                        w.key = 0
        flags[0] = page_flags(s, mode, rights, entry, result)
        return DONE


# The TLB


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


# Memory by host address


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


# Devices


def piece(size):
    """The largest access of 1, 2, 4 or 8 bytes that fits."""
    if size >= 8:
        return 8
    if size >= 4:
        return 4
    return 2 if size >= 2 else 1


def device_read(s, gpa, size, value):
    i: uint32_t
    if is_apic(s, gpa):
        # Registers are aligned 32-bit words (SDM Vol. 3A 10.4.1); anything else sees the words' bytes.
        value[0] = cython.cast(uint64_t, lapic_read(s, gpa & 0xFFC)) >> (8 * (gpa & 3))
        if (gpa & 3) + size > 4 and (gpa & 0xFFC) != 0xFFC:
            value[0] |= cython.cast(uint64_t, lapic_read(s, (gpa & 0xFFC) + 4)) << (32 - 8 * (gpa & 3))
        return DONE
    if not s.replay:
        s.mmio_reads = s.mmio_cursor = 0
    i = s.mmio_cursor
    if i < s.mmio_reads and s.mmio_read[i].gpa == gpa and s.mmio_read[i].size == size:
        s.mmio_cursor = i + 1
        value[0] = s.mmio_read[i].value
        return DONE
    if i >= MMIO_LOG:
        value[0] = cython.cast(uint64_t, -1)
        return DONE
    s.mmio_read[i].gpa = gpa
    s.mmio_read[i].size = size
    s.mmio_read[i].value = cython.cast(uint64_t, -1)
    s.mmio_reads = i + 1
    s.exit.kind = EXIT_MMIO_READ
    s.exit.address = gpa
    s.exit.size = size
    s.exit.value = 0
    return LEAVE


def device_write(s, gpa, size, value):
    i: uint32_t = s.mmio_writes
    if is_apic(s, gpa):
        if size == 4 and (gpa & 3) == 0:
            lapic_write(s, gpa & PAGE_OFFSET, cython.cast(uint32_t, value))
        return
    # No instruction writes so often; what would not fit is lost, as on a bus where nobody answers.
    if i < MMIO_LOG:
        s.mmio_write[i].gpa = gpa
        s.mmio_write[i].size = size
        s.mmio_write[i].value = value if size == 8 else value & ((cython.cast(uint64_t, 1) << (8 * size)) - 1)
        s.mmio_writes = i + 1


def read_part(s, host, gpa, buffer, size):
    """``size`` bytes of one page into ``buffer``, from RAM or a device."""
    done: uint32_t = 0
    step: uint32_t
    value: uint64_t = 0
    while done < size:
        step = piece(size - done)
        if host != 0:
            value = load(host + done, step)
        elif device_read(s, gpa + done, step, cython.address(value)) == LEAVE:
            return LEAVE
        store(cython.cast(uint64_t, buffer) + done, step, value)
        done += step
    return DONE


def write_part(s, host, gpa, buffer, size):
    """``size`` bytes of ``buffer`` to one page."""
    done: uint32_t = 0
    step: uint32_t
    value: uint64_t
    while done < size:
        step = piece(size - done)
        value = load(cython.cast(uint64_t, buffer) + done, step)
        if host != 0:
            store(host + done, step, value)
        else:
            device_write(s, gpa + done, step, value)
        done += step
    if host != 0 and size != 0:
        wrote_memory(s, gpa, size)


# Accesses by linear address


def next_page(s, va):
    """The linear address of the page behind; wraps at 4 GiB outside 64-bit mode."""
    following: uint64_t = va - (va & PAGE_OFFSET) + PAGE
    if va <= LOW32 and (s.mode & MODE_CODE64) == 0:
        following &= LOW32
    return following


def overwrites_code(s, host, gpa, size):
    """Drop what was translated from the bytes that are about to be written. True: they belong to the running block."""
    if host == 0 or not has_code(s.engine, gpa):
        return False
    return code_written(s.engine, s, gpa, size)


def wrote_memory(s, gpa, size):
    """A store is done. Where another vCPU may have translated the bytes just before, that is dropped."""
    if s.engine.cpu_count > 1:
        fence(ATOMIC)  # the store must be seen by whoever claims the page behind this look
        if has_code(s.engine, gpa):
            code_written(s.engine, s, gpa, size)


def close_store(s):
    size: uint32_t = s.open_size
    s.open_size = 0
    code_written(s.engine, s, s.open_gpa, size)


def read_slow(s, va, size, mode, value):
    host: uint64_t = 0
    gpa: uint64_t = 0
    host2: uint64_t = 0
    gpa2: uint64_t = 0
    buffer: uint64_t = 0
    bytes_: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], cython.address(buffer))
    first: uint32_t = PAGE - (va & PAGE_OFFSET)
    if size > 8:
        size = 8
    if first > size:
        first = size
    s.count_tlb_miss += 1
    if lookup(s, va, ACCESS_READ, mode, cython.address(host), cython.address(gpa)) != DONE:
        return FAULT
    if (
        first < size
        and lookup(s, next_page(s, va), ACCESS_READ, mode, cython.address(host2), cython.address(gpa2)) != DONE
    ):
        return FAULT
    if s.watch_count:
        watch_access(s, va, first, next_page(s, va), size - first, WATCH_READ)
    if read_part(s, host, gpa, bytes_, first) != DONE:
        return LEAVE
    if first < size and read_part(s, host2, gpa2, bytes_ + first, size - first) != DONE:
        return LEAVE
    value[0] = buffer
    return DONE


def mem_read(s, va, size, mode, value):
    t: cython.pointer[TlbEntry] = cython.address(s.tlb[mode][(va >> 12) & (TLB_SIZE - 1)])
    # One comparison for both: another page, or beyond the end of this one.
    if (t.read_tag ^ va) < cython.cast(uint64_t, PAGE + 1 - size):
        value[0] = load(va + t.addend, size)
        return DONE
    return read_slow(s, va, size, mode, value)


def system_read(s, va, size, value):
    log: uint32_t = s.mmio_reads
    status: cython.int = mem_read(s, va, size, MMU_KERNEL, value)
    if status == LEAVE:
        s.mmio_reads = log
        s.exit.kind = EXIT_NONE
        value[0] = cython.cast(uint64_t, -1) >> (64 - 8 * size)
        return DONE
    return status


def write_slow(s, va, size, mode, value):
    host: uint64_t = 0
    gpa: uint64_t = 0
    host2: uint64_t = 0
    gpa2: uint64_t = 0
    buffer: uint64_t = value
    bytes_: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], cython.address(buffer))
    first: uint32_t = PAGE - (va & PAGE_OFFSET)
    if size > 8:
        size = 8
    if first > size:
        first = size
    s.count_tlb_miss += 1
    if lookup(s, va, ACCESS_WRITE, mode, cython.address(host), cython.address(gpa)) != DONE:
        return FAULT
    if (
        first < size
        and lookup(s, next_page(s, va), ACCESS_WRITE, mode, cython.address(host2), cython.address(gpa2)) != DONE
    ):
        return FAULT
    if s.watch_count:
        watch_access(s, va, first, next_page(s, va), size - first, WATCH_WRITE)
    overwrites_code(s, host, gpa, first)
    if first < size:
        overwrites_code(s, host2, gpa2, size - first)
    elif host != 0:
        store(host, size, value)
        wrote_memory(s, gpa, size)
        return DONE
    write_part(s, host, gpa, bytes_, first)
    write_part(s, host2, gpa2, bytes_ + first, size - first)
    return DONE


def mem_write(s, va, size, mode, value):
    t: cython.pointer[TlbEntry] = cython.address(s.tlb[mode][(va >> 12) & (TLB_SIZE - 1)])
    if (t.write_tag ^ va) < cython.cast(uint64_t, PAGE + 1 - size):
        store(va + t.addend, size, value)
        return DONE
    return write_slow(s, va, size, mode, value)


def mem_probe(s, va, size, access, mode):
    host: uint64_t = 0
    gpa: uint64_t = 0
    left: uint64_t = size
    step: uint64_t
    while left != 0:
        if lookup(s, va, access & ACCESS_WRITE, mode, cython.address(host), cython.address(gpa)) != DONE:
            return FAULT
        step = PAGE - (va & PAGE_OFFSET)
        if step >= left:
            return DONE
        left -= step
        va = next_page(s, va)
    return DONE


def mem_pointer(s, va, size, access, mode, status):
    host: uint64_t = 0
    gpa: uint64_t = 0
    left: uint32_t = PAGE - (va & PAGE_OFFSET)
    if lookup(s, va, access & ACCESS_WRITE, mode, cython.address(host), cython.address(gpa)) != DONE:
        status[0] = FAULT
        return cython.NULL
    if host == 0:
        status[0] = LEAVE
        return cython.NULL
    if access & ACCESS_WRITE:
        if s.open_size:
            close_store(s)
        left = size if size < left else left
        overwrites_code(s, host, gpa, left)
        if s.engine.cpu_count > 1 and not writable_now(s, mode, va):
            # Not only where there is code now: who translates waits for nobody without a write tag.
            s.open_gpa = gpa
            s.open_size = left
    if s.watch_count:
        watch_access(
            s, va, size if size < left else left, 0, 0, WATCH_WRITE if access & ACCESS_WRITE else WATCH_READ
        )
    status[0] = DONE
    return cython.cast(cython.pointer[uint8_t], host)


# Operands


def linear(s, seg, ea, size, access, va):
    access_rights: uint32_t = s.segments[seg].access
    limit: uint64_t = s.segments[seg].limit
    last: uint64_t = ea + size - 1
    address: uint64_t
    ok: cython.bint
    if s.mode & MODE_CODE64:
        address = ea
        if seg >= FS:
            address += s.segments[seg].base
        va[0] = address
        if is_canonical(address) and is_canonical(address + size - 1):
            return check_alignment(s, address, size, access) if s.mode & MODE_ALIGN else DONE
        return raise_fault(s, EXC_SS if seg == SS else EXC_GP, True, 0)

    va[0] = (s.segments[seg].base + ea) & LOW32
    ok = True
    if s.mode & MODE_PROTECTED:
        if access_rights & SEG_UNUSABLE:
            ok = False
        elif access_rights & SEG_CODE:
            # Code is never writable, and readable if that bit says so.
            ok = (access & ACCESS_WRITE) == 0 and ((access & ACCESS_EXEC) != 0 or (access_rights & SEG_WRITABLE) != 0)
        elif access & ACCESS_WRITE:
            ok = (access_rights & SEG_WRITABLE) != 0
    if (access_rights & (SEG_CODE | SEG_EXPAND_DOWN)) == SEG_EXPAND_DOWN:
        ok = ok and ea > limit and last <= (LOW32 if access_rights & SEG_DB else 0xFFFF)
    elif limit != LOW32:
        # A 4 GiB segment wraps (the manual leaves it open, 5.3), as flat code does without any check.
        ok = ok and last <= limit
    if not ok:
        return raise_fault(s, EXC_SS if seg == SS else EXC_GP, True, 0)
    return check_alignment(s, va[0], size, access) if s.mode & MODE_ALIGN else DONE


def check_alignment(s, va, size, access):
    """#AC where alignment is checked (SDM Vol. 3A 6.15, table 6-7): behind #PF, which comes first.

    Operands of 16 bytes and more that need not be aligned are not checked, nor are x87's environments.
    """
    mask: uint64_t = 0
    gpa: uint64_t = 0
    flags: uint32_t = 0
    last: uint64_t = va + size - 1
    if s.mode & MODE_CODE64 == 0:
        last &= LOW32
    if size == 2 or size == 4 or size == 8:
        mask = size - 1
    elif size == 10:
        mask = 7
    elif size == 6:
        mask = 3  # a far pointer
    if va & mask == 0 or access & (ACCESS_EXEC | ACCESS_UNALIGNED):
        return DONE
    # Quietly, for the store does not happen: no dirty flag is set.
    if (
        walk(s, va, access & ACCESS_WRITE, s.mmu_mode, True, cython.address(gpa), cython.address(flags)) != DONE
        or walk(s, last, access & ACCESS_WRITE, s.mmu_mode, True, cython.address(gpa), cython.address(flags)) != DONE
    ):
        return mem_probe(s, va, size, access, s.mmu_mode)
    mem_probe(s, va, size, ACCESS_READ, s.mmu_mode)
    return raise_fault(s, EXC_AC, True, 0)


def effective_address(s, insn):
    ea: uint64_t = cython.cast(uint64_t, insn.disp)
    if insn.base == REG_RIP:
        ea += s.rip + insn.length
    elif insn.base != NO_REG:
        ea += s.gpr[insn.base & 15]
    if insn.index != NO_REG:
        ea += s.gpr[insn.index & 15] << (insn.scale & 3)
    if insn.addrsize == 8:
        return ea
    if insn.addrsize == 4:
        return ea & LOW32
    return ea & 0xFFFF


def read_operand(s, insn, size, value):
    va: uint64_t = 0
    if linear(s, insn.segment, effective_address(s, insn), size, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    return mem_read(s, va, size, s.mmu_mode, value)


def write_operand(s, insn, size, value):
    va: uint64_t = 0
    if linear(s, insn.segment, effective_address(s, insn), size, ACCESS_WRITE, cython.address(va)) != DONE:
        return FAULT
    return mem_write(s, va, size, s.mmu_mode, value)


# The slow path of emitted code


def writable_now(s, mode, va):
    """Has the TLB a write tag for the page? If not, it may hold code."""
    return s.tlb[mode][(va >> 12) & (TLB_SIZE - 1)].write_tag == va - (va & PAGE_OFFSET)


def tlb_fill(s, va, size, access, status):
    mode: cython.int = s.mmu_mode
    kind: cython.int = access & ACCESS_WRITE
    parts: cython.int = 1
    i: cython.int
    done: uint32_t = 0
    length: uint32_t
    host: uint64_t = 0
    where: uint64_t = va
    buffer: cython.pointer[uint8_t] = cython.address(s.bounce[va & 63])
    own: cython.bint = False

    s.count_tlb_miss += 1
    if size > PAGE:
        status[0] = gp(s, 0)
        return 0
    s.bounce_first = PAGE - (va & PAGE_OFFSET)
    if s.bounce_first < size:
        parts = 2
        if s.mode & MODE_CODE64 and not is_canonical(va + size - 1):
            status[0] = gp(s, 0)  # the whole operand is checked before any page is looked at
            return 0
    else:
        s.bounce_first = size
    for i in range(parts):
        if i == 1:
            where = next_page(s, va)
        if (
            lookup(s, where, kind, mode, cython.address(s.bounce_host[i]), cython.address(s.bounce_gpa[i])) != DONE
        ):
            status[0] = FAULT
            return 0
    if s.watch_count and watch_access(
        s, va, s.bounce_first, where, size - s.bounce_first, WATCH_WRITE if kind == ACCESS_WRITE else WATCH_READ
    ):
        status[0] = CODE_WRITE
        return 0
    if kind == ACCESS_WRITE:
        for i in range(parts):
            length = s.bounce_first if i == 0 else size - s.bounce_first
            if overwrites_code(s, s.bounce_host[i], s.bounce_gpa[i], length):
                own = True
        if own:
            status[0] = CODE_WRITE
            return 0
        if parts == 2 and access & ACCESS_RMW and s.engine.cpu_count > 1 and s.alone == 0:
            status[0] = ALONE
            return 0
    if parts == 1 and s.bounce_host[0] != 0:
        if kind == ACCESS_WRITE and s.engine.cpu_count > 1 and not writable_now(s, mode, va):
            s.bounce_active = OPEN_STORE
            s.open_gpa = s.bounce_gpa[0]
            s.open_size = size
        status[0] = DONE
        return s.bounce_host[0] - va

    # A plain store gets the old contents too, where reading has no effect: an x87 store with an unmasked exception
    # pending writes nothing, and the buffer is written out all the same.
    for i in range(parts):
        length = s.bounce_first if i == 0 else size - s.bounce_first
        host = s.bounce_host[i]
        if host == 0 and not is_apic(s, s.bounce_gpa[i]):
            host = ram_host(s.engine, s.bounce_gpa[i], False)  # ROM: what is to be modified can be read
        if host == 0 and kind == ACCESS_WRITE and access & ACCESS_RMW == 0:
            native.fill8(buffer + done, 0, length)
        elif read_part(s, host, s.bounce_gpa[i], buffer + done, length) != DONE:
            status[0] = LEAVE
            return 0
        done += length
    if kind == ACCESS_WRITE:
        s.bounce_active = BOUNCED
        s.bounce_size = size
        s.bounce_gva = va
    status[0] = DONE
    return cython.cast(uint64_t, buffer) - va


def bounce_finish(s):
    buffer: cython.pointer[uint8_t] = cython.address(s.bounce[s.bounce_gva & 63])
    if s.bounce_active == OPEN_STORE:
        s.bounce_active = 0
        close_store(s)
        return
    s.bounce_active = 0
    if s.bounce_mask:
        masked_finish(s)
        return
    write_part(s, s.bounce_host[0], s.bounce_gpa[0], buffer, s.bounce_first)
    if s.bounce_first < s.bounce_size:
        write_part(s, s.bounce_host[1], s.bounce_gpa[1], buffer + s.bounce_first, s.bounce_size - s.bounce_first)
