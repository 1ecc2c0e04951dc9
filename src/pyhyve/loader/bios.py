"""A boot ROM that is a PC BIOS: where its code is copied to.

A processor starts 16 bytes below 4 GiB, at the end of the ROM. A BIOS jumps from there to segment 0xF000 at once, for a
PC shows the last 128 KiB of the ROM below 1 MiB too. Here that is RAM which holds a copy, as behind a chipset whose
shadow RAM is open for reading and writing. Other firmware stays where it is, and finds bhyve's tables in that place.
"""

from __future__ import annotations

from pyhyve.memory import GuestMemory

RESET_VECTOR = 16
"""Bytes of the ROM from the first instruction on."""
SHADOW_SIZE = 0x20000
SHADOW_END = 0x100000

_JUMP_FAR = 0xEA
_BIOS_SEGMENT = 0xF000


def is_bios(rom: bytes) -> bool:
    """Whether the ROM's first instruction is a jump to a PC BIOS's segment."""
    start = rom[-RESET_VECTOR:]
    return len(start) == RESET_VECTOR and start[0] == _JUMP_FAR and start[3:5] == _BIOS_SEGMENT.to_bytes(2, "little")


def shadow(memory: GuestMemory, rom: bytes) -> None:
    """Copy the end of the ROM below 1 MiB."""
    part = rom[-SHADOW_SIZE:]
    memory.write(SHADOW_END - len(part), part)
