"""Descriptors, gates and page-table entries as numbers (SDM Vol. 3A §3.4.5, §3.5, §4.5, §6.11)."""

from __future__ import annotations

from pyhyve.vmm.registers import Access, Segment

UNUSABLE = Segment(0, 0, 0, int(Access.UNUSABLE))

P, W, U, A, D, PS, G = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
NX = 1 << 63


def descriptor(base: int, limit: int, access: int, flags: int = 0) -> int:
    """A descriptor of eight bytes. ``access`` is its byte 5, ``flags`` the bits G, D/B, L and AVL, ``limit`` unscaled."""
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16
    return low | access << 40 | (limit >> 16 & 0xF) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56


def gate(selector: int, offset: int, kind: int, dpl: int, present: int = 1, count: int = 0) -> int:
    """The low eight bytes of a gate; ``count`` is its byte 4 (parameters, or the IST index)."""
    access = kind | dpl << 5 | present << 7
    return offset & 0xFFFF | selector << 16 | count << 32 | access << 40 | (offset >> 16 & 0xFFFF) << 48


def loaded(value: int, selector: int) -> Segment:
    """The segment register after a descriptor was loaded into it."""
    limit = value & 0xFFFF | value >> 32 & 0xF0000
    if value >> 55 & 1:
        limit = limit << 12 | 0xFFF
    return Segment(selector, value >> 16 & 0xFFFFFF | value >> 32 & 0xFF000000, limit, value >> 40 & 0xF0FF)


def qwords(*values: int) -> bytes:
    """Little-endian 64-bit words."""
    return b"".join((value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for value in values)


def dwords(*values: int) -> bytes:
    """Little-endian 32-bit words."""
    return b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in values)
