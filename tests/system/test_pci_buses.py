"""Linux on a machine with three PCI buses: it finds what is there, and uses it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.console import Guest, command

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("disks")
    found = [folder / name for name in ("one", "two")]
    for disk in found:
        disk.write_bytes(os.urandom(4 << 20))
    return found


@pytest.fixture(scope="module")
def guest(backend: str, image, disks: list[Path]) -> Iterator[Guest]:
    argv = command(backend, image.kernel, image.initrd)
    at = argv.index("-s")
    argv[at:at] = [
        *("-s", f"1:2:0,virtio-blk,{disks[0]},ser=one", "-s", f"1:2:1,virtio-blk,{disks[1]},ser=two"),
        *("-s", "5:0:0,amd_hostbridge", "-S", "5:31:0,virtio-rnd", "-s", "3:0,hostbridge"),
    ]
    with Guest(argv) as guest:
        yield guest


def test_every_bus_is_a_root_of_its_own(guest: Guest) -> None:
    found = guest.output("ls /sys/bus/pci/devices").split()
    assert {name for name in found if not name.startswith("0000:00")} == {
        "0000:01:02.0", "0000:01:02.1", "0000:05:00.0", "0000:05:1f.0",
    }  # fmt: skip
    assert guest.output("ls -d /sys/devices/pci*").split() == [f"/sys/devices/pci0000:0{bus}" for bus in (0, 1, 5)]
    assert guest.output("dmesg | grep -i -e 'no compatible bridge window' -e 'address conflict' -e claim | cat") == ""


@pytest.mark.parametrize("legacy", ["N", "Y"])
def test_disks_in_one_slot_of_bus_1_are_read_and_written(guest: Guest, disks: list[Path], legacy: str) -> None:
    """By memory (virtio 1.2) and by ports (0.9.5), both on bus 1."""
    guest.output(f"rmmod virtio_blk virtio_pci && modprobe virtio_pci force_legacy={legacy} && modprobe virtio_blk")
    features = guest.output("cat /sys/bus/pci/devices/0000:01:02.1/virtio*/features").strip()
    assert features[32] == ("0" if legacy == "Y" else "1")  # VIRTIO_F_VERSION_1
    for disk in disks:
        node = guest.output(f"basename $(dirname $(grep -l {disk.name} /sys/class/block/*/serial))").strip()
        digest = hashlib.md5(disk.read_bytes()).hexdigest()
        assert guest.output(f"md5sum </dev/{node}").split()[0] == digest
        guest.output(f"head -c 65536 /dev/urandom >/tmp/new; dd if=/tmp/new of=/dev/{node} conv=fsync 2>/dev/null")
        digest = guest.output("md5sum </tmp/new").split()[0]
        assert hashlib.md5(disk.read_bytes()[: 1 << 16]).hexdigest() == digest


def test_a_pin_on_bus_5_interrupts(guest: Guest) -> None:
    assert guest.output("head -c 16 /dev/hwrng | wc -c").strip() == "16"
    lines = guest.output("cat /proc/interrupts").splitlines()
    rows = [line.split() for line in lines if "IO-APIC" in line and "virtio" in line]
    assert any(int(row[1]) > 0 for row in rows)
