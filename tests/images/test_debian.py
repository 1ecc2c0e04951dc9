"""Building the Debian guest with a make-believe apt, which serves packages from a folder, and a real dpkg-deb."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from pyhyve.images import ImageError, build_debian, default_cache_dir, initramfs
from pyhyve.images import debian as debian_module
from tests.images import make_believe_apt
from tests.images.kernelmodule import module
from tests.images.make_believe_apt import log, make_package
from tests.images.test_cpio import read

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")

VERSION = "6.1.0-9-cloud-amd64"
KERNEL = f"linux-image-{VERSION}"

BUSYBOX = "#!/bin/sh\n[ \"$1\" = --list ] && printf 'ash\\nls\\nbusybox\\n'\n"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The folder that the make-believe apt serves; its commands are first in PATH."""
    folder = tmp_path / "repository"
    tools = tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    make_believe_apt.install(tools, KERNEL)
    make_package(
        folder,
        KERNEL,
        {
            f"boot/vmlinuz-{VERSION}": b"KERNEL",
            f"lib/modules/{VERSION}/kernel/virtio_blk.ko": module(depends="virtio", alias="virtio:d2"),
            f"lib/modules/{VERSION}/kernel/virtio.ko": module(depends=""),
            f"lib/modules/{VERSION}/kernel/unrelated.ko": module(depends=""),
        },
    )
    make_package(folder, "busybox-static", {"bin/busybox": BUSYBOX})
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("REPOSITORY", str(folder))
    return folder


def test_image_has_the_kernel_of_the_package_and_an_initramfs(repository, tmp_path):
    steps = []
    guest = build_debian(lambda message, fraction: steps.append(message), tmp_path / "cache")
    assert guest.version == VERSION
    assert guest.kernel.read_bytes() == b"KERNEL"
    entries = {name: data for name, _, data in read(guest.initrd.read_bytes())}
    assert entries["bin/busybox"] == BUSYBOX.encode()
    assert entries["bin/ls"] == b"busybox"
    folder = f"lib/modules/{VERSION}/kernel"
    assert f"{folder}/virtio_blk.ko" in entries
    assert f"{folder}/virtio.ko" in entries, "a dependency"
    assert f"{folder}/unrelated.ko" not in entries
    assert steps[0] == "fetching package lists"
    assert "building the initramfs" in steps


def test_second_call_takes_what_is_in_the_cache(repository, tmp_path):
    first = build_debian(None, tmp_path / "cache")
    (repository / "log").unlink()
    assert build_debian(None, tmp_path / "cache") == first
    assert log(repository) == []


def test_packages_are_fetched_once_and_lists_once_a_day(repository, tmp_path):
    build_debian(None, tmp_path / "cache")
    (tmp_path / "cache/debian/current.json").unlink()
    build_debian(None, tmp_path / "cache")
    assert log(repository).count("download") == 1
    assert log(repository).count("update") == 1


def test_refresh_asks_apt_again(repository, tmp_path):
    build_debian(None, tmp_path / "cache")
    build_debian(None, tmp_path / "cache", refresh=True)
    assert log(repository).count("update") == 2


def test_image_of_an_older_recipe_is_built_anew(repository, tmp_path, monkeypatch):
    first = build_debian(None, tmp_path / "cache")
    monkeypatch.setitem(initramfs.FILES, "etc/motd", ("hello\n", 0o644))
    second = build_debian(None, tmp_path / "cache")
    assert second.initrd != first.initrd
    assert not first.initrd.exists(), "the superseded image is removed"


@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_damaged_cache_is_built_anew(repository, tmp_path, damage):
    guest = build_debian(None, tmp_path / "cache")
    if damage == "truncate":
        os.truncate(guest.initrd, 10)
    elif damage == "remove":
        guest.kernel.unlink()
    else:
        (tmp_path / "cache/debian/current.json").write_text("[]")
    again = build_debian(None, tmp_path / "cache")
    assert again.kernel.read_bytes() == b"KERNEL"
    assert again.initrd.stat().st_size > 512


def test_damaged_download_is_fetched_again(repository, tmp_path):
    build_debian(None, tmp_path / "cache")
    (tmp_path / "cache/debian/current.json").unlink()
    for package in (tmp_path / "cache/debian/apt/debs").iterdir():
        data = package.read_bytes()
        package.write_bytes(b"x" * len(data))
    assert build_debian(None, tmp_path / "cache").kernel.read_bytes() == b"KERNEL"


def test_interrupted_build_leaves_no_image_and_goes_on_later(repository, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(debian_module.initramfs, "write_initramfs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_debian(None, tmp_path / "cache")
    folder = tmp_path / "cache/debian"
    assert sorted(path.name for path in folder.iterdir()) == ["apt", "lock"]
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    monkeypatch.setenv("REPOSITORY", str(repository))
    assert build_debian(None, tmp_path / "cache").version == VERSION
    assert log(repository).count("download") == 1


def test_leavings_of_a_killed_build_are_removed(repository, tmp_path):
    folder = tmp_path / "cache/debian"
    (folder / "unpack-dead/deep").mkdir(parents=True)
    (folder / "image-dead").mkdir()
    build_debian(None, tmp_path / "cache")
    assert not list(folder.glob("*-dead"))


def test_two_builds_at_once_make_one_image(repository, tmp_path):
    guests = []
    threads = [threading.Thread(target=lambda: guests.append(build_debian(None, tmp_path / "cache"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guests[0] == guests[1]
    assert log(repository).count("download") == 1


def test_host_configuration_is_left_out_but_for_acquire(repository, tmp_path):
    build_debian(None, tmp_path / "cache")
    text = (tmp_path / "cache/debian/apt/apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy.example/";' in text
    assert "IndexTargets" not in text
    assert 'Dir::Etc::Parts "/dev/null";' in text


def failure(tmp_path):
    with pytest.raises(ImageError) as error:
        build_debian(None, tmp_path / "cache")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_host_without_apt_is_told_what_to_pass_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    text = failure(tmp_path)
    assert "apt-get" in text
    assert "--kernel FILE --initrd FILE" in text


def test_host_without_network_is_told_so(repository, tmp_path):
    (repository / "offline").touch()
    assert "could not fetch Debian's package lists" in failure(tmp_path)


def test_distribution_without_the_package_is_told_what_to_pass_instead(repository, tmp_path):
    (repository / "unknown").touch()
    text = failure(tmp_path)
    assert "no package linux-image-cloud-amd64" in text
    assert "--kernel" in text


def test_failing_download_gives_apts_own_reason(repository, tmp_path):
    (repository / "broken").touch()
    assert failure(tmp_path).endswith("Failed to fetch it")


def test_package_that_cannot_be_unpacked_is_removed(repository, tmp_path):
    (repository / "busybox-static_1%3a2.0_amd64.deb").write_bytes(b"no package")
    assert "cannot unpack busybox-static" in failure(tmp_path)
    assert not list((tmp_path / "cache/debian/apt/debs").glob("busybox*"))


def test_cache_that_cannot_be_written_is_told(repository, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "cannot build the Debian guest in" in failure(tmp_path)


def test_cache_is_where_xdg_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/pyhyve")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path.home() / ".cache/pyhyve"
