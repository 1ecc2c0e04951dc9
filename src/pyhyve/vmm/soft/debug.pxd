# Breakpoints, watchpoints and single steps: the debugger's (VirtualCpu.set_points) and the guest's own (DR0-DR7).

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.insn cimport Insn
from pyhyve.vmm.soft.state cimport CpuState, Engine

cdef enum:
    # Watch.kinds: which accesses it waits for
    WATCH_WRITE = 1
    WATCH_READ = 2

    # What `before_instruction` says
    RUN = 0
    STEP = 1        # the instruction runs in a block of its own
    STOP = 2        # the exit is filled
    TRAP = 3        # #DB is recorded

    # More breakpoints than that at one page offset: blocks there always go back to the loop.
    MOST_CHECKS = 4

    # Steps that an interrupt waits for at most while the debugger steps
    MOST_HELD = 1000

    DR6_TRAPS = 15
    DR7_ENABLED = 0xFF
    DR6_BS = 0x4000
    DEBUGCTL_LBR = 1
    DEBUGCTL_BTF = 2

    # R/W fields of DR7
    RW_EXECUTE = 0
    RW_WRITE = 1
    RW_PORT = 2
    RW_ACCESS = 3


cdef inline bint is_armed(Engine *e, uint32_t offset) noexcept nogil:
    """Is there a breakpoint at this page offset, in whatever page?"""
    return (e.armed_offsets[offset >> 6] >> (offset & 63)) & 1


# The debugger's points of this vCPU have been changed in s.points and s.watches.
cdef void points_changed(CpuState *s) noexcept nogil
# DR0-DR3 or DR7 have changed.
cdef void debug_update(CpuState *s) noexcept nogil
# Up to MOST_CHECKS linear addresses with this page offset that code must look for; MOST_CHECKS + 1: too many.
cdef uint32_t armed_at(Engine *e, uint32_t offset, uint64_t *found) noexcept nogil

# Which accesses to the page at linear `page` are watched (WATCH_*).
cdef uint32_t watched_page(CpuState *s, uint64_t page) noexcept nogil
# Would an access of `size` bytes at `va` touch watched bytes?
cdef bint watch_covers(CpuState *s, uint64_t va, uint64_t size, uint32_t kind) noexcept nogil
# An access in two parts (the second empty, or in the next page) is about to be made: note what it touches. True: it
# is made by a block of several instructions and not noted; the instruction must run again in step mode.
cdef bint watch_access(CpuState *s, uint64_t va, uint32_t first, uint64_t va2, uint32_t rest, uint32_t kind) noexcept nogil
# An access to I/O ports has been made.
cdef void port_access(CpuState *s, uint32_t port, uint32_t size) noexcept nogil

# The parts of the loop that have to do with it.
cdef bint report_hits(CpuState *s) noexcept nogil
cdef void pass_over(CpuState *s, uint64_t va) noexcept nogil
cdef int before_instruction(CpuState *s, uint64_t va) noexcept nogil
cdef void raise_debug(CpuState *s, uint64_t bits) noexcept nogil
cdef bint branch_step(CpuState *s, uint64_t va, uint32_t length) noexcept nogil
cdef void left_to_python(CpuState *s, uint64_t va, uint64_t now, bint trap) noexcept nogil
cdef bint interrupt_held(CpuState *s) noexcept nogil

# Used inside this module only.
cdef void note_hits(CpuState *s, uint64_t va, uint64_t size, uint32_t kind) noexcept nogil
cdef bint overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) noexcept nogil
cdef uint32_t register_kind(CpuState *s, int i) noexcept nogil
cdef uint32_t register_size(CpuState *s, int i) noexcept nogil
cdef bint register_enabled(CpuState *s, int i) noexcept nogil
cdef bint has_point(CpuState *s, uint64_t va) noexcept nogil
cdef uint32_t register_breaks(CpuState *s, uint64_t va) noexcept nogil
cdef void set_offset(uint64_t *offsets, uint64_t va) noexcept nogil
cdef void arm(Engine *e, uint64_t va, uint64_t *changed) noexcept nogil
cdef void apply_changes(CpuState *s, uint64_t *changed) noexcept nogil
cdef void drop_unwanted(Engine *e, uint64_t *changed) noexcept nogil
