"""Encodes ACPI Machine Language: the byte code of the DSDT, from Python expressions.

Document: ACPI specification 6.4, §20 (AML grammar) and §6.4 (resource descriptors). Each function returns the bytes of
one term; a block takes its terms as arguments and computes its own length. There are no forward references to resolve:
AML names are looked up when they are evaluated.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

_ZERO = b"\x00"
_ONE = b"\x01"
_BYTE_PREFIX = b"\x0a"
_WORD_PREFIX = b"\x0b"
_DWORD_PREFIX = b"\x0c"
_STRING_PREFIX = b"\x0d"
_QWORD_PREFIX = b"\x0e"
_NAME = b"\x08"
_SCOPE = b"\x10"
_BUFFER = b"\x11"
_PACKAGE = b"\x12"
_METHOD = b"\x14"
_DUAL_NAME = b"\x2e"
_MULTI_NAME = b"\x2f"
_DEVICE = b"\x5b\x82"
_REGION = b"\x5b\x80"
_FIELD = b"\x5b\x81"
_LOCAL0 = 0x60
_ARG0 = 0x68
_STORE = b"\x70"
_SUBTRACT = b"\x74"
_SHIFT_LEFT = b"\x79"
_AND = b"\x7b"
_FIND_SET_RIGHT_BIT = b"\x82"
_CREATE_WORD_FIELD = b"\x8b"
_LNOT = b"\x92"
_IF = b"\xa0"
_ELSE = b"\xa1"
_RETURN = b"\xa4"

_LENGTH_MAX = (1 << 28) - 1


def integer(value: int) -> bytes:
    """An integer constant of 0 to 64 bits, in its shortest form."""
    if value == 0:
        return _ZERO
    if value == 1:
        return _ONE
    for prefix, size in ((_BYTE_PREFIX, 1), (_WORD_PREFIX, 2), (_DWORD_PREFIX, 4), (_QWORD_PREFIX, 8)):
        if 0 < value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(f"no AML integer: {value}")


def string(value: str) -> bytes:
    """A string constant of ASCII characters."""
    return _STRING_PREFIX + value.encode("ascii") + b"\0"


def eisa_id(value: str) -> bytes:
    """A Plug and Play identifier such as ``PNP0501``, compressed to 32 bits (§19.3.4)."""
    vendor = 0
    for letter in value[:3]:
        vendor = vendor << 5 | ord(letter) - 0x40
    return integer(int.from_bytes(struct.pack(">HH", vendor, int(value[3:], 16)), "little"))


def path(value: str) -> bytes:
    r"""A name such as ``\_SB.PCI0`` (§20.2.2). Segments are padded with underscores to four characters."""
    root = value.startswith("\\")
    segments = [segment.ljust(4, "_").encode("ascii") for segment in value.lstrip("\\").split(".")]
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"no AML name: {value}")
    prefix = b"\\" if root else b""
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + _DUAL_NAME + b"".join(segments)
    return prefix + _MULTI_NAME + bytes([len(segments)]) + b"".join(segments)


def name(target: str, value: bytes) -> bytes:
    """``Name (target, value)``"""
    return _NAME + path(target) + value


def package(*elements: bytes) -> bytes:
    """``Package () {elements}``, at most 255."""
    return _PACKAGE + _with_length(bytes([len(elements)]) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """``Buffer () {data}``"""
    return _BUFFER + _with_length(integer(len(data)) + data)


def scope(target: str, *terms: bytes) -> bytes:
    """``Scope (target) {terms}``"""
    return _SCOPE + _with_length(path(target) + b"".join(terms))


def device(target: str, *terms: bytes) -> bytes:
    """``Device (target) {terms}``"""
    return _DEVICE + _with_length(path(target) + b"".join(terms))


def method(target: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """``Method (target, arguments) {terms}``; ``arguments`` is 0 to 7. One that makes names must be serialized."""
    flags = arguments & 7 | (1 << 3 if serialized else 0)
    return _METHOD + _with_length(path(target) + bytes([flags]) + b"".join(terms))


def argument(index: int) -> bytes:
    """``Arg0`` to ``Arg6``"""
    return bytes([_ARG0 + index])


def local(index: int) -> bytes:
    """``Local0`` to ``Local7``"""
    return bytes([_LOCAL0 + index])


def store(source: bytes, target: bytes) -> bytes:
    """``Store (source, target)``"""
    return _STORE + source + target


def return_(value: bytes) -> bytes:
    """``Return (value)``"""
    return _RETURN + value


def if_(predicate: bytes, *terms: bytes) -> bytes:
    """``If (predicate) {terms}``"""
    return _IF + _with_length(predicate + b"".join(terms))


def else_(*terms: bytes) -> bytes:
    """``Else {terms}``, right behind its ``if_``."""
    return _ELSE + _with_length(b"".join(terms))


def and_(left: bytes, right: bytes) -> bytes:
    """``left & right``"""
    return _AND + left + right + _ZERO


def subtract(left: bytes, right: bytes, target: bytes) -> bytes:
    """``target = left - right``"""
    return _SUBTRACT + left + right + target


def shift_left(value: bytes, count: bytes, target: bytes) -> bytes:
    """``target = value << count``"""
    return _SHIFT_LEFT + value + count + target


def find_right_bit(value: bytes, target: bytes) -> bytes:
    """``target`` is the number of the lowest set bit of ``value``, counted from 1; 0 without one."""
    return _FIND_SET_RIGHT_BIT + value + target


def is_zero(value: bytes) -> bytes:
    """``!value``"""
    return _LNOT + value


def word_field(source: bytes, offset: int, target: str) -> bytes:
    """``CreateWordField (source, offset, target)``: 16 bits of a buffer, from byte ``offset``, by a name."""
    return _CREATE_WORD_FIELD + source + integer(offset) + path(target)


class Region(IntEnum):
    """Address spaces of operation regions (§19.6.100)."""

    SYSTEM_IO = 1
    PCI_CONFIG = 2


def operation_region(target: str, space: Region, offset: int, length: int) -> bytes:
    """``OperationRegion (target, space, offset, length)``"""
    return _REGION + path(target) + bytes([space]) + integer(offset) + integer(length)


def fields(region: str, *elements: tuple[str | None, int]) -> bytes:
    """``Field (region, AnyAcc, NoLock, Preserve)``: names and their widths in bits, None for bits without a name."""
    parts = [(path(title) if title else _ZERO) + _length(bits) for title, bits in elements]
    return _FIELD + _with_length(path(region) + _ZERO + b"".join(parts))


def _length(value: int) -> bytes:
    """A PkgLength that counts something else than itself: the bits of a field."""
    if value <= 0x3F:
        return bytes([value])
    for extra in (1, 2, 3):
        if value < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | value & 0xF]) + (value >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML field has at most {_LENGTH_MAX} bits")


def _with_length(body: bytes) -> bytes:
    """``body`` behind its PkgLength, which counts itself (§20.2.4)."""
    for extra in range(4):
        length = len(body) + 1 + extra
        if length < (1 << (4 + 8 * extra) if extra else 0x40):
            return _length(length) + body
    raise ValueError(f"an AML block has at most {_LENGTH_MAX} bytes")


# Resource descriptors (§6.4)


class Space(IntEnum):
    """What an address space descriptor describes (§6.4.3.5)."""

    MEMORY = 0
    IO = 1
    BUS = 2


class _Window(IntFlag):
    """General flags of an address space descriptor: both ends are fixed, addresses decode positively."""

    MIN_FIXED = 1 << 2
    MAX_FIXED = 1 << 3


_MEMORY_READ_WRITE = 1 << 0
_MEMORY_CACHEABLE = 1 << 1
_IO_ENTIRE_RANGE = 3
_IRQ_ACTIVE_LOW = 1 << 3  # bit 0 clear: level triggered (§6.4.2.1)
_IRQ_SHARED = 1 << 4


def resources(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () {descriptors}``"""
    # checksum 0 means "do not check" (§6.4.2.9)
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(first: int, count: int) -> bytes:
    """``IO (Decode16, first, first, 1, count)``"""
    return struct.pack("<BBHHBB", 0x47, 0x01, first, first, 1, count)


def irq(number: int) -> bytes:
    """``IRQNoFlags () {number}``: edge triggered, active high, not shared."""
    return struct.pack("<BH", 0x22, 1 << number)


def irq_level(*numbers: int) -> bytes:
    """``IRQ (Level, ActiveLow, Shared) {numbers}``"""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return struct.pack("<BHB", 0x23, mask, _IRQ_SHARED | _IRQ_ACTIVE_LOW)


def memory32_fixed(base: int, size: int) -> bytes:
    """``Memory32Fixed (ReadWrite, base, size)``"""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def word_window(space: Space, first: int, last: int) -> bytes:
    """``WordBusNumber`` or ``WordIO`` that a bridge passes on, from ``first`` to ``last``."""
    return _window(0x88, "<5H", space, first, last)


def dword_memory(first: int, last: int) -> bytes:
    """``DWordMemory`` that a bridge passes on, not cacheable, writable."""
    return _window(0x87, "<5I", Space.MEMORY, first, last)


def qword_memory(first: int, last: int) -> bytes:
    """``QWordMemory`` that a bridge passes on, cacheable, writable."""
    return _window(0x8A, "<5Q", Space.MEMORY, first, last, _MEMORY_CACHEABLE)


def _window(tag: int, layout: str, space: Space, first: int, last: int, type_flags: int = 0) -> bytes:
    if space is Space.MEMORY:
        type_flags |= _MEMORY_READ_WRITE
    elif space is Space.IO:
        type_flags |= _IO_ENTIRE_RANGE
    flags = _Window.MIN_FIXED | _Window.MAX_FIXED
    body = bytes([space, flags, type_flags]) + struct.pack(layout, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body
