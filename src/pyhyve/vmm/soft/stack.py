"""The host's stack while emitted code runs: a stack of return addresses, so that the host predicts the guest's returns.

A CALL of the guest is a CALL of the host: it pushes the guest's return address and, by the host's own instruction,
that of the code which goes on there. A RET of the guest compares the address that it found in the guest's memory with
the one on top; if they agree, the host's RET leads on. If not (the guest has switched stacks, or unwound several
frames), everything is forgotten and the jump cache answers. So nothing depends on what is on this stack but speed; it
is empty whenever emitted code is entered, and so it holds no code that is gone and no page that is mapped elsewhere.

A guest may call without end. Then a push meets the guard below, and the signal handler (``cpu``) empties the stack: a
frame is 16 bytes and aligned, so it is always the first push of one that meets it. The handler needs a stack of its own
for that, as do all threads that run vCPUs. C code called from slow paths runs on the thread's own stack.
"""

import cython
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    mprotect,
    munmap,
)

signal_stack = cython.declare(pthread_key_t, 0)


def stack_create(s, bottom):
    memory: cython.p_void = mmap(
        cython.NULL,
        STACK_GUARD + STACK_SIZE,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1,
        0,
    )
    frame: cython.pointer(uint64_t)
    if memory == MAP_FAILED:
        return -1
    if mprotect(memory, STACK_GUARD, PROT_NONE) < 0:
        munmap(memory, STACK_GUARD + STACK_SIZE)
        return -1
    s.stack_memory = cython.cast(uint64_t, memory)
    s.stack_base = s.stack_memory + STACK_GUARD + STACK_SIZE - 16
    # The frame at the bottom is nobody's: a return to address 0 finds it, and goes by the look-up.
    frame = cython.cast(cython.pointer(uint64_t), s.stack_base)
    frame[0] = bottom
    frame[1] = 0
    return 0


def stack_destroy(s):
    if s.stack_memory:
        munmap(cython.cast(cython.p_void, s.stack_memory), STACK_GUARD + STACK_SIZE)
    s.stack_memory = 0


def in_guard(s, address):
    return address - s.stack_memory < STACK_GUARD


def use_signal_stack():
    stack: stack_t
    memory: cython.p_void
    if pthread_getspecific(signal_stack) != cython.NULL:
        return
    memory = mmap(cython.NULL, SIGNAL_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return
    stack.ss_sp = memory
    stack.ss_flags = 0
    stack.ss_size = SIGNAL_STACK
    if sigaltstack(cython.address(stack), cython.NULL) < 0:
        munmap(memory, SIGNAL_STACK)
        return
    pthread_setspecific(signal_stack, memory)


def drop_signal_stack(memory):
    """When the thread ends."""
    stack: stack_t
    stack.ss_sp = cython.NULL
    stack.ss_flags = 2  # SS_DISABLE
    stack.ss_size = 0
    sigaltstack(cython.address(stack), cython.NULL)
    munmap(memory, SIGNAL_STACK)


pthread_key_create(cython.address(signal_stack), drop_signal_stack)
