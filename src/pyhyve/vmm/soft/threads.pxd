# What the threads of one engine share, and how they wait for one another. See docs/engine.md, "Several vCPUs".

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState, Engine


cdef extern from *:
    # GCC builtins for what state.pxd does not declare.
    bint swap32 "__atomic_compare_exchange_n"(uint32_t *where, uint32_t *expected, uint32_t value, bint weak,
                                              int success, int failure) noexcept nogil
    void store32 "__atomic_store_n"(uint32_t *where, uint32_t value, int order) noexcept nogil
    void fence "__atomic_thread_fence"(int order) noexcept nogil


cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...) noexcept


cdef extern from "<sched.h>" nogil:
    int sched_yield() noexcept


# The lock of the code cache. `s` is the vCPU that takes it, NULL for a thread of the VMM. A vCPU that waits for it is
# not in the middle of an access to guest memory.
cdef void lock_code(Engine *e, CpuState *s) noexcept nogil
cdef void unlock_code(Engine *e) noexcept nogil

# Between guest code and everything else. While `running` is set the vCPU may be inside a translated block.
cdef void start_running(CpuState *s) noexcept nogil
cdef void stop_running(CpuState *s) noexcept nogil
# At a block border, where stop is set: rest until it is not.
cdef void park(CpuState *s) noexcept nogil

# No vCPU but `s` (which is at a block border; NULL: a thread of the VMM) runs guest code until world_go. False: another
# thread had the world stopped meanwhile, and what was to be done may have been done; it is stopped all the same.
cdef bint world_stop(Engine *e, CpuState *s) noexcept nogil
cdef void world_go(Engine *e) noexcept nogil

# Wait until each vCPU but `s` has come to a block border, is outside guest code, or waits for the code lock there.
# False: one waits for the lock in the middle of a block. Give it back, and try again.
cdef bint wait_for_borders(Engine *e, CpuState *s) noexcept nogil

cdef void spin(uint32_t *turns) noexcept nogil
