"""Building the Debian disk: a make-believe apt and mmdebstrap, and the real e2fsprogs."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyhyve.images import ImageError, build_debian_disk, ext4
from pyhyve.loader.disk.bootconfig import from_disk
from tests.images import make_believe_apt
from tests.images.kernelmodule import module
from tests.images.make_believe_apt import log, make_package

SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
pytestmark = [
    pytest.mark.skipif(shutil.which(tool, path=SEARCH) is None, reason=f"{tool} is not installed")
    for tool in ("dpkg-deb", "mke2fs", "debugfs", "e2fsck", "fakeroot")
    if tool != "fakeroot" or os.geteuid()
]

VERSION = "6.1.0-9-cloud-amd64"
KERNEL = f"linux-image-{VERSION}"
SIZE = 64 << 20
MMDEBSTRAP = """#!/bin/bash
# packs a tree that has a kernel
echo "$*" >> "$REPOSITORY/mmdebstrap"
if [ -e "$REPOSITORY/slow" ]; then
    trap 'echo stopped > "$REPOSITORY/stopped"; exit 1' TERM
    echo > "$REPOSITORY/begun"
    while :; do sleep 0.05; done
fi
if [ -e "$REPOSITORY/failing" ]; then echo "I: something"; echo "E: it went wrong"; exit 1; fi
echo "I: installing essential packages..."
echo "Setting up base-files (1) ..."
for word; do case $word in *.tar) out=$word;; esac; done
cd "$REPOSITORY/tree" && tar --xattrs '--xattrs-include=*' --owner 0 --group 0 -cf "$out" .
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The folder of the make-believe packages, with the tree that they are."""
    folder, tools = tmp_path / "repository", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    make_believe_apt.install(tools, KERNEL)
    (tools / "mmdebstrap").write_text(MMDEBSTRAP)
    (tools / "mmdebstrap").chmod(0o755)
    for name in (KERNEL, "base-files", "systemd", "fio"):
        make_package(folder, name, {"usr/share/doc/x": name})
    tree = folder / "tree"
    files = {
        f"boot/vmlinuz-{VERSION}": b"KERNEL",
        f"usr/lib/modules/{VERSION}/kernel/virtio_blk.ko": module(depends="", alias="virtio:d2"),
        f"usr/lib/modules/{VERSION}/kernel/unrelated.ko": module(depends=""),
        "usr/bin/busybox": b"#!/bin/sh\nprintf 'ash\\nls\\nfindfs\\n'\n",
        "usr/bin/ping": b"ping",
        "etc/fstab": b"# nothing\n",
    }
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    (tree / "usr/bin/busybox").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{SEARCH}")
    monkeypatch.setenv("REPOSITORY", str(folder))
    return folder


@pytest.fixture
def build(repository, tmp_path):
    def call(name="debian.img", **options):
        return build_debian_disk(tmp_path / name, None, tmp_path / "cache", size=SIZE, **options)

    return call


def on(disk, request):
    done = subprocess.run(
        ["debugfs", "-R", request, disk], capture_output=True, text=True, check=True, env={"PATH": SEARCH}
    )
    return done.stdout


def bootstraps(repository):
    path = repository / "mmdebstrap"
    return path.read_text().splitlines() if path.exists() else []


def test_the_disk_is_a_sound_file_system_with_its_settings(build):
    made = build()
    subprocess.run(["e2fsck", "-fn", made.disk], check=True, capture_output=True, env={"PATH": SEARCH})
    status = made.disk.stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 < SIZE // 2, "it is sparse"
    uuid = made.cmdline.partition("root=UUID=")[2].split()[0]
    assert f"UUID={uuid} / ext4" in on(made.disk, "cat /etc/fstab")
    assert f"UUID={uuid}" in on(made.disk, "cat /boot/extlinux/extlinux.conf").replace("root=", "")
    assert uuid in on(made.disk, "stats -h")
    assert "DHCP=yes" in on(made.disk, "cat /etc/systemd/network/80-dhcp.network")
    assert "User:     0   Group:     0" in on(made.disk, "stat /usr/bin/ping")


def test_a_loader_finds_the_kernel_on_it(build):
    made = build()
    assert made.kernel.read_bytes() == b"KERNEL"
    with from_disk(str(made.disk), 1 << 30) as boot:
        assert boot.kernel.read_bytes() == b"KERNEL"
        assert boot.initrd is not None
        assert boot.initrd.read_bytes() == made.initrd.read_bytes()
        assert boot.cmdline == made.cmdline
    assert b"kernel/virtio_blk.ko" in made.initrd.read_bytes()
    assert b"kernel/unrelated.ko" not in made.initrd.read_bytes()


def test_capabilities_of_files_are_kept(build, repository):
    ping = repository / "tree/usr/bin/ping"
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
    try:
        os.setxattr(ping, "security.capability", capability)
    except OSError:
        pytest.skip("this user may not set capabilities")
    assert "01 00 00 02 00 20" in on(build().disk, "ea_list /usr/bin/ping")


def test_another_disk_comes_from_the_cache(build, repository):
    first = build("a.img")
    asked = len(log(repository))
    second = build("b.img")
    assert second.disk.read_bytes() == first.disk.read_bytes()
    assert len(bootstraps(repository)) == 1
    assert len(log(repository)) == asked


def test_more_packages_are_another_image(build, repository):
    build()
    made = build(include=["fio"])
    assert made.disk.stat().st_size == SIZE
    first, second = bootstraps(repository)
    assert ",fio" not in first
    assert ",fio" in second
    build()
    assert len(bootstraps(repository)) == 2


def test_a_refresh_asks_apt_and_builds_anew(build, repository):
    build()
    build(refresh=True)
    assert log(repository).count("update") == 2
    assert len(bootstraps(repository)) == 2


@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_a_damaged_cache_is_built_anew(build, repository, tmp_path, damage):
    build()
    (facts,) = (tmp_path / "cache/debian-disk").glob("*/image.json")
    if damage == "truncate":
        os.truncate(facts.parent / "disk.img", 10)
    elif damage == "remove":
        (facts.parent / "initrd").unlink()
    else:
        facts.write_text("[]")
    assert build().disk.stat().st_size == SIZE
    assert len(bootstraps(repository)) == 2


def test_an_interrupted_build_leaves_nothing_half_written(build, repository, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    (tmp_path / "debian.img").write_bytes(b"an older one")
    monkeypatch.setattr(ext4, "make", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert (tmp_path / "debian.img").read_bytes() == b"an older one"
    assert sorted(path.name for path in (tmp_path / "cache/debian-disk").iterdir()) == ["apt", "lock"]


def test_a_copy_that_fails_leaves_the_older_disk(build, tmp_path, monkeypatch):
    build()
    before = (tmp_path / "debian.img").read_bytes()

    def fail(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ext4, "copy_sparse", fail)
    with pytest.raises(ImageError, match="No space left"):
        build()
    assert (tmp_path / "debian.img").read_bytes() == before
    assert not list(tmp_path.glob(".*.new"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_mmdebstrap_and_the_command(repository, tmp_path, number):
    (repository / "slow").touch()
    os.mkfifo(repository / "begun")
    command = [sys.executable, "-m", "pyhyve.commands.pyhyve", "image", "debian-disk", str(tmp_path / "debian.img")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    (repository / "begun").read_text()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert (repository / "stopped").exists(), "it was asked to end, not killed: it has a folder to take away"
    assert not (tmp_path / "debian.img").exists()
    assert sorted(p.name for p in (tmp_path / "cache/pyhyve/debian-disk").iterdir()) == ["apt", "lock"]


def failure(build, **options):
    with pytest.raises(ImageError) as error:
        build(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_failures_are_told_in_one_line(build, repository, tmp_path, monkeypatch):
    assert "Unable to locate package nonsense" in failure(build, include=["nonsense"])
    assert "'-x' is no name of a package" in failure(build, include=["-x"])
    assert "call the disk" in failure(build, name="debian.initrd")
    assert "is a folder" in failure(build, name=".")
    assert "there is no folder" in failure(build, name="nowhere/debian.img")
    (repository / "failing").touch()
    assert failure(build).endswith("could not install the packages: it went wrong")
    (repository / "failing").unlink()
    (repository / "tree/usr/big").write_bytes(os.urandom(SIZE))
    assert "larger --size" in failure(build)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("pyhyve.images.bootstrap.search_path", lambda: "/nowhere")
    assert "needs mmdebstrap" in failure(build)


@pytest.mark.parametrize("number", [None, errno.EXDEV, errno.ENOSYS])
def test_a_copy_has_the_holes_of_the_original(tmp_path, monkeypatch, number):
    """Also between two file systems, where the kernel does not copy."""
    if number is not None:
        monkeypatch.setattr(ext4.os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(number, "no")))
        monkeypatch.setattr(ext4.fcntl, "ioctl", lambda *_: (_ for _ in ()).throw(OSError(number, "no")))
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.truncate(32 << 20)
        for at in (0, 5 << 20, (32 << 20) - 4096):
            file.seek(at)
            file.write(b"data" * 1024)
    target.write_bytes(b"x" * 100)
    ext4.copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 16


def test_the_folder_of_packages_does_not_grow_with_every_release(build, repository, tmp_path):
    build()
    (old,) = repository.glob("systemd_*")
    old.rename(repository / "systemd_1%3a3.0_amd64.deb")
    build(refresh=True)
    kept = sorted(Path(p).name for p in (tmp_path / "cache/debian-disk/apt/debs").glob("systemd*"))
    assert kept == ["systemd_1%3a3.0_amd64.deb"]
