"""Devices that cannot be had: one line that says which and why, status 1, no traceback, nothing left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pyhyve.commands import bhyve
from tests import kernels
from tests.conftest import find_backend

DISKS = ("virtio-blk", "ahci-hd")


@pytest.fixture
def bad(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``bhyve`` with devices; the line that it ends with."""
    find_backend("soft")
    kernel = kernels.build(kernels.POWER_OFF)

    machine = ["-m", "16M", "-s", "0,hostbridge", "-s", "31,lpc", "-l", "com1,stdio"]
    # what is opened once for all machines is open then
    bhyve.run([*machine, "-o", f"boot.kernel={kernel}", "-s", "3,virtio-blk,/nowhere", "vm0"])
    capfd.readouterr()

    def start(*options: str) -> str:
        before = descriptors()
        status = bhyve.run([*machine, "-o", f"boot.kernel={kernel}", "-o", "vmm.backend=soft", *options, "vm0"])
        assert descriptors() == before
        out, error = capfd.readouterr()
        assert (status, out) == (1, "")
        lines = error.splitlines()
        assert len(lines) == 1, error
        assert lines[0].startswith("bhyve: ")
        return str(lines[0])

    return start


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


@contextmanager
def somebody_else(runtime: Path) -> Iterator[None]:
    """Root may read everything; nobody may not."""
    root = os.geteuid() == 0
    runtime.mkdir()
    if root:
        os.chown(runtime, 65534, 65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("device", [*DISKS, "ahci-cd"])
def test_an_image_that_is_none(bad, tmp_path: Path, device: str) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "missing": "No such file or directory",
        "empty": "is empty; give it a size first: truncate -s 2G",
        "pipe": "is neither an image file nor a block device",
        ".": "is a directory",
    }.items():
        line = bad("-s", f"3,{device},{tmp_path / name}")
        assert reason in line
        assert str(tmp_path / name) in line
    assert device in bad("-s", f"3,{device}")


@pytest.mark.parametrize("device", DISKS)
def test_an_image_with_half_a_sector(bad, tmp_path: Path, device: str) -> None:
    (tmp_path / "odd").write_bytes(bytes(1000))
    assert "has 1000 bytes, no multiple of its 512-byte sectors" in bad("-s", f"3,{device},{tmp_path}/odd")
    (tmp_path / "odd").write_bytes(bytes(512))
    line = bad("-s", f"3,{device},{tmp_path}/odd,sectorsize=4096")
    assert "has 512 bytes, no multiple of its 4096-byte sectors" in line


@pytest.mark.parametrize("device", DISKS)
def test_an_image_that_may_not_be_read(bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    (tmp_path / "closed").write_bytes(bytes(4096))
    (tmp_path / "closed").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own are closed to others
        if not folder.stat().st_mode & 1:
            folder.chmod(0o755)
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path / "theirs"))
    with somebody_else(tmp_path / "theirs"):
        line = bad("-s", f"3,{device},{tmp_path}/closed")
    assert f"cannot open disk {tmp_path}/closed: Permission denied" in line


def test_an_image_that_two_devices_want(bad, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    line = bad("-s", f"3,virtio-blk,{tmp_path}/disk", "-s", f"4,ahci-hd,{tmp_path}/disk")
    assert "disk is in use by another machine or another device of this one" in line


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("virtio-block", "virtio-blk"), ("virtio9p", "virtio-9p"), ("ahci-dh", "ahci-hd"), ("virtionet", "virtio-net")],
)
def test_a_device_that_is_misspelt(bad, name: str, nearest: str) -> None:
    assert f"unknown device '{name}'; did you mean {nearest}?" in bad("-s", f"3,{name},x")


def test_a_slot_that_is_used_twice(bad) -> None:
    line = bad("-s", "3,virtio-rnd", "-s", "3,virtio-rnd")
    assert "PCI slot 0:3:0 is already occupied by virtio-rnd" in line


def test_a_port_that_is_taken(bad, taken: int) -> None:
    at = f"127.0.0.1:{taken}"
    options = {
        ("-s", f"3,uart,tcp={at}"): at,
        ("-l", f"com2,tcp={at}"): at,
        ("-G", at): at,
        ("-g", at): at,
        ("-s", f"3,virtio-net,user,hostfwd=tcp:{at}-:22"): str(taken),
    }
    for words, named in options.items():
        line = bad(*words)
        assert named in line
        assert "in use" in line


def test_a_socket_where_none_can_be(bad, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a socket")
    for words in (("-s", f"3,virtio-console,a={tmp_path}/file"), ("-s", f"3,virtio-net,socket={tmp_path}/file")):
        assert str(tmp_path / "file") in bad(*words)
    assert (tmp_path / "file").read_text() == "not a socket"


def test_a_folder_that_is_none(bad, tmp_path: Path) -> None:
    assert "cannot share /nowhere: No such file or directory" in bad("-s", "3,virtio-9p,share=/nowhere")
    (tmp_path / "file").touch()
    assert "Not a directory" in bad("-s", f"3,virtio-9p,share={tmp_path}/file")
    assert "-s slot,virtio-9p,NAME=/path/of/folder" in bad("-s", "3,virtio-9p")
    assert "unknown option 'rw'" in bad("-s", f"3,virtio-9p,share={tmp_path},rw")


def test_what_was_opened_before_the_mistake_is_closed_again(bad, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    socket_path = tmp_path / "port.sock"
    bad(
        "-s", f"3,virtio-blk,{tmp_path}/disk", "-s", f"4,virtio-console,a={socket_path}",
        "-s", f"5,virtio-net,socket={tmp_path}/wire", "-s", "6,virtio-9p,share=/nowhere",
    )  # fmt: skip
    assert os.listdir(tmp_path) == ["disk"]
