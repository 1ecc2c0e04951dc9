# The table of helpers: functions that execute one instruction each on a CpuState whose registers are all in memory.

from pyhyve.vmm.soft.insn cimport Helper, Insn
from pyhyve.vmm.soft.state cimport CpuState

cdef enum:
    MAX_HELPERS = 256

cdef Helper table[256]

cdef void register(str name, Helper helper)
cdef int missing(CpuState *s, Insn *insn) noexcept nogil
