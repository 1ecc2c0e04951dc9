"""Operands of helpers: from an instruction's fields to a linear address, with all checks but those of paging.

Documents: Intel SDM Vol. 1 3.7.5 (effective addresses), Vol. 3A 5.3 (limits), 6.15 (alignment).
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.access import mem_probe, mem_read, mem_write
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, REG_RIP
from cython.cimports.pyhyve.vmm.soft.physical import store
from cython.cimports.pyhyve.vmm.soft.state import (
    ACCESS_EXEC,
    ACCESS_READ,
    ACCESS_WRITE,
    DONE,
    EXC_AC,
    EXC_GP,
    EXC_SS,
    FAULT,
    FS,
    LOW32,
    MODE_ALIGN,
    MODE_CODE64,
    MODE_PROTECTED,
    SEG_CODE,
    SEG_DB,
    SEG_EXPAND_DOWN,
    SEG_UNUSABLE,
    SEG_WRITABLE,
    SS,
    is_canonical,
    raise_fault,
)
from cython.cimports.pyhyve.vmm.soft.walks import walk


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
