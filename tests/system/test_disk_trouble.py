"""What goes wrong behind a virtio disk while Linux uses it is an error of that request: guest and machine live on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.console import Guest, command

pytestmark = pytest.mark.timeout(600)
SIZE = 64 << 20
WRITE = "dd if=/dev/urandom of=/dev/{} bs=64k {} oflag=direct 2>/dev/null"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of the host's that is soon full."""
    place = tmp_path_factory.mktemp("trouble") / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("no file system of a given size without root")
    yield place
    subprocess.run(["umount", "-l", place], check=False)


@pytest.fixture(scope="module")
def guest(backend: str, image, small: Path) -> Iterator[Guest]:
    argv = command(backend, image.kernel, image.initrd, cpus=2)
    at = argv.index("-s")
    for slot, name in enumerate(("full", "cut"), 4):
        path = small / name if name == "full" else small.parent / name
        with path.open("wb") as file:
            file.truncate(SIZE)
        argv[at:at] = ["-s", f"{slot},virtio-blk,{path}"]
    with Guest(argv) as running:
        run = running.output
        names = run("for d in /sys/block/vd*; do echo ${d##*/} $(readlink -f $d); done")
        running.disks = {  # type: ignore[attr-defined]
            "full" if ":04.0" in line else "cut": line.split()[0] for line in names.splitlines()
        }
        yield running


def test_a_full_host_disk(guest: Guest, small: Path) -> None:
    disk = guest.disks["full"]  # type: ignore[attr-defined]
    assert guest.run(WRITE.format(disk, "count=256")).status
    assert "I/O error" in guest.output("dmesg | tail -n 30")
    guest.output(f"dd if=/dev/{disk} of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null")
    guest.output(f"blkdiscard /dev/{disk}")  # makes room again
    guest.output(WRITE.format(disk, "count=16 conv=fsync"))
    assert (small / "full").stat().st_size == SIZE


def test_an_image_that_is_cut(guest: Guest, small: Path) -> None:
    path, disk = small.parent / "cut", guest.disks["cut"]  # type: ignore[attr-defined]
    os.truncate(path, SIZE // 2)
    assert guest.run(f"dd if=/dev/{disk} of=/dev/null bs=4k skip=12288 count=1 iflag=direct 2>/dev/null").status
    assert guest.run(WRITE.format(disk, "seek=768 count=1")).status
    guest.output(f"dd if=/dev/{disk} of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null")
    assert path.stat().st_size == SIZE // 2
    os.truncate(path, SIZE)
    guest.output(WRITE.format(disk, "seek=768 count=1"))


def test_a_driver_that_is_taken_away_in_the_middle(guest: Guest, small: Path) -> None:
    disk = guest.disks["cut"]  # type: ignore[attr-defined]
    device = guest.output(f"basename $(readlink -f /sys/block/{disk}/device)").strip()
    driver = "/sys/bus/virtio/drivers/virtio_blk"
    for _ in range(3):
        guest.output(f"(while dd if=/dev/{disk} of=/dev/null bs=1M count=32 iflag=direct 2>/dev/null; do :; done) &"
                     f" usleep 50000; echo {device} >{driver}/unbind; wait; test ! -e /sys/block/{disk};"
                     f" echo {device} >{driver}/bind; until [ -b /dev/{disk} ]; do usleep 10000; done")  # fmt: skip
    assert guest.output(f"cat /sys/block/{disk}/size") == f"{SIZE >> 9}\n"
    guest.output(WRITE.format(disk, "count=16 conv=fsync"))


def test_the_machine_still_ends_as_it_should(guest: Guest) -> None:
    guest.send("poweroff -f\n")
    assert guest.end() == 1
