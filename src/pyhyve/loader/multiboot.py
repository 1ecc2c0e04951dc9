"""Loads kernels by the Multiboot specification, version 0.6.96 ("Multiboot 1").

A header in the first 8 KiB of the file says what the kernel wants. The kernel is an ELF executable, or any file whose
header carries load addresses itself. The CPU starts in 32-bit protected mode without paging, with the magic number in
EAX and EBX at an information structure: memory sizes, memory map, command line and one module, the initrd.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from pyhyve.errors import LoaderError
from pyhyve.firmware.e820 import HIGH_MEMORY, LEGACY_HOLE, E820Entry, E820Type
from pyhyve.loader import elf, entry, files
from pyhyve.loader.entry import EntryState
from pyhyve.memory import PAGE, GuestMemory
from pyhyve.vmm.registers import Reg

HEADER_MAGIC = 0x1BADB002
BOOTLOADER_MAGIC = 0x2BADB002
SEARCH_LIMIT = 8192
CMDLINE_MAX = 4095

# Where things go in low memory, inside elf.LOADER_AREA
INFO = 0x7000
MODULE_LIST = 0x7100
LOADER_NAME = 0x7180
MEMORY_MAP = 0x7200
CMDLINE = 0x20000
MODULE_CMDLINE = 0x22000

_NAME = b"pyhyve\0"
_MEMORY_MAP_ENTRY = 24
_MEMORY_MAP_MAX = (0x8000 - MEMORY_MAP) // _MEMORY_MAP_ENTRY


class HeaderFlags(IntFlag):
    """What a kernel demands (bits 0-15) and offers (§3.1.2)."""

    ALIGN_MODULES = 1 << 0
    MEMORY_INFO = 1 << 1
    VIDEO_MODE = 1 << 2
    ADDRESSES = 1 << 16


class InfoFlags(IntFlag):
    """Which fields of the information structure are valid (§3.3)."""

    MEMORY = 1 << 0
    CMDLINE = 1 << 2
    MODULES = 1 << 3
    MEMORY_MAP = 1 << 6
    LOADER_NAME = 1 << 9


_KNOWN_DEMANDS = HeaderFlags.ALIGN_MODULES | HeaderFlags.MEMORY_INFO | HeaderFlags.VIDEO_MODE


@dataclass(frozen=True, slots=True)
class Header:
    """A multiboot header found at ``offset`` in the file; ``addresses`` are its five address fields, if it has them."""

    offset: int
    flags: HeaderFlags
    addresses: tuple[int, int, int, int, int] | None


def find_header(data: bytes) -> Header | None:
    """The first valid multiboot header in ``data``, None if there is none."""
    limit = min(SEARCH_LIMIT, len(data))
    for offset in range(0, limit - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic != HEADER_MAGIC or (magic + flags + checksum) & 0xFFFFFFFF:
            continue
        addresses = None
        if flags & HeaderFlags.ADDRESSES:
            if offset + 32 > limit:
                continue
            addresses = struct.unpack_from("<5I", data, offset + 12)
        return Header(offset, HeaderFlags(flags), addresses)
    return None


def load(
    memory: GuestMemory,
    path: Path,
    data: bytes,
    header: Header,
    initrd: Path | None,
    cmdline: str,
    memory_map: Sequence[E820Entry],
) -> EntryState:
    """Put the kernel and what belongs to it into guest memory. Raises ``LoaderError``."""
    unknown = header.flags & 0xFFFF & ~_KNOWN_DEMANDS
    if unknown:
        raise LoaderError(f"kernel {path} demands multiboot features {unknown:#x}, which are unknown")
    if len(memory_map) > _MEMORY_MAP_MAX:
        raise LoaderError(f"the memory map has {len(memory_map)} entries; there is room for {_MEMORY_MAP_MAX}")
    encoded_cmdline = files.encode_cmdline(cmdline, CMDLINE_MAX)
    if header.addresses is not None:
        executable = _flat_image(data, header, header.addresses, str(path))
    else:
        executable = elf.parse(data, str(path))
    start = _physical_entry(executable)
    kernel_end = elf.load_segments(memory, path, executable)
    if memory.low_size < HIGH_MEMORY:
        raise files.not_enough_memory(path, HIGH_MEMORY, memory)
    modules = 0
    if initrd is not None:
        modules = 1
        _load_module(memory, initrd, max(-(-kernel_end // PAGE) * PAGE, HIGH_MEMORY))
    memory.write(CMDLINE, encoded_cmdline)
    memory.write(LOADER_NAME, _NAME)
    # an entry's size field does not count itself
    ranges = (struct.pack("<IQQI", _MEMORY_MAP_ENTRY - 4, item.start, item.size, item.type) for item in memory_map)
    memory.write(MEMORY_MAP, b"".join(ranges))
    info = struct.pack(
        "<IIIIIII4III",
        InfoFlags.MEMORY
        | InfoFlags.CMDLINE
        | InfoFlags.MEMORY_MAP
        | InfoFlags.LOADER_NAME
        | (InfoFlags.MODULES if modules else 0),
        LEGACY_HOLE >> 10,
        _upper_memory(memory_map) >> 10,
        0,
        CMDLINE,
        modules,
        MODULE_LIST if modules else 0,
        *(0, 0, 0, 0),
        _MEMORY_MAP_ENTRY * len(memory_map),
        MEMORY_MAP,
    )
    # drives, configuration table and APM table are absent
    memory.write(INFO, info + struct.pack("<IIIII", 0, 0, 0, LOADER_NAME, 0))
    return entry.protected_mode(memory, start, {Reg.RAX: BOOTLOADER_MAGIC, Reg.RBX: INFO})


def _load_module(memory: GuestMemory, initrd: Path, address: int) -> None:
    """Put the initrd behind the kernel, on a page boundary, as boot loaders do; small kernels map only what is near."""
    size = files.initrd_size(initrd)
    if address + size > memory.low_size:
        raise files.initrd_too_large(initrd, size, memory.low_size - address)
    files.read_initrd(initrd, memory, address, size)
    memory.write(MODULE_CMDLINE, b"\0")
    memory.write(MODULE_LIST, struct.pack("<IIII", address, address + size, MODULE_CMDLINE, 0))


def _flat_image(data: bytes, header: Header, addresses: tuple[int, int, int, int, int], name: str) -> elf.Executable:
    """The one segment of a file whose header says where it goes (§3.1.3)."""
    header_address, load_address, load_end, bss_end, start = addresses
    if header_address < load_address or header_address - load_address > header.offset:
        raise LoaderError(f"kernel {name} is damaged: its multiboot header gives load address {load_address:#x}")
    offset = header.offset - (header_address - load_address)
    size = load_end - load_address if load_end else len(data) - offset
    if size < 0 or offset + size > len(data):
        raise LoaderError(f"kernel {name} is truncated: it has {len(data)} bytes of at least {offset + max(size, 0)}")
    room = max(size, bss_end - load_address)
    return elf.Executable(name, start, (elf.load_header(load_address, room, memoryview(data)[offset : offset + size]),))


def _physical_entry(executable: elf.Executable) -> int:
    """Where the CPU starts: the entry is a virtual address, but paging is off."""
    for segment in executable.segments:
        if segment.virtual <= executable.entry < segment.virtual + segment.memory_size:
            return executable.entry - segment.virtual + segment.physical
    name, start = executable.name, executable.entry
    raise LoaderError(f"kernel {name} is damaged: its entry {start:#x} lies in none of its segments")


def _upper_memory(memory_map: Sequence[E820Entry]) -> int:
    """Bytes of RAM that start at 1 MiB."""
    return sum(item.size for item in memory_map if item.start == HIGH_MEMORY and item.type == E820Type.RAM)
