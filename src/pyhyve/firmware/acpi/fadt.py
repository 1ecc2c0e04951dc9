"""FADT and FACS: the fixed power-management hardware.

Document: ACPI specification 6.4, §5.2.9 (FADT; the layout here is revision 5), §5.2.10 (FACS), §4.8 (fixed hardware).

The power button is fixed hardware (a bit of the PM1 event register), the sleep button does not exist, and there are no
general-purpose events. The reset register is the PCI reset port.
"""

from __future__ import annotations

import struct
from enum import IntFlag

from pyhyve.firmware.acpi.table import NO_ADDRESS, AccessSize, AddressSpace, address, table
from pyhyve.firmware.platform import Platform

FACS_SIZE = 64
FACS_ALIGN = 64

_REVISION = 5
_MINOR_REVISION = 0
_FACS_VERSION = 2
_EVENT_SIZE = 4
_CONTROL_SIZE = 2
_TIMER_SIZE = 4
_NO_C2 = 101  # latencies above 100 and 1000 µs say that the state does not exist
_NO_C3 = 1001


class BootArch(IntFlag):
    """IAPC_BOOT_ARCH (table 5.10)."""

    LEGACY_DEVICES = 1 << 0
    I8042 = 1 << 1
    VGA_NOT_PRESENT = 1 << 2


class Feature(IntFlag):
    """Fixed feature flags (table 5.9)."""

    WBINVD = 1 << 0
    PROC_C1 = 1 << 2
    SLEEP_BUTTON_ABSENT = 1 << 5
    TIMER_32_BITS = 1 << 8
    RESET_REGISTER = 1 << 10
    HEADLESS = 1 << 12
    APIC_PHYSICAL = 1 << 19


_FEATURES = (
    Feature.WBINVD
    | Feature.PROC_C1
    | Feature.SLEEP_BUTTON_ABSENT
    | Feature.TIMER_32_BITS
    | Feature.RESET_REGISTER
    | Feature.APIC_PHYSICAL
)


def facs() -> bytes:
    """The firmware's side of sleep states and the global lock, which nobody but the guest takes. It has no checksum."""
    return struct.pack("<4sIIIIIQB", b"FACS", FACS_SIZE, 0, 0, 0, 0, 0, _FACS_VERSION).ljust(FACS_SIZE, b"\0")


def fadt(platform: Platform, facs_address: int, dsdt_address: int) -> bytes:
    """The table for the platform's ports; FACS and DSDT lie below 4 GiB."""
    boot_arch = BootArch.LEGACY_DEVICES
    if platform.keyboard_controller:
        boot_arch |= BootArch.I8042
    event, control, timer = platform.pm_event_port, platform.pm_control_port, platform.pm_timer_port
    body = struct.pack("<IIBBHI", facs_address, dsdt_address, 0, 0, platform.sci_irq, platform.smi_port)
    # ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT
    body += struct.pack("<BBBB", platform.acpi_enable, platform.acpi_disable, 0, 0)
    # PM1a and PM1b event, PM1a and PM1b control, PM2 control, PM timer, GPE0, GPE1
    body += struct.pack("<8I", event, 0, control, 0, 0, timer, 0, 0)
    # their lengths, GPE1_BASE, CST_CNT
    body += struct.pack("<8B", _EVENT_SIZE, _CONTROL_SIZE, 0, _TIMER_SIZE, 0, 0, 0, 0)
    # C2 and C3 latency, cache flush size and stride, duty cycle offset and width, CMOS day and month alarm, century
    body += struct.pack("<4H5B", _NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, platform.rtc_century)
    body += struct.pack("<HBI", boot_arch, 0, _FEATURES)
    body += address(AddressSpace.IO, 8, AccessSize.BYTE, platform.reset_port)
    # reset value, ARM boot architecture, minor revision, X_FIRMWARE_CTRL (unused: FIRMWARE_CTRL is), X_DSDT
    body += struct.pack("<BHBQQ", platform.reset_value, 0, _MINOR_REVISION, 0, dsdt_address)
    body += address(AddressSpace.IO, 8 * _EVENT_SIZE, AccessSize.WORD, event) + NO_ADDRESS
    body += address(AddressSpace.IO, 8 * _CONTROL_SIZE, AccessSize.WORD, control) + NO_ADDRESS
    body += NO_ADDRESS
    body += address(AddressSpace.IO, 8 * _TIMER_SIZE, AccessSize.DWORD, timer)
    # GPE0, GPE1, sleep control and status registers
    body += 4 * NO_ADDRESS
    return table(b"FACP", _REVISION, body)
