# The mode of a vCPU; reset.

from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    # Masks that Cython would take for Python integers if they stood in the code.
    DR6_FIXED = 0xFFFF0FF0


# Recompute s.mode, s.mmu_mode and s.cpl-dependent bits. Call after any change of CR0, CR4, EFER, XCR0, CS, SS, DS, ES,
# CPL, RFLAGS.{AC,IOPL,VM}, TSC offset. (Sets s.mode only; the engine maps it to s.mode_slot. Leaves MODE_STEP alone.)
cdef void update_mode(CpuState *s) noexcept nogil
# The architectural reset state (SDM Vol. 3A 9.1.1); INIT keeps XSAVE state, MSRs and caches.
cdef void reset_cpu(CpuState *s, bint init) noexcept nogil

# Used inside this module only.
cdef bint open_data(CpuState *s, int seg) noexcept nogil
cdef bint flat_data(CpuState *s, int seg) noexcept nogil
cdef void reset_segment(CpuState *s, int seg) noexcept nogil
