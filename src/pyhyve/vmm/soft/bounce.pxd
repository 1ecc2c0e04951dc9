# The slow path of emitted code, and the bounce buffer.

from libc.stdint cimport uint32_t, uint64_t

from pyhyve.vmm.soft.state cimport CpuState


cdef enum:
    # `access` of tlb_fill: a read-modify-write, or a store of unknown extent; always together with ACCESS_WRITE.
    ACCESS_RMW = 4

    # *status of tlb_fill besides DONE, FAULT and LEAVE.
    CODE_WRITE = 3       # the write hits the block that runs, or the access touches watched bytes; go on in step mode
    ALONE = 4            # an atomic access that crosses a page: run it again with the world stopped

    # CpuState.bounce_active
    BOUNCED = 1          # the store goes into the bounce buffer
    OPEN_STORE = 2       # it goes to a page with code, from which another vCPU may translate before it is done


# Returns what to add to `va` to get a host address: RAM filled into the TLB, or the bounce buffer. *status: DONE, FAULT or
# LEAVE, CODE_WRITE or ALONE.
cdef uint64_t tlb_fill(CpuState *s, uint64_t va, uint32_t size, uint32_t access, int *status) noexcept nogil
# After a store of emitted code: write the bounce buffer out, or close the store.
cdef void bounce_finish(CpuState *s) noexcept nogil
