"""Guest memory between canaries, and the map of what lies where in a case.

0x00000  real-mode vectors                      0x10000  stacks
0x01000  PML4, PDPT, PD, PT                     0x20000  code, four pages
0x05000  PAE PDPT, then 32-bit PD and PT        0x30000  handlers, 16 bytes a vector
0x08000  GDT, LDT, IDT, TSS, another TSS        0x40000  data
0xC0000  the end of RAM; from here on a ROM     4 GiB    RAM again
0xD0000  nobody: devices
"""

from __future__ import annotations

import ctypes
import random

from pyhyve.memory import HIGH_BASE, PAGE, GuestMemory, Region

PML4, PDPT, PD, PT, PAE_PDPT, PD32, PT32 = range(0x1000, 0x8000, 0x1000)
GDT, LDT, IDT, TSS, TSS2 = range(0x8000, 0xD000, 0x1000)
STACKS, STACKS_END = 0x10000, 0x18000
CODE, CODE_SIZE = 0x20000, 0x4000
HANDLERS = 0x30000
DATA = 0x40000
LOW_SIZE, ROM_SIZE, HIGH_SIZE = 0xC0000, 0x10000, 0x10000
FENCE = 16 * PAGE
HIGH_HALF = 0xFFFF800000000000
KERNEL_HALF = 0xFFFFFFFF80000000

_LOW_OFFSET = FENCE
_ROM_OFFSET = _LOW_OFFSET + LOW_SIZE + FENCE
_HIGH_OFFSET = _ROM_OFFSET + ROM_SIZE + FENCE
_TOTAL = _HIGH_OFFSET + HIGH_SIZE + FENCE


class FencedMemory(GuestMemory):
    """Low RAM, a ROM and high RAM in one mapping, with canaries before, between and behind them.

    The outermost canary pages cannot be touched at all: an access to them is a host fault.
    """

    def __init__(self, secret: bytes) -> None:
        super().__init__(_TOTAL)
        self.rom_offset = _ROM_OFFSET
        self.regions = (Region(0, LOW_SIZE, _LOW_OFFSET), Region(HIGH_BASE, HIGH_SIZE, _HIGH_OFFSET))
        self.secret = secret
        self.rom = random.Random(secret).randbytes(ROM_SIZE)
        self._fence = secret * (FENCE // len(secret))
        self._fences = (0, _LOW_OFFSET + LOW_SIZE, _ROM_OFFSET + ROM_SIZE, _HIGH_OFFSET + HIGH_SIZE)
        for start in self._fences:
            self._map[start : start + FENCE] = self._fence
        self._map[_ROM_OFFSET : _ROM_OFFSET + ROM_SIZE] = self.rom
        libc = ctypes.CDLL(None, use_errno=True)
        for start in (0, _TOTAL - PAGE):
            if libc.mprotect(ctypes.c_void_p(self.host_base + start), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def damage(self) -> str:
        """What is wrong outside guest memory; empty if nothing is."""
        for start in self._fences:
            inner = start + (PAGE if start == 0 else 0)
            stop = start + FENCE - (PAGE if start + FENCE == _TOTAL else 0)
            if self._map[inner:stop] != self._fence[inner - start : stop - start]:
                return f"the canary at offset {start:#x} of guest memory was written"
        if self._map[_ROM_OFFSET : _ROM_OFFSET + ROM_SIZE] != self.rom:
            return "the ROM was written"
        for region in self.regions:
            if self._map.find(self.secret, region.offset, region.offset + region.size) >= 0:
                return "bytes from outside guest memory were copied into it"
        return ""
