# How a block is left: jumps, calls and returns, looks at events, exits to helpers and exceptions.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.encode cimport Asm
from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.translate cimport Cold, Context

cdef void emit_event_check(Context *x, uint32_t target, uint32_t live) noexcept nogil
cdef void emit_breakpoints(Context *x, uint32_t start) noexcept nogil
cdef void op_load32_rcx(Asm *a, uint64_t offset) noexcept nogil
cdef uint32_t target_live(Context *x, int64_t target) noexcept nogil
cdef void emit_jump(Context *x, Insn *insn, int64_t target) noexcept nogil
cdef void emit_far_target(Context *x, int64_t target) noexcept nogil
cdef void emit_push_keeping(Context *x, Insn *insn) noexcept nogil
cdef void emit_cold_push(Context *x, Insn *insn, Cold *cold) noexcept nogil
cdef void emit_call(Context *x, Insn *insn, bint direct, int64_t target) noexcept nogil
cdef bint foresees_returns(Context *x) noexcept nogil
cdef bint comes_back(Context *x, Insn *insn) noexcept nogil
cdef void emit_return(Context *x) noexcept nogil
cdef void emit_far_jump(Context *x) noexcept nogil
cdef void emit_crossing(Context *x, bint calls) noexcept nogil
cdef void emit_chain(Context *x, uint32_t condition, int64_t target, bint checked) noexcept nogil
cdef void emit_singly(Context *x, int64_t target) noexcept nogil
cdef void add_chain(Context *x, uint8_t *rel32, int64_t target, bint checked, bint singly) noexcept nogil
cdef void emit_branch(Context *x, Insn *insn, uint32_t condition, int64_t target) noexcept nogil
cdef void emit_helper(Context *x, Insn *insn) noexcept nogil
cdef void emit_raise(Context *x, Insn *insn, uint32_t vector) noexcept nogil
cdef uint32_t trap_of(Context *x, Insn *insn) noexcept nogil
cdef bint goes_to_helper(Context *x, Insn *insn) noexcept nogil
cdef bint is_rdtscp(Insn *insn) noexcept nogil
