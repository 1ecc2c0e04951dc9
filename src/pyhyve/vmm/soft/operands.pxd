# Operands: where guest registers are, and the look-up of memory in the TLB, as emitted code.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.translate cimport Cold, Context

cdef uint64_t gpr_off(Context *x, uint32_t reg) noexcept nogil
cdef uint32_t source(Context *x, uint32_t reg, uint32_t temp) noexcept nogil
cdef uint32_t temp_index(uint32_t temp) noexcept nogil
cdef void forget_held(Context *x) noexcept nogil
cdef void forget_registers(Context *x) noexcept nogil
cdef void hold(Context *x, uint32_t temp, uint32_t reg) noexcept nogil
cdef void write_back(Context *x, uint32_t reg, uint32_t temp) noexcept nogil
cdef void emit_address(Context *x, Insn *insn) noexcept nogil
cdef void use_address(Context *x) noexcept nogil
cdef void add_cold(Context *x, uint32_t kind, uint8_t *rel32, uint32_t what, uint32_t live) noexcept nogil
cdef void emit_tlb(Context *x, uint32_t segment, uint32_t size, uint32_t access) noexcept nogil
cdef void emit_site(Context *x, uint32_t kind, uint32_t what, uint32_t size) noexcept nogil
cdef void call_refill(Context *x, Cold *cold) noexcept nogil
cdef bint segmented(Context *x, uint32_t segment, uint32_t access) noexcept nogil
cdef void finish_access(Context *x, uint32_t segment, uint32_t access) noexcept nogil
