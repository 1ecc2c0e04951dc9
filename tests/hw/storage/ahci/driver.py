"""A small AHCI driver, for tests that use the controller through its registers and structures in memory."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pyhyve.backends.block import open_block
from pyhyve.hw.storage.ahci.ata import AtaDisk
from pyhyve.hw.storage.ahci.atapi import AtapiDrive
from pyhyve.hw.storage.ahci.hba import AhciController
from pyhyve.hw.storage.ahci.identify import Identity
from pyhyve.hw.storage.ahci.registers import Cmd, Ghc, Hba, Px
from pyhyve.memory import GuestMemory

MEMORY = 4 << 20
LIST, FIS, TABLES, DATA = 0x10000, 0x11000, 0x20000, 0x100000
D2H, PIO, SDB = 0x40, 0x20, 0x58


def h2d(
    command: int,
    lba: int = 0,
    count: int = 0,
    features: int = 0,
    device: int = 0x40,
    *,
    flags: int = 0x80,
    control: int = 0,
) -> bytes:
    """A register FIS of the host."""
    where = lba.to_bytes(6, "little")
    return (
        bytes((0x27, flags, command, features & 0xFF)) + where[:3] + bytes((device,)) + where[3:]
        + bytes((features >> 8, count & 0xFF, count >> 8, 0, control)) + bytes(4)
    )  # fmt: skip


class Driver:
    """A controller with drives, and the first of its ports started."""

    def __init__(self, *drives: object, memory: GuestMemory | None = None) -> None:
        self.memory = memory or GuestMemory(MEMORY)
        self.lock = threading.RLock()
        self.deferred: list[Callable[[], None]] = []
        self.level = False
        self.messages = 0
        self.master = True
        self.hba = AhciController(
            self.memory,
            drives,
            self.lock,
            defer=self.deferred.append,
            set_level=self._set_level,
            send_message=self._message,
            bus_master=lambda: self.master,
        )

    def _set_level(self, level: bool) -> None:
        self.level = level

    def _message(self) -> None:
        self.messages += 1

    def read(self, register: int) -> int:
        with self.lock:
            return self.hba.read(register, 4)

    def write(self, register: int, value: int) -> None:
        with self.lock:
            self.hba.write(register, 4, value)

    def get(self, register: int, port: int = 0) -> int:
        return self.read(0x100 + 0x80 * port + register)

    def put(self, register: int, value: int, port: int = 0) -> None:
        self.write(0x100 + 0x80 * port + register, value)

    def start(self) -> None:
        """As a driver begins: addresses, interrupts, FIS receive, command list."""
        self.write(Hba.GHC, Ghc.AHCI_ENABLE | Ghc.INTERRUPTS)
        self.put(Px.CLB, LIST)
        self.put(Px.FB, FIS)
        self.put(Px.SERR, 0xFFFFFFFF)
        self.put(Px.IS, 0xFFFFFFFF)
        self.put(Px.IE, 0x7DC000FF)
        self.put(Px.CMD, Cmd.FIS_ENABLE)
        self.put(Px.CMD, Cmd.FIS_ENABLE | Cmd.START)

    def recover(self) -> None:
        """Stop and start the list, as error handling does."""
        self.put(Px.CMD, Cmd.FIS_ENABLE)
        self.settle()
        self.put(Px.SERR, 0xFFFFFFFF)
        self.put(Px.IS, 0xFFFFFFFF)
        self.put(Px.CMD, Cmd.FIS_ENABLE | Cmd.START)

    def prepare(
        self,
        slot: int,
        fis: bytes,
        regions: Sequence[tuple[int, int]] = (),
        *,
        write: bool = False,
        packet: bytes = b"",
        interrupt: bool = False,
    ) -> None:
        """Fill a command header and table; regions are ``(gpa, bytes)``."""
        table = TABLES + 0x1000 * slot
        flags = 5 | (0x40 if write else 0) | (0x20 if packet else 0)
        self.memory.write(LIST + 32 * slot, struct.pack("<IIQ16x", flags | len(regions) << 16, 0, table))
        self.memory.write(table, fis.ljust(64, b"\0") + packet.ljust(16, b"\0"))
        last = 1 << 31 if interrupt else 0
        for index, (gpa, length) in enumerate(regions):
            self.memory.write(table + 0x80 + 16 * index, struct.pack("<QII", gpa, 0, length - 1 | last))

    def issue(self, slots: int, *, queued: bool = False) -> None:
        """Set PxSACT and PxCI, and wait until everything has ended."""
        if queued:
            self.put(Px.SACT, slots)
        self.put(Px.CI, slots)
        self.settle()

    def turn(self) -> None:
        """Run what was deferred."""
        while self.deferred:
            self.deferred.pop(0)()

    def settle(self) -> None:
        """Run what was deferred, and wait for the backends, until nothing is left."""
        while True:
            self.turn()
            self.hba.drain()
            if not self.deferred:
                return

    def command(self, fis: bytes, regions: Sequence[tuple[int, int]] = ((DATA, 512),), **options: object) -> int:
        """One command in slot 0; the status it ends with."""
        self.prepare(0, fis, regions, **options)
        self.issue(1)
        return self.get(Px.TFD) & 0xFF

    def packet(self, packet: bytes, length: int = 4096, *, dma: bool = True) -> tuple[int, bytes]:
        """One packet command; status and the bytes transferred."""
        status = self.command(h2d(0xA0, features=int(dma)), [(DATA, length)], packet=packet)
        return status, self.memory.read(DATA, self.memory.read_uint(LIST + 4, 4))

    def data(self, length: int = 512) -> bytes:
        return self.memory.read(DATA, length)

    def frame(self, kind: int, length: int = 20) -> bytes:
        return self.memory.read(FIS + kind, length)

    def close(self) -> None:
        self.hba.close()


def disk(path: Path, **options: str) -> AtaDisk:
    return AtaDisk(open_block(str(path), options), Identity.of(options, str(path), "BHYVE SATA DISK"))


def cd(path: Path) -> AtapiDrive:
    return AtapiDrive(open_block(str(path), {"ro": "true"}), Identity.of({}, str(path), "BHYVE SATA DVD ROM"))
