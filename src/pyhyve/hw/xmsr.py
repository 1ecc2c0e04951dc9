"""Model-specific registers that a guest may touch on any CPU of its vendor, and that mean nothing in a machine.

Documents: Intel SDM Vol. 4 §2; AMD APM Vol. 2, appendix A. Operating systems read these without expecting a fault: the
microcode's revision, power accounting, switches for errata, performance counters. They read as constants and ignore
writes; the table is bhyve's, its read-only registers refuse a write as the CPU does. Only registers that the backend
itself does not know come here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyhyve.bus.msr import MsrBus


@dataclass(frozen=True, slots=True)
class Constant:
    """``value`` None: write-only. ``writes``: a write is ignored, else it is refused."""

    index: int
    name: str
    value: int | None = 0
    writes: bool = False


_FEATURE_CONTROL_LOCK = 1 << 0
_HWCR = 1 << 24 | 1 << 9 | 1 << 4  # the TSC counts at the P0 frequency, no MONITOR, INVD acts as WBINVD
_VM_CR_SVMDIS = 1 << 4

_INTEL = (
    Constant(0x17, "IA32_PLATFORM_ID"),
    Constant(0x3A, "IA32_FEATURE_CONTROL", _FEATURE_CONTROL_LOCK),
    Constant(0x79, "IA32_BIOS_UPDT_TRIG", None, writes=True),
    Constant(0x8B, "IA32_BIOS_SIGN_ID", writes=True),
    Constant(0x140, "MISC_FEATURE_ENABLES"),
    Constant(0x606, "MSR_RAPL_POWER_UNIT", 0x000A1003),  # units of 1/8 W, 61 uJ, 976 us
    Constant(0x611, "MSR_PKG_ENERGY_STATUS"),
    Constant(0x619, "MSR_DRAM_ENERGY_STATUS"),
    Constant(0x639, "MSR_PP0_ENERGY_STATUS"),
    Constant(0x641, "MSR_PP1_ENERGY_STATUS"),
    Constant(0xC24, "MSR_UNCORE_C24", None, writes=True),
    Constant(0xD04, "MSR_UNCORE_D04", None, writes=True),
)
_AMD = (
    Constant(0x00, "MCA_ADDR_LS"),  # Linux's power meter looks for a counter it does not have here
    Constant(0x8B, "PATCH_LEVEL"),
    *(Constant(0xC0010000 + n, f"PERF_CTL{n}", writes=True) for n in range(4)),
    *(Constant(0xC0010004 + n, f"PERF_CTR{n}", writes=True) for n in range(4)),
    Constant(0xC0010015, "HWCR", _HWCR, writes=True),
    Constant(0xC001001F, "NB_CFG1", writes=True),
    Constant(0xC0010061, "PSTATE_LIMIT"),
    Constant(0xC0010062, "PSTATE_CONTROL", writes=True),
    Constant(0xC0010063, "PSTATE_STATUS"),
    Constant(0xC0010064, "PSTATE_CONFIG0"),
    Constant(0xC0010112, "SMM_ADDR"),
    Constant(0xC0010113, "SMM_MASK"),
    Constant(0xC0010114, "VM_CR", _VM_CR_SVMDIS),
    Constant(0xC0010299, "RAPL_PWR_UNIT", 0x000A1003),  # as Intel's
    Constant(0xC001029A, "CORE_ENERGY_STAT"),
    Constant(0xC001029B, "PKG_ENERGY_STAT"),
    Constant(0xC0011020, "LS_CFG", writes=True),
    Constant(0xC0011021, "IC_CFG", writes=True),
    Constant(0xC0011029, "DE_CFG", 1),  # the switch against erratum 721 is on already
)
_BY_VENDOR = {"GenuineIntel": _INTEL, "AuthenticAMD": _AMD, "HygonGenuine": _AMD}


def attach(bus: MsrBus, vendor: str) -> None:
    """Answer for the registers of a CPU of ``vendor`` (CPUID leaf 0)."""
    for one in _BY_VENDOR.get(vendor, ()):
        read: Callable[[], int] | None = None if one.value is None else partial(int, one.value)
        bus.register(one.index, read, _ignore if one.writes else None, one.name)


def _ignore(value: int) -> None:
    """A write that does nothing."""
