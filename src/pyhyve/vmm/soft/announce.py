"""Which CPUID features the engine announces to a guest.

Documents: Intel SDM Vol. 2A, CPUID; AMD APM Vol. 3, appendix E. The identity, caches and brand are the host's. A
feature is announced if it stands in a list here (the engine carries it) and the host has it (the host's instructions
are the engine's semantics), or if the engine does it all by itself (x2APIC, TSC deadline, TSC_ADJUST). ``vmm.cpuid``
then shapes the rows into the guest's table; APIC ids, OSXSAVE and the XSAVE sizes are filled in when CPUID is
executed.

A row is (leaf, subleaf or None, eax, ebx, ecx, edx).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

Row = tuple[int, int | None, int, int, int, int]
ReadLeaf = Callable[[int, int], tuple[int, int, int, int]]


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


_XSAVE = _bits(26)
_OSXSAVE = _bits(27)
# Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND
_LEAF1_ECX = _bits(0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30)
# ... and what the engine does by itself: x2APIC, TSC deadline, hypervisor
_LEAF1_ECX_OWN = _bits(21, 24, 31)
# Leaf 1 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2 HT
_LEAF1_EDX = _bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 28)
# Leaf 7 EBX: FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA; TSC_ADJUST is the engine's
_LEAF7_EBX = _bits(0, 3, 5, 7, 8, 9, 10, 18, 19, 20, 23, 24, 29)
_LEAF7_EBX_OWN = _bits(1)
# Leaf 7 ECX: UMIP GFNI VAES VPCLMULQDQ RDPID; EDX: FSRM
_LEAF7_ECX = _bits(2, 8, 9, 10, 22)
_LEAF7_EDX = _bits(4)
# What falls with AVX: FMA AVX F16C; AVX2; VAES VPCLMULQDQ
_AVX_LEAF1_ECX = _bits(12, 28, 29)
_AVX_LEAF7_EBX = _bits(5)
_AVX_LEAF7_ECX = _bits(9, 10)
# AVX-512, all of it with its state in XCR0, or nothing. Leaf 7 EBX: F DQ IFMA CD BW VL; ECX: VBMI VBMI2 VNNI BITALG
# VPOPCNTDQ; subleaf 1 EAX: BF16. Without F, DQ, CD, BW and VL together it is another thing (Xeon Phi) and not announced.
_AVX512_LEAF7_EBX = _bits(16, 17, 21, 28, 30, 31)
_AVX512_LEAF7_ECX = _bits(1, 6, 11, 12, 14)
_AVX512_LEAF7_1_EAX = _bits(5)
_AVX512_NEEDED = _bits(16, 17, 28, 30, 31)
# Leaf 0x80000001 ECX: LAHF ABM MISALIGNSSE 3DNOWPREFETCH TOPOEXT
_EXT1_ECX = _bits(0, 5, 7, 8, 22)
_TOPOEXT = _bits(22)
# ... EDX: SYSCALL NX PDPE1GB RDTSCP LM; on AMD also the bits that mirror leaf 1
_EXT1_EDX = _bits(11, 20, 26, 27, 29)
_EXT1_EDX_MIRROR = _bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24)
# Leaf 0xD subleaf 1: XSAVEOPT; with XSAVEC the engine does XGETBV with ECX 1 and XSAVES too
_XSAVEOPT = _bits(0)
_XSAVEC = _bits(1)
_XSAVE_EXTRA = _bits(0, 1, 2, 3)
_XCR0_CARRIED = 0xE7  # x87, SSE, AVX, AVX-512
_XCR0_AVX = 6
_XCR0_AVX512 = 0xE6
_XSAVE_LEGACY = 576
_XSAVE_ALIGNED = _bits(1)  # of subleaves 2 and up, ECX: on a border of 64 bytes where compacted
_ARAT = _bits(2)
_INVARIANT_TSC = _bits(8)
# Speculation. A guest's branches are the engine's own, at the engine's addresses, and RET goes through the jump cache:
# what kernels do against the defects of a real CPU's predictors costs much here and helps nobody. docs/engine.md says
# what is promised and what is not. Leaf 0x80000008 EBX: SSB_NO BTC_NO; 0x80000021 EAX: LFENCE serializes, automatic
# IBRS (EFER bit 21 is accepted), SRSO_NO; ECX: TSA_SQ_NO TSA_L1_NO.
_EXT8_EBX_OWN = _bits(26, 29)
_EXT21_EAX_OWN = _bits(2, 8, 29)
_EXT21_ECX_OWN = _bits(1, 2)
_PHYSICAL_BITS = 40  # PHYSICAL in physical.pxd; firmware maps all of it, with pages of 2 MiB if it does not know larger
_LINEAR_BITS = 48
_EXTENDED = 0x80000000
_INTEL = (0x756E6547, 0x6C65746E, 0x49656E69)  # "Genu", "ntel", "ineI": EBX, ECX, EDX
_APIC_HZ = 1_000_000_000
_KVM_LEAF = 0x40000000
_KVM_FREQUENCY_LEAF = 0x40000010
_SUBLEAVES = {7: 2, 0xB: 3, 0xD: 8, 0x1F: 3}


def _cache_rows(read: ReadLeaf, leaf: int) -> list[Row]:
    """The subleaves of a cache leaf, until one says that there are no more."""
    rows: list[Row] = []
    for subleaf in range(16):
        regs = read(leaf, subleaf)
        rows.append((leaf, subleaf, *regs))
        if not regs[0] & 0x1F:
            break
    return rows


def host_rows(read: ReadLeaf) -> list[Row]:
    """The host's basic and extended leaves."""
    rows: list[Row] = []
    for first in (0, _EXTENDED):
        for leaf in range(first, read(first, 0)[0] + 1):
            if leaf in (4, _EXTENDED + 0x1D):
                rows += _cache_rows(read, leaf)
            elif leaf in _SUBLEAVES:
                rows += [(leaf, subleaf, *read(leaf, subleaf)) for subleaf in range(_SUBLEAVES[leaf])]
            else:
                rows.append((leaf, None, *read(leaf, 0)))
    return rows


def tsc_frequency(read: ReadLeaf, tsc: Callable[[], int]) -> int:
    """The TSC's frequency in Hz: told by a hypervisor or the processor, else measured."""
    if read(1, 0)[2] & _bits(31) and read(_KVM_LEAF, 0)[0] >= _KVM_FREQUENCY_LEAF:
        khz = read(_KVM_FREQUENCY_LEAF, 0)[0]
        if khz > 100_000:
            return khz * 1000
    if read(0, 0)[0] >= 0x15:
        denominator, numerator, crystal, _ = read(0x15, 0)
        if denominator and numerator and crystal:
            return crystal * numerator // denominator
    begin, ticks = time.monotonic_ns(), tsc()
    time.sleep(0.01)
    end, more = time.monotonic_ns(), tsc()
    return (more - ticks) * 1_000_000_000 // (end - begin)


def _frequency_rows(tsc_hz: int) -> list[Row]:
    """Leaves 0x15 and 0x16. The crystal is the local APIC timer's clock, for guests take one for the other.

    Linux multiplies crystal kHz and numerator in 32 bits, so the numerator must stay small; the best fraction of that
    size is exact to less than a millionth.
    """
    largest = 0xFFFFFFFF // (_APIC_HZ // 1000)
    ratio = Fraction(tsc_hz, _APIC_HZ)
    limit = max(1, int(largest / ratio))
    best = ratio.limit_denominator(limit)
    while best.numerator > largest:
        limit -= 1
        best = ratio.limit_denominator(limit)
    mhz = round(tsc_hz / 1_000_000)
    return [(0x15, None, best.denominator, best.numerator, _APIC_HZ, 0), (0x16, None, mhz, mhz, 100, 0)]


def supported_rows(read: ReadLeaf, host_xcr0: int, tsc_hz: int) -> list[Row]:
    """What the engine announces on a host whose CPUID ``read`` answers and whose XCR0 is ``host_xcr0``."""
    host_max, *vendor = read(0, 0)
    intel = tuple(vendor) == _INTEL
    return _basic_rows(read, host_max, intel, host_xcr0, tsc_hz) + _extended_rows(read, intel)


def _basic_rows(read: ReadLeaf, host_max: int, intel: bool, host_xcr0: int, tsc_hz: int) -> list[Row]:
    signature, ebx, ecx, edx = read(1, 0)
    xcr0 = host_xcr0 & _XCR0_CARRIED if ecx & _OSXSAVE else 0
    more7, ebx7, ecx7, edx7 = read(7, 0) if host_max >= 7 else (0, 0, 0, 0)
    avx512 = xcr0 & _XCR0_AVX512 == _XCR0_AVX512 and ebx7 & _AVX512_NEEDED == _AVX512_NEEDED
    wide7 = (ebx7 & _AVX512_LEAF7_EBX, ecx7 & _AVX512_LEAF7_ECX, read(7, 1)[0] & _AVX512_LEAF7_1_EAX if more7 else 0)
    ecx &= _LEAF1_ECX
    ebx7, ecx7, edx7 = ebx7 & _LEAF7_EBX, ecx7 & _LEAF7_ECX, edx7 & _LEAF7_EDX
    avx = xcr0 & _XCR0_AVX == _XCR0_AVX
    if not xcr0:
        ecx &= ~_XSAVE
    if not avx:
        xcr0 &= ~4
        ecx &= ~_AVX_LEAF1_ECX
        ebx7 &= ~_AVX_LEAF7_EBX
        ecx7 &= ~_AVX_LEAF7_ECX
    eax71 = 0
    if avx512:
        ebx7, ecx7, eax71 = ebx7 | wide7[0], ecx7 | wide7[1], wide7[2]
    else:
        xcr0 &= ~0xE0

    rows: list[Row] = [
        (0, None, 0x16 if intel else 0xD, *read(0, 0)[1:]),
        (1, None, signature, ebx & 0xFF00, ecx | _LEAF1_ECX_OWN, edx & _LEAF1_EDX),
    ]
    if intel:
        rows.append((2, None, *read(2, 0)))
        rows += _cache_rows(read, 4)
    rows += [(6, None, _ARAT, 0, 0, 0), (7, 0, 1 if eax71 else 0, ebx7 | _LEAF7_EBX_OWN, ecx7, edx7)]
    if eax71:
        rows.append((7, 1, eax71, 0, 0, 0))
    if host_max >= 0xB:
        rows += [(0xB, subleaf, *read(0xB, subleaf)) for subleaf in range(2)]
    if ecx & _XSAVE:
        parts = [(number, *read(0xD, number)) for number in range(2, 8) if xcr0 >> number & 1]
        size = max([_XSAVE_LEGACY, *(offset + length for _, length, offset, _, _ in parts)])
        rows.append((0xD, 0, xcr0, size, size, 0))
        extra = read(0xD, 1)[0]
        rows.append((0xD, 1, _XSAVE_EXTRA if extra & _XSAVEC else extra & _XSAVEOPT, size, 0, 0))
        rows += [(0xD, number, length, offset, ecx & _XSAVE_ALIGNED, 0) for number, length, offset, ecx, _ in parts]
    if intel:
        rows += _frequency_rows(tsc_hz)
    return rows


def _extended_rows(read: ReadLeaf, intel: bool) -> list[Row]:
    top, *vendor = read(_EXTENDED, 0)
    eax, ebx, ecx, edx = read(_EXTENDED + 1, 0)
    edx &= _EXT1_EDX if intel else _EXT1_EDX | _EXT1_EDX_MIRROR
    rows: list[Row] = [
        (_EXTENDED, None, min(top, _EXTENDED + 8) if intel else _EXTENDED + 0x21, vendor[0], vendor[1], vendor[2]),
        (_EXTENDED + 1, None, eax, ebx, ecx & _EXT1_ECX, edx),
    ]
    rows += [(_EXTENDED + number, None, *read(_EXTENDED + number, 0)) for number in (2, 3, 4, 5, 6)]
    rows.append((_EXTENDED + 7, None, 0, 0, 0, read(_EXTENDED + 7, 0)[3] & _INVARIANT_TSC))
    address_sizes = _LINEAR_BITS << 8 | _PHYSICAL_BITS
    rows.append((_EXTENDED + 8, None, address_sizes, 0 if intel else _EXT8_EBX_OWN, 0, 0))
    if intel:
        return rows
    there = [number for number in (0x19, 0x1A) if top >= _EXTENDED + number]
    rows += [(_EXTENDED + number, None, *read(_EXTENDED + number, 0)) for number in there]
    if top >= _EXTENDED + 0x1E and ecx & _TOPOEXT:
        rows += _cache_rows(read, _EXTENDED + 0x1D)
        rows.append((_EXTENDED + 0x1E, None, 0, 0, 0, 0))
    rows.append((_EXTENDED + 0x21, None, _EXT21_EAX_OWN, 0, _EXT21_ECX_OWN, 0))
    return rows
