"""Hostile virtio drivers: random registers, random bytes in rings that are set up as they should be, and requests that
are nearly right. Beside the driver, what is behind the device does what it likes: packets come, a program connects."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from pathlib import Path
from unittest.mock import patch

from pyhyve.backends.net import Offload
from pyhyve.hw.net import virtio_net
from pyhyve.hw.virtio.p9 import files
from tests.hw.fuzz.guard import Guard, guarded_memory
from tests.hw.fuzz.requests import BEGINNINGS, MAKERS
from tests.hw.virtio.driver import KINDS, MEMORY, Driver, Rig

DISK = 1 << 20


class Network:
    """A network that does what the fuzzer says."""

    def __init__(self, pick: random.Random) -> None:
        self.pick = pick
        self.offload = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN
        self.queues, self.link = 2, True

    def start(self, on_receive, on_writable, on_link):  # type: ignore[no-untyped-def]
        self.receive, self.writable, self.on_link = on_receive, on_writable, on_link

    def send(self, header, frame, queue=0):  # type: ignore[no-untyped-def]
        assert len(header) == 12
        assert 14 <= sum(map(len, frame)) <= 70000
        return self.pick.random() < 0.9

    def nothing(self, *args: object) -> None:
        pass

    set_offload = set_queues = pause = resume = nothing

    def close(self) -> None:
        pass

    def act(self) -> None:
        """Packets, room, the link."""
        pick = self.pick
        match pick.randrange(4):
            case 0:
                sizes = [pick.choice((14, 60, 1514, 9000, 65535)) for _ in range(pick.choice((1, 2, 40)))]
                to = pick.choice((b"\xff" * 6, pick.randbytes(6)))
                self.receive(pick.randrange(2), [bytes(12) + to + bytes(size - 6) for size in sizes])
            case 1:
                self.writable()
            case 2:
                self.link = not self.link
                self.on_link(self.link)


class Program:
    """A program at the socket of a console, which comes and goes."""

    def __init__(self, pick: random.Random, path: Path) -> None:
        self.pick, self.path = pick, path
        self.socket: socket.socket | None = None

    def act(self) -> None:
        """Connect, talk, listen, leave."""
        pick = self.pick
        with contextlib.suppress(OSError):
            if self.socket is None:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.setblocking(False)
                self.socket.connect(str(self.path))
            elif pick.random() < 0.4:
                self.socket.send(pick.randbytes(pick.randrange(1, 3000)))
            elif pick.random() < 0.6:
                self.socket.recv(1 << 16)
            else:
                self.close()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Folder:
    """What the host does in a shared folder."""

    def __init__(self, pick: random.Random, path: Path) -> None:
        self.pick, self.path = pick, path
        path.mkdir()
        (path.parent / "outside").write_bytes(b"untouched")

    def act(self) -> None:
        """Things come and go, and become other things."""
        place = self.path / self.pick.choice(("file", "folder", "link", "pipe", "new"))
        with contextlib.suppress(OSError):
            match self.pick.randrange(6):
                case 0:
                    # never through a link, nor into a pipe that waits
                    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
                    os.write(fd, bytes(self.pick.randrange(5000)))
                    os.close(fd)
                case 1:
                    place.mkdir()
                case 2:
                    os.symlink("../outside", place)
                case 3:
                    os.mkfifo(place)
                case 4:
                    os.rename(place, self.path / "folder" / "moved")
                case 5:
                    place.rmdir() if place.is_dir() else place.unlink()
        assert (self.path.parent / "outside").read_bytes() == b"untouched"

    def close(self) -> None:
        assert (self.path.parent / "outside").read_bytes() == b"untouched"


class VirtioFuzzer:
    """One device and its attacker."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.random = pick = random.Random(seed)
        self.stack = contextlib.ExitStack()
        self.other: Network | Program | Folder | None = None
        options: dict[str, str] = {}
        if name == "virtio-blk":
            path = folder / "fuzz.img"
            path.write_bytes(bytes(DISK))
            options = {"path": str(path), "queues": "2"}
        elif name == "virtio-console":
            self.other = Program(pick, folder / "fuzz.sock")
            options = {"port.0.name": "a", "port.0.path": str(folder / "fuzz.sock")}
        elif name == "virtio-9p":
            self.other = Folder(pick, folder / "share")
            options = {"sharename": "share", "path": str(folder / "share")}
            if seed % 2:  # fewer descriptors than files
                self.stack.enter_context(patch.object(files, "MOST_DESCRIPTORS", 8))
        elif name == "virtio-net":
            self.other = network = Network(pick)
            self.stack.enter_context(patch.object(virtio_net, "open_net", lambda options, loop: network))
        self.make = MAKERS[name]
        self.begin = BEGINNINGS.get(name, lambda pick: [])
        memory = guarded_memory(MEMORY)
        self.rig = Rig(name, options, msix=seed % 3 != 0, memory=memory)
        self.guard = self.stack.enter_context(Guard(memory))
        self.accesses = 0

    def run(self, accesses: int) -> float:
        """Attack until so many accesses are done; the longest that one took. The device answers every one, in range."""
        with self.stack:
            while self.accesses < accesses:
                with self.guard.access():
                    choice = self.random.random()
                    if choice < 0.3:
                        self._registers(20)
                    elif choice < 0.6:
                        self._rings()
                    else:
                        self._requests()
                if self.other is not None and self.random.random() < 0.5:
                    self.other.act()
                self.rig.messages.clear()
                self.rig.lines.events.clear()
                self.guard.check()
            self._revive()
            self.guard.check()
            self.rig.close()
            if self.other is not None:
                self.other.close()
            assert self.guard.failures == []
        return self.guard.longest

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
        queues = range(min(5, len(rig.device.queues)))
        for queue in queues:
            rig.memory.write(0x100000 + 0x40000 * queue, bytes(0x10000))
        driver = Driver(rig, rng.choice(KINDS), rig.device.features & (0xFFFFFF | 1 << 40), queues=queues)
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
                if rng.random() < 0.3:  # what the device understands, and an indirect table that is none
                    memory.write(0x420000, self.make(rng, queue.index)[:4096] + entry * 4)
            if not driver.kind.packed:
                for i in range(4):
                    memory.write_uint(queue.avail + 4 + 2 * i, rng.choice((i, rng.getrandbits(16))), 2)
                index = memory.read_uint(queue.avail + 2, 2)
                memory.write_uint(queue.avail + 2, rng.choice((index + 1, index + 3, rng.getrandbits(16))), 2)
            queue.kick()
            self.rig.loop.serve()

    def _settle(self) -> None:
        """Wait for requests that the device has handed to threads."""
        pool = getattr(self.rig.device, "_pool", None)
        if pool is not None:
            pool.drain()

    def _requests(self) -> None:
        """Chains as they should be, with requests that nearly are."""
        rng = self.random
        driver = self._revive()
        for message in self.begin(rng):
            first = driver.queues[0]
            first.add([(driver.buffer(len(message), message), len(message), False), (driver.buffer(8192), 8192, True)])
            first.kick()
            self.rig.loop.serve()
            self._settle()
            first.take()
        for _ in range(rng.randrange(1, 60)):
            queue = rng.choice(list(driver.queues.values()))
            if len(queue.free) < 8:
                break
            self.accesses += 1
            message = self.make(rng, queue.index)
            cut = rng.choice((len(message), 16, rng.randrange(len(message) + 1)))
            parts = [part for part in (message[:cut], message[cut:]) if part]
            buffers = [(driver.buffer(len(part), part), len(part), False) for part in parts]
            for size in rng.choice(((1,), (512, 1), (4096,), (11, 5000), (20,), (1024, 1024, 1), (70000,), ())):
                buffers.append((driver.buffer(size), size, True))
            if buffers:
                queue.add(buffers)
            if rng.random() < 0.6:
                queue.kick()
            if rng.random() < 0.4:
                self.rig.loop.serve()
            if rng.random() < 0.3:
                self._settle()
            if rng.random() < 0.03:
                driver.status(rng.choice((0, 3, 128)))
                break
        self.rig.loop.serve()
