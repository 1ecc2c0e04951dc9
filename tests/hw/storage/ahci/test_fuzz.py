"""Random registers, headers, frames and regions: nothing raises, nothing hangs, and a reset makes it work again.

``python -m tests.hw.fuzz ahci ACCESSES [SEED]`` runs as many by hand.
"""

from __future__ import annotations

import os
import random
import struct
import threading
from pathlib import Path

import pytest

from pyhyve.hw.storage.ahci.registers import Hba, Px
from pyhyve.memory import GuestMemory
from tests.hw.storage.ahci.conftest import SECTORS
from tests.hw.storage.ahci.driver import DATA, FIS, LIST, MEMORY, TABLES, Driver, cd, disk, h2d

ACCESSES = 4000
COMMANDS = (
    *(0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3D, 0xC4, 0xC5, 0xC8, 0xCA, 0x60, 0x61, 0x06, 0x2F, 0x47),
    *(0xB0, 0xEC, 0xEF, 0xE7, 0xEA, 0xE0, 0xE5, 0x27, 0xF8, 0x90, 0xA0, 0xA0, 0xA0, 0xA0, 0xA1, 0x08, 0xC6, 0x40, 0x42),
)  # fmt: skip
PACKETS = (0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2B, 0x35, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA0, 0xA8)
EDGES = (0, 1, 0xFF, 0x3FF, 0xFFFFFFFF, 0x80000000, MEMORY, MEMORY - 1, MEMORY - 512, LIST, FIS, DATA)


class Fuzzer:
    """Makes random accesses to a controller with a disk and a CD drive."""

    def __init__(self, driver: Driver, seed: int) -> None:
        self.driver = driver
        self.random = random.Random(seed)

    def number(self, bits: int) -> int:
        kind = self.random.random()
        if kind < 0.3:
            return self.random.choice(EDGES) & ((1 << bits) - 1)
        if kind < 0.6:
            return 1 << self.random.randrange(bits)
        return self.random.getrandbits(bits)

    def address(self) -> int:
        kind = self.random.random()
        if kind < 0.8:
            return DATA + self.random.randrange(0, 1 << 20)
        return self.number(64)

    def frame(self) -> bytes:
        pick = self.random
        if pick.random() < 0.05:
            return pick.randbytes(20)
        lba = pick.choice((0, pick.randrange(SECTORS), SECTORS - 1, SECTORS, pick.getrandbits(48)))
        count = pick.choice((0, 1, 8, pick.randrange(256), pick.getrandbits(16)))
        return h2d(
            pick.choice(COMMANDS) if pick.random() < 0.9 else pick.getrandbits(8),
            lba,
            count,
            pick.choice((0, 1, 3, 8, 0x82, 0xD0, 0xDA, pick.getrandbits(16))),
            pick.choice((0x40, 0x40, 0xC0, pick.getrandbits(8))),
            flags=0x80 if pick.random() < 0.95 else pick.getrandbits(8),
            control=pick.choice((0, 0, 0, 4)),
        )

    def slot(self) -> None:
        """A command that is wrong in some way, or in none."""
        pick, driver = self.random, self.driver
        slot = pick.randrange(32)
        regions = [(self.address(), 1 + self.number(22)) for _ in range(pick.randrange(6))]
        if pick.random() < 0.5:
            regions = [
                (DATA + pick.randrange(1 << 19), 1 << pick.randrange(9, 18)) for _ in range(pick.randrange(1, 9))
            ]
        packet = bytes((pick.choice(PACKETS),)) + pick.randbytes(15) if pick.random() < 0.5 else b""
        frame = self.frame()
        if pick.random() < 0.3:
            frame = frame[:12] + bytes((slot << 3,)) + frame[13:]
        driver.prepare(slot, frame, regions, write=pick.random() < 0.3, packet=packet, interrupt=pick.random() < 0.2)
        if pick.random() < 0.1:
            driver.memory.write(LIST + 32 * slot, struct.pack("<IIQ", pick.getrandbits(32), 0, self.address()))
        port = pick.randrange(2)
        if pick.random() < 0.8:
            self.revive(port)
        if pick.random() < 0.3:
            driver.put(Px.SACT, 1 << slot, port)
        driver.put(Px.CI, 1 << slot, port)

    def revive(self, port: int) -> None:
        """What a driver does about a port that has stopped, where it has."""
        driver = self.driver
        if driver.get(Px.SSTS, port) & 0xF != 3:
            driver.put(Px.SCTL, 1, port)
            driver.put(Px.SCTL, 0, port)
        if driver.get(Px.IS, port) & 0x79000000 or driver.get(Px.CMD, port) & 0x11 != 0x11:
            addresses = ((Px.CLB, LIST), (Px.CLBU, 0), (Px.FB, FIS), (Px.FBU, 0))
            for register, value in ((Px.CMD, 0x10), (Px.IS, 0xFFFFFFFF), *addresses, (Px.CMD, 0x11)):
                driver.put(register, value, port)

    def access(self) -> None:
        """One register, any size, or a command."""
        pick, hba = self.random, self.driver.hba
        kind = pick.random()
        with self.driver.lock:
            if kind < 0.35:
                self.slot()
            elif kind < 0.45:
                hba.read(pick.randrange(0x1000), pick.choice((1, 2, 4, 8)))
            elif kind < 0.6:
                hba.write(pick.randrange(0x1000), pick.choice((1, 2, 4, 8)), pick.getrandbits(32))
            elif kind < 0.9:
                register = pick.choice(list(Px))
                hba.write(0x100 + 0x80 * pick.randrange(2) + register, 4, self.number(32))
            elif kind < 0.98:
                self.revive(pick.randrange(2))
            else:
                hba.write(pick.choice(list(Hba)), 4, self.number(32))
        while self.driver.deferred:
            self.driver.deferred.pop(0)()
        if pick.random() < 0.3:
            hba.drain()

    def works(self) -> None:
        """After a reset everything is as it should be."""
        driver = self.driver
        driver.write(Hba.GHC, 0x80000001)
        driver.settle()
        assert driver.read(Hba.GHC) == 0x80000000
        driver.start()
        assert driver.command(h2d(0xEC)) == 0x50
        assert driver.get(Px.SSTS, 1) == 0x133


def make(folder: Path, memory: GuestMemory | None = None) -> Driver:
    for name in ("hd", "cd"):
        (folder / name).write_bytes(os.urandom(SECTORS * 512))
    driver = Driver(disk(folder / "hd"), cd(folder / "cd"), memory=memory)
    driver.start()
    return driver


@pytest.mark.parametrize("seed", range(4))
def test_random_accesses_do_no_harm(tmp_path: Path, seed: int) -> None:
    driver = make(tmp_path)
    fuzzer = Fuzzer(driver, seed)
    for _ in range(ACCESSES):
        fuzzer.access()
    driver.settle()
    fuzzer.works()
    state = driver.hba.save()
    driver.hba.restore(state)
    assert driver.hba.save() == state
    driver.close()
    assert (tmp_path / "hd").stat().st_size == (tmp_path / "cd").stat().st_size == SECTORS * 512


def test_random_structures_under_a_running_list(tmp_path: Path) -> None:
    """A second CPU of the guest changes tables while they are read."""
    driver = make(tmp_path)
    fuzzer, stop = Fuzzer(driver, 99), threading.Event()

    def scribble() -> None:
        chance = random.Random(7)
        while not stop.is_set():
            driver.memory.write(chance.choice((LIST, TABLES)) + chance.randrange(0x400), chance.randbytes(16))

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(ACCESSES // 2):
            fuzzer.access()
    finally:
        stop.set()
        thread.join()
    driver.settle()
    fuzzer.works()
    driver.close()

