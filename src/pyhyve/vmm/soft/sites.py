"""Sites: look-ups in loops that remember the page they found last.

A loop goes through memory step by step, so most accesses are in the page of the one before. In a block that jumps back to
its own start, each look-up whose address moves by small steps has a place in ``CpuState.sites``: one addition and one
compare tell whether the address is in that page still, and what finds its memory stands beside it. If it is not,
``stubs.site`` looks into the TLB and writes down what it finds.

A kernel has none: its loops are short, and it often leaves emitted code.

Which look-up has a place, and which, matters for speed only, for the page is compared each time. Loads and stores have
places apart. All are forgotten whenever emitted code is entered: nothing is remembered over a block border, as with
``spans``. So nobody who takes something out of the TLB must know of them.

An empty place names a page that is none, in the middle of the addresses, and leads to host addresses that are none
either: what the host says to those makes the instruction run by itself (``cpu.handle_host_fault``).
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.blocks import NO_PAGE
from cython.cimports.pyhyve.vmm.soft.decode import K_JCC, K_JCXZ, K_JMP, K_LEA, K_LOOP, K_PLAIN, ops
from cython.cimports.pyhyve.vmm.soft.insn import NO_REG, Insn
from cython.cimports.pyhyve.vmm.soft.leaving import foresees_returns
from cython.cimports.pyhyve.vmm.soft.spans import changed, moves_rsp
from cython.cimports.pyhyve.vmm.soft.state import MODE_USER, NOWHERE, RAX, RSP, SITES, CpuState, Site
from cython.cimports.pyhyve.vmm.soft.stubs import off

FAR = cython.declare(uint32_t, 0x10000)  # a step that is too long, or unknown
PASSES = cython.declare(uint32_t, 4)


# --- how far registers move -------------------------------------------------------------------------------------------


def loop_length(x):
    """How many instructions of the block lie between its start and its last jump back there."""
    length: uint32_t = 0
    i: uint32_t
    kind: uint32_t
    insn: cython.pointer(Insn)
    target: int64_t
    for i in range(x.count):
        insn = cython.address(x.insns[i])
        kind = ops[insn.op].kind
        target = cython.cast(int64_t, insn.page_offset) + insn.length + cython.cast(int64_t, insn.imm)
        if kind == K_JCC or kind == K_JMP or kind == K_LOOP or kind == K_JCXZ:
            if target == cython.cast(int64_t, x.insns[0].page_offset):
                length = i + 1
    return length


def size_of(step):
    if step < 0:
        step = -step
    return cython.cast(uint32_t, step) if 0 <= step < FAR else FAR


def step_of(steps, reg):
    return steps[reg] if reg < 16 else 0


def move(x, round, dst, constant, reg, scale):
    """A constant and ``reg`` are added to register ``dst``."""
    steps: cython.pointer(uint32_t) = cython.address(x.steps[dst])
    if round.fresh >> dst & 1:
        steps[0] += step_of(round.before, reg) << scale
        return
    steps[0] += size_of(constant)
    if reg < 16:
        # as far as its value is now, if the loop leaves it alone
        steps[0] += FAR if round.before[reg] else size_of(cython.cast(int64_t, x.s.gpr[reg]) << scale)


def assign(x, round, dst, step):
    """Register ``dst`` gets its value in each round anew, from others that move so far."""
    x.steps[dst] = step
    round.fresh |= cython.cast(uint32_t, 1) << dst


def add_step(x, insn, round):
    """What the instruction moves."""
    kind: uint32_t = ops[insn.op].kind
    opcode: uint32_t = insn.opcode
    which: uint32_t = insn.modrm >> 3 & 7
    dst: uint32_t = insn.rm
    src: uint32_t = insn.reg
    mask: uint32_t
    reg: uint32_t
    moved: int64_t = 0
    if moves_rsp(insn, cython.address(moved)):
        move(x, round, RSP, moved, NO_REG, 0)
        return
    if kind == K_LEA and insn.opsize != 2:
        if insn.base == src:
            move(x, round, src, insn.disp, insn.index, insn.scale)
        elif insn.index == src and insn.scale == 0:
            move(x, round, src, insn.disp, insn.base, 0)
        else:
            assign(x, round, src, step_of(round.before, insn.base) + (step_of(round.before, insn.index) << insn.scale))
        return
    if kind == K_PLAIN and insn.map == 0 and insn.vex == 0 and insn.opsize != 2 and not insn.has_mem:
        if opcode == 0x03 or opcode == 0x2B or opcode == 0x8B:
            opcode -= 2
            dst = insn.reg
            src = insn.rm
        if opcode == 0x01 or opcode == 0x29:  # ADD, SUB
            move(x, round, dst, 0, src, 0)
            return
        if opcode == 0x89:  # MOV
            assign(x, round, dst, step_of(round.before, src))
            return
        if opcode == 0x63:  # MOVSXD
            assign(x, round, insn.reg, step_of(round.before, insn.rm))
            return
        if (opcode == 0x81 or opcode == 0x83) and (which == 0 or which == 5):
            move(x, round, dst, cython.cast(int64_t, insn.imm), NO_REG, 0)
            return
        if opcode == 0xFF and which < 2:  # INC, DEC
            move(x, round, dst, 1, NO_REG, 0)
            return
        if opcode == 0x05 or opcode == 0x2D:
            move(x, round, RAX, cython.cast(int64_t, insn.imm), NO_REG, 0)
            return
        if opcode & 0xFE == 0x3C or opcode & 0xFE == 0xA8 or opcode == 0x98:
            return  # CMP and TEST of the accumulator; CDQE
    mask = changed(insn)
    for reg in range(16):
        if mask >> reg & 1:
            x.steps[reg] = FAR


def find_steps(x):
    i: uint32_t
    k: uint32_t
    round: Round
    x.loop = 0
    if foresees_returns(x) and x.mode & MODE_USER and x.block.gpa2 == NO_PAGE:
        x.loop = loop_length(x)
    for k in range(16):
        x.steps[k] = 0
    if x.loop == 0:
        return
    for i in range(PASSES):
        round.fresh = 0
        for k in range(16):
            round.before[k] = x.steps[k] if x.steps[k] < FAR else FAR
            x.steps[k] = 0
        for k in range(x.loop):
            add_step(x, cython.address(x.insns[k]), cython.address(round))


# --- their places -----------------------------------------------------------------------------------------------------


def new_site(x, base, index, scale, write):
    step: uint32_t = step_of(x.steps, base) + (step_of(x.steps, index) << scale)
    number: uint32_t
    if x.current >= x.loop or step > LONGEST_STEP or x.live[x.current] != 0:
        return 0
    number = x.c.next_site[write]
    x.c.next_site[write] = (number + 1) & (SITES - 1)
    return off(x.s, cython.address(x.s.sites[write][number]))


def clear_sites(s):
    i: uint32_t
    k: uint32_t
    filled: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), cython.address(s.sites_filled[0][0]))
    site: cython.pointer(Site)
    for k in range(2 * SITES // 8):
        for i in range(8):
            if filled[k] >> 8 * i & 1:
                site = cython.address(s.sites[0][8 * k + i])
                site.minus_page = site.host = NOWHERE
                site.addend = 0
            elif filled[k] >> 8 * i == 0:
                break
        filled[k] = 0
    s.sites_used = 0
