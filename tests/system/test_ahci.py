"""Linux on an AHCI disk and a CD drive: its own driver, file systems, error handling; and what the host keeps."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhyve.images import GuestImage, ImageError, build_debian
from tests.system.console import Guest, command

pytestmark = pytest.mark.timeout(600)
SIZE = 64 << 20


@pytest.fixture(scope="module")
def generic() -> GuestImage:
    """The guest with Debian's generic kernel: the cloud kernel has no AHCI driver."""
    try:
        return build_debian(kernel="linux-image-amd64")
    except ImageError as error:
        pytest.skip(f"no Debian guest with a generic kernel: {error}")


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def boot(backend: str, generic: GuestImage) -> Iterator[Callable[..., Guest]]:
    """Boots the guest with devices in slots, ``-s`` or ``-S``."""
    running: list[Guest] = []

    def start(*slots: str, option: str = "-s") -> Guest:
        argv = command(backend, generic.kernel, generic.initrd)
        at = argv.index("-o")
        argv[at:at] = [word for slot in slots for word in (option, slot)]
        running.append(Guest(argv))
        return running[-1]

    yield start
    for guest in running:
        guest.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


def ext4(image: Path) -> None:
    subprocess.run([tool("mkfs.ext4"), "-q", "-F", image], check=True)


def fsck(image: Path) -> str:
    done = subprocess.run([tool("e2fsck"), "-f", "-n", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("option", ["-s", "-S"])
def test_a_disk_gives_back_what_was_written(boot, image: Path, option: str) -> None:
    content = os.urandom(4 << 20)
    with image.open("r+b") as file:
        file.write(content)
    guest = boot(f"3,ahci-hd,{image},ser=PYHYVE42", option=option)
    assert guest.output("cat /sys/block/sda/size") == f"{SIZE // 512}\n"
    interrupts = guest.output("grep ahci /proc/interrupts")
    assert ("PCI-MSI" in interrupts) == (option == "-s"), interrupts
    guest.output("dd if=/dev/sda of=/tmp/copy bs=1M count=4 iflag=direct 2>/dev/null")
    assert guest.output("md5sum < /tmp/copy").split()[0] == hashlib.md5(content).hexdigest()
    guest.output("dd if=/tmp/copy of=/dev/sda bs=64k seek=320 oflag=direct conv=fsync 2>/dev/null")
    # many at once, through the queue
    readers = "for n in 0 1 2 3 4 5 6 7; do dd if=/dev/sda bs=4k count=128 skip=$((n*128)) iflag=direct 2>/dev/null"
    guest.output(f"{readers} | md5sum > /tmp/sum$n & done; wait")
    for part in range(8):
        piece = content[part << 19 : (part + 1) << 19]
        assert guest.output(f"cat /tmp/sum{part}").split()[0] == hashlib.md5(piece).hexdigest()
    assert "NCQ (depth 32)" in guest.output("dmesg | grep ata1")
    assert guest.run("dmesg | grep -iE 'ata1.*(exception|error|failed|timeout)'").output == ""
    guest.close()
    with image.open("rb") as file:
        file.seek(320 * 65536)
        assert file.read(4 << 20) == content


def test_a_file_system_is_whole_after_power_off(boot, image: Path) -> None:
    ext4(image)
    guest = boot(f"3,ahci-hd,{image}")
    guest.output("mount -t ext4 /dev/sda /mnt")
    guest.output("for n in 1 2 3 4 5 6 7 8 9; do dd if=/dev/urandom of=/mnt/f$n bs=64k count=16 2>/dev/null; done")
    guest.output("sync")
    before = image.stat().st_blocks
    guest.output("rm /mnt/f[1-8]; sync; fstrim /mnt")
    assert image.stat().st_blocks < before
    total = guest.output("md5sum < /mnt/f9")
    guest.output("umount /mnt; mount -o ro /dev/sda /mnt")
    assert guest.output("md5sum < /mnt/f9") == total
    guest.output("umount /mnt")
    guest.send("poweroff -f\n")
    assert guest.end() == 1
    fsck(image)


def test_what_was_synced_is_there_after_the_vmm_was_killed(boot, image: Path) -> None:
    ext4(image)
    guest = boot(f"3,ahci-hd,{image}")
    guest.output("mount -t ext4 /dev/sda /mnt; dd if=/dev/urandom of=/mnt/kept bs=4k count=300 conv=fsync 2>/dev/null")
    guest.output("sync -f /mnt/kept 2>/dev/null || sync")
    total = guest.output("md5sum < /mnt/kept")
    guest.send("dd if=/dev/zero of=/mnt/lost bs=4k\n")
    guest.kill(signal.SIGKILL)
    guest.close()
    again = boot(f"3,ahci-hd,{image}")
    again.output("mount -t ext4 /dev/sda /mnt")  # plays the journal back
    assert again.output("md5sum < /mnt/kept") == total
    again.output("umount /mnt")
    again.close()
    fsck(image)


def test_a_cd_is_mounted_and_read(boot, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "data.bin").write_bytes(content)
    iso = tmp_path / "cd.iso"
    subprocess.run(
        [tool("xorriso"), "-as", "mkisofs", "-quiet", "-R", "-o", iso, tmp_path / "tree"],
        check=True,
        capture_output=True,
    )
    guest = boot(f"4,ahci-cd,{iso}")
    guest.output("mkdir -p /cd; mount -t iso9660 -o ro /dev/sr0 /cd")
    assert guest.output("md5sum < /cd/sub/data.bin").split()[0] == hashlib.md5(content).hexdigest()
    guest.output("umount /cd")
    assert guest.run("dd if=/dev/zero of=/dev/sr0 count=1").status
    assert guest.run("dmesg | grep -iE 'ata[0-9]*.*(exception|failed|timeout)'").output == ""


def test_the_example_of_the_page(backend, generic: GuestImage, image: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text().replace("\\\n", " ")
    examples = [block.partition("```")[0] for block in page.split("```sh\n")[1:]]
    words = next(shlex.split(example) for example in examples if "ahci-hd" in example)
    assert words[0] == "bhyve"
    iso = tmp_path / "debian.iso"
    iso.write_bytes(b"disc".ljust(1 << 16, b"\0"))
    files = {"disk.img": image, "debian.iso": iso, "=vmlinuz": f"={generic.kernel}", "=initrd": f"={generic.initrd}"}
    for name, path in files.items():
        words = [word.replace(name, str(path)) for word in words]
    with Guest([sys.executable, "-m", "pyhyve.commands.bhyve", "-o", f"vmm.backend={backend}", *words[1:]]) as guest:
        assert guest.output("cat /sys/block/sda/size") == f"{SIZE // 512}\n"
        assert guest.output("head -c 4 /dev/sr0") == "disc"


def test_several_drives_on_one_controller(boot, image: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(b"second disk".ljust(1 << 20, b"\0"))
    guest = boot(f"3,ahci,hd:{image},model=First,hd:{second},sectorsize=4096")
    assert guest.output("cat /sys/block/sda/device/model").strip() == "First"
    assert guest.output("cat /sys/block/sdb/queue/logical_block_size") == "4096\n"
    assert guest.output("head -c 11 /dev/sdb") == "second disk"


def test_a_port_is_reset_and_found_again(boot, image: Path) -> None:
    guest = boot(f"3,ahci-hd,{image}")
    guest.output("dd if=/dev/urandom of=/tmp/r bs=1M count=2 2>/dev/null; dd if=/tmp/r of=/dev/sda oflag=direct bs=1M")
    guest.output("echo 1 > /sys/block/sda/device/delete; test ! -e /sys/block/sda")
    guest.output("echo '- - -' > /sys/class/scsi_host/host0/scan")
    guest.output("until [ -b /dev/sda ]; do usleep 10000; done")
    assert guest.run("head -c 2097152 /dev/sda | cmp - /tmp/r").status == 0


def test_an_image_that_was_cut_gives_errors_and_the_guest_lives(boot, image: Path) -> None:
    guest = boot(f"3,ahci-hd,{image}")
    os.truncate(image, SIZE // 2)
    assert guest.run("dd if=/dev/sda of=/dev/null bs=4k skip=12288 count=1 iflag=direct 2>/dev/null").status
    assert guest.run("dd if=/dev/zero of=/dev/sda bs=4k seek=12288 count=1 oflag=direct 2>/dev/null").status
    assert "I/O error" in guest.output("dmesg | tail -30")
    # the first half is as good as ever
    guest.output("dd if=/dev/sda of=/dev/null bs=1M count=16 iflag=direct 2>/dev/null")
    assert image.stat().st_size == SIZE // 2


def test_a_full_host_disk_gives_errors_and_the_guest_lives(boot, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("no file system of a given size without root")
    try:
        image = place / "disk.img"
        image.touch()
        os.truncate(image, SIZE)
        guest = boot(f"3,ahci-hd,{image}")
        assert guest.run("dd if=/dev/urandom of=/dev/sda bs=1M count=16 oflag=direct 2>/dev/null").status
        guest.output("dd if=/dev/sda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null")
        guest.output("blkdiscard /dev/sda")  # makes room again
        guest.output("dd if=/dev/urandom of=/dev/sda bs=1M count=4 oflag=direct conv=fsync 2>/dev/null")
        guest.close()
    finally:
        subprocess.run(["umount", "-l", place], check=False)
