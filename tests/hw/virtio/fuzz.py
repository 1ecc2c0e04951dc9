"""Hostile drivers: random registers, and random bytes in rings that are set up as they should be.

``python -m tests.hw.virtio.fuzz DEVICE ACCESSES [SEED]`` runs longer than the suite does.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
import time
from pathlib import Path

from tests.hw.virtio.driver import KINDS, MEMORY, Driver, Rig

DISK = 1 << 20


def options_of(name: str, folder: Path) -> dict[str, str]:
    """What the device ``name`` needs to be made."""
    if name == "virtio-blk":
        path = folder / "fuzz.img"
        path.write_bytes(bytes(DISK))
        return {"path": str(path), "queues": "2"}
    if name == "virtio-console":
        return {"port.0.name": "a", "port.0.path": str(folder / "fuzz.sock")}
    return {}


class Fuzzer:
    """One device and its attacker."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.rig = Rig(name, options_of(name, folder), msix=seed % 3 != 0)
        self.accesses = 0
        self.driver: Driver | None = None

    def run(self, accesses: int) -> None:
        """Attack until so many accesses are done. The device answers every one, in range."""
        while self.accesses < accesses:
            if self.random.random() < 0.3:
                self._registers(20)
            else:
                self._rings()
        self._revive()
        self.rig.close()

    def _registers(self, count: int) -> None:
        rig, rng = self.rig, self.random
        for _ in range(count):
            self.accesses += 1
            size = rng.choice((1, 2, 4))
            value = rng.choice((0, 1, 0xFF, 0xFFFFFFFF, rng.getrandbits(32), rng.getrandbits(12))) & (1 << 8 * size) - 1
            where = rng.randrange(4)
            if where == 0:
                offset = rng.choice((rng.randrange(0x40, 0x100), rng.randrange(0x100), 4)) & ~(size - 1)
                if rng.random() < 0.7 or 0x10 <= offset < 0x28:
                    assert 0 <= rig.get(offset, size) < 1 << 8 * size
                else:
                    rig.put(offset, size, value)
                continue
            bar = rig.bars.get((0, 1, 2)[where - 1])
            if bar is None or bar.mapped is None:
                rig.put(4, 2, 7)
                continue
            offset = rng.randrange(bar.size)
            if where == 3 and rng.random() < 0.8:
                offset = rng.choice((0, 0, 0x3000)) + rng.randrange(60)
            if rng.random() < 0.5:
                offset &= ~(size - 1)
            if where == 1:
                size = min(size, bar.size - offset)
                size = 1 if size == 3 else size
                value &= (1 << 8 * size) - 1
                if rng.random() < 0.4:
                    answer = rig.pio.read(bar.mapped + offset, size)
                    assert answer is None or 0 <= answer < 1 << 8 * size
                else:
                    rig.write_port(bar.mapped + offset, size, value)
            elif rng.random() < 0.4:
                answer = rig.mmio.read(bar.mapped + offset, size)
                assert answer is None or 0 <= answer < 1 << 8 * size
            else:
                rig.write_memory(bar.mapped + offset, size, value)
        rig.loop.serve()

    def _revive(self) -> Driver:
        """A device that was attacked comes up after a reset."""
        rig, rng = self.rig, self.random
        rig.bus.reset()
        queues = range(min(4, len(rig.device.queues)))
        for queue in queues:
            rig.memory.write(0x100000 + 0x40000 * queue, bytes(0x10000))
        driver = Driver(rig, rng.choice(KINDS), rig.device.features & 0xFFFFFF, queues=queues)
        assert not rig.device.status & 64
        return driver

    def _rings(self) -> None:
        """Bring the driver up and write nonsense into its rings, part of it plausible."""
        rng, memory = self.random, self.rig.memory
        driver = self._revive()
        for _ in range(rng.randrange(1, 12)):
            queue = rng.choice(list(driver.queues.values()))
            for _ in range(rng.randrange(1, 8)):
                self.accesses += 1
                gpa = rng.choice(
                    (0x420000, rng.randrange(MEMORY), MEMORY - 8, rng.getrandbits(64), 0x420000 + rng.randrange(4096))
                )
                length = rng.choice(
                    (0, 1, 16, 512, 513, 4096, rng.getrandbits(8), rng.getrandbits(32), 16 * rng.randrange(1, 300))
                )
                flags = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, rng.getrandbits(16)))
                if driver.kind.packed:
                    flags |= rng.choice((0, 0x80, 0x8000, 0x8080))
                    place = rng.choice((queue.next_avail, rng.randrange(queue.size)))
                    entry = struct.pack("<QIHH", gpa, length, rng.randrange(queue.size), flags)
                else:
                    place = rng.randrange(min(queue.size, rng.choice((4, queue.size))))
                    entry = struct.pack(
                        "<QIHH", gpa, length, flags, rng.choice((rng.randrange(queue.size), rng.getrandbits(16)))
                    )
                memory.write(queue.desc + 16 * place, entry)
                if rng.random() < 0.3:  # a header that a disk understands, and an indirect table that is none
                    header = struct.pack(
                        "<IIQ", rng.choice((0, 1, 4, 8, 11, 13, 99)), 0, rng.choice((0, 1, rng.getrandbits(12)))
                    )
                    memory.write(0x420000, header + entry * 4)
            if not driver.kind.packed:
                for i in range(4):
                    memory.write_uint(queue.avail + 4 + 2 * i, rng.choice((i, rng.getrandbits(16))), 2)
                index = memory.read_uint(queue.avail + 2, 2)
                memory.write_uint(queue.avail + 2, rng.choice((index + 1, index + 3, rng.getrandbits(16))), 2)
            queue.kick()
            self.rig.loop.serve()


def main() -> None:
    name, accesses = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else int(time.time())
    print(f"{name}: {accesses} accesses, seed {seed}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Fuzzer(name, Path(folder), seed).run(accesses)
    print(f"{name}: survived, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
