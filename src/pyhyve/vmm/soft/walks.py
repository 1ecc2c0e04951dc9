"""Page walks: 32-bit paging with 4 MiB pages, PAE, 4-level.

Documents: Intel SDM Vol. 3A chapter 4, above all 4.6 (access rights), 4.8 (accessed and dirty flags), 4.10.3 (caches of the
upper levels).

Where the upper levels led is remembered (``s.walks``) until a load of CR3 or INVLPG.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import code_written, has_code
from cython.cimports.pyhyve.vmm.soft.physical import FRAME, PAGE_OFFSET, ram_host
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_EXEC,
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
    EXC_PF,
    FAULT,
    LOW32,
    MMU_KERNEL,
    MMU_USER,
    PF_FETCH,
    PF_PRESENT,
    PF_RESERVED,
    PF_USER,
    PF_WRITE,
    WALKS,
    Engine,
    WalkEntry,
    __atomic_compare_exchange_n,
    gp,
    is_canonical,
    raise_fault,
)
from cython.cimports.pyhyve.vmm.soft.tlb import forget_page


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
