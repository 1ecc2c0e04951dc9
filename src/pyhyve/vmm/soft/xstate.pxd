# The state components of XSAVE: which there are on this host, and where each lies in an image.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    # State components (SDM Vol. 1 13.1), by number
    YMM_HIGH = 2
    OPMASK = 5
    OPMASKS = 0x20             # as a bit
    ZMM_HIGH = 6               # bits 256 and up of registers 0-15
    ZMM_16 = 7                 # registers 16-31
    COMPONENTS = 8
    AVX_STATE = 7              # x87, SSE, AVX
    AVX512_STATE = 0xE0        # what XCR0 has all of or nothing
    AVX512_NEEDED = 0xD0030000  # leaf 7 EBX: F, DQ, CD, BW, VL
    LEGACY_END = 576           # of the legacy region and the header
    # CPUID leaf 0xD, subleaf 1, EAX: the bits' numbers
    EXTRA_OPT = 0
    EXTRA_C = 1
    EXTRA_XGETBV = 2
    EXTRA_S = 3


# In the standard format: the host's layout, which the guest is shown too. Zero where the host has no such component.
cdef uint32_t component_offset[8]
cdef uint32_t component_size[8]
# The components that the host has and the engine carries, as XCR0 bits
cdef uint64_t carried
# Of the bits EXTRA_* those that the engine can do here: with XSAVEC it has what it needs for all of them
cdef uint32_t extras

# Bytes of an image with these components, in the standard or the compacted format.
cdef uint32_t xsave_size(uint64_t components, bint compacted) noexcept nogil
# Where component `number` lies in a compacted image of `components`.
cdef uint32_t compacted_offset(uint64_t components, uint32_t number) noexcept nogil

# Used inside this module only.
cdef uint32_t component_aligned[8]
