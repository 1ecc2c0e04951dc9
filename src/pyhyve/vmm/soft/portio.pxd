# IN, OUT, INS, OUTS and the I/O permission bitmap.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport ClockPort, CpuState, Engine


cdef enum:
    TSS_IO_MAP = 0x66          # word: where the bitmap begins (SDM Vol. 3A figure 7-2)
    TSS_AVAILABLE = 9
    TSS_BUSY = 11


cdef int in_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int in_dx(CpuState *s, Insn *insn) noexcept nogil
cdef int out_imm(CpuState *s, Insn *insn) noexcept nogil
cdef int out_dx(CpuState *s, Insn *insn) noexcept nogil
cdef int ins(CpuState *s, Insn *insn) noexcept nogil
cdef int outs(CpuState *s, Insn *insn) noexcept nogil

# May the running code touch `size` ports from `port`? DONE, or FAULT with #GP(0) (or #PF of the TSS).
cdef int port_allowed(CpuState *s, uint32_t port, uint32_t size) noexcept nogil

# Used inside this module only.
cdef uint32_t port_size(Insn *insn) noexcept nogil
cdef int read_port(CpuState *s, Insn *insn, uint32_t port) noexcept nogil
cdef int write_port(CpuState *s, Insn *insn, uint32_t port) noexcept nogil
cdef uint64_t address_mask(Insn *insn) noexcept nogil
cdef uint64_t step(CpuState *s, uint32_t size) noexcept nogil
cdef bint last_element(CpuState *s, Insn *insn) noexcept nogil
cdef ClockPort *clock_of(Engine *e, uint32_t port, uint32_t size) noexcept nogil
cdef uint64_t read_clock(Engine *e, ClockPort *clock) noexcept nogil

cdef enum:
    HELD_READS = 16  # byte reads of a counter that has just been loaded before it starts, for 200 us at most
