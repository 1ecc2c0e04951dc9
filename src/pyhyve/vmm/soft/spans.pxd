# Spans: memory around a register that instructions of a block access with one look-up.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.translate cimport Cold, Context, Span

cdef enum:
    WIDEST = 1024            # bytes of a span
    FARTHEST = 16            # instructions between a look-up and the first access
    MAX_SPANS = 32           # as many as CpuState.span has
    FAR = 0x20000000         # from a register: sums and differences of two fit into 32 bits

# Find the spans of a block and where each is looked up.
cdef void find_spans(Context *x) noexcept nogil
# The look-ups that stand in front of an instruction.
cdef void emit_looks(Context *x, uint32_t number) noexcept nogil
# Is there one?
cdef bint looks_at(Context *x, uint32_t number) noexcept nogil
# Make the memory operand of emit_mem_form `disp` bytes behind the register of the span. Uses T2.
cdef void use_span(Context *x, uint32_t number, int64_t disp) noexcept nogil
# Behind the last instruction: take out what was stored for later and never loaded.
cdef void forget_unused(Context *x) noexcept nogil
# ... what the operand of the instruction has.
cdef void use_operand(Context *x, Insn *insn) noexcept nogil
# The cold part of a look-up.
cdef void emit_missing(Context *x, Cold *cold) noexcept nogil

cdef bint has_operand(Context *x, Insn *insn) noexcept nogil
cdef uint32_t changed(Insn *insn) noexcept nogil
cdef uint32_t general(uint32_t access, uint32_t reg, bint high) noexcept nogil
cdef bint moves_rsp(Insn *insn, int64_t *by) noexcept nogil
cdef bint is_used(Context *x, Span *span, uint32_t number) noexcept nogil
cdef uint32_t join(Context *x, uint32_t *open, uint32_t *since, uint32_t base, int64_t low, uint32_t size,
                   bint writes) noexcept nogil
cdef void place(Context *x, uint32_t *since, uint32_t number) noexcept nogil
