# The host's stack while emitted code runs.

from libc.stdint cimport uint64_t

from pyhyve.vmm.soft.state cimport CpuState

cdef enum:
    STACK_SIZE = 0x40000
    STACK_GUARD = 0x10000
    SIGNAL_STACK = 0x10000

cdef extern from "<signal.h>" nogil:
    ctypedef struct stack_t:
        void *ss_sp
        int ss_flags
        size_t ss_size

    int sigaltstack(const stack_t *stack, stack_t *old) noexcept

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned int pthread_key_t
    int pthread_key_create(pthread_key_t *key, void (*destructor)(void *) noexcept nogil) noexcept
    void *pthread_getspecific(pthread_key_t key) noexcept
    int pthread_setspecific(pthread_key_t key, const void *value) noexcept

# Give a vCPU its stack. 0, or -1 without memory.
cdef int stack_create(CpuState *s, uint64_t bottom) noexcept nogil
cdef void stack_destroy(CpuState *s) noexcept nogil
# Does this address lie where the stack runs over?
cdef bint in_guard(CpuState *s, uint64_t address) noexcept nogil
# Let this thread handle signals on a stack of their own. Cheap from the second time on.
cdef void use_signal_stack() noexcept nogil

cdef void drop_signal_stack(void *memory) noexcept nogil
