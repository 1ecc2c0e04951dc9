"""Small machine-code functions that the engine emits for itself when it is imported.

They do what Cython has no words for: RDTSC, CPUID, string moves, XSAVE and XRSTOR. Each is a few bytes, written out
here beside its meaning, and follows the C calling convention (arguments in RDI, RSI, RDX, RCX).
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    mmap,
    mprotect,
)
from cython.cimports.pyhyve.vmm.soft.state import CpuState

_MASK = "89 F0 48 89 F2 48 C1 EA 20"  # mov eax, esi; mov rdx, rsi; shr rdx, 32
_CODE = {
    # lfence; rdtsc; shl rdx, 32; or rax, rdx; ret. Not before what came before it, so that vCPUs agree on the order
    "rdtsc": "0F AE E8 0F 31 48 C1 E2 20 48 09 D0 C3",
    # push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; mov [r8], eax; [r8+4], ebx; [r8+8], ecx; [r8+12], edx
    "cpuid": "53 49 89 D0 89 F8 89 F1 0F A2 41 89 00 41 89 58 04 41 89 48 08 41 89 50 0C 5B C3",
    # mov rcx, rdx; rep movsb; ret
    "copy_up": "48 89 D1 F3 A4 C3",
    # mov rcx, rdx; std; rep movsb; cld; ret
    "copy_down": "48 89 D1 FD F3 A4 FC C3",
    # mov rax, rsi; mov rcx, rdx; rep stosb/w/d/q; ret
    "fill8": "48 89 F0 48 89 D1 F3 AA C3",
    "fill16": "48 89 F0 48 89 D1 66 F3 AB C3",
    "fill32": "48 89 F0 48 89 D1 F3 AB C3",
    "fill64": "48 89 F0 48 89 D1 F3 48 AB C3",
    "xsave": _MASK + "48 0F AE 27 C3",
    "xrstor": _MASK + "48 0F AE 2F C3",
    "fxsave": "48 0F AE 07 C3",
    "fxrstor": "48 0F AE 0F C3",
    # xor ecx, ecx; xgetbv; shl rdx, 32; or rax, rdx; ret
    "xgetbv": "31 C9 0F 01 D0 48 C1 E2 20 48 09 D0 C3",
    "xsavec": _MASK + "48 0F C7 27 C3",
    "xsaveopt": _MASK + "48 0F AE 37 C3",
    # fnstenv / fnsave [rdi], in their 32-bit and 16-bit layouts; ret
    "fnstenv32": "D9 37 C3",
    "fnstenv16": "66 D9 37 C3",
    "fnsave32": "DD 37 C3",
    "fnsave16": "66 DD 37 C3",
    # fnstsw ax; movzx eax, ax; ret
    "fnstsw": "DF E0 0F B7 C0 C3",
    # kmovq rax, kN; ret
    "opmask0": "C4 E1 FB 93 C0 C3",
    "opmask1": "C4 E1 FB 93 C1 C3",
    "opmask2": "C4 E1 FB 93 C2 C3",
    "opmask3": "C4 E1 FB 93 C3 C3",
    "opmask4": "C4 E1 FB 93 C4 C3",
    "opmask5": "C4 E1 FB 93 C5 C3",
    "opmask6": "C4 E1 FB 93 C6 C3",
    "opmask7": "C4 E1 FB 93 C7 C3",
}


def _emit():
    page: cython.p_void = mmap(
        cython.NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    base: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), page)
    if cython.cast(cython.long, page) == -1:
        raise MemoryError("cannot map a page for machine code")
    at: cython.int = 0
    i: cython.int
    n: cython.int
    raw: bytes
    offset: uint32_t
    model: cython.pointer(CpuState) = cython.NULL
    # Native is nothing but function pointers, in the order of _CODE.
    slots: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), cython.address(native))
    slot: cython.int = 0
    code = dict(_CODE)
    # mov rax, [gs:self]; ret
    offset = cython.cast(uint32_t, cython.cast(uint64_t, cython.address(model.self)))
    code["current"] = "65 48 8B 04 25 " + offset.to_bytes(4, "little").hex() + " C3"
    for text in code.values():
        raw = bytes.fromhex(text)
        n = len(raw)
        for i in range(n):
            base[at + i] = raw[i]
        slots[slot] = cython.cast(uint64_t, base + at)
        slot += 1
        at = (at + n + 15) & ~15
    mprotect(page, 4096, PROT_READ | PROT_EXEC)


_emit()
