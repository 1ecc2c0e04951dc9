# Descriptor loads, far transfers, system-call instructions.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Segment

# Read an 8-byte descriptor for `selector` from GDT or LDT with supervisor rights. FAULT: `vector`(selector & ~3) beyond the limit.
cdef int read_descriptor(CpuState *s, uint16_t selector, uint8_t vector, uint64_t *descriptor, uint64_t *address) noexcept nogil
cdef void unpack_descriptor(uint64_t descriptor, uint16_t selector, Segment *segment) noexcept nogil
# MOV/POP to a data segment register or SS, with every check of SDM Vol. 2 MOV.
cdef int load_segment(CpuState *s, int seg, uint16_t selector) noexcept nogil
