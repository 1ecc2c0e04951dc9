# Stack instructions and near jumps of 16- and 32-bit code, where SS, CS and operand sizes make a difference.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.encode cimport Asm
from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.translate cimport Context

cdef bint is_near_kind(uint32_t kind) noexcept nogil
cdef bint is_narrow(Context *x, Insn *insn) noexcept nogil
cdef void mov32(Asm *a, uint32_t dst, uint32_t src) noexcept nogil
cdef void mov16(Asm *a, uint32_t dst, uint32_t src) noexcept nogil
cdef void movzx16(Asm *a, uint32_t dst, uint32_t src) noexcept nogil
cdef void load_word(Asm *a, uint32_t reg, uint32_t size) noexcept nogil
cdef void stack_slot(Context *x, uint32_t base, int64_t delta) noexcept nogil
cdef void set_stack(Context *x, uint32_t base, int64_t delta) noexcept nogil
cdef void emit_narrow_push(Context *x, Insn *insn) noexcept nogil
cdef void emit_narrow_slot(Context *x, Insn *insn) noexcept nogil
cdef void offset_in_code(Context *x, int64_t target) noexcept nogil
cdef void invert(Asm *a, uint32_t reg) noexcept nogil
cdef void within_64k(Context *x, Insn *insn) noexcept nogil
cdef void jump_in_code(Context *x) noexcept nogil
cdef bint stays_near(Context *x, int64_t target) noexcept nogil
cdef void narrow_jump(Context *x, Insn *insn, int64_t target) noexcept nogil
cdef void narrow_branch(Context *x, Insn *insn, uint32_t condition, int64_t target) noexcept nogil
cdef void narrow_call(Context *x, Insn *insn) noexcept nogil
cdef void narrow_operand(Context *x, Insn *insn) noexcept nogil
cdef void narrow_count(Context *x, Insn *insn, int64_t target) noexcept nogil
cdef void emit_narrow(Context *x, Insn *insn, int64_t target) noexcept nogil
