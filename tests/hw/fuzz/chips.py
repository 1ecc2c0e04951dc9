"""Hostile accesses to what is no virtio device: a serial card, the AHCI controller, and the PCI bus itself with several
functions on it, whose BARs are moved over each other."""

from __future__ import annotations

import random
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.hw import registry
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci import uart as uart_module
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.memory import GuestMemory
from tests.hw.fakes import FakeChar, Lines
from tests.hw.fuzz.guard import Guard, guarded_memory
from tests.hw.storage.ahci import test_fuzz as ahci
from tests.hw.virtio.driver import MEMORY, FakeDoorbells, FakeLoop

COMMAND, STATUS, BAR0, CAPABILITIES = 0x04, 0x06, 0x10, 0x34
FIXED = {0x00: 4, 0x08: 4, 0x0E: 1, 0x2C: 4, 0x34: 1, 0x3D: 1}
"""Registers of a type-0 header that no guest can change, with their sizes."""


class Bus:
    """PCI functions without a machine."""

    def __init__(self, memory: GuestMemory, devices: dict[PciAddress, tuple[str, dict[str, str]]]) -> None:
        self.memory = memory
        self.loop = FakeLoop()
        self.lines = Lines()
        self.pio, self.mmio = PioBus(), MmioBus()
        self.messages: list[tuple[int, int]] = []
        environment = Environment(
            loop=self.loop, memory=memory, pio=self.pio, mmio=self.mmio, router=self.lines.router,
            send_msi=lambda address, data: self.messages.append((address, data)), doorbells=FakeDoorbells(),
            power=lambda reason: None,
        )  # fmt: skip
        self.bus = PciBus(environment, IntxRouting(self.lines.router))
        self.bus.attach()
        self.functions: dict[PciAddress, PciFunction] = {}
        for address, (name, options) in devices.items():
            self.functions[address] = registry.find(name)(environment, options)
            self.bus.add(address, self.functions[address])


def number(pick: random.Random, bits: int) -> int:
    """Edges, single bits, plausible addresses, anything."""
    edges = (0, 1, 0xFF, 0xFFFFFFFF, 0x80000000, 0xC0000000, 0xC0004000, 0xE0000000, 0xFEE00000, 0x2000, 0xCF8, 0xFFF0)
    return pick.choice((pick.choice(edges), 1 << pick.randrange(bits), pick.getrandbits(bits))) & (1 << bits) - 1


class PciFuzzer:
    """Configuration space by both ways, BARs on the move, MSI and MSI-X tables, interrupts raised meanwhile."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        disk = folder / "disk.img"
        disk.write_bytes(bytes(1 << 20))
        self.stack = ExitStack()
        memory = guarded_memory(MEMORY)
        self.guard = self.stack.enter_context(Guard(memory))
        self.stack.enter_context(patch.object(uart_module, "open_char", lambda spec, loop, on_quit: _char()))
        self.rig = Bus(
            memory,
            {
                PciAddress(0, 0, 0): ("hostbridge", {}),
                PciAddress(0, 3, 0): ("uart", {"path": "stdio"}),
                PciAddress(0, 3, 1): ("virtio-rnd", {}),
                PciAddress(0, 4, 0): ("virtio-blk", {"path": str(disk)}),
                PciAddress(0, 5, 0): ("ahci", {}),
                PciAddress(2, 5, 7): ("virtio-net", {}),
            },
        )
        rig = self.rig
        self.fixed = {(a, at): f.config.get(at, n) for a, f in rig.functions.items() for at, n in FIXED.items()}
        self.initial = {a: f.config.save() for a, f in rig.functions.items()}

    def run(self, accesses: int) -> float:
        """Attack; the longest that an access took."""
        with self.stack:
            for done in range(accesses):
                with self.guard.access():
                    self._access()
                if done % 64 == 0:
                    self._check()
                    self.rig.messages.clear()
                    self.rig.lines.events.clear()
            self.rig.bus.reset()
            assert {a: f.config.save() for a, f in self.rig.functions.items()} == self.initial
            self.guard.check()
            self.rig.bus.close()
        return self.guard.longest

    def _access(self) -> None:
        pick, rig = self.random, self.rig
        address = pick.choice((*rig.functions, PciAddress(pick.randrange(3), pick.randrange(32), pick.randrange(8))))
        function = rig.functions.get(address)
        kind = pick.random()
        if kind < 0.5:
            self._config(address, self._offset(function))
        elif kind < 0.6:
            self._config(address, COMMAND, pick.choice((0, 1, 2, 3, 4, 7, 0x407, pick.getrandbits(16))), 2)
        elif kind < 0.65 and function is not None:
            with function.lock:
                function.set_intx(pick.random() < 0.5)
                if function.msix is not None:
                    function.msix.notify(pick.choice((0, 1, 2, pick.getrandbits(16))))
                if function.msi is not None:
                    function.msi.notify()
        elif kind < 0.66:
            rig.bus.reset()
        elif function is not None and function.bars:
            bar = pick.choice(function.bars)
            size = pick.choice((1, 2, 4, 8))
            if bar.mapped is not None:
                bus = rig.pio if bar.kind is BarKind.IO else rig.mmio
                if bar.kind is BarKind.IO:
                    size = min(size, 4)
                self._bus(bus, bar.mapped + pick.randrange(-8, bar.size) % bar.size, size)
        rig.loop.serve()

    def _offset(self, function: PciFunction | None) -> int:
        """Where in configuration space: BARs and capabilities more often than the rest."""
        pick = self.random
        if function is not None and pick.random() < 0.6:
            if function.capabilities and pick.random() < 0.5:
                capability = pick.choice(function.capabilities)
                return capability.offset + pick.randrange(capability.size)
            return BAR0 + 4 * pick.randrange(6)
        return pick.randrange(256 if pick.random() < 0.9 else 4096)

    def _config(self, address: PciAddress, offset: int, value: int | None = None, size: int | None = None) -> None:
        pick, rig = self.random, self.rig
        size = size or pick.choice((1, 2, 4, 4, 4))
        value = number(pick, 8 * size) if value is None else value
        place = address.bus << 16 | address.device << 11 | address.function << 8
        write = pick.random() < 0.7
        if pick.random() < 0.5 and offset < 256:
            rig.pio.write(0xCF8, 4, 0x80000000 | place | offset & 0xFC)
            self._bus(rig.pio, 0xCFC + (offset & 3), size, value if write else None)
        else:
            self._bus(rig.mmio, ECAM_BASE + (place << 4) + offset, size, value if write else None)

    def _bus(self, bus: PioBus | MmioBus, address: int, size: int, value: int | None = -1) -> None:
        if value == -1:
            value = number(self.random, 8 * size) if self.random.random() < 0.6 else None
        if value is not None:
            bus.write(address, size, value)
            return
        answer = bus.read(address, size)
        assert answer is None or 0 <= answer < 1 << 8 * size

    def _check(self) -> None:
        """What cannot be changed has not been; nobody answers at somebody else's place, or where he is switched off."""
        rig = self.rig
        self.guard.check()
        for address, function in rig.functions.items():
            for at, size in FIXED.items():
                assert function.config.get(at, size) == self.fixed[address, at]
            command = function.config.get(COMMAND, 2)
            for bar in function.bars:
                if bar.mapped is None:
                    continue
                assert command & (1 if bar.kind is BarKind.IO else 2)
                assert bar.mapped == bar.address(function.config)
        for kinds in ((BarKind.IO,), (BarKind.MEMORY_32, BarKind.MEMORY_64)):
            bars = [bar for f in rig.functions.values() for bar in f.bars if bar.kind in kinds]
            taken = sorted((bar.mapped, bar.mapped + bar.size) for bar in bars if bar.mapped is not None)
            assert all(end <= start for (_, end), (start, _) in pairwise(taken))


def _char() -> FakeChar:
    made = FakeChar()
    made.close = lambda: None  # type: ignore[attr-defined]
    made.pause = made.resume = lambda: None  # type: ignore[attr-defined]
    return made


class UartFuzzer:
    """The serial card: registers in any width, input and timers meanwhile."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.char = _char()
        self.stack = ExitStack()
        self.stack.enter_context(patch.object(uart_module, "open_char", lambda spec, loop, on_quit: self.char))
        self.address = PciAddress(0, 5, 0)
        self.rig = Bus(guarded_memory(MEMORY), {self.address: ("uart", {"path": "stdio"})})
        self.guard = self.stack.enter_context(Guard(self.rig.memory))

    def run(self, accesses: int) -> float:
        """Attack; the longest that an access took."""
        rig, pick = self.rig, self.random
        function = rig.functions[self.address]
        with self.stack:
            for done in range(accesses):
                with self.guard.access():
                    port = function.bars[0].mapped
                    assert port is not None
                    size = pick.choice((1, 1, 1, 2, 4))
                    if pick.random() < 0.5:
                        rig.pio.write(port + pick.randrange(8), size, pick.getrandbits(8 * size))
                    else:
                        answer = rig.pio.read(port + pick.randrange(8), size)
                        assert answer is None or 0 <= answer < 1 << 8 * size
                    if pick.random() < 0.05 and self.char.on_input is not None:
                        self.char.on_input(pick.randbytes(pick.choice((1, 16, 100))))
                    if pick.random() < 0.05:
                        rig.loop.advance(pick.choice((1, 1000, 10**9)))
                if done % 64 == 0:
                    self.guard.check()
                    self.char.sent.clear()
                    rig.messages.clear()
                    rig.lines.events.clear()
            state = function.save()
            function.restore(state)
            assert function.save() == state
            rig.bus.reset()
            rig.bus.close()
        return self.guard.longest


class AhciFuzzer:
    """The AHCI controller with a disk and a CD drive, through the fuzzer of its own tests."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.memory = guarded_memory(ahci.MEMORY)
        self.driver = ahci.make(folder, self.memory)
        self.fuzzer = ahci.Fuzzer(self.driver, seed)
        self.folder = folder

    def run(self, accesses: int) -> float:
        """Attack; the longest that an access took."""
        sizes = [(self.folder / name).stat().st_size for name in ("hd", "cd")]
        with Guard(self.memory) as guard:
            for done in range(1, accesses + 1):
                with guard.access():
                    self.fuzzer.access()
                if done % 64 == 0:
                    guard.check()
                if done % 10_000 == 0:
                    self.driver.settle()
                    self.fuzzer.works()
            self.driver.settle()
            self.fuzzer.works()
            self.driver.close()
            guard.check()
        assert [(self.folder / name).stat().st_size for name in ("hd", "cd")] == sizes
        return guard.longest
