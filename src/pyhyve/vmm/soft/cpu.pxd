# The loop of one vCPU: from block to block, helpers, events, exits to Python.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyhyve.vmm.soft.blocks cimport Block
from pyhyve.vmm.soft.state cimport CpuState, Engine

cdef extern from "<ucontext.h>" nogil:
    ctypedef struct mcontext_t:
        long long gregs[23]

    ctypedef struct ucontext_t:
        mcontext_t uc_mcontext

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        int si_code
        void *si_addr

    ctypedef struct sigset_t:
        pass

    struct sigaction_s "sigaction":
        void (*sa_sigaction)(int, siginfo_t *, void *) noexcept nogil
        int sa_flags
        sigset_t sa_mask

    int sigaction(int signum, const sigaction_s *act, sigaction_s *old) noexcept
    int sigemptyset(sigset_t *set) noexcept

cdef extern from "<sys/auxv.h>" nogil:
    unsigned long getauxval(unsigned long type)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...) noexcept

ctypedef int (*EnterFunction)(CpuState *s, uint64_t code, uint64_t rip) noexcept nogil

cdef bint fsgsbase_allowed() noexcept nogil
cdef enum:
    RESET_VECTOR = 0xFFFFFFF0
    COPIED_CODE = 800  # more than MAX_INSNS instructions can have
    REGIONS = 256  # code caches of live machines in one process

cdef bint watch_region(uint64_t start, uint64_t end, uint64_t stub) noexcept nogil
cdef void unwatch_region(uint64_t start) noexcept nogil
# Run until Python is needed; s.exit says why. The GIL is not held.
cdef void cpu_run(CpuState *s) noexcept nogil

cdef uint64_t slow_access(CpuState *s, uint64_t va, uint32_t what, uint64_t host_pc) noexcept nogil
cdef uint64_t span_access(CpuState *s, uint64_t va, uint32_t what) noexcept nogil
cdef void slow_finish(CpuState *s) noexcept nogil
cdef void on_host_fault(int signum, siginfo_t *info, void *context) noexcept nogil
cdef void install_signals() noexcept nogil
cdef void locate(CpuState *s, uint64_t host_pc) noexcept nogil
cdef uint64_t linear_rip(CpuState *s) noexcept nogil
cdef void set_linear(CpuState *s, uint64_t va) noexcept nogil
cdef Block *find_block(CpuState *s, uint32_t kind) noexcept nogil
cdef Block *make_block(CpuState *s, uint64_t gpa, uint64_t gpa2, uint32_t mode) noexcept nogil
cdef void flush_cache(CpuState *s) noexcept nogil
cdef void choose_slot(CpuState *s) noexcept nogil
cdef bint nobody_left(CpuState *s) noexcept nogil
cdef bint start_other(CpuState *s) noexcept nogil
cdef bint begins_anew(CpuState *s) noexcept nogil
cdef void chain(CpuState *s, Block *b) noexcept nogil
cdef void take_pending(CpuState *s) noexcept nogil
cdef bint settle(CpuState *s) noexcept nogil
cdef void sleep_halted(CpuState *s) noexcept nogil
cdef bint handle_host_fault(CpuState *s) noexcept nogil
cdef bint run_loop(CpuState *s) noexcept nogil
cdef bint leave_with(CpuState *s, uint32_t kind, uint64_t address, uint64_t value) noexcept nogil
