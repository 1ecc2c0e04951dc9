"""``disk``: what a guest's fio gets out of a disk, and what a request costs the host.

Both guests run Debian's fio on a disk of their own, in turn: 1 MiB in sequence, read and written, and 4 KiB at random,
one at a time and 32, all with direct I/O, so that every request is the device's. The image is a file that the host has
in its page cache, opened as both open it by default. Figures are fio's, by the guest's clock.

The host's CPU time for a request is that of the threads other than the vCPUs', for the random reads one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.machines import Context, ours, qemu_linux
from benchmarks.measure import BenchmarkError, Result, alternate
from pyhyve.images import GuestImage

SIZE_MB = 256
SECONDS, QUICK_SECONDS = 4, 1
LOADS = {
    "sequential read, 1 MiB": "--rw=read --bs=1M --iodepth=1",
    "sequential write, 1 MiB": "--rw=write --bs=1M --iodepth=1",
    "random read, 4 KiB, depth 1": "--rw=randread --bs=4k --iodepth=1",
    "random read, 4 KiB, depth 32": "--rw=randread --bs=4k --iodepth=32",
}
COSTLY = "random read, 4 KiB, depth 1"
"""The load whose requests are costed."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A kind of disk: its name, our slot, QEMU's options (``{}`` is the image), the guest's name of it."""

    name: str
    slot: str
    qemu: str
    device: str


VIRTIO = Disk("virtio-blk", "3,virtio-blk,{}", "-device virtio-blk-pci,drive=d", "vda")
AHCI = Disk("ahci-hd", "3,ahci-hd,{}", "-device ahci,id=ahci -device ide-hd,drive=d,bus=ahci.0", "sda")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of fio: bytes and requests a second, and the host's µs for each outside the vCPUs."""

    rate: float
    requests: float
    cost: float


def run_disk(context: Context) -> Iterator[Result]:
    """Both kinds of disk."""
    yield from _compare(context, VIRTIO, context.with_tools(context.image))
    yield from _compare(context, AHCI, context.with_tools(context.generic_image))


def _compare(context: Context, disk: Disk, image: GuestImage) -> Iterator[Result]:
    with ExitStack() as stack:

        def guest(argv: list[str]) -> Console:
            console = stack.enter_context(Console(argv))
            console.expect(PROMPT)
            console.time("dmesg -n 1")  # the kernel's late messages would stand between a command's lines
            return console

        slot = disk.slot.format(_make_image(context.folder / "ours.img"))
        mine = guest(ours(image.kernel, image.initrd, slots=[slot]))
        peer = None
        if context.qemu:
            drive = f"file={_make_image(context.folder / 'qemu.img')},format=raw,if=none,id=d"
            peer = guest(qemu_linux(context.qemu, image, devices=["-drive", drive, *disk.qemu.split()]))
        seconds = QUICK_SECONDS if context.quick else SECONDS

        for what, options in LOADS.items():

            def run(console: Console, options: str = options) -> Run:
                return run_fio(console, f"--filename=/dev/{disk.device} {options}", seconds)

            found = alternate(context.runs, lambda: run(mine), (lambda: run(peer)) if peer else None)
            if "random" in what:
                rates = [[each.requests for each in runs] for runs in found]
            else:
                rates = [[each.rate / 1e6 for each in runs] for runs in found]
            unit = "/s" if "random" in what else "MB/s"
            yield Result(f"{disk.name}: {what}", unit, *rates, ratio_least=1)
            if what == COSTLY:
                costs = [[each.cost for each in runs] for runs in found]
                yield Result(f"{disk.name}: host CPU a request", "µs", *costs)


def _make_image(path: Path) -> Path:
    """An image of data, all of it in the page cache."""
    if not path.exists():
        path.write_bytes(os.urandom(1 << 20) * SIZE_MB)
    return path


def run_fio(console: Console, options: str, seconds: int) -> Run:
    """fio at the prompt for so many seconds. Raises ``BenchmarkError``."""
    # by the guest's clock: the clock that fio makes itself of the TSC is wrong where the host is busy as it starts
    clock = "--clocksource=clock_gettime --time_based"
    command = f"fio --name=bench --ioengine=libaio --direct=1 --thread {clock} --minimal"
    before = device_seconds(console)
    _, output = console.time(f"{command} --runtime={seconds} {options}")
    return parse_fio(output.decode(errors="replace"), device_seconds(console) - before)


def parse_fio(output: str, used: float) -> Run:
    """What fio's terse output (version 3) says; ``used`` seconds were the host's. Raises ``BenchmarkError``."""
    lines = [line for line in output.splitlines() if line.startswith("3;")]
    fields = lines[-1].split(";") if lines else []
    if len(fields) < 50 or fields[4] != "0":
        raise BenchmarkError(f"fio: {output.strip()}")
    # KiB, KiB/s, requests/s and ms: of reads from the sixth field, of writes from the 47th
    first = 5 if int(fields[5]) else 46
    kilobytes, rate, requests, milliseconds = (float(field) for field in fields[first : first + 4])
    if not kilobytes:
        raise BenchmarkError(f"fio moved nothing: {output.strip()}")
    return Run(rate * 1024, requests, used / (requests * milliseconds / 1000) * 1e6)


def device_seconds(console: Console) -> float:
    """CPU time of the process's threads that are no vCPU's."""
    total = 0
    for task in Path(f"/proc/{console.process.pid}/task").iterdir():
        try:
            if not (task / "comm").read_text().startswith(("vcpu", "CPU ")):
                total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue  # a thread of a pool that has ended
    return total / 1e9
