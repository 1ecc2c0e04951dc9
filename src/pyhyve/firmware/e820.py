"""The memory map that a guest is told: which guest-physical ranges are RAM and which are not to be touched.

Document: ACPI specification §15 (System Address Map Interfaces); the numbers are those of the BIOS call INT 15h, E820h,
which Linux's ``boot_params``, PVH's ``hvm_start_info`` and multiboot all use.

RAM fills its regions except for the 384 KiB below 1 MiB, the place of video memory and ROMs; of those the last 64 KiB
hold the firmware tables and are reserved. Whatever else is reserved is cut out of RAM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from pyhyve.memory import GuestMemory

LEGACY_HOLE = 0xA0000
BIOS_BASE = 0xF0000
HIGH_MEMORY = 0x100000

ECAM_BASE = 0xE0000000
ECAM_SIZE = 256 << 20


class E820Type(IntEnum):
    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5


@dataclass(frozen=True, slots=True)
class E820Entry:
    """``size`` bytes from guest-physical ``start``."""

    start: int
    size: int
    type: E820Type

    @property
    def end(self) -> int:
        return self.start + self.size


PLATFORM_RESERVED: tuple[tuple[int, int], ...] = ((ECAM_BASE, ECAM_SIZE),)
"""Start and size of the ranges that the platform keeps outside RAM: PCI's memory-mapped configuration space."""


def build(memory: GuestMemory, reserved: Iterable[tuple[int, int]] = PLATFORM_RESERVED) -> tuple[E820Entry, ...]:
    """The map of ``memory`` in ascending order. ``reserved`` holds (start, size) pairs, in bytes."""
    holes = [(BIOS_BASE, HIGH_MEMORY - BIOS_BASE), *((start, size) for start, size in reserved if size > 0)]
    cuts = sorted([(LEGACY_HOLE, HIGH_MEMORY), *((start, start + size) for start, size in holes)])
    entries = [E820Entry(start, size, E820Type.RESERVED) for start, size in holes]
    for region in memory.regions:
        start = region.gpa
        for cut_start, cut_end in cuts:
            if cut_end <= start or cut_start >= region.end:
                continue
            if cut_start > start:
                entries.append(E820Entry(start, cut_start - start, E820Type.RAM))
            start = max(start, cut_end)
        if start < region.end:
            entries.append(E820Entry(start, region.end - start, E820Type.RAM))
    return tuple(sorted(entries, key=lambda entry: entry.start))
