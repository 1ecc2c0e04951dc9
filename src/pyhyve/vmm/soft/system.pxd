# System instructions that have no registers of their own.

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState

# Used inside this module only.
cdef int fsgsbase_check(CpuState *s) noexcept nogil

# Helpers
cdef int rdtsc(CpuState *s, Insn *insn) noexcept nogil
cdef int rdpmc(CpuState *s, Insn *insn) noexcept nogil
cdef int rdpid(CpuState *s, Insn *insn) noexcept nogil
cdef int invlpg(CpuState *s, Insn *insn) noexcept nogil
cdef int invpcid(CpuState *s, Insn *insn) noexcept nogil
cdef int invd(CpuState *s, Insn *insn) noexcept nogil
cdef int wbinvd(CpuState *s, Insn *insn) noexcept nogil
cdef int hlt(CpuState *s, Insn *insn) noexcept nogil
cdef int monitor(CpuState *s, Insn *insn) noexcept nogil
cdef int mwait(CpuState *s, Insn *insn) noexcept nogil
cdef int pause(CpuState *s, Insn *insn) noexcept nogil
cdef int rdfsbase(CpuState *s, Insn *insn) noexcept nogil
cdef int rdgsbase(CpuState *s, Insn *insn) noexcept nogil
cdef int wrfsbase(CpuState *s, Insn *insn) noexcept nogil
cdef int wrgsbase(CpuState *s, Insn *insn) noexcept nogil
