"""Reads ELF executables for x86 and loads a ``vmlinux`` by its PVH entry point.

Documents: System V ABI chapters 4 and 5 (ELF header, program header, notes); Xen, docs/misc/pvh.pandoc (the x86/HVM
direct boot ABI) and public/arch-x86/hvm/start_info.h.

The loadable segments go to their physical addresses. The note ``XEN_ELFNOTE_PHYS32_ENTRY`` names the entry; the CPU
starts there in 32-bit protected mode without paging, with EBX at an ``hvm_start_info`` that points to the command line,
the RAM disk, the memory map and the ACPI root pointer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from pyhyve.errors import LoaderError
from pyhyve.firmware.e820 import HIGH_MEMORY, E820Entry
from pyhyve.loader import entry, files
from pyhyve.loader.entry import EntryState
from pyhyve.memory import PAGE, GuestMemory
from pyhyve.vmm.registers import Reg

MAGIC = b"\x7fELF"

# Where things go in low memory
START_INFO = 0x7000
MODULE_LIST = 0x7100
MEMORY_MAP = 0x7200
CMDLINE = 0x20000
LOADER_AREA = (entry.GDT, 0x30000)
"""The low memory that the loader uses: no segment may lie there."""

LINUX_CMDLINE_MAX = 2047
"""COMMAND_LINE_SIZE of Linux on x86, less the terminating zero; there is no header that tells another kernel's."""

_START_INFO_MAGIC = 0x336EC578
_START_INFO_VERSION = 1
_RSDP_FIELD = 32  # rsdp_paddr in hvm_start_info
_MEMORY_MAP_MAX = (0x8000 - MEMORY_MAP) // 24
_NOTE_NAME = b"Xen\0"
_PHYS32_ENTRY = 18


class _Class(IntEnum):
    ELF32 = 1
    ELF64 = 2


class Machine(IntEnum):
    I386 = 3
    X86_64 = 62


_MACHINE_NAMES = {
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}

_PT_LOAD = 1
_PT_NOTE = 4
_ET_EXEC = 2
_ET_DYN = 3


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One entry of the program header table; ``data`` is what the file has of it, at most ``memory_size`` bytes."""

    type: int
    virtual: int
    physical: int
    memory_size: int
    align: int
    data: memoryview

    @property
    def end(self) -> int:
        return self.physical + self.memory_size


@dataclass(frozen=True, slots=True)
class Executable:
    """An ELF executable for x86 whose header and program headers were checked against the file's size."""

    name: str
    entry: int
    headers: tuple[ProgramHeader, ...]

    @property
    def segments(self) -> tuple[ProgramHeader, ...]:
        """The segments to load."""
        return tuple(header for header in self.headers if header.type == _PT_LOAD and header.memory_size)


def load_header(address: int, memory_size: int, data: memoryview) -> ProgramHeader:
    """A segment to load at ``address``, for files that are no ELF."""
    return ProgramHeader(_PT_LOAD, address, address, memory_size, 0, data)


def parse(data: bytes, name: str) -> Executable:
    """Check the headers of an ELF file. ``name`` is the file's, for messages. Raises ``LoaderError``."""
    try:
        return _parse(data, name)
    except struct.error:
        raise LoaderError(f"kernel {name} is truncated: its ELF headers are incomplete") from None


def _parse(data: bytes, name: str) -> Executable:
    elf_class, encoding = struct.unpack_from("<4xBB", data)
    if elf_class not in tuple(_Class) or encoding not in (1, 2):
        raise LoaderError(f"kernel {name} is damaged: its ELF class is {elf_class}, its data encoding {encoding}")
    kind, machine = struct.unpack_from("<HH" if encoding == 1 else ">HH", data, 16)
    if encoding != 1 or machine not in tuple(Machine):
        raise LoaderError(f"kernel {name} is for {_MACHINE_NAMES.get(machine, f'ELF machine {machine}')}, not for x86")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise LoaderError(f"kernel {name} is an ELF file, but not an executable")
    if elf_class == _Class.ELF64:
        start, table = struct.unpack_from("<QQ", data, 24)
        entry_size, count = struct.unpack_from("<HH", data, 54)
        smallest = 56
    else:
        start, table = struct.unpack_from("<II", data, 24)
        entry_size, count = struct.unpack_from("<HH", data, 42)
        smallest = 32
    if entry_size < smallest and count:
        raise LoaderError(f"kernel {name} is damaged: its program headers have {entry_size} bytes")
    headers = []
    view = memoryview(data)
    for index in range(count):
        position = table + index * entry_size
        if position + smallest > len(data):
            raise LoaderError(f"kernel {name} is truncated: its ELF headers are incomplete")
        if elf_class == _Class.ELF64:
            kind, _, offset, virtual, physical, size, room, align = struct.unpack_from("<IIQQQQQQ", data, position)
        else:
            kind, offset, virtual, physical, size, room, _, align = struct.unpack_from("<8I", data, position)
        if kind not in (_PT_LOAD, _PT_NOTE):
            continue
        if offset + size > len(data):
            raise LoaderError(f"kernel {name} is truncated: it has {len(data)} bytes of at least {offset + size}")
        if kind == _PT_LOAD and size > room:
            raise LoaderError(f"kernel {name} is damaged: a segment has {size} bytes in the file, {room} in memory")
        headers.append(ProgramHeader(kind, virtual, physical, room, align, view[offset : offset + size]))
    return Executable(name, start, tuple(headers))


def notes(header: ProgramHeader) -> Iterator[tuple[bytes, int, bytes]]:
    """The (name, type, descriptor) of each note in a note segment; stops where they make no sense any more."""
    # names and descriptors are padded to 4 bytes; segments aligned to 8 pad to 8
    align = 8 if header.align == 8 else 4
    data = header.data
    position = 0
    while position + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, position)
        name_start = position + 12
        start = -(-(name_start + name_size) // align) * align
        if start + size > len(data):
            return
        yield bytes(data[name_start : name_start + name_size]), kind, bytes(data[start : start + size])
        position = -(-(start + size) // align) * align


def pvh_entry(executable: Executable) -> int | None:
    """The physical address of the PVH entry point, None if the file has none."""
    for header in executable.headers:
        if header.type != _PT_NOTE:
            continue
        for name, kind, value in notes(header):
            if name == _NOTE_NAME and kind == _PHYS32_ENTRY and len(value) in (4, 8):
                return int.from_bytes(value, "little")
    return None


def load_segments(memory: GuestMemory, path: Path, executable: Executable) -> int:
    """Put the segments where they want to be; returns where the last ends. Raises ``LoaderError``."""
    segments = executable.segments
    if not segments:
        raise LoaderError(f"kernel {path} has nothing to load")
    end = max(segment.end for segment in segments)
    if end > memory.low_size:
        raise files.not_enough_memory(path, end, memory)
    low, high = LOADER_AREA
    for segment in segments:
        if segment.physical < high and segment.end > low:
            raise LoaderError(f"kernel {path} wants {segment.physical:#x}, which the loader itself uses")
    for segment in segments:
        memory.write(segment.physical, segment.data)
        memory.write(segment.physical + len(segment.data), bytes(segment.memory_size - len(segment.data)))
    return end


def load(
    memory: GuestMemory,
    path: Path,
    executable: Executable,
    initrd: Path | None,
    cmdline: str,
    memory_map: Sequence[E820Entry],
    *,
    acpi_rsdp: int = 0,
) -> EntryState:
    """Put the kernel and what belongs to it into guest memory, to start by its PVH entry. Raises ``LoaderError``."""
    start = pvh_entry(executable)
    if start is None:
        raise LoaderError(f"kernel {path} has neither a PVH entry (CONFIG_PVH) nor a multiboot header")
    if not any(segment.physical <= start < segment.end for segment in executable.segments):
        raise LoaderError(f"kernel {path} is damaged: its PVH entry {start:#x} lies in none of its segments")
    encoded_cmdline = files.encode_cmdline(cmdline, LINUX_CMDLINE_MAX)
    if len(memory_map) > _MEMORY_MAP_MAX:
        raise LoaderError(f"the memory map has {len(memory_map)} entries; there is room for {_MEMORY_MAP_MAX}")
    kernel_end = load_segments(memory, path, executable)
    if memory.low_size < HIGH_MEMORY:
        raise files.not_enough_memory(path, HIGH_MEMORY, memory)
    modules = 0
    if initrd is not None:
        modules = 1
        size = files.initrd_size(initrd)
        address = (memory.low_size - size) & -PAGE
        if address < max(kernel_end, HIGH_MEMORY):
            raise files.initrd_too_large(initrd, size, memory.low_size - kernel_end)
        files.read_initrd(initrd, memory, address, size)
        memory.write(MODULE_LIST, struct.pack("<QQQQ", address, size, 0, 0))
    memory.write(CMDLINE, encoded_cmdline)
    ranges = (struct.pack("<QQII", item.start, item.size, item.type, 0) for item in memory_map)
    memory.write(MEMORY_MAP, b"".join(ranges))
    start_info = struct.pack(
        "<IIIIQQQQII",
        _START_INFO_MAGIC,
        _START_INFO_VERSION,
        0,
        modules,
        MODULE_LIST if modules else 0,
        CMDLINE,
        acpi_rsdp,
        MEMORY_MAP,
        len(memory_map),
        0,
    )
    memory.write(START_INFO, start_info)
    return replace(entry.protected_mode(memory, start, {Reg.RBX: START_INFO}), rsdp_pointer=START_INFO + _RSDP_FIELD)
