"""A walk through the guest's page tables, level by level, as a person debugging a kernel wants to see it.

Source: SDM Vol. 3A §4.3 (32-bit), §4.4 (PAE), §4.5 (4-level and 5-level paging). Unlike ``VirtualCpu.translate`` it
tells where each entry lies and what is in it, and where the walk ends if it does. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CR0_PG = 1 << 31
CR4_PSE, CR4_PAE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
EFER_LMA = 1 << 10
PRESENT, LARGE = 1 << 0, 1 << 7
_NX = 1 << 63
_ADDRESS = 0x000FFFFFFFFFF000
_FLAGS = ((0, "P"), (1, "W"), (2, "U"), (3, "PWT"), (4, "PCD"), (5, "A"), (6, "D"), (8, "G"))

# A level: its entries' name, the lowest address bit that selects one, and how many bits do.
_Level = tuple[str, int, int]
_LONG: tuple[_Level, ...] = (("PML4E", 39, 9), ("PDPTE", 30, 9), ("PDE", 21, 9), ("PTE", 12, 9))
_PAE: tuple[_Level, ...] = (("PDPTE", 30, 2), ("PDE", 21, 9), ("PTE", 12, 9))
_OLD: tuple[_Level, ...] = (("PDE", 22, 10), ("PTE", 12, 10))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry that the walk read: its kind, its guest-physical address and its value."""

    name: str
    gpa: int
    value: int

    @property
    def flags(self) -> str:
        """Its flags by their short names."""
        names = [name for bit, name in _FLAGS if self.value >> bit & 1]
        if self.value & LARGE and self.name != "PTE":
            names.append("PS")
        if self.value & _NX:
            names.append("NX")
        return " ".join(names) or "-"


@dataclass(frozen=True, slots=True)
class Walk:
    """The outcome: ``gpa`` in a page of ``size`` bytes, or None where the walk stops after ``entries``."""

    paging: str
    entries: tuple[Entry, ...]
    gpa: int | None
    size: int = 0


def walk(read: Callable[[int, int], int | None], cr0: int, cr3: int, cr4: int, efer: int, gva: int) -> Walk:
    """Look ``gva`` up as a processor with these registers does.

    ``read(gpa, size)`` gives a number from guest-physical memory, None where there is none.
    """
    if not cr0 & CR0_PG:
        gva &= 0xFFFFFFFF
        return Walk("no paging", (), gva, 1 << 32)
    size = 8
    if efer & EFER_LMA:
        levels = (("PML5E", 48, 9), *_LONG) if cr4 & CR4_LA57 else _LONG
        paging, table = f"{len(levels)}-level paging", cr3 & _ADDRESS
        top = 56 if cr4 & CR4_LA57 else 47
        if gva >> top not in (0, (1 << 64 - top) - 1):
            return Walk(paging + ", not a canonical address", (), None)
    elif cr4 & CR4_PAE:
        levels, paging, table = _PAE, "PAE paging", cr3 & 0xFFFFFFE0
    else:
        levels, paging, table, size = _OLD, "32-bit paging", cr3 & 0xFFFFF000, 4
    entries: list[Entry] = []
    for name, shift, bits in levels:
        at = table + (gva >> shift & (1 << bits) - 1) * size
        value = read(at, size)
        if value is None:
            return Walk(f"{paging}, no memory for the {name} at {at:#x}", tuple(entries), None)
        entries.append(Entry(name, at, value))
        if not value & PRESENT:
            return Walk(paging, tuple(entries), None)
        large = _may_be_large(name, levels, cr4) and bool(value & LARGE)
        if name == "PTE" or large:
            return Walk(paging, tuple(entries), _frame(value, shift, size) | gva & (1 << shift) - 1, 1 << shift)
        table = value & _ADDRESS
    raise AssertionError("a walk ends in a PTE")


def _may_be_large(name: str, levels: tuple[_Level, ...], cr4: int) -> bool:
    if name == "PDE":
        return levels is not _OLD or bool(cr4 & CR4_PSE)
    return name == "PDPTE" and levels is not _PAE


def _frame(value: int, shift: int, size: int) -> int:
    if size == 4 and shift == 22:  # PSE-36: bits 13-20 are address bits 32-39
        return value & 0xFFC00000 | (value >> 13 & 0xFF) << 32
    return value & _ADDRESS & ~((1 << shift) - 1)
