"""Typed accesses to guest memory by linear address, for helpers; devices among them.

Reads of devices are answered by Python: the vCPU leaves, the answer goes into a log, and the instruction runs again with
the log at hand. Writes are queued and told behind the instruction. Only the local APIC's page is served right here.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t, uint8_t
from cython.cimports.pyhyve.vmm.soft.addresses import linear
from cython.cimports.pyhyve.vmm.soft.blocks import code_written, has_code
from cython.cimports.pyhyve.vmm.soft.debug import WATCH_READ, WATCH_WRITE, watch_access
from cython.cimports.pyhyve.vmm.soft.lapic import lapic_read, lapic_write
from cython.cimports.pyhyve.vmm.soft.physical import PAGE, PAGE_OFFSET, is_apic, load, piece, ram_host, store
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    ATOMIC,
    DONE,
    EXIT_MMIO_READ,
    EXIT_NONE,
    FAULT,
    LEAVE,
    LOW32,
    MMIO_LOG,
    MMU_KERNEL,
    MODE_CODE64,
    TLB_SIZE,
    TlbEntry,
)
from cython.cimports.pyhyve.vmm.soft.tlb import fence, lookup, writable_now


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


def next_page(s, va):
    """The linear address of the page behind; wraps at 4 GiB outside 64-bit mode."""
    following: uint64_t = va - (va & PAGE_OFFSET) + PAGE
    if va <= LOW32 and (s.mode & MODE_CODE64) == 0:
        following &= LOW32
    return following


def overwrites_code(s, host, gpa, size):
    """Drop what was translated from the bytes that are about to be written. True: the store needs a block of its own.

    So it does if they belong to the running block; and if they read as memory (a ROM, a flash memory), for the device must
    hear of it before the next instruction reads them.
    """
    if host == 0:
        return s.host_pc != 0 and not s.stepping and ram_host(s.engine, gpa, False) != 0
    if not has_code(s.engine, gpa):
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
