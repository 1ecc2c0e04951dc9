"""A whole Debian with systemd from its disk: each kind of disk, both ways to start it, and what the disk keeps."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve.images import DiskImage, ImageError, build_debian_disk
from pyhyve.images.ext4 import copy_sparse
from tests.system.console import Guest

pytestmark = pytest.mark.timeout(900)  # the first test may have to build the disk

DEVICES = {
    # driver, vCPUs, more for the kernel, the root's device
    "modern": ("virtio-blk", 1, "", "vda"),
    "legacy": ("virtio-blk", 2, "virtio_pci.force_legacy=1", "vda"),
    "ahci": ("ahci-hd", 2, "", "sda"),
}
EXPECTED_ERRORS = (
    "regulatory.db",  # for radios, in a package of its own
    "firmware_class: See https://",
    # a busy host
    "tsc: Unable to calibrate",
    "8254 timer not connected",
)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> DiskImage:
    """The disk, with the kernel that has all the drivers."""
    try:
        return build_debian_disk(tmp_path_factory.mktemp("debian") / "debian.img", kernel="generic")
    except ImageError as error:
        pytest.skip(f"no Debian disk: {error}")


@pytest.fixture
def disk(debian: DiskImage, tmp_path: Path) -> Iterator[Path]:
    """A copy to write to."""
    path = tmp_path / "disk.img"
    copy_sparse(debian.disk, path)
    yield path
    path.unlink()


def bhyve(backend: str, disk: Path, debian: DiskImage | None, driver: str, cpus: int, more: str) -> list[str]:
    """``bhyve`` with that disk and a network. Without ``debian`` the guest is the one that was loaded."""
    argv = [sys.executable, "-m", "pyhyve.commands.bhyve", *f"-A -c {cpus} -m 1G -H -s 0,hostbridge".split()]
    argv += ["-s", f"2,{driver},{disk}", "-s", "3,virtio-rnd", *"-s 31,lpc -l com1,stdio".split()]
    argv += ["-o", f"vmm.backend={backend}"]
    if debian is not None:
        argv += ["-o", f"boot.kernel={debian.kernel}", "-o", f"boot.initrd={debian.initrd}"]
        argv += ["-o", f"boot.cmdline={debian.cmdline} {more}"]
    return [*argv, "debian-disk"]


def e2fsck(disk: Path, option: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/sbin/e2fsck", option, disk], capture_output=True, text=True, check=False)


def file_on(disk: Path, path: str) -> bytes:
    """A file's content, read from the image by e2fsprogs."""
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", disk], capture_output=True, check=True).stdout


def assert_all_is_well(guest: Guest) -> None:
    """systemd has started everything, and the journal has no errors."""
    # it waits until the start-up has ended
    assert guest.run("systemctl is-system-running --wait").output == "running\n"
    assert guest.output("systemctl --failed --no-legend --plain") == ""
    errors = guest.output("journalctl --boot --priority=err --no-pager --quiet --output=cat").splitlines()
    assert [line for line in errors if not any(text in line for text in EXPECTED_ERRORS)] == []


@pytest.mark.parametrize("device", DEVICES)
def test_debian_boots_to_its_login_and_leaves_a_clean_disk(
    backend: str, debian: DiskImage, disk: Path, device: str
) -> None:
    driver, cpus, more, name = DEVICES[device]
    with Guest(bhyve(backend, disk, debian, driver, cpus, more), at_prompt=False) as guest:
        guest.log_in()
        assert_all_is_well(guest)
        assert guest.output("nproc") == f"{cpus}\n"
        names = guest.output("udevadm settle; grep ^N: /proc/bus/input/devices")
        assert "AT Translated Set 2 keyboard" in names
        assert "PS/2 Generic Mouse" in names
        assert guest.output("findmnt -no SOURCE /") == f"/dev/{name}\n"
        if driver == "virtio-blk":
            version_1 = guest.output("cut -c33 /sys/class/block/vda/device/features")
            assert version_1 == ("0\n" if device == "legacy" else "1\n")
        total = guest.output("dd if=/dev/urandom bs=1M count=8 status=none | tee /root/kept | md5sum").split()[0]
        if device == "legacy":
            guest.kill(signal.SIGTERM)  # the power button, which systemd obeys
        else:
            guest.send("poweroff\n")
        assert guest.end() == 1
    done = e2fsck(disk, "-fn")
    assert done.returncode == 0, done.stdout
    assert hashlib.md5(file_on(disk, "/root/kept")).hexdigest() == total


@pytest.mark.parametrize("device", ["modern", "ahci"])
def test_what_was_synced_is_there_after_the_vmm_was_killed(
    backend: str, debian: DiskImage, disk: Path, device: str
) -> None:
    driver, cpus, _, _ = DEVICES[device]
    with Guest(bhyve(backend, disk, debian, driver, cpus, "rw init=/bin/bash"), at_prompt=False) as guest:
        guest.expect(":/# ")
        guest.send("export HOME=/root; cd; hostname debian; exec bash\n")
        guest.reach_prompt()
        # other writes keep the disk busy
        guest.send("dd if=/dev/zero of=/root/lost bs=64k count=4000 status=none &\n")
        guest.send("for ((i = 1; ; i++)); do echo record $i >>log; sync log && echo synced $i; done\n")
        guest.expect("synced 40\r")
        guest.kill(signal.SIGKILL)
    recovered = e2fsck(disk, "-p")  # plays the journal back
    assert recovered.returncode in (0, 1), recovered.stdout
    clean = e2fsck(disk, "-fn")
    assert clean.returncode == 0, clean.stdout
    lines = file_on(disk, "/root/log").decode().splitlines()
    assert len(lines) >= 40
    assert lines == [f"record {number}" for number in range(1, len(lines) + 1)]


def test_a_disk_boots_its_own_kernel_and_comes_back_from_a_kill(backend: str, disk: Path, tmp_path: Path) -> None:
    """``pyhyve run --disk``, killed; then the same disk by ``bhyveload -d`` and ``bhyve``."""
    argv = [sys.executable, "-m", "pyhyve.commands.pyhyve", "run", "--disk", str(disk), "--net", "user"]
    with Guest([*argv, "--memory", "1G", "--backend", backend, "debian-run"], at_prompt=False) as guest:
        guest.expect(f"booting Debian, {disk}:vmlinuz")
        guest.log_in()
        assert_all_is_well(guest)
        guest.output('until networkctl --json=short status enp0s3 | grep -q \'"OnlineState":"online"\'; do :; done')
        assert "10.0.2.15/24" in guest.output("ip -4 -brief address show enp0s3")
        guest.output("ping -c 1 10.0.2.2")
        guest.output("echo kept >/root/kept; sync /root/kept")
        guest.kill(signal.SIGKILL)
    load = [sys.executable, "-m", "pyhyve.commands.bhyveload", "-m", "1G", "-d", str(disk), "debian-disk"]
    assert "loaded Debian" in subprocess.run(load, capture_output=True, text=True, check=True).stdout
    with Guest(bhyve(backend, disk, None, "virtio-blk", 1, ""), at_prompt=False) as guest:
        guest.log_in()
        assert_all_is_well(guest)
        assert guest.output("cat /root/kept") == "kept\n"
        assert "recover" in guest.output("journalctl --boot --no-pager --quiet | grep -E 'EXT4-fs|systemd-fsck'")
        guest.send("poweroff\n")
        assert guest.end() == 1
    assert e2fsck(disk, "-fn").returncode == 0
    subprocess.run([sys.executable, "-m", "pyhyve.commands.bhyvectl", "--vm=debian-disk", "--destroy"], check=True)


@pytest.fixture(autouse=True)
def tools() -> None:
    for name in ("e2fsck", "debugfs"):
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{name} is not installed")
