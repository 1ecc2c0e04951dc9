"""How the vCPU threads of one engine share translated code.

Three things keep them apart. The *code lock* is held while blocks are made, linked and dropped. A *block border* is the
top of the vCPU's loop: there it holds no pointer into the code cache and is in the middle of no access to memory;
``wait_for_borders`` lets a thread that took a write permission away be sure that no store under the old one is still
to come. And the *world is stopped* for what cannot be done beside running vCPUs: forgetting the whole cache, changing
the memory map, an atomic access that crosses a page. The flag ``Engine.stop`` is looked at on every border.

``running`` and ``stop`` are a pair as in Dekker's algorithm: each side writes its own, then, behind a fence, reads the
other's; so either the vCPU sees that it must rest, or the stopper sees that it runs and waits for it.
"""

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.pyhyve.vmm.soft.lapic import wake
from cython.cimports.pyhyve.vmm.soft.state import (
    ATOMIC,
    PENDING_BORDER,
    CpuState,
    __atomic_exchange_n,
    __atomic_load_n,
)

SYS_FUTEX = cython.declare(cython.long, 202)
FUTEX_WAIT_PRIVATE = cython.declare(cython.int, 128)
FUTEX_WAKE_PRIVATE = cython.declare(cython.int, 129)
EVERYBODY = cython.declare(cython.int, 0x7FFFFFFF)


def spin(turns):
    """Give the host CPU to whoever is waited for, once it is clear that this takes longer."""
    turns[0] += 1
    if turns[0] & 63 == 0:
        sched_yield()


def lock_code(e, s):
    # 0: free, 1: taken, 2: taken and others sleep
    free: uint32_t = 0
    turns: cython.int
    if swap32(cython.address(e.code_lock), cython.address(free), 1, False, ATOMIC, ATOMIC):
        return
    if s != cython.NULL:
        store32(cython.address(s.lock_wait), 2 if s.in_block else 1, ATOMIC)
    for turns in range(200):
        free = 0
        if swap32(cython.address(e.code_lock), cython.address(free), 1, False, ATOMIC, ATOMIC):
            break
    else:
        while __atomic_exchange_n(cython.address(e.code_lock), 2, ATOMIC) != 0:
            syscall(SYS_FUTEX, cython.address(e.code_lock), FUTEX_WAIT_PRIVATE, 2, cython.NULL, cython.NULL, 0)
    if s != cython.NULL:
        store32(cython.address(s.lock_wait), 0, ATOMIC)


def unlock_code(e):
    if __atomic_exchange_n(cython.address(e.code_lock), 0, ATOMIC) == 2:
        syscall(SYS_FUTEX, cython.address(e.code_lock), FUTEX_WAKE_PRIVATE, 1, cython.NULL, cython.NULL, 0)


def start_running(s):
    store32(cython.address(s.running), 1, ATOMIC)
    fence(ATOMIC)
    if __atomic_load_n(cython.address(s.engine.stop), ATOMIC):
        park(s)


def stop_running(s):
    store32(cython.address(s.running), 0, ATOMIC)


def park(s):
    while True:
        store32(cython.address(s.running), 0, ATOMIC)
        while __atomic_load_n(cython.address(s.engine.stop), ATOMIC):
            syscall(SYS_FUTEX, cython.address(s.engine.stop), FUTEX_WAIT_PRIVATE, 1, cython.NULL, cython.NULL, 0)
        store32(cython.address(s.running), 1, ATOMIC)
        fence(ATOMIC)
        if __atomic_load_n(cython.address(s.engine.stop), ATOMIC) == 0:
            return


def world_stop(e, s):
    free: uint32_t = 0
    turns: uint32_t
    i: uint32_t
    other: cython.pointer(CpuState)
    first: cython.bint = True
    while not swap32(cython.address(e.stop), cython.address(free), 1, False, ATOMIC, ATOMIC):
        first = False
        if s != cython.NULL:
            park(s)
        else:
            syscall(SYS_FUTEX, cython.address(e.stop), FUTEX_WAIT_PRIVATE, 1, cython.NULL, cython.NULL, 0)
        free = 0
    if s != cython.NULL:
        # It is at a border. Whoever waits for that, with the code lock held, must not wait for ever: see below.
        stop_running(s)
    for i in range(e.cpu_count):
        other = e.cpus[i]
        if other != s and __atomic_load_n(cython.address(other.running), ATOMIC):
            wake(other, PENDING_BORDER)
    for i in range(e.cpu_count):
        other = e.cpus[i]
        turns = 0
        while other != s and __atomic_load_n(cython.address(other.running), ATOMIC):
            spin(cython.address(turns))
    if s != cython.NULL:
        store32(cython.address(s.running), 1, ATOMIC)
    return first


def world_go(e):
    store32(cython.address(e.stop), 0, ATOMIC)
    syscall(SYS_FUTEX, cython.address(e.stop), FUTEX_WAKE_PRIVATE, EVERYBODY, cython.NULL, cython.NULL, 0)


def wait_for_borders(e, s):
    i: uint32_t
    turns: uint32_t
    border: uint32_t
    wait: uint32_t
    other: cython.pointer(CpuState)
    fence(ATOMIC)  # the permissions are gone before it is asked who runs: whoever starts now sees that
    for i in range(e.cpu_count):
        other = e.cpus[i]
        if other == s or __atomic_load_n(cython.address(other.running), ATOMIC) == 0:
            continue
        border = __atomic_load_n(cython.address(other.border), ATOMIC)
        wake(other, PENDING_BORDER)
        turns = 0
        while (
            __atomic_load_n(cython.address(other.running), ATOMIC)
            and __atomic_load_n(cython.address(other.border), ATOMIC) == border
        ):
            wait = __atomic_load_n(cython.address(other.lock_wait), ATOMIC)
            if wait == 2:
                return False  # inside a block, and it goes on only when the code lock is free
            if wait == 1:
                break
            spin(cython.address(turns))
    return True
