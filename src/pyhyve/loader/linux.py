"""Loads a Linux bzImage by the 64-bit boot protocol, or by the 32-bit one if the kernel has no other entry.

Document: Linux, Documentation/arch/x86/boot.rst (protocol 2.12 and later) and Documentation/arch/x86/zero-page.rst.

The file is a real-mode part of ``setup_sects + 1`` sectors, which is not run here, and the protected-mode part, which
goes to its preferred address. The setup header of the former is checked (the file is untrusted), copied into
``boot_params`` and filled in: command line, RAM disk at the top of low memory, memory map, ACPI root pointer, a random
seed. The CPU starts 0x200 bytes into the protected-mode part, in 64-bit mode, with RSI at ``boot_params``; a 32-bit
kernel at its begin, in flat protected mode, with ESI there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from pathlib import Path

from pyhyve.errors import LoaderError
from pyhyve.firmware.e820 import HIGH_MEMORY, E820Entry
from pyhyve.loader import entry, files
from pyhyve.loader.entry import EntryState
from pyhyve.memory import PAGE, GuestMemory
from pyhyve.vmm.registers import Reg

# Where things go in low memory; entry.py has the GDT and the page tables.
BOOT_PARAMS = 0x7000
SETUP_DATA = 0x10000
CMDLINE = 0x20000
STACK_TOP = BOOT_PARAMS

CMDLINE_ROOM = 0x10000
ENTRY_64 = 0x200

# The setup header (boot.rst, "The Real-Mode Kernel Header")
_HEADER_START = 0x1F1
_HEADER_LIMIT = 0x290  # what follows it in boot_params
_HEADER_NEEDED = 0x268  # the end of handover_offset, the last field of protocol 2.12
_SECTOR = 512
_BOOT_FLAG = 0xAA55
_MAGIC = b"HdrS"
_OLDEST_PROTOCOL = 0x020C
_TYPE_OF_LOADER_UNDEFINED = 0xFF
_VID_MODE_NORMAL = 0xFFFF

# boot_params outside the header (zero-page.rst)
_ACPI_RSDP_ADDR = 0x70
_E820_ENTRIES = 0x1E8
_E820_TABLE = 0x2D0
_E820_MAX = 128

_SETUP_RNG_SEED = 9  # include/uapi/asm/bootparam.h, since Linux 6.0; older kernels pass over it
RNG_SEED_SIZE = 32


class LoadFlags(IntFlag):
    LOADED_HIGH = 1 << 0


class XLoadFlags(IntFlag):
    KERNEL_64 = 1 << 0


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The fields of the setup header that decide where things go. Sizes and addresses are in bytes."""

    setup_size: int
    header_end: int
    version: int
    long_mode: bool
    relocatable: bool
    alignment: int
    pref_address: int
    init_size: int
    initrd_addr_max: int
    cmdline_size: int


def is_bzimage(data: bytes) -> bool:
    """Whether ``data`` starts like a Linux kernel image for x86."""
    return data[0x202:0x206] == _MAGIC and data[0x1FE:0x200] == _BOOT_FLAG.to_bytes(2, "little")


def parse_header(data: bytes, name: str) -> SetupHeader:
    """Check the setup header. ``name`` is the file's, for messages. Raises ``LoaderError``."""
    if not is_bzimage(data):
        raise LoaderError(f"kernel {name} is not a Linux bzImage")
    if len(data) < _HEADER_NEEDED:
        raise LoaderError(f"kernel {name} is truncated: its setup header is incomplete")
    version = _u16(data, 0x206)
    if version < _OLDEST_PROTOCOL:
        protocol = f"{version >> 8}.{version & 0xFF:02}"
        raise LoaderError(f"kernel {name} is too old: its boot protocol is {protocol}, at least 2.12 is needed")
    if not data[0x211] & LoadFlags.LOADED_HIGH:
        raise LoaderError(f"kernel {name} is a zImage; a bzImage is needed")
    # the header ends where the jump at 0x200 goes to
    header_end = 0x202 + data[0x201]
    setup_size = ((data[_HEADER_START] or 4) + 1) * _SECTOR
    if not _HEADER_NEEDED <= header_end <= min(_HEADER_LIMIT, setup_size):
        raise LoaderError(f"kernel {name} is damaged: its setup header ends at {header_end:#x}")
    header = SetupHeader(
        setup_size=setup_size,
        header_end=header_end,
        version=version,
        long_mode=bool(_u16(data, 0x236) & XLoadFlags.KERNEL_64),
        relocatable=bool(data[0x234]),
        alignment=_u32(data, 0x230),
        pref_address=_u64(data, 0x258),
        init_size=_u32(data, 0x260),
        initrd_addr_max=_u32(data, 0x22C),
        cmdline_size=_u32(data, 0x238),
    )
    _check_size(data, header, name)
    if header.alignment & (header.alignment - 1) or header.pref_address % max(header.alignment, 1):
        raise LoaderError(
            f"kernel {name} is damaged: load address {header.pref_address:#x}, alignment {header.alignment:#x}"
        )
    return header


def _check_size(data: bytes, header: SetupHeader, name: str) -> None:
    body = len(data) - header.setup_size
    # syssize counts 16-byte paragraphs
    paragraphs = _u32(data, 0x1F4)
    payload_end = _u32(data, 0x248) + _u32(data, 0x24C)
    if body <= ENTRY_64 or payload_end > body or -(-body // 16) < paragraphs:
        wanted = header.setup_size + max(paragraphs * 16, payload_end, ENTRY_64 + 1)
        raise LoaderError(f"kernel {name} is truncated: it has {len(data)} bytes of at least {wanted}")


def load(
    memory: GuestMemory,
    path: Path,
    data: bytes,
    initrd: Path | None,
    cmdline: str,
    memory_map: Sequence[E820Entry],
    *,
    acpi_rsdp: int = 0,
    seed: bytes | None = None,
) -> EntryState:
    """Put the kernel ``data`` (read from ``path``) and what belongs to it into guest memory.

    ``acpi_rsdp`` is where the ACPI root pointer lies, or 0. ``seed`` is for the kernel's random numbers; by default it
    comes from the host. Raises ``LoaderError``.
    """
    header = parse_header(data, str(path))
    encoded_cmdline = files.encode_cmdline(cmdline, min(header.cmdline_size or 255, CMDLINE_ROOM - 1))
    body = memoryview(data)[header.setup_size :]
    address = header.pref_address if header.relocatable else HIGH_MEMORY
    if address < HIGH_MEMORY:
        raise LoaderError(f"kernel {path} is damaged: it wants to be loaded at {address:#x}, below 1 MB")
    # the kernel unpacks itself to its preferred address and needs init_size bytes from there
    kernel_end = max(address + len(body), max(address, header.pref_address) + header.init_size)
    if kernel_end > memory.low_size:
        raise files.not_enough_memory(path, kernel_end, memory)
    memory.write(address, body)

    params = bytearray(PAGE)
    params[_HEADER_START : header.header_end] = data[_HEADER_START : header.header_end]
    _fill_initrd(params, memory, initrd, kernel_end, header.initrd_addr_max)
    _fill_memory_map(params, memory_map)
    memory.write(CMDLINE, encoded_cmdline)
    _put(params, 0x1FA, "<H", _VID_MODE_NORMAL)
    _put(params, 0x210, "<B", _TYPE_OF_LOADER_UNDEFINED)
    _put(params, 0x214, "<I", address)
    _put(params, 0x228, "<I", CMDLINE)
    _put(params, 0x250, "<Q", _write_setup_data(memory, os.urandom(RNG_SEED_SIZE) if seed is None else seed))
    _put(params, _ACPI_RSDP_ADDR, "<Q", acpi_rsdp)
    memory.write(BOOT_PARAMS, params)
    registers = {Reg.RSI: BOOT_PARAMS, Reg.RSP: STACK_TOP}
    if header.long_mode:
        state = entry.long_mode(memory, address + ENTRY_64, registers)
    else:
        state = entry.protected_mode(memory, address, registers)
    return replace(state, rsdp_pointer=BOOT_PARAMS + _ACPI_RSDP_ADDR)


def _fill_initrd(params: bytearray, memory: GuestMemory, initrd: Path | None, kernel_end: int, highest: int) -> None:
    """Place the RAM disk as high as the kernel allows, so that it does not lie where the kernel unpacks itself."""
    address = size = 0
    if initrd is not None:
        size = files.initrd_size(initrd)
        top = min(memory.low_size, highest + 1)
        address = (top - size) & -PAGE
        if address < kernel_end:
            raise files.initrd_too_large(initrd, size, top - kernel_end)
        files.read_initrd(initrd, memory, address, size)
    _put(params, 0x218, "<II", address, size)


def _fill_memory_map(params: bytearray, memory_map: Sequence[E820Entry]) -> None:
    if len(memory_map) > _E820_MAX:
        raise LoaderError(f"the memory map has {len(memory_map)} entries; Linux takes at most {_E820_MAX}")
    _put(params, _E820_ENTRIES, "<B", len(memory_map))
    for index, item in enumerate(memory_map):
        _put(params, _E820_TABLE + 20 * index, "<QQI", item.start, item.size, item.type)


def _write_setup_data(memory: GuestMemory, seed: bytes) -> int:
    """Leave the random seed where the kernel looks for it; returns the address of the list, 0 if it is empty."""
    if not seed:
        return 0
    memory.write(SETUP_DATA, struct.pack("<QII", 0, _SETUP_RNG_SEED, len(seed)) + seed)
    return SETUP_DATA


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def _put(params: bytearray, offset: int, layout: str, *values: int) -> None:
    struct.pack_into(layout, params, offset, *values)
