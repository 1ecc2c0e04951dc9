"""What puts a guest into memory and says in which state its boot CPU starts.

``load`` looks at the kernel file and picks the way: a Linux bzImage (``linux``), an ELF ``vmlinux`` with a PVH entry
(``elf``) or a multiboot kernel (``multiboot``). The machine then applies the returned state to vCPU 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyhyve.errors import LoaderError
from pyhyve.firmware import e820
from pyhyve.loader import elf, files, linux, multiboot
from pyhyve.loader.entry import EntryState
from pyhyve.memory import GuestMemory

__all__ = ["EntryState", "LoadedGuest", "load"]


@dataclass(frozen=True, slots=True)
class LoadedGuest:
    """A guest that lies in memory before its machine is built, as ``bhyveload`` leaves it."""

    memory: GuestMemory
    entry: EntryState


def load(
    memory: GuestMemory,
    kernel: str | os.PathLike[str],
    initrd: str | os.PathLike[str] | None,
    cmdline: str,
    *,
    acpi_rsdp: int = 0,
    reserved: Iterable[tuple[int, int]] = e820.PLATFORM_RESERVED,
) -> EntryState:
    """Load ``kernel`` with its ``initrd`` and command line.

    ``acpi_rsdp`` is the address of the ACPI root pointer, 0 without ACPI. ``reserved`` are (start, size) pairs in bytes
    that the guest's memory map shows as reserved, besides the firmware's area below 1 MiB.
    Raises ``LoaderError`` with one line that names the file.
    """
    kernel_path = Path(kernel)
    initrd_path = Path(initrd) if initrd is not None else None
    data = files.read_kernel(kernel_path, memory)
    memory_map = e820.build(memory, reserved)
    if linux.is_bzimage(data):
        return linux.load(memory, kernel_path, data, initrd_path, cmdline, memory_map, acpi_rsdp=acpi_rsdp)
    multiboot_header = multiboot.find_header(data)
    if data[:4] == elf.MAGIC:
        executable = elf.parse(data, str(kernel_path))
        if multiboot_header is None or elf.pvh_entry(executable) is not None:
            return elf.load(memory, kernel_path, executable, initrd_path, cmdline, memory_map, acpi_rsdp=acpi_rsdp)
    if multiboot_header is not None:
        return multiboot.load(memory, kernel_path, data, multiboot_header, initrd_path, cmdline, memory_map)
    raise LoaderError(f"kernel {kernel_path} {_what_it_is(data)}")


def _what_it_is(data: bytes) -> str:
    """Why a file that is nothing we load is not one, as helpfully as its content allows."""
    if data[0x38:0x3C] == b"ARM\x64":
        return "is an arm64 kernel; one for x86-64 is needed"
    if data[0x38:0x3C] == b"RSC\x05":
        return "is a RISC-V kernel; one for x86-64 is needed"
    if data[:2] == b"MZ":
        return "is an EFI program, not a Linux bzImage, an ELF vmlinux or a multiboot kernel"
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ", "xz"), (b"(\xb5/\xfd", "zstd"), (b"BZh", "bzip2")):
        if data.startswith(magic):
            return f"is compressed with {name}; unpack it first, or use the bzImage"
    return "is not a kernel: neither a Linux bzImage nor an ELF vmlinux nor a multiboot kernel"
