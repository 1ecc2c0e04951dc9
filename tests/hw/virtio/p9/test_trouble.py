"""What goes wrong on the host is an errno in the answer."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hw.virtio.p9 import client as p9
from tests.hw.virtio.p9.client import ROOT, Client, pack
from tests.hw.virtio.p9.test_requests import refused


@pytest.fixture
def limit(client: Client) -> Iterator[None]:
    """No file may become longer than a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("limit")
def test_a_file_that_may_not_grow(client: Client, folder: Path) -> None:
    fid = client.create("long")
    assert client.write(fid, bytes(4096), (1 << 20) - 1000) == 1000
    refused(errno.EFBIG, client.write, fid, b"x", 1 << 20)
    refused(errno.EFBIG, client.setattr, fid, 0x8, size=2 << 20)
    assert (folder / "long").stat().st_size == 1 << 20
    assert client.write(fid, b"x", 0) == 1


def test_a_full_host_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    options = ["-o", "size=64k,nr_inodes=10"]
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], check=False).returncode:
        pytest.skip("no file system of a given size without root")
    client = Client(place)
    try:
        fid = client.create("file")
        assert sum(client.write(fid, bytes(8192), 8192 * part) for part in range(8)) == 64 << 10
        refused(errno.ENOSPC, client.write, fid, b"x", 64 << 10)
        assert client.read(fid, 0, 10) == bytes(10)
        for number in range(8):
            client.call(p9.SYMLINK, pack("dssd", ROOT, f"link{number}", "x", 0))
        refused(errno.ENOSPC, client.call, p9.SYMLINK, pack("dssd", ROOT, "link", "x", 0))
        client.setattr(fid, 0x8, size=0)
        assert client.write(fid, b"room again") == 10
    finally:
        client.close()
        subprocess.run(["umount", "-l", place], check=False)


def test_an_ordinary_user_shares_as_himself(connect, folder: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    for path in (folder, *folder.parents):  # pytest's own are closed to others
        if not path.stat().st_mode & 1:
            path.chmod(0o755)
    os.chown(folder, 65534, 65534)
    (folder / "secret").write_text("root's")
    (folder / "secret").chmod(0o600)
    os.seteuid(65534)
    try:
        client = connect(uid=1000)
        # threads of the pool take over the user that made them
        assert client.read(client.open("hello")) == b"hello, guest\n"
        refused(errno.EACCES, client.open, "secret")
        refused(errno.EACCES, client.open, "hello", flags=os.O_RDWR)
        fid = client.create("mine", gid=1000)
        assert client.write(fid, b"data") == 4
        refused(errno.EPERM, client.setattr, fid, 0x2, uid=1000)
        refused(errno.EPERM, client.setattr, client.walk("hello"), 0x1, mode=0o777)
        client.setattr(fid, 0x1, mode=0o600)
        assert (client.getattr(fid)["uid"], client.getattr(fid)["mode"] & 0o777) == (65534, 0o600)
    finally:
        os.seteuid(0)
