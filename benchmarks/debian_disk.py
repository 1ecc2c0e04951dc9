"""``debian``: a whole Debian with systemd, from a virtio disk to its login, and where that time goes.

Both machines get a fresh copy of one disk, the same kernel and the same RAM disk. Besides the time on the clock there
is the processor time of the whole process, which other work on the host disturbs less. The split is that of ``boot``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.boot import split
from benchmarks.console import Console
from benchmarks.idle import used
from benchmarks.machines import Context, ours, qemu_options
from benchmarks.measure import BenchmarkError, Result, alternate
from pyhyve.images import DiskImage, ImageError, build_debian_disk
from pyhyve.images.ext4 import copy_sparse

LOGIN = b"debian login: "
MEMORY_MB = 1024
RUNS_MAX = 3
"""A boot takes ten seconds and more."""


@dataclass(frozen=True, slots=True)
class Boot:
    """Seconds to the login on the clock, and of processor time."""

    seconds: float
    cpu: float


def build(context: Context) -> DiskImage:
    """The disk, from the cache or built. Raises ``BenchmarkError``."""
    steps: list[str] = []

    def tell(step: str, _fraction: float | None) -> None:
        if step not in steps:
            steps.append(step)
            print(f"disk: {step}", file=sys.stderr, flush=True)

    try:
        return build_debian_disk(context.folder / "debian.img", tell)
    except ImageError as error:
        raise BenchmarkError(f"no Debian disk: {error}") from None


def run_debian(context: Context) -> Iterator[Result]:
    """Start to login."""
    image = build(context)
    numbers = count()

    def fresh() -> Path:
        path = context.folder / f"debian-{next(numbers)}.img"
        copy_sparse(image.disk, path)
        return path

    def mine(disk: Path) -> list[str]:
        argv = ours(image.kernel, image.initrd, memory_mb=MEMORY_MB, cmdline=image.cmdline)
        return [*argv[:-1], "-s", f"2,virtio-blk,{disk}", argv[-1]]

    def theirs(qemu: str, disk: Path) -> list[str]:
        argv = [*qemu_options(qemu, memory_mb=MEMORY_MB), "-nic", "none"]
        argv += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk"]
        return [*argv, "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.cmdline]

    def boot(argv: list[str], disk: Path) -> Boot:
        try:
            with Console(argv) as console:
                seconds = console.expect(LOGIN) - console.spawned
                return Boot(seconds, used(console))
        finally:
            disk.unlink()

    def boot_ours() -> Boot:
        disk = fresh()
        return boot(mine(disk), disk)

    def boot_qemu() -> Boot:
        assert context.qemu is not None
        disk = fresh()
        return boot(theirs(context.qemu, disk), disk)

    # quick: the boot that is split tells that it works
    if not context.quick:
        found, peer = alternate(min(context.runs, RUNS_MAX), boot_ours, boot_qemu if context.qemu else None)
        yield Result("whole Debian, start to login", "s", [b.seconds for b in found], [b.seconds for b in peer])
        yield Result("    processor time of it", "s", [b.cpu for b in found], [b.cpu for b in peer])
    disk = fresh()
    more = {"boot.cmdline": image.cmdline, "pci.0.2.0.device": "virtio-blk", "pci.0.2.0.path": str(disk)}
    yield from split(image.kernel, image.initrd, MEMORY_MB, LOGIN, more)
