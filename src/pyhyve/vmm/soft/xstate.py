"""The XSAVE state components that the host has and the engine carries, and where they lie in an image.

Document: Intel SDM Vol. 1, 13.1 to 13.4, and leaf 0DH of CPUID. Images of the guest are laid out as the host's are, since
the host's own instructions write and read them: AMD's processors have the opmask registers elsewhere than Intel's.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pyhyve.vmm.soft.native import native


def xsave_size(components, compacted):
    size: uint32_t = LEGACY_END
    number: uint32_t
    end: uint32_t
    for number in range(YMM_HIGH, COMPONENTS):
        if (components >> number) & 1 == 0:
            continue
        if compacted:
            end = compacted_offset(components, number) + component_size[number]
        else:
            end = component_offset[number] + component_size[number]
        if end > size:
            size = end
    return size


def compacted_offset(components, number):
    at: uint32_t = LEGACY_END
    i: uint32_t
    for i in range(YMM_HIGH, COMPONENTS):
        if (components >> i) & 1 == 0:
            continue
        if component_aligned[i]:
            at = (at + 63) & ~cython.cast(uint32_t, 63)
        if i == number:
            return at
        at += component_size[i]
    return at


def _find():
    """Ask CPUID and XCR0."""
    global carried, extras
    regs: uint32_t[4]
    number: uint32_t
    xcr0: uint64_t = 1
    leaf7: uint32_t = 0
    native.cpuid(1, 0, regs)
    if (regs[2] >> 27) & 1:
        xcr0 = native.xgetbv()
    native.cpuid(0, 0, regs)
    if regs[0] >= 0xD:
        native.cpuid(0xD, 1, regs)
        extras = 0xF if (regs[0] >> EXTRA_C) & 1 else regs[0] & 1
        native.cpuid(7, 0, regs)
        leaf7 = regs[1]
        for number in range(YMM_HIGH, COMPONENTS):
            if number < OPMASK and number != YMM_HIGH:
                continue
            native.cpuid(0xD, number, regs)
            component_size[number] = regs[0]
            component_offset[number] = regs[1]
            component_aligned[number] = (regs[2] >> 1) & 1
    carried = xcr0 & AVX_STATE
    # F, DQ, CD, BW and VL together: what came before them (Xeon Phi) has opmask registers of another width
    if xcr0 & (AVX512_STATE | AVX_STATE) == (AVX512_STATE | AVX_STATE) and leaf7 & AVX512_NEEDED == AVX512_NEEDED:
        carried |= AVX512_STATE


def carried_components():
    """For Python: the XCR0 bits that a guest may be shown here."""
    return carried


def image_size(components):
    """For Python: the bytes of an image in the standard format."""
    wanted: uint64_t = components
    return xsave_size(wanted, False)


def component_place(number):
    """For Python: where a component lies in such an image."""
    return component_offset[cython.cast(cython.int, number)]


_find()
