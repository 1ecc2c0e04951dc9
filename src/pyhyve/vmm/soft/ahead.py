"""Flags that matter to code which is not translated yet.

A block is translated before what it jumps to and calls. So a few instructions there are read ahead: most code overwrites
the flags soon, and then the block need not keep them. What was read is marked in the page (``CodePage.assumed``): when it
changes, the blocks that relied on it are dropped.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import CodePage, granules, page_of
from cython.cimports.pyhyve.vmm.soft.debug import is_armed
from cython.cimports.pyhyve.vmm.soft.decode import (
    DECODED,
    K_CALL,
    K_CALL_IND,
    K_JCC,
    K_JCXZ,
    K_JMP,
    K_JMP_IND,
    K_LOOP,
    K_RET,
    K_STI,
    decode,
    ops,
)
from cython.cimports.pyhyve.vmm.soft.insn import Insn
from cython.cimports.pyhyve.vmm.soft.leaving import goes_to_helper, trap_of
from cython.cimports.pyhyve.vmm.soft.physical import ram_host
from cython.cimports.pyhyve.vmm.soft.state import FLAGS_ARITH, MODE_CODE64


def live_ahead(x, target):
    left: uint32_t = MOST_AHEAD
    if page_of(x.c, x.page_gpa).drops:
        return FLAGS_ARITH  # its code shares granules with data
    return look_ahead(x, target, MOST_BRANCHES, cython.address(left))


def look_ahead(x, at, branches, left):
    host: uint64_t = ram_host(x.s.engine, x.page_gpa, False)
    page: cython.pointer(CodePage) = page_of(x.c, x.page_gpa)
    insn: Insn
    kind: uint32_t
    needed: uint32_t = 0
    open_: uint32_t = FLAGS_ARITH  # those that nothing has overwritten so far
    target: int64_t
    while left[0]:
        left[0] -= 1
        if at < 0 or at > 4095 or is_armed(x.s.engine, cython.cast(uint32_t, at)):
            return needed | open_
        if decode(
            cython.cast(cython.pointer(cython.const[uint8_t]), host + cython.cast(uint64_t, at)),
            cython.cast(uint32_t, 4096 - at),
            x.mode,
            cython.address(insn),
        ) != DECODED:
            return needed | open_
        insn.page_offset = cython.cast(uint32_t, at)
        page.assumed |= granules(cython.cast(uint32_t, at), insn.length)
        kind = ops[insn.op].kind
        if (
            kind == K_RET or kind == K_CALL_IND or kind == K_JMP_IND or kind == K_STI or kind == K_LOOP or kind == K_JCXZ
            or goes_to_helper(x, cython.address(insn)) or trap_of(x, cython.address(insn))
        ):  # fmt: skip
            return needed | open_
        needed |= ops[insn.op].flags_read & open_
        open_ &= ~cython.cast(uint32_t, ops[insn.op].flags_kill)
        if open_ & ~needed == 0:
            return needed
        at += insn.length
        target = at + cython.cast(int64_t, insn.imm)
        if kind == K_JMP or kind == K_CALL:
            if kind == K_CALL and x.mode & MODE_CODE64 == 0:
                return needed | open_
            at = target
        elif kind == K_JCC:
            if branches == 0:
                return needed | open_
            needed |= look_ahead(x, target, branches - 1, left) & open_
    return needed | open_
