# Instructions that do here what they do there: the same opcode, with registers renamed and memory redirected.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.decode cimport OpInfo
from pyhyve.vmm.soft.encode cimport Asm
from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.translate cimport Context

cdef bint high_byte(Insn *insn, uint32_t reg, uint32_t size) noexcept nogil
cdef void emit_opcode(Context *x, Insn *insn, uint32_t reg, uint32_t index, uint32_t rm, uint32_t vvvv,
                      bint force_rex) noexcept nogil
cdef bint wants_opsize(Insn *insn, OpInfo *op) noexcept nogil
cdef void emit_immediate(Context *x, Insn *insn) noexcept nogil
cdef void emit_mem_form(Context *x, Insn *insn) noexcept nogil
cdef void emit_reg_form(Context *x, Insn *insn) noexcept nogil
cdef void emit_bit_address(Context *x, Insn *insn) noexcept nogil
cdef void emit_return_address(Context *x, Insn *insn) noexcept nogil
cdef void emit_access(Context *x, Insn *insn, uint32_t part) noexcept nogil
cdef uint32_t waiting(Insn *insn) noexcept nogil
cdef void emit_operand(Context *x, Insn *insn) noexcept nogil
cdef void emit_push(Context *x, Insn *insn) noexcept nogil
cdef void emit_load(Context *x, Insn *insn, uint32_t reg) noexcept nogil
cdef void emit_stack_load(Context *x, uint32_t reg) noexcept nogil
cdef void emit_string(Context *x, Insn *insn) noexcept nogil
cdef uint8_t *string_operand(Context *x, Insn *insn, uint32_t reg, uint32_t tag, uint32_t size,
                             uint8_t **second) noexcept nogil
cdef bint simple_lea(Insn *insn) noexcept nogil
cdef void emit_lea(Context *x, Insn *insn) noexcept nogil
