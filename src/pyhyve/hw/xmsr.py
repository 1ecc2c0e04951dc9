"""Model-specific registers that a guest may touch on any CPU of its vendor, and that mean nothing in a machine.

Documents: Intel SDM Vol. 4 §2; AMD APM Vol. 2, appendix A. Operating systems read these without expecting a fault: the
microcode's revision, power accounting, switches for errata, performance counters. They read as constants and ignore
writes, as in bhyve. Only registers that the backend itself does not know come here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pyhyve.bus.msr import MsrBus

_COMMON: Mapping[int, tuple[str, int]] = {
    0x8B: ("IA32_BIOS_SIGN_ID", 0),
}
_INTEL: Mapping[int, tuple[str, int]] = {
    0x606: ("MSR_RAPL_POWER_UNIT", 0x000A1003),  # units of 1/8 W, 61 uJ, 976 us
    0x611: ("MSR_PKG_ENERGY_STATUS", 0),
    0x619: ("MSR_DRAM_ENERGY_STATUS", 0),
    0x639: ("MSR_PP0_ENERGY_STATUS", 0),
    0x641: ("MSR_PP1_ENERGY_STATUS", 0),
    0xC88: ("MSR_UNCORE_C88", 0),
    0xD04: ("MSR_UNCORE_D04", 0),
}
_AMD: Mapping[int, tuple[str, int]] = {
    **{0xC0010000 + n: (f"PERF_CTL{n}", 0) for n in range(4)},
    **{0xC0010004 + n: (f"PERF_CTR{n}", 0) for n in range(4)},
    0xC0010015: ("HWCR", 1 << 24),  # TscFreqSel: the TSC counts at the P0 frequency
    0xC001001F: ("NB_CFG1", 0),
    0xC0010061: ("PSTATE_LIMIT", 0),
    0xC0010062: ("PSTATE_CONTROL", 0),
    0xC0010063: ("PSTATE_STATUS", 0),
    0xC0010064: ("PSTATE_CONFIG0", 0),
    0xC0010111: ("SMM_BASE", 0),
    0xC0010112: ("SMM_ADDR", 0),
    0xC0010113: ("SMM_MASK", 0),
    0xC0011020: ("LS_CFG", 0),
    0xC0011021: ("IC_CFG", 0),
}
_BY_VENDOR = {"GenuineIntel": _INTEL, "AuthenticAMD": _AMD, "HygonGenuine": _AMD}


def attach(bus: MsrBus, vendor: str) -> None:
    """Answer for the registers of a CPU of ``vendor`` (CPUID leaf 0)."""
    for index, (name, value) in {**_COMMON, **_BY_VENDOR.get(vendor, {})}.items():
        bus.register(index, partial(int, value), None, name)
