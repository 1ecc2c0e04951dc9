"""SRAT: which processors and which memory belong together (NUMA domains, ``-n``).

Document: ACPI specification 6.4, §5.2.16. One entry for each processor, one for each piece of a domain's memory.
"""

from __future__ import annotations

import struct

from pyhyve.firmware.acpi.table import table
from pyhyve.firmware.platform import Platform

_REVISION = 3
_RESERVED = struct.pack("<IQ", 1, 0)  # the 1 is for old specifications
_PROCESSOR, _PROCESSOR_SIZE = 0, 16
_MEMORY, _MEMORY_SIZE = 1, 40
_ENABLED = 1


def srat(platform: Platform) -> bytes:
    """The table for the platform's domains."""
    entries = [_RESERVED]
    for domain in platform.domains:
        low, high = domain.ident & 0xFF, (domain.ident >> 8).to_bytes(3, "little")
        for cpu in sorted(domain.cpus):
            entries.append(
                struct.pack("<BBBBIB3sI", _PROCESSOR, _PROCESSOR_SIZE, low, cpu, _ENABLED, 0, high, 0)
            )  # local APIC ids are the CPUs' numbers
        for start, size in domain.ranges:
            entries.append(
                struct.pack("<BBIHQQIIQ", _MEMORY, _MEMORY_SIZE, domain.ident, 0, start, size, 0, _ENABLED, 0)
            )
    return table(b"SRAT", _REVISION, b"".join(entries))
