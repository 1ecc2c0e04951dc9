"""Linux as a machine with a name: loaded from its own disk, run, looked at, rebooted and powered off."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.loader.disk import images
from tests.system.console import Guest

pytestmark = pytest.mark.timeout(600)

GRUB = """
set default="linux>plain"
submenu 'Linux' --id linux {
  menuentry 'with an answer' --id plain {
    search --no-floppy --set=root --label boot
    linux /vmlinuz console=ttyS0 answer=${answer}42
    initrd /initrd
  }
}
"""


def run(name, *words):
    return subprocess.run(
        [sys.executable, "-m", f"pyhyve.commands.{name}", *words],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def boot_disk(image, tmp_path_factory):
    """A disk as an installer leaves it: an EFI partition without a kernel, and an ext4 one for /boot."""
    place = tmp_path_factory.mktemp("disk")
    files = {"vmlinuz": image.kernel.read_bytes(), "initrd": image.initrd.read_bytes(), "grub/grub.cfg": GRUB}
    boot = images.write(place / "boot", files)
    esp = images.write(place / "esp", {"EFI/debian/grub.cfg": "search.fs_uuid 1234 root\nconfigfile /boot/grub.cfg"})
    parts = [
        (images.fat(place / "p1", esp, 16, 16 << 20), "uefi"),
        (images.ext(place / "p2", boot, "ext4", 128 << 20), "linux"),
    ]
    return images.disk(place / "disk", "gpt", parts)


def bhyve(backend):
    options = "-A -H -s 0,hostbridge -s 31,lpc -l com1,stdio".split()
    return [sys.executable, "-m", "pyhyve.commands.bhyve", *options, "-o", f"vmm.backend={backend}", "linux0"]


def load(disk: Path) -> None:
    done = run("bhyveload", "-m", "512M", "-e", "greeting=hello", "-d", str(disk), "linux0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"loaded with an answer: {disk}:vmlinuz\n"


def test_a_guest_boots_from_its_own_disk_and_through_a_reboot(backend, boot_disk):
    load(boot_disk)
    assert "loaded" in run("pyhyve", "list").stdout
    with Guest(bhyve(backend)) as guest:
        words = guest.output("cat /proc/cmdline").split()
        assert words[-3:] == ["console=ttyS0", "answer=42", "greeting=hello"]
        assert guest.output("tr '\\0' '\\n' </proc/1/environ | grep greeting") == "greeting=hello\n"
        # the ACPI tables are made after the kernel was loaded, and found all the same
        assert "RSDP" in guest.output("dmesg | grep RSDP")
        found = run("bhyvectl", "--vm=linux0", "--get-rip", "--get-cr3", "--get-lowmem").stdout
        assert "rip[0]\t\t0xffffffff" in found
        assert run("bhyvectl", "--vm=linux0", "--suspend").returncode == 0
        assert run("bhyvectl", "--vm=linux0", "--resume").returncode == 0
        assert guest.output("echo still here") == "still here\n"
        guest.send("reboot -f\n")
        assert guest.end() == 0
    load(boot_disk)
    with Guest(bhyve(backend)) as guest:
        guest.send("poweroff -f\n")
        assert guest.end() == 1
    assert run("bhyvectl", "--vm=linux0", "--destroy").returncode == 0
    assert "linux0" not in run("pyhyve", "list").stdout
