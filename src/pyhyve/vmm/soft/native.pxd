# Small machine-code functions that the engine emits for itself at start, called through pointers.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState

cdef enum:
    FPU_ERROR = 0x80     # FNSTSW: an unmasked exception waits

cdef struct Native:
    uint64_t (*rdtsc)() noexcept nogil
    void (*cpuid)(uint32_t leaf, uint32_t subleaf, uint32_t *regs) noexcept nogil      # eax, ebx, ecx, edx
    void (*copy_up)(void *dst, const void *src, uint64_t n) noexcept nogil             # REP MOVSB
    void (*copy_down)(void *dst, const void *src, uint64_t n) noexcept nogil           # STD; REP MOVSB; pointers to the last byte
    void (*fill8)(void *dst, uint64_t value, uint64_t n) noexcept nogil                # REP STOSB, n elements
    void (*fill16)(void *dst, uint64_t value, uint64_t n) noexcept nogil
    void (*fill32)(void *dst, uint64_t value, uint64_t n) noexcept nogil
    void (*fill64)(void *dst, uint64_t value, uint64_t n) noexcept nogil
    void (*xsave)(void *area, uint64_t mask) noexcept nogil                            # XSAVE64 to a 64-aligned area
    void (*xrstor)(void *area, uint64_t mask) noexcept nogil
    void (*fxsave)(void *area) noexcept nogil
    void (*fxrstor)(void *area) noexcept nogil
    uint64_t (*xgetbv)() noexcept nogil
    void (*xsavec)(void *area, uint64_t mask) noexcept nogil
    void (*xsaveopt)(void *area, uint64_t mask) noexcept nogil
    void (*fnstenv32)(void *area) noexcept nogil
    void (*fnstenv16)(void *area) noexcept nogil
    void (*fnsave32)(void *area) noexcept nogil
    void (*fnsave16)(void *area) noexcept nogil
    uint32_t (*fnstsw)() noexcept nogil
    uint64_t (*opmask[8])() noexcept nogil                                             # the opmask registers, where there are any
    CpuState *(*current)() noexcept nogil  # whose registers GS points to

cdef Native native
