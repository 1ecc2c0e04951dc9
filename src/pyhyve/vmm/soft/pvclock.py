"""KVM's paravirtual clock ("kvmclock"), by which Linux knows the TSC's frequency and the time without measuring.

Document: Linux, Documentation/virt/kvm/x86/msr.rst (MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW) and cpuid.rst.

A guest writes the address of a structure to an MSR. The one of MSR_SYSTEM_TIME says which time it was at which TSC, and
how many nanoseconds a tick is. The TSC here is constant, invariant and the same on all vCPUs, so the structure is
written then and never again, unless the guest sets its TSC. MSR_WALL_CLOCK writes the time of day at which the clock
was zero.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import code_written, has_code
from cython.cimports.pyhyve.vmm.soft.cpuid import R_EAX, feature
from cython.cimports.pyhyve.vmm.soft.physical import ram_host
from cython.cimports.pyhyve.vmm.soft.tlb import fence
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import ATOMIC, DONE, LOW32, gp


def pvclock_announced(e):
    return e.cpuid_count != 0 and feature(e, LEAF_FEATURES, R_EAX, FEATURE_CLOCK)


def put(s, gpa, value):
    """Write a word to guest-physical memory; nothing where there is none."""
    host: uint64_t = ram_host(s.engine, gpa, True)
    if host == 0:
        return
    cython.cast(cython.pointer(uint32_t), host)[0] = value
    fence(ATOMIC)  # the store must be seen by whoever claims the page behind this look
    if has_code(s.engine, gpa):
        code_written(s.engine, s, gpa, 4)


def scale(e, shift):
    """Nanoseconds of a tick, shifted left by ``shift``, times 2^32: below 2^32."""
    hz: uint64_t = e.tsc_hz
    shift[0] = 0
    while hz <= SECOND_NS:
        hz <<= 1
        shift[0] += 1
    return (cython.cast(uint64_t, SECOND_NS) << 32) // hz


def write_time(s, gpa):
    """struct pvclock_vcpu_time_info."""
    shift: uint32_t = 0
    factor: uint64_t = scale(s.engine, cython.address(shift))
    tsc: uint64_t = native.rdtsc()
    ticks: uint64_t = (tsc - s.engine.tsc_start) << shift
    time: uint64_t = (ticks >> 32) * factor + (((ticks & LOW32) * factor) >> 32)
    host: uint64_t = ram_host(s.engine, gpa, False)
    version: uint32_t = 0
    if host != 0:
        version = cython.cast(cython.pointer(uint32_t), host)[0] & ~cython.cast(uint32_t, 1)
    tsc += s.tsc_offset
    put(s, gpa, version + 1)  # odd: being changed
    put(s, gpa + 4, 0)
    put(s, gpa + 8, cython.cast(uint32_t, tsc))
    put(s, gpa + 12, tsc >> 32)
    put(s, gpa + 16, cython.cast(uint32_t, time))
    put(s, gpa + 20, time >> 32)
    put(s, gpa + 24, factor)
    put(s, gpa + 28, shift | TIME_STABLE)
    put(s, gpa, version + 2)


def write_wall(s, gpa):
    """struct pvclock_wall_clock."""
    put(s, gpa, 1)
    put(s, gpa + 4, s.engine.wall_start // SECOND_NS)
    put(s, gpa + 8, s.engine.wall_start % SECOND_NS)
    put(s, gpa, 2)


def pvclock_write(s, index, value):
    if value & 3 and (index == MSR_WALL_CLOCK or value & 2):
        return gp(s, 0)  # not aligned
    if index == MSR_WALL_CLOCK:
        s.pv_wall = value
        write_wall(s, value)
    else:
        s.pv_time = value
        pvclock_update(s)
    return DONE


def pvclock_update(s):
    if s.pv_time & TIME_ENABLED:
        write_time(s, s.pv_time & ~cython.cast(uint64_t, TIME_ENABLED))
