"""Whatever a guest asks for, and whatever the host does to the folder meanwhile, nothing outside of it is reached."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyhyve.hw.virtio.p9.files import Node, OpenFile, Share
from tests.hw.virtio.p9 import client as p9
from tests.hw.virtio.p9.client import ROOT, Client, Refused, pack, unpack
from tests.hw.virtio.p9.test_requests import refused

NOT_NAMES = [b"", b".", b"..", b"/", b"/etc", b"sub/file", b"../secret", b"hello\0", b"\0", b"sub/", b"./hello"]
BY_NAME: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "lcreate": (p9.LCREATE, lambda name: pack("dsddd", ROOT, name, os.O_RDWR, 0o644, 0)),
    "mkdir": (p9.MKDIR, lambda name: pack("dsdd", ROOT, name, 0o755, 0)),
    "mknod": (p9.MKNOD, lambda name: pack("dsdddd", ROOT, name, stat.S_IFIFO, 0, 0, 0)),
    "symlink": (p9.SYMLINK, lambda name: pack("dssd", ROOT, name, "x", 0)),
    "link": (p9.LINK, lambda name: pack("dds", ROOT, ROOT + 1, name)),
    "rename": (p9.RENAME, lambda name: pack("dds", ROOT + 1, ROOT, name)),
    "renameat to": (p9.RENAMEAT, lambda name: pack("dsds", ROOT, "hello", ROOT, name)),
    "renameat from": (p9.RENAMEAT, lambda name: pack("dsds", ROOT, name, ROOT, "x")),
    "unlinkat": (p9.UNLINKAT, lambda name: pack("dsd", ROOT, name, 0)),
    "unlinkat a folder": (p9.UNLINKAT, lambda name: pack("dsd", ROOT, name, 0x200)),
}


@pytest.mark.parametrize("request_", BY_NAME)
@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name_is_refused_everywhere(client: Client, folder: Path, request_: str, name: bytes) -> None:
    client.walk("hello")
    kind, body = BY_NAME[request_]
    refused(errno.EINVAL, client.call, kind, body(name))
    assert sorted(os.listdir(folder)) == ["hello", "sub"]
    assert sorted(os.listdir(folder.parent)) == ["secret", "share"]


@pytest.mark.parametrize("name", [name for name in NOT_NAMES if name != b".."])
def test_a_walk_takes_names_only(client: Client, name: bytes) -> None:
    refused(errno.EINVAL, client.qids, name, new=80)
    assert len(client.qids("sub", name, new=80)) == 1


def test_a_name_that_is_too_long_is_refused(client: Client) -> None:
    refused(errno.ENAMETOOLONG, client.qids, b"x" * 256, new=80)
    refused(errno.ENAMETOOLONG, client.create, b"x" * 5000)
    refused(errno.EINVAL, client.call, p9.SYMLINK, pack("dssd", ROOT, "link", b"x" * 5000, 0))
    client.create(b"x" * 255)


def test_the_way_up_ends_at_the_shared_folder(client: Client, folder: Path) -> None:
    top = client.getattr(ROOT)["path"]
    fid = client.walk(*[".."] * 16)
    assert client.getattr(fid)["path"] == top
    fid = client.walk("sub", "deep", "..", "..", "..", "..", "hello")
    assert client.read(client.open(start=fid)) == b"hello, guest\n"
    refused(errno.ENOENT, client.walk, "..", "secret")
    # the list of the folder does not tell what lies above it either
    assert client.names(client.open())[b".."][0].path == top


def test_a_folder_that_was_moved_leads_up_inside_only(client: Client, folder: Path) -> None:
    deep = client.walk("sub", "deep")
    os.rename(folder / "sub" / "deep", folder.parent / "outside")
    refused(errno.ENOENT, client.walk, "..", "secret", start=deep)
    assert client.getattr(client.walk("..", start=deep))["path"] == (folder / "sub").stat().st_ino
    assert client.getattr(client.walk("..", "..", "..", start=deep))["path"] == folder.stat().st_ino


@pytest.mark.parametrize("target", ["/etc/passwd", "/", "../secret", "..", "sub", "hello"])
def test_links_are_not_followed(client: Client, folder: Path, target: str) -> None:
    os.symlink(target, folder / "link")
    link = client.walk("link")
    assert stat.S_ISLNK(client.getattr(link)["mode"])
    assert unpack("s", client.call(p9.READLINK, pack("d", link))) == [os.fsencode(target)]
    refused(errno.ELOOP, client.call, p9.LOPEN, pack("dd", link, os.O_RDONLY))
    refused(errno.ENOTDIR, client.qids, "passwd", start=link, new=80)
    assert len(client.qids("link", "passwd", new=80)) == 1
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
        refused(errno.EEXIST, client.create, "link", flags)
    refused(errno.ENOTDIR, client.create, "x", folder=link)


def test_changes_to_a_link_are_to_the_link(client: Client, folder: Path) -> None:
    secret = folder.parent / "secret"
    os.symlink("../secret", folder / "link")
    before = secret.stat()
    link = client.walk("link")
    for valid in (0x1, 0x8):
        with pytest.raises(Refused):
            client.setattr(link, valid, mode=0o777, size=1)
    client.setattr(link, 0x10 | 0x80 | 0x20 | 0x100, atime=1, mtime=2)
    assert (folder / "link").lstat().st_mtime == 2
    client.call(p9.LINK, pack("dds", ROOT, link, "second"))
    assert os.readlink(folder / "second") == "../secret"
    client.call(p9.XATTRWALK, pack("dds", link, 90, ""))
    with pytest.raises(Refused):
        client.call(p9.XATTRWALK, pack("dds", link, 91, "user.x"))
    client.call(p9.REMOVE, pack("d", link))
    now = secret.stat()
    assert (now.st_mode, now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (
        (before.st_mode, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    )


def test_fifos_sockets_and_devices_are_seen_and_not_opened(client: Client, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "sock", stat.S_IFSOCK | 0o600)
    special = ["pipe", "sock"]
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert client.getattr(client.walk("null"))["rdev"] == os.makedev(1, 3)
        special.append("null")
    for name in special:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            refused(errno.ENXIO, client.open, name, flags=flags)
            refused(errno.EEXIST, client.create, name, flags)
        refused(errno.EINVAL, client.setattr, client.walk(name), 0x8, size=1)
        client.setattr(client.walk(name), 0x1, mode=0o600)


@contextmanager
def swapping(*states: Callable[[], None]) -> Iterator[None]:
    """The host goes through ``states`` again and again meanwhile."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for state in states:
                state()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_link_that_is_swapped_in_during_the_walk_leads_nowhere(client: Client, folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    (folder / "a").mkdir()
    (folder / "a" / "file").write_bytes(b"inside")
    os.symlink("../outside", folder / "b")

    def swap() -> None:
        os.rename(folder / "a", folder / "t")
        os.rename(folder / "b", folder / "a")
        os.rename(folder / "t", folder / "b")

    outcomes = set()
    with swapping(swap):
        for _ in range(300):
            try:
                fid = client.open("a", "file", flags=os.O_RDWR)
            except Refused as error:
                outcomes.add(error.errno)
                continue
            outcomes.add(client.read(fid))
            client.clunk(fid)
            try:
                made = client.walk("a")
                client.call(p9.LCREATE, pack("dsddd", made, "made", os.O_RDWR, 0o644, 0))
                client.clunk(made)
            except Refused as error:
                outcomes.add(error.errno)
    assert b"inside" in outcomes
    assert outcomes <= {b"inside", errno.ENOENT, errno.ENOTDIR}
    assert sorted(os.listdir(outside)) == ["file"]
    assert (outside / "file").read_bytes() == b"secret"


def test_a_file_that_takes_a_new_folders_place_gets_no_rights_from_it(client: Client, folder: Path) -> None:
    share = client.device.server.share
    walk = share.walk

    def swap(parent, name):  # type: ignore[no-untyped-def]
        (folder / "new").rmdir()
        (folder / "hello").rename(folder / "new")
        return walk(parent, name)

    share.walk = swap
    client.call(p9.MKDIR, pack("dsdd", ROOT, "new", 0o6777, 0))
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o777
    assert (folder / "new").read_bytes() == b"hello, guest\n"


def test_a_link_or_fifo_that_is_swapped_in_during_a_create_is_not_opened(client: Client, folder: Path) -> None:
    name = folder / "new"

    def swap() -> None:
        for make in (lambda: os.symlink("../secret", name), lambda: os.mkfifo(name), lambda: name.touch()):
            name.unlink(missing_ok=True)
            try:
                make()
            except FileExistsError:  # the guest was quicker
                pass

    opened = 0
    with swapping(swap):
        for _ in range(300):
            try:
                fid = client.create("new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            except Refused as error:
                assert error.errno in (errno.EEXIST, errno.ENOENT)
                continue
            opened += 1
            client.write(fid, b"from the guest")
            client.clunk(fid)
    assert opened
    assert (folder.parent / "secret").read_bytes() == b"secret"


def test_a_folder_that_a_rename_lets_go_of_is_not_used_again(folder: Path) -> None:
    """One request asks for ``..`` of a file while another one moves that file away: whose number the descriptor is by
    then is somebody else's."""
    (folder / "a" / "n").mkdir(parents=True)
    (folder / "b").mkdir()
    share = Share(str(folder), read_only=False)
    root = share.take_pinned(share.root)
    a, b = share.walk(root, b"a"), share.walk(root, b"b")
    moved, climber = share.walk(a, b"n"), share.walk(a, b"n")
    share.drop(a)
    pin = share.pin

    def pin_later(node: Node, file: OpenFile | None = None) -> Node:
        share.pin = pin  # type: ignore[method-assign]
        with share.place_of(moved) as (source, name), share.keeping((source, name), (b, b"n")):
            os.rename(name, b"n", src_dir_fd=source.fd, dst_dir_fd=b.fd)
            share.renamed(source, name, b, b"n")
        return pin(node, file)

    share.pin = pin_later  # type: ignore[method-assign]
    above = share.walk(climber, b"..")
    assert above is a
    assert os.readlink(f"/proc/self/fd/{above.fd}") == str(folder / "a")
    number = above.fd
    share.drop(above)
    assert above.fd < 0, "nobody uses it any more"
    assert not os.path.exists(f"/proc/self/fd/{number}")
