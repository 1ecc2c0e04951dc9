"""The slow path of emitted code, and the bounce buffer.

What the TLB cannot hold (devices, stores to ROM, accesses that cross a page) runs on the bounce buffer of the vCPU, whose
contents are gathered before the instruction and written out behind it by ``bounce_finish``.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.access import close_store, next_page, overwrites_code, read_part, write_part
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, WATCH_WRITE, watch_access
from cython.cimports.pyhyve.vmm.soft.evex import masked_finish
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.physical import PAGE, PAGE_OFFSET, is_apic, ram_host, store
from cython.cimports.pyhyve.vmm.soft.state import ACCESS_WRITE, DONE, FAULT, LEAVE, MODE_CODE64, gp, is_canonical
from cython.cimports.pyhyve.vmm.soft.tlb import lookup, writable_now


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
