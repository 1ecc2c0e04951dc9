"""CPUID: what the table that Python gave says, with the bits that change at run time filled in.

Document: Intel SDM Vol. 2A, CPUID. ``supported_cpuid`` tells what the table may announce (``announce`` decides),
``host_cpuid`` what the host has.
"""

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.pyhyve.vmm.soft.control import xgetbv
from cython.cimports.pyhyve.vmm.soft.helpers import register
from cython.cimports.pyhyve.vmm.soft.insn import finish
from cython.cimports.pyhyve.vmm.soft.msr import APIC_ENABLED
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import CR4_OSXSAVE, RAX, RBX, RCX, RDX, CpuidRow
from cython.cimports.pyhyve.vmm.soft.system import rdtsc
from cython.cimports.pyhyve.vmm.soft.xstate import EXTRA_C, EXTRA_S, extras, xsave_size

from pyhyve.vmm.soft import announce

def cpuid_row(e, leaf, subleaf):
    i: uint32_t
    for i in range(e.cpuid_count):
        if e.cpuid[i].leaf == leaf and (e.cpuid[i].any_subleaf or e.cpuid[i].subleaf == subleaf):
            return cython.address(e.cpuid[i])
    return cython.NULL


def feature(e, leaf, reg, bit):
    row: cython.pointer[CpuidRow]
    value: uint32_t
    if e.cpuid_count == 0:
        return True  # no table given yet: everything that the engine carries
    row = cpuid_row(e, leaf, 0)
    if row == cython.NULL:
        return False
    if reg == R_EAX:
        value = row.eax
    elif reg == R_EBX:
        value = row.ebx
    elif reg == R_ECX:
        value = row.ecx
    else:
        value = row.edx
    return (value >> bit) & 1


def xsave_extra(e, bit):
    row: cython.pointer[CpuidRow] = cpuid_row(e, 0xD, 1)
    shown: uint32_t = extras if e.cpuid_count == 0 else 0
    if row != cython.NULL:
        shown = row.eax
    return (shown & extras) >> bit & 1


def cpuid_query(s, leaf, subleaf, regs):
    row: cython.pointer[CpuidRow] = cpuid_row(s.engine, leaf, subleaf)
    threads: uint32_t

    regs[0] = regs[1] = regs[2] = regs[3] = 0
    if row != cython.NULL:
        regs[0] = row.eax
        regs[1] = row.ebx
        regs[2] = row.ecx
        regs[3] = row.edx
    if leaf == 1:
        regs[1] = (regs[1] & 0xFFFFFF) | (s.index << 24)
        regs[2] &= ~(cython.cast(uint32_t, 1) << 27)
        if s.cr4 & CR4_OSXSAVE:
            regs[2] |= cython.cast(uint32_t, 1) << 27
        if s.apic_base & APIC_ENABLED == 0:
            regs[3] &= ~cython.cast(uint32_t, 0x200)
    elif leaf == 0xB or leaf == 0x1F:
        if cpuid_row(s.engine, leaf, 0) != cython.NULL:
            regs[2] = (regs[2] & ~cython.cast(uint32_t, 0xFF)) | (subleaf & 0xFF)
            regs[3] = s.index
    elif leaf == 0xD:
        if row != cython.NULL and subleaf == 0:
            regs[1] = xsave_size(s.xcr0, False)
        elif row != cython.NULL and subleaf == 1 and regs[0] & (1 << EXTRA_C | 1 << EXTRA_S):
            regs[1] = xsave_size(s.xcr0, True)
    elif leaf == LEAF_AMD_TOPOLOGY:
        if row != cython.NULL:
            threads = ((regs[1] >> 8) & 0xFF) + 1
            regs[0] = s.index
            regs[1] = (regs[1] & ~cython.cast(uint32_t, 0xFF)) | ((s.index // threads) & 0xFF)
    elif leaf == LEAF_EXTENDED + 1:
        if s.apic_base & APIC_ENABLED == 0:
            regs[3] &= ~cython.cast(uint32_t, 0x200)


def cpuid(s, insn):
    regs = cython.declare(uint32_t[4])
    cpuid_query(s, cython.cast(uint32_t, s.gpr[RAX]), cython.cast(uint32_t, s.gpr[RCX]), regs)
    s.gpr[RAX] = regs[0]
    s.gpr[RBX] = regs[1]
    s.gpr[RCX] = regs[2]
    s.gpr[RDX] = regs[3]
    return finish(s, insn)


# What Python sees


def host_leaf(leaf, subleaf=0):
    """The host's CPUID: (eax, ebx, ecx, edx)."""
    regs = cython.declare(uint32_t[4])
    native.cpuid(leaf, subleaf, regs)
    return regs[0], regs[1], regs[2], regs[3]


def host_tsc():
    """The host's time-stamp counter now."""
    return native.rdtsc()


def host_cpuid():
    """The host's CPUID as rows of (leaf, subleaf or None, eax, ebx, ecx, edx)."""
    return announce.host_rows(host_leaf)


def measure_tsc_hz():
    """The frequency of the host's time-stamp counter."""
    return announce.tsc_frequency(host_leaf, host_tsc)


def supported_cpuid(tsc_hz=0):
    """What the engine announces on this host, as such rows. ``tsc_hz`` 0 means: find out."""
    return announce.supported_rows(host_leaf, native.xgetbv(), tsc_hz or measure_tsc_hz())


register("cpuid", cpuid)
