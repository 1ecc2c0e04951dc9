# Sites: look-ups in loops that remember the page they found last.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState
from pyhyve.vmm.soft.translate cimport Context

cdef enum:
    LONGEST_STEP = 256       # bytes from one access to the next: where a page has fewer than 16, remembering it costs more


cdef struct Round:
    # Over the instructions of a loop
    uint32_t before[16]      # what the last one found
    uint32_t fresh           # registers that have got their values in this round


# Find out how far each register moves in a block that is a loop.
cdef void find_steps(Context *x) noexcept nogil
# The Site of a look-up around these registers, as offset in CpuState; 0: it has none.
cdef uint64_t new_site(Context *x, uint32_t base, uint32_t index, uint32_t scale, uint32_t write) noexcept nogil
# Forget all pages: whenever emitted code is entered.
cdef void clear_sites(CpuState *s) noexcept nogil

cdef uint32_t loop_length(Context *x) noexcept nogil
cdef uint32_t size_of(int64_t step) noexcept nogil
cdef uint32_t step_of(uint32_t *steps, uint32_t reg) noexcept nogil
cdef void move(Context *x, Round *round, uint32_t dst, int64_t constant, uint32_t reg, uint32_t scale) noexcept nogil
cdef void assign(Context *x, Round *round, uint32_t dst, uint32_t step) noexcept nogil
cdef void add_step(Context *x, Insn *insn, Round *round) noexcept nogil
