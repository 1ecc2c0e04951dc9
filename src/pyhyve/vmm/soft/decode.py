"""Bytes to instructions (Intel SDM Vol. 2 chapter 2): prefixes, REX, VEX, opcode maps, ModRM, SIB, immediates.

At import the rows of ``opcodes`` become ``ops``, and ``lookup``: for every encoding class, map, opcode, mandatory
prefix, register or memory form, and reg field the number of its row. Decoding is then one table access.
"""

import cython
from cython.cimports.libc.stdint import int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.insn import (
    MEM_NONE,
    MEM_READ,
    MEM_RMW,
    MEM_WRITE,
    NO_REG,
    REG_RIP,
    Insn,
)
from cython.cimports.pyhyve.vmm.soft.native import native
from cython.cimports.pyhyve.vmm.soft.state import DS, MODE_CODE32, MODE_CODE64, MODE_PROTECTED, SS

from pyhyve.vmm.soft import opcodes, opcodes_evex

# [VEX][map][opcode][pp][register form][reg]
lookup = cython.declare(uint16_t[2 * 4 * 256 * 4 * 2 * 8])
# EVEX: [map - 1][opcode][pp][W][register form][reg]
lookup_evex = cython.declare(uint16_t[3 * 256 * 4 * 2 * 2 * 8])
lookup_0f01 = cython.declare(uint16_t[256])
arpl_row = cython.declare(uint16_t[1])
intel = cython.declare(cython.bint)
# Which opcodes of the first two maps have a ModRM byte
modrm_1 = cython.declare(uint8_t[256])
modrm_0f = cython.declare(uint8_t[256])

_SIZE_CODES = {
    "b": SZ_B, "w": SZ_W, "d": SZ_D, "q": SZ_Q, "v": SZ_V, "z": SZ_Z, "y": SZ_Y, "x": SZ_X, "h": SZ_H, "f": SZ_F,
    "e": SZ_E, "o": SZ_O, "dup": SZ_DUP, "pair": SZ_PAIR, "env": SZ_ENV, "fsave": SZ_FSAVE, "10": SZ_TEN, "1": SZ_B,
    "2": SZ_W, "": SZ_NONE, "kw": SZ_KW, "kb": SZ_KB, "d8": SZ_32,
}  # fmt: skip
_ACCESS = {"!": OP_WRITE, "+": OP_RW, "-": 0, "": OP_READ}
_MEM_ACCESS = {"!": MEM_WRITE, "+": MEM_RMW, "-": MEM_NONE, "": MEM_READ}


def _flags(letters):
    return sum(opcodes.FLAG_BITS[letter] for letter in letters)


def _fill_op(number: cython.int, tokens, vex):
    """Set row ``number`` of ``ops`` from the tokens behind a row's key."""
    op: cython.pointer(OpInfo) = cython.address(ops[number])
    need = 0
    op.kind = K_PLAIN
    op.pp = 0xFF
    attr = 0
    for token in tokens[1:]:
        first, rest = token[0], token[1:]
        if first == "%":
            op.kind = opcodes.KINDS.index(rest)
            if rest in opcodes.HELPER_NUMBER:
                op.helper = opcodes.HELPER_NUMBER[rest]
        elif first == "@":
            op.kind = K_HELPER
            op.helper = opcodes.HELPER_NUMBER[rest]
        elif first == "<":
            op.flags_read = _flags(rest)
        elif first == ">":
            op.flags_kill = _flags(rest)
        elif token == "i64":
            attr |= ATTR_I64
        elif token == "o64":
            attr |= ATTR_O64
        elif token == "d64":
            attr |= ATTR_D64
        elif token == "f64":
            attr |= ATTR_F64
        elif token == "lk":
            attr |= ATTR_LOCK
        elif token == "fpu":
            need |= NEED_FPU
        elif token == "mmx":
            need |= NEED_MMX
        elif token == "sse":
            need |= NEED_SSE
        elif token == "avx":
            need |= NEED_AVX
        elif token == "wait":
            need = NEED_WAIT
        elif token == "H":
            attr |= ATTR_VVVV
        elif token == "L":
            op.imm = SZ_B
            attr |= ATTR_IS4
        elif token in ("AL", "eAX", "CL", "1", "legacy", "Ap"):
            if token == "eAX":
                attr |= ATTR_V
            if token == "Ap":
                op.imm = SZ_Z
                op.imm_word = 2
                attr |= ATTR_V
        else:
            size = rest.rstrip("!+-")
            suffix = rest[len(size) :]
            reg_size = size
            if size in ("d1", "d2"):
                reg_size, size = "d", size[1]
            if size in ("v", "z"):
                attr |= ATTR_V
            if first == "G":
                op.reg_access = _ACCESS[suffix]
                op.reg_size = _SIZE_CODES[reg_size]
            elif first == "Z":
                op.z_access = _ACCESS[suffix]
                op.z_size = _SIZE_CODES[reg_size]
            elif first == "B":
                op.vvvv_access = _ACCESS[suffix]
                attr |= ATTR_VVVV
            elif first == "I":
                op.imm = _SIZE_CODES[size]
            elif first == "J":
                op.imm = _SIZE_CODES[size]
            elif first == "O":
                op.mem_size = _SIZE_CODES[size]
                op.mem_access = _MEM_ACCESS[suffix]
            if first in "ER":
                op.rm_access = _ACCESS[suffix]
                op.rm_size = _SIZE_CODES[reg_size]
            if first in "EMWQ" or (first == "K" and size):
                op.mem_size = _SIZE_CODES[size]
                op.mem_access = _MEM_ACCESS[suffix]
            if first in "VWU":
                need |= NEED_AVX if vex else NEED_SSE
            if first in "PQN":
                need |= NEED_MMX
            if first == "K":
                need |= NEED_AVX512
    if tokens[0] == "ldmxcsr" or tokens[0] == "stmxcsr":
        need = NEED_SSE
    op.attr = attr
    op.need = need


def _fill_evex(number: cython.int, form):
    """Set row ``number`` of ``ops`` from an EVEX row."""
    op: cython.pointer(OpInfo) = cython.address(ops[number])
    tokens = [token.replace("*", "") for token in form.tokens]
    bits = 0
    # What is an opmask register by EVEX.aaa, or a memory operand by VSIB, is nobody's operand here
    plain = [token for token in tokens if token not in opcodes_evex.ATTRIBUTES and token not in ("H", "S", "Kr")]
    _fill_op(number, plain, True)
    for token, bit in (("H", EVEX_VVVV), ("nz", EVEX_NO_ZERO), ("bc", EVEX_REPEATS), ("packed", EVEX_PACKED),
                       ("S", EVEX_VSIB), ("kn", EVEX_WHOLE), ("whole", EVEX_WHOLE),
                       ("er", EVEX_ROUND), ("sae", EVEX_ROUND)):  # fmt: skip
        if token in tokens:
            bits |= bit
    if form.element or "S" in tokens:
        bits |= EVEX_MASK
    if form.tokens[1] == "K":
        bits |= EVEX_TO_MASK
    for token in form.tokens[1:]:
        if token.endswith("*"):
            bits |= EVEX_BROADCAST
    if form.element in ("1", "2", "4", "8", "y"):
        op.mask_size = _SIZE_CODES[{"1": "b", "2": "w", "4": "d", "8": "q", "y": "y"}[form.element]]
    op.evex = bits
    op.lengths = form.lengths
    op.need = NEED_AVX512
    op.pp = form.pp


def _build_evex(number: cython.int):
    """The EVEX rows, from row ``number`` of ``ops`` on, into ``lookup_evex``. The number behind the last."""
    for row in opcodes_evex.rows():
        form, places = opcodes_evex.cells(row)
        _fill_evex(number, form)
        for place in places:
            lookup_evex[cython.cast(cython.int, place)] = number
        number += 1
    return number


def _build():
    """Turn the rows into ``ops`` and ``lookup``. Row 0 is the undefined instruction."""
    forms, index = opcodes.build()
    raw: bytes = index.tobytes()
    cells: cython.pointer(cython.uchar) = raw
    i: cython.int
    number: cython.int = 0
    for i in range(2 * 4 * 256 * 4 * 2 * 8):
        lookup[i] = cells[2 * i] | (cells[2 * i + 1] << 8)
    for form in forms:
        _fill_op(number, form.tokens, form.vex)
        if form.pp is not None:
            ops[number].pp = form.pp
        number += 1
    for row in opcodes.system_rows():
        key, *tokens = row.split()
        lookup_0f01[int(key, 16)] = number
        _fill_op(number, tokens, False)
        number += 1
    arpl_row[0] = number
    _fill_op(number, ["arpl", "Ew-", "Gw-", "@arpl"], False)
    number = _build_evex(number + 1)
    if number > 2048:
        raise AssertionError("the opcode table has outgrown ops")


def operand_size(size, insn):
    if size == SZ_B:
        return 1
    if size == SZ_W:
        return 2
    if size == SZ_D:
        return 4
    if size == SZ_Q:
        return 8
    if size == SZ_V:
        return insn.opsize
    if size == SZ_Z:
        return 2 if insn.opsize == 2 else 4
    if size == SZ_Y:
        return 8 if insn.rex_w else 4
    if size == SZ_X:
        return 16 << insn.vex_l
    if size == SZ_H:
        return 8 << insn.vex_l
    if size == SZ_F:
        return 4 << insn.vex_l
    if size == SZ_E:
        return 2 << insn.vex_l
    if size == SZ_O:
        return 16
    if size == SZ_DUP:
        return 16 << insn.vex_l if insn.vex_l else 8
    if size == SZ_PAIR:
        return 16 if insn.rex_w else 8
    if size == SZ_ENV:
        return 14 if insn.opsize == 2 else 28
    if size == SZ_FSAVE:
        return 94 if insn.opsize == 2 else 108
    if size == SZ_TEN:
        return 10
    if size == SZ_KW:
        return 8 if insn.rex_w else 2
    if size == SZ_KB:
        return 4 if insn.rex_w else 1
    if size == SZ_32:
        return 32
    return 0


def evex_valid(insn, op):
    bits: uint32_t = op.evex
    high: cython.bint = (insn.evex[0] & 0x10) == 0  # R'
    zero: cython.bint = insn.evex[2] >> 7 != 0
    if bits & EVEX_VVVV == 0:
        # All of its bits are looked at in every mode, but V' means something else with VSIB
        if insn.evex[1] & 0x78 != 0x78 or (bits & EVEX_VSIB == 0 and insn.evex[2] & 8 == 0):
            return False
    if high and (op.reg_access or bits & EVEX_TO_MASK):
        return False
    if bits & EVEX_TO_MASK and insn.reg & 8:
        return False
    rounds: cython.bint = insn.evex[2] & 0x10 != 0 and not insn.has_mem and bits & EVEX_ROUND != 0
    # Where there is a form that broadcasts, processors differ on EVEX.b in the register form: the host is asked
    if insn.evex[2] & 0x10 and bits & EVEX_BROADCAST == 0 and not rounds:
        return False
    if not rounds and (op.lengths >> insn.vex_l) & 1 == 0:
        return False
    if insn.evex[2] & 7:
        if bits & EVEX_MASK == 0:
            return False
    elif bits & EVEX_VSIB or (zero and bits & EVEX_MASK):
        return False
    if zero and insn.has_mem and op.mem_access & MEM_WRITE:
        return False
    return not (zero and bits & (EVEX_NO_ZERO | EVEX_TO_MASK))


def decode(code, avail, mode, insn):
    status: cython.int = decode_fields(code, avail, mode, insn)
    insn.too_long = status == TOO_LONG
    if status != TOO_LONG:
        return status
    insn.op = 0
    insn.has_mem = 0
    insn.length = 15
    return DECODED


def decode_fields(code, avail, mode, insn):
    n: uint32_t = 0
    b: uint8_t
    rex: uint8_t = 0
    x: uint8_t = 0
    bb: uint8_t = 0
    r: uint8_t = 0
    pp: uint8_t = 0
    code64: cython.bint = (mode & MODE_CODE64) != 0
    big: cython.bint = (mode & (MODE_CODE64 | MODE_CODE32)) != 0
    address_prefix: cython.bint = False
    op: cython.pointer(OpInfo)
    row: uint32_t
    size: uint32_t
    modrm: uint8_t = 0
    sib: uint8_t
    low: uint8_t
    index: uint32_t
    value: uint64_t
    limit: uint32_t = avail if avail < 15 else 15
    short_by: cython.int = NEED_BYTES if avail < 15 else cython.cast(cython.int, TOO_LONG)

    insn.imm = 0
    insn.disp = 0
    insn.op = 0
    insn.imm2 = 0
    insn.mem_size = 0
    insn.map = 0
    insn.has_modrm = 0
    insn.modrm = 0
    insn.mod = 3
    insn.reg = 0
    insn.rm = 0
    insn.rex = 0
    insn.rex_w = 0
    insn.vex = 0
    insn.vex_l = 0
    insn.vvvv = 0
    insn.vex_pp = 0
    insn.evex[0] = insn.evex[1] = insn.evex[2] = 0
    insn.rep = 0
    insn.opsize_prefix = 0
    insn.lock = 0
    insn.segment = DS
    insn.segment_override = NO_REG
    insn.has_mem = 0
    insn.base = NO_REG
    insn.index = NO_REG
    insn.scale = 0
    insn.mem_access = MEM_NONE
    insn.imm_size = 0
    insn.code_size = 8 if code64 else (4 if big else 2)
    insn.opsize = 4 if big else 2
    insn.addrsize = insn.code_size

    # Prefixes
    while True:
        if n >= limit:
            return short_by
        b = code[n]
        n += 1
        if b == 0x66:
            insn.opsize_prefix = 1
        elif b == 0x67:
            address_prefix = True
        elif b == 0xF2 or b == 0xF3:
            insn.rep = b
        elif b == 0xF0:
            insn.lock = 1
        elif b == 0x26 or b == 0x2E or b == 0x36 or b == 0x3E:
            if not code64:
                insn.segment_override = (b >> 3) & 3
        elif b == 0x64 or b == 0x65:
            insn.segment_override = b - 0x60
        elif code64 and (b & 0xF0) == 0x40:
            rex = b
            continue
        else:
            break
        rex = 0

    # Opcode
    if b == 0x0F:
        if n >= limit:
            return short_by
        b = code[n]
        n += 1
        insn.map = 1
        if b == 0x38 or b == 0x3A:
            insn.map = 2 if b == 0x38 else 3
            if n >= limit:
                return short_by
            b = code[n]
            n += 1
    elif b == 0xC4 or b == 0xC5 or b == 0x62:
        if n >= limit:
            return short_by
        if code64 or (code[n] & 0xC0) == 0xC0:
            if rex or insn.lock or insn.opsize_prefix or insn.rep or mode & MODE_PROTECTED == 0:
                insn.length = n
                return DECODED
            insn.vex = 1
            r = (~code[n] >> 7) & 1
            if b == 0x62:
                if n + 3 > limit:
                    return short_by
                insn.vex = 2
                insn.map = code[n] & 15
                if insn.map == 0 or insn.map > 3 or code[n + 1] & 4 == 0:
                    insn.map = 0
                    insn.length = n
                    return DECODED
                insn.evex[0] = code[n]
                insn.evex[1] = b = code[n + 1]
                insn.evex[2] = code[n + 2]
                n += 3
                x = (~insn.evex[0] >> 6) & 1
                bb = (~insn.evex[0] >> 5) & 1
                insn.rex_w = b >> 7
            elif b == 0xC5:
                b = code[n]
                n += 1
                insn.map = 1
            else:
                x = (~code[n] >> 6) & 1
                bb = (~code[n] >> 5) & 1
                insn.map = code[n] & 31
                n += 1
                if n >= limit:
                    return short_by
                b = code[n]
                n += 1
                insn.rex_w = b >> 7
                if insn.map == 0 or insn.map > 3:
                    insn.length = n
                    return DECODED
            insn.vvvv = (~b >> 3) & 15
            insn.vex_l = (insn.evex[2] >> 5) & 3 if insn.vex == 2 else (b >> 2) & 1
            insn.vex_pp = pp = b & 3
            if not code64:
                # There are eight registers: the bits that would name others mean nothing. Of vvvv that is vector_row's to say
                insn.evex[0] |= 0xF0
                insn.evex[2] |= 8
                r = x = bb = 0
            if n >= limit:
                return short_by
            b = code[n]
            n += 1
    insn.opcode = b
    if insn.vex == 0:
        insn.rex = rex
        if rex:
            insn.rex_w = (rex >> 3) & 1
            r = (rex >> 2) & 1
            x = (rex >> 1) & 1
            bb = rex & 1
        if insn.rep == 0xF2:
            pp = 3
        elif insn.rep == 0xF3:
            pp = 2
        elif insn.opsize_prefix:
            pp = 1
    # MODE bits: 64-bit: 4 by default; the prefix toggles between 16 and 32 elsewhere.
    if insn.rex_w:
        insn.opsize = 8
    elif insn.opsize_prefix:
        insn.opsize = 2 if big else 4
    if address_prefix:
        insn.addrsize = 4 if code64 or not big else 2

    table: cython.pointer(uint16_t) = lookup
    if insn.vex == 2:
        table = lookup_evex
        index = ((((insn.map - 1) * 256 + b) * 4 + pp) * 2 + insn.rex_w) * 16
    else:
        index = (((insn.vex * 4 + insn.map) * 256 + b) * 4 + pp) * 16
    # Does the opcode have a ModRM byte? Every opcode of the two-byte and longer maps is marked by its rows.
    if insn.map >= 2 or insn.vex:
        insn.has_modrm = not (insn.vex == 1 and insn.map == 1 and b == 0x77)
    elif insn.map == 1:
        insn.has_modrm = modrm_0f[b]
    else:
        insn.has_modrm = modrm_1[b]
    if insn.has_modrm:
        if n >= limit:
            return short_by
        modrm = code[n]
        n += 1
        insn.modrm = modrm
        insn.mod = modrm >> 6
        insn.reg = ((modrm >> 3) & 7) | (r << 3)
        low = modrm & 7
        insn.rm = low | (bb << 3)
        index += (modrm >> 3) & 7
        if insn.mod == 3:
            index += 8
            row = table[index]
            if insn.map == 1 and b == 0x01 and insn.vex == 0 and lookup_0f01[modrm]:
                row = lookup_0f01[modrm]
        elif insn.map == 1 and 0x20 <= b <= 0x23 and insn.vex == 0:
            insn.mod = 3  # MOV to and from control and debug registers ignores mod
            row = lookup[index + 8]
        else:
            row = table[index]
            insn.has_mem = 1
            if insn.addrsize == 2:
                if insn.mod == 0 and low == 6:
                    insn.disp = 0
                    if n + 2 > limit:
                        return short_by
                    insn.disp = code[n] | (cython.cast(uint32_t, code[n + 1]) << 8)
                    n += 2
                else:
                    insn.base = 3 if low == 0 or low == 1 or low == 7 else (5 if low == 2 or low == 3 or low == 6 else
                                                                           (6 if low == 4 else 7))
                    if low < 4:
                        insn.index = 6 if (low & 1) == 0 else 7
                    if insn.mod == 1:
                        if n >= limit:
                            return short_by
                        insn.disp = cython.cast(int8_t, code[n])
                        n += 1
                    elif insn.mod == 2:
                        if n + 2 > limit:
                            return short_by
                        insn.disp = cython.cast(int16_t, code[n] | (cython.cast(uint32_t, code[n + 1]) << 8))
                        n += 2
            else:
                size = 0
                if low == 4:
                    if n >= limit:
                        return short_by
                    sib = code[n]
                    n += 1
                    insn.scale = sib >> 6
                    insn.index = ((sib >> 3) & 7) | (x << 3)
                    if insn.vex and insn.map == 2 and (b & 0xFC == 0x90 or (insn.vex == 2 and b & 0xFC == 0xA0)):
                        if insn.vex == 2 and insn.evex[2] & 8 == 0:
                            insn.index |= 16
                    elif insn.index == 4:
                        insn.index = NO_REG
                    insn.base = (sib & 7) | (bb << 3)
                    if (sib & 7) == 5 and insn.mod == 0:
                        insn.base = NO_REG
                        size = 4
                elif low == 5 and insn.mod == 0:
                    insn.base = REG_RIP if code64 else NO_REG
                    size = 4
                else:
                    insn.base = insn.rm
                if insn.mod == 1:
                    size = 1
                elif insn.mod == 2:
                    size = 4
                if n + size > limit:
                    return short_by
                if size == 1:
                    insn.disp = cython.cast(int8_t, code[n])
                elif size == 4:
                    insn.disp = cython.cast(int32_t, read_le(code, n, 4))
                n += size
            if insn.base == 4 or insn.base == 5:
                insn.segment = SS
    else:
        insn.rm = (b & 7) | (bb << 3)  # the register in the opcode
        if b == 0x90 and insn.map == 0 and bb:
            index = b * 64  # with REX.B it is XCHG R8 whatever the prefix says, not PAUSE
        row = lookup[index]
        if row == 0 and insn.vex:
            row = lookup[index + 8]
    if b == 0x63 and insn.map == 0 and insn.vex == 0 and not code64:
        row = arpl_row[0]
    if insn.vex:
        row = vector_row(insn, row, index, code64)
    if insn.segment_override != NO_REG:
        insn.segment = insn.segment_override

    op = cython.address(ops[row])
    if ((op.attr & ATTR_I64) and code64) or ((op.attr & ATTR_O64) and not code64):
        row = 0
    if insn.lock and ((op.attr & ATTR_LOCK) == 0 or insn.has_mem == 0) and row:
        # LOCK MOV CR0 means CR8 on AMD processors; not announced, so #UD like the rest.
        row = 0
    op = cython.address(ops[row])
    insn.op = row
    if code64:
        if op.attr & ATTR_F64:
            insn.opsize = 8
        elif op.attr & ATTR_D64 and insn.opsize == 4:
            insn.opsize = 8
    insn.mem_access = op.mem_access if insn.has_mem else MEM_NONE
    insn.mem_size = operand_size(op.mem_size, insn) if insn.has_mem else 0
    if insn.vex == 2 and insn.has_mem:
        if insn.evex[2] & 0x10:
            insn.mem_size = 8 if insn.rex_w else 4
        if insn.mod == 1:
            # One byte of displacement counts operands; where memory is accessed in parts, elements (2.7.5)
            insn.disp *= operand_size(op.mask_size if op.evex & (EVEX_PACKED | EVEX_VSIB) else op.mem_size, insn) if (
                insn.evex[2] & 0x10) == 0 else insn.mem_size

    # Immediates
    if op.kind == K_MOFFS:
        size = insn.addrsize
        if n + size > limit:
            return short_by
        insn.disp = cython.cast(int64_t, read_le(code, n, size))
        insn.has_mem = 1
        insn.mod = 0
        insn.mem_access = op.mem_access
        insn.mem_size = 1 if (b & 1) == 0 else insn.opsize
        n += size
    elif op.imm:
        size = operand_size(op.imm, insn)
        if op.imm == SZ_V and insn.opsize == 8:
            size = 8
        if n + size > limit:
            return short_by
        value = read_le(code, n, size)
        n += size
        if size == 1:
            value = cython.cast(uint64_t, cython.cast(int64_t, cython.cast(int8_t, value)))
        elif size == 2 and op.imm != SZ_W:
            value = cython.cast(uint64_t, cython.cast(int64_t, cython.cast(int16_t, value)))
        elif size == 4:
            value = cython.cast(uint64_t, cython.cast(int64_t, cython.cast(int32_t, value)))
        if op.attr & ATTR_IS4 and not code64:
            value &= 0x7F
        insn.imm = value
        insn.imm_size = size
        if op.imm_word == 2:
            if n + 2 > limit:
                return short_by
            insn.imm2 = read_le(code, n, 2)
            n += 2
        elif b == 0xC8 and insn.map == 0:
            if n >= limit:
                return short_by
            insn.imm2 = code[n]
            n += 1
    insn.length = n
    return DECODED


def vector_row(insn, row, index, code64):
    op: cython.pointer(OpInfo) = cython.address(ops[row])
    if insn.rex_w and not code64 and (op.reg_access or op.rm_access or op.vvvv_access):
        # W chooses 64-bit registers, which are not there; elsewhere it is part of the opcode
        if insn.vex == 1 and insn.map == 3 and (insn.opcode == 0x16 or insn.opcode == 0x22) and not intel:
            return 0  # VPEXTRQ and VPINSRQ, which Intel's processors take for VPEXTRD and VPINSRD
        insn.rex_w = 0
        if insn.vex == 2:
            insn.evex[1] &= 0x7F
            row = lookup_evex[index - 16]
            op = cython.address(ops[row])
    if insn.vex == 2:
        if not evex_valid(insn, op):
            return 0
        if not code64:
            insn.evex[1] |= 0x40
        return row
    if insn.vvvv and op.attr & ATTR_VVVV == 0:
        return 0
    if not code64:
        insn.vvvv &= 7
    if op.need & NEED_AVX512 and insn.has_mem and insn.vex_l:
        return 0
    return row


def read_le(code, at, size):
    value: uint64_t = 0
    i: uint32_t
    for i in range(size):
        value |= cython.cast(uint64_t, code[at + i]) << (8 * i)
    return value


def _build_modrm():
    """Which opcodes of the first two maps have a ModRM byte (SDM Vol. 2 tables A-2 and A-3)."""
    opcode: cython.int
    for opcode in range(256):
        if opcode < 0x40:
            modrm_1[opcode] = (opcode & 7) < 4
        else:
            modrm_1[opcode] = (
                opcode in (0x62, 0x63, 0x69, 0x6B, 0xC0, 0xC1, 0xC4, 0xC5, 0xC6, 0xC7, 0xF6, 0xF7, 0xFE, 0xFF)
                or 0x80 <= opcode <= 0x8F
                or 0xD0 <= opcode <= 0xD3
                or 0xD8 <= opcode <= 0xDF
            )
        modrm_0f[opcode] = not (
            opcode in (0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, 0x77, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA)
            or 0x30 <= opcode <= 0x37
            or 0x80 <= opcode <= 0x8F
            or 0xC8 <= opcode <= 0xCF
        )


def _find_vendor():
    global intel
    regs: uint32_t[4]
    native.cpuid(0, 0, regs)
    intel = regs[1] == 0x756E6547  # "Genu"


_build()
_build_modrm()
_find_vendor()
