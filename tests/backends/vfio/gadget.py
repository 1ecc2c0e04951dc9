"""A device made for tests of passthru: memory that can be mapped, registers beside an MSI-X table, ports, DMA, a pin.

BAR 0 is 64 KiB of memory. BAR 2 (16 KiB) has registers on its first and last page, the MSI-X table on the second and
the pending bits on the third. BAR 4 is 32 ports that remember what was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.capabilities import PortType, add_express, add_vendor
from pyhyve.hw.pci.config_space import Identity
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.msi import Msi
from pyhyve.hw.pci.msix import Msix, Place
from pyhyve.memory import OutsideMemory

MEMORY, REGISTERS = 64 << 10, 16 << 10
TABLE, PENDING, MORE = 0x1000, 0x2000, 0x3000
SOURCE, TARGET, LENGTH, GO, RAISE, ACK, SCRATCH = 0x00, 0x08, 0x10, 0x14, 0x18, 0x1C, 0x20
VECTORS = 5

POWER, SATA = 0x01, 0x12


class Memory:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(os.pread(self._fd, size, offset), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        os.pwrite(self._fd, value.to_bytes(size, "little"), offset)


class Ports:
    def __init__(self) -> None:
        self.data = bytearray(32)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.data[offset : offset + size] = value.to_bytes(size, "little")


class Gadget(PciFunction):
    """``RAISE`` signals a vector, or the pin until ``ACK``; ``GO`` copies by DMA and then signals vector 0."""

    identity = Identity(0x1234, 0x11E8, 0xFF, 0x00, revision=3, subsystem_vendor=0x1AF4, subsystem=0x1100)

    def __init__(self, environment: Environment, options: Mapping[str, str] = {}) -> None:
        super().__init__(environment, options)
        self.memory_fd = os.memfd_create("gadget", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, MEMORY)
        self.mappable = {0: [(0, MEMORY)], 2: [(0, TABLE), (MORE, 0x1000)]}
        self.registers = bytearray(REGISTERS)
        self.ports = Ports()
        config = self.config
        config.add_capability(POWER, bytes((3, 0, 8, 0, 0, 0)), bytes((0, 0, 3)))
        self.vendor = add_vendor(config, b"gadget", b"\0\xff\xff")
        self.hidden = config.add_capability(SATA, b"secret", b"\xff" * 6)
        self.msi = Msi(config, environment.send_msi, 4, wide=False, maskable=True)
        place = Place(self.msi.offset + 24, 2 | TABLE, 2 | PENDING)
        self.msix = Msix(config, environment.send_msi, VECTORS, 2, place=place)
        self.capabilities += [self.msi, self.msix]
        config._next_capability = place.capability + 12
        self.express = add_express(config, PortType.ENDPOINT)
        self.free = 0xF8
        config.allow(self.free, 4, 0xFFFFFFFF)
        self.add_bar(0, BarKind.MEMORY_64, MEMORY, Memory(self.memory_fd), "gadget memory", prefetchable=True)
        self.add_bar(2, BarKind.MEMORY_32, REGISTERS, self, "gadget registers")
        self.add_bar(4, BarKind.IO, 32, self.ports, "gadget ports")
        self.use_intx()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.registers[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.registers[offset : offset + size] = value.to_bytes(size, "little")
        if offset == RAISE:
            self.signal(value & 0xFF)
        elif offset == ACK:
            self.set_intx(False)
        elif offset == GO:
            self.copy()

    def signal(self, vector: int) -> None:
        """Interrupt by what is enabled."""
        if self.msix is not None and self.msix.enabled:
            self.msix.notify(vector)
        elif self.msi is not None and self.msi.enabled:
            self.msi.notify(vector)
        else:
            self.set_intx(True)

    def copy(self) -> None:
        """From SOURCE to TARGET, by DMA, if bus mastering is on."""
        source, target, length = self.read(SOURCE, 8), self.read(TARGET, 8), self.read(LENGTH, 4)
        memory = self.environment.memory
        if self.bus_master:
            try:
                memory.write(target, memory.read(source, min(length, 1 << 16)))
            except OutsideMemory:
                self.registers[SCRATCH] = 0xEE
        self.signal(0)

    def close(self) -> None:
        if self.memory_fd >= 0:
            os.close(self.memory_fd)
            self.memory_fd = -1
