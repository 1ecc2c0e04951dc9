"""Port I/O: IN, OUT, INS, OUTS.

Document: Intel SDM Vol. 1 chapter 19 (ports, I/O privilege, the permission bitmap of the TSS), Vol. 2.

A port belongs to a device, so an access leaves to the machine, but for reads of a port that is nothing but a clock. IN leaves with rip at the instruction; when the
machine has answered, the instruction runs again and takes the answer. OUT is complete before it leaves. The repeated
string forms do one element for each exit, the memory side first: it must not fault once the device has been read.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.debug import port_access
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, finish, set_gpr
from cython.cimports.pyhyve.vmm.soft.lapic import scale
from cython.cimports.pyhyve.vmm.soft.access import mem_probe, mem_read, mem_write, system_read
from cython.cimports.pyhyve.vmm.soft.addresses import linear
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_READ,
    ACCESS_WRITE,
    CR0_PE,
    DONE,
    DS,
    ES,
    EXIT_IN,
    EXIT_OUT,
    FAULT,
    LEAVE,
    LOW32,
    MODE_IOPL_OK,
    MODE_VM86,
    RAX,
    RCX,
    RDI,
    RDX,
    RSI,
    ClockPort,
    gp,
)
from cython.cimports.pyhyve.vmm.soft.msr import exit_to


def port_allowed(s, port, size):
    kind: uint32_t = s.tr.access & 0x1F
    base: uint64_t = 0
    bits: uint64_t = 0
    if s.cr0 & CR0_PE == 0 or (s.mode & MODE_IOPL_OK and s.mode & MODE_VM86 == 0):
        return DONE
    if kind != TSS_AVAILABLE and kind != TSS_BUSY:
        return gp(s, 0)  # a 16-bit TSS has no bitmap
    if s.tr.limit < TSS_IO_MAP + 1:
        return gp(s, 0)
    if system_read(s, s.tr.base + TSS_IO_MAP, 2, cython.address(base)) != DONE:
        return FAULT
    # Two bytes are always read: an access may touch the bits of both.
    base += port >> 3
    if base + 1 > s.tr.limit:
        return gp(s, 0)
    if system_read(s, s.tr.base + base, 2, cython.address(bits)) != DONE:
        return FAULT
    if (bits >> (port & 7)) & ((1 << size) - 1):
        return gp(s, 0)
    return DONE


def port_size(insn):
    if insn.opcode & 1 == 0:
        return 1
    return 2 if insn.opsize == 2 else 4


def read_port(s, insn, port):
    size: uint32_t = port_size(insn)
    clock: cython.pointer[ClockPort]
    if port_allowed(s, port, size) != DONE:
        return FAULT
    if s.answered:
        s.answered = 0
        port_access(s, port, size)
        set_gpr(s, RAX, s.answer, size)
        return finish(s, insn)
    clock = clock_of(s.engine, port, size)
    if clock != cython.NULL:
        port_access(s, port, size)
        set_gpr(s, RAX, read_clock(s.engine, clock), size)
        return finish(s, insn)
    exit_to(s, EXIT_IN, port, size, 0)
    return LEAVE


def clock_of(e, port, size):
    """The clock port that answers such a read, or NULL."""
    i: cython.int
    for i in range(4):
        if e.clock_ports[i].port == port and e.clock_ports[i].size == size and port != 0:
            return cython.address(e.clock_ports[i])
    return cython.NULL


def read_clock(e, clock):
    now: uint64_t = native.rdtsc()
    ticks: uint64_t
    if clock.halves and clock.reads < HELD_READS:
        # A guest that has just loaded the counter now begins to poll it, through code that is only being translated.
        # A calibration wants many reads in the first 214 us: the count waits until the loop is at its speed.
        if clock.reads == 0:
            clock.first = now if now - clock.start < e.tsc_hz // 1000 else 0
        if clock.first and now - clock.first < e.tsc_hz // 5000:
            clock.start = now
    ticks = scale(now - clock.start, clock.hz, e.tsc_hz)
    value: uint64_t = clock.base - ticks if clock.down else clock.base + ticks
    value &= clock.mask
    clock.reads += 1
    if clock.halves:
        if clock.high_next:
            value >>= 8
        clock.high_next ^= 1
        value &= 0xFF
    return value


def write_port(s, insn, port):
    size: uint32_t = port_size(insn)
    value: uint64_t = s.gpr[RAX] & (LOW32 >> (32 - 8 * size))
    if port_allowed(s, port, size) != DONE:
        return FAULT
    finish(s, insn)
    port_access(s, port, size)
    exit_to(s, EXIT_OUT, port, size, value)
    return LEAVE


def in_imm(s, insn):
    return read_port(s, insn, insn.imm & 0xFF)


def in_dx(s, insn):
    return read_port(s, insn, s.gpr[RDX] & 0xFFFF)


def out_imm(s, insn):
    return write_port(s, insn, insn.imm & 0xFF)


def out_dx(s, insn):
    return write_port(s, insn, s.gpr[RDX] & 0xFFFF)


def address_mask(insn):
    if insn.addrsize == 8:
        return cython.cast(uint64_t, -1)
    return LOW32 if insn.addrsize == 4 else 0xFFFF


def step(s, size):
    return cython.cast(uint64_t, 0) - size if s.df else size


def last_element(s, insn):
    """Count one element of a repeated form; true if it was the last, or there is no prefix."""
    left: uint64_t
    if insn.rep == 0:
        return True
    left = (s.gpr[RCX] - 1) & address_mask(insn)
    set_gpr(s, RCX, left, insn.addrsize)
    return left == 0


def ins(s, insn):
    size: uint32_t = port_size(insn)
    port: uint32_t = s.gpr[RDX] & 0xFFFF
    ea: uint64_t = s.gpr[RDI] & address_mask(insn)
    va: uint64_t = 0
    status: cython.int
    if port_allowed(s, port, size) != DONE:
        return FAULT
    if insn.rep and s.gpr[RCX] & address_mask(insn) == 0:
        return finish(s, insn)
    if linear(s, ES, ea, size, ACCESS_WRITE, cython.address(va)) != DONE:
        return FAULT
    if mem_probe(s, va, size, ACCESS_WRITE, s.mmu_mode) != DONE:
        return FAULT
    if not s.answered:
        exit_to(s, EXIT_IN, port, size, 0)
        return LEAVE
    s.answered = 0
    status = mem_write(s, va, size, s.mmu_mode, s.answer)
    if status != DONE:
        return status
    port_access(s, port, size)
    set_gpr(s, RDI, ea + step(s, size), insn.addrsize)
    if last_element(s, insn):
        return finish(s, insn)
    return DONE


def outs(s, insn):
    size: uint32_t = port_size(insn)
    port: uint32_t = s.gpr[RDX] & 0xFFFF
    ea: uint64_t = s.gpr[RSI] & address_mask(insn)
    segment: uint8_t = DS if insn.segment_override == NO_REG else insn.segment_override
    va: uint64_t = 0
    value: uint64_t = 0
    status: cython.int
    if port_allowed(s, port, size) != DONE:
        return FAULT
    if insn.rep and s.gpr[RCX] & address_mask(insn) == 0:
        return finish(s, insn)
    if linear(s, segment, ea, size, ACCESS_READ, cython.address(va)) != DONE:
        return FAULT
    status = mem_read(s, va, size, s.mmu_mode, cython.address(value))
    if status != DONE:
        return status
    port_access(s, port, size)
    set_gpr(s, RSI, ea + step(s, size), insn.addrsize)
    if last_element(s, insn):
        finish(s, insn)
    exit_to(s, EXIT_OUT, port, size, value)
    return LEAVE


register("in_imm", in_imm)
register("in_dx", in_dx)
register("out_imm", out_imm)
register("out_dx", out_dx)
register("ins", ins)
register("outs", outs)
