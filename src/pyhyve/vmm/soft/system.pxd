# Control, debug and model-specific registers, CPUID, port I/O, and what depends on them.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState

# Recompute s.mode, s.mmu_mode and s.cpl-dependent bits. Call after any change of CR0, CR4, EFER, XCR0, CS, SS, DS, ES,
# CPL, RFLAGS.{AC,IOPL,VM}, TSC offset. (Sets s.mode only; the engine maps it to s.mode_slot.)
cdef void update_mode(CpuState *s) noexcept nogil
# The architectural reset state (SDM Vol. 3A 9.1.1); INIT keeps XSAVE state, MSRs and caches.
cdef void reset_cpu(CpuState *s, bint init) noexcept nogil
# MSR access by number without privilege check: DONE, FAULT (#GP recorded) or LEAVE (unknown: exit filled / answer used).
cdef int msr_read(CpuState *s, uint32_t index, uint64_t *value) noexcept nogil
cdef int msr_write(CpuState *s, uint32_t index, uint64_t value) noexcept nogil
cdef int set_cr0(CpuState *s, uint64_t value) noexcept nogil
cdef int set_cr3(CpuState *s, uint64_t value) noexcept nogil
cdef int set_cr4(CpuState *s, uint64_t value) noexcept nogil
cdef uint64_t guest_tsc(CpuState *s) noexcept nogil
