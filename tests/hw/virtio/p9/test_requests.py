"""Every request of 9P2000.L, against what the host then has in the folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hw.virtio.driver import KINDS, Kind
from tests.hw.virtio.p9 import client as p9
from tests.hw.virtio.p9.client import ROOT, Client, Refused, pack, unpack


def refused(number: int, function: Callable[..., object], *args: object, **more: object) -> None:
    with pytest.raises(Refused) as caught:
        function(*args, **more)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_file_is_read_and_written_whichever_way_the_ring_is_driven(connect, folder: Path, kind: Kind) -> None:
    client = connect(kind)
    assert client.read(client.open("hello")) == b"hello, guest\n"
    fid = client.create("new")
    data = os.urandom(9000)
    assert client.write(fid, data, 100, parts=3) == 9000
    assert (folder / "new").read_bytes() == bytes(100) + data
    assert client.read(fid, 50, 9000, parts=2) == bytes(50) + data[:8950]


def test_the_version_is_agreed_on_first(connect) -> None:
    client = connect(attach=False)
    refused(errno.EPROTO, client.call, p9.ATTACH, pack("ddssd", 1, p9.NO_FID, b"", b"", 0))
    assert unpack("ds", client.call(p9.VERSION, pack("ds", 8192, b"9P2000.u"))) == [8192, b"unknown"]
    refused(errno.EINVAL, client.call, p9.VERSION, pack("ds", 100, b"9P2000.L"))
    assert unpack("ds", client.call(p9.VERSION, pack("ds", 1 << 30, b"9P2000.L"))) == [512 << 10, b"9P2000.L"]


def test_a_new_version_forgets_all_fids(client: Client) -> None:
    fid = client.open("hello")
    client.start()
    refused(errno.EBADF, client.read, fid)
    assert client.read(client.open("hello"))


def test_nobody_has_to_authenticate(client: Client) -> None:
    refused(errno.EOPNOTSUPP, client.call, p9.AUTH, pack("dssd", 9, b"root", b"", 0))
    refused(errno.EINVAL, client.call, p9.ATTACH, pack("ddssd", 9, 5, b"root", b"", 0))


def test_a_walk_tells_how_far_it_comes(client: Client) -> None:
    assert [qid.type for qid in client.qids("sub", "deep", new=50)] == [0x80, 0x80]
    assert len(client.qids("sub", "none", "deep", new=51)) == 1
    refused(errno.EBADF, client.getattr, 51)
    refused(errno.ENOENT, client.qids, "none", new=51)
    refused(errno.ENOTDIR, client.qids, "x", start=client.walk("hello"), new=51)
    refused(errno.EBADF, client.qids, new=50)  # taken
    assert client.walk("file", start=client.walk("sub", new=60), new=60) == 60
    assert client.getattr(60)["size"] == 20


def test_a_fid_is_what_it_is_until_it_is_clunked(client: Client, folder: Path) -> None:
    fid = client.open("hello")
    (folder / "hello").unlink()
    assert client.read(fid) == b"hello, guest\n"
    client.clunk(fid)
    refused(errno.EBADF, client.read, fid)
    refused(errno.EBADF, client.clunk, fid)


def test_attributes_are_those_of_stat(client: Client, folder: Path) -> None:
    os.utime(folder / "hello", ns=(1_000_000_007, -1_500_000_000))
    got, status = client.getattr(client.walk("hello")), (folder / "hello").stat()
    assert got["valid"] == 0x7FF
    for name in ("mode", "uid", "gid", "nlink", "size", "blksize", "blocks"):
        assert got[name] == getattr(status, f"st_{name}")
    assert (got["atime"], got["atime_ns"], got["path"]) == (1, 7, status.st_ino)
    assert (got["mtime"], got["mtime_ns"]) == (2**64 - 2, 500_000_000)


def test_setattr_changes_only_what_it_names(client: Client, folder: Path) -> None:
    fid, path = client.walk("hello"), folder / "hello"
    before = path.stat()
    client.setattr(fid, 0x1, mode=0o100600, size=3, uid=5)
    assert (path.stat().st_mode, path.stat().st_size, path.stat().st_uid) == (0o100600, 13, before.st_uid)
    client.setattr(fid, 0x8, size=5)
    assert path.read_bytes() == b"hello"
    before = path.stat()
    client.setattr(fid, 0x20 | 0x100, mtime=1234, mtime_ns=5)
    assert path.stat().st_mtime_ns == 1234_000_000_005
    assert path.stat().st_atime_ns == before.st_atime_ns
    client.setattr(fid, 0x20)  # without a value: now
    assert path.stat().st_mtime_ns >= before.st_mtime_ns
    refused(errno.EISDIR, client.setattr, ROOT, 0x8, size=5)
    refused(errno.EFBIG, client.setattr, fid, 0x8, size=1 << 63)


def test_a_size_is_set_through_an_open_file_whatever_its_mode(client: Client, folder: Path) -> None:
    fid = client.create("locked", mode=0o000)
    client.write(fid, b"0123456789")
    client.setattr(fid, 0x8, size=4)
    assert (folder / "locked").stat().st_size == 4


def test_a_mode_is_not_cut_by_the_umask_of_the_host(client: Client, folder: Path) -> None:
    client.create("open", mode=0o666)
    client.call(p9.MKDIR, pack("dsdd", ROOT, "wide", 0o777, 0))
    assert stat.S_IMODE((folder / "open").stat().st_mode) == 0o666
    assert stat.S_IMODE((folder / "wide").stat().st_mode) == 0o777


def test_an_existing_file_is_opened_by_lcreate_unless_it_has_to_be_new(client: Client, folder: Path) -> None:
    assert client.read(client.create("hello", os.O_RDWR | os.O_CREAT)) == b"hello, guest\n"
    refused(errno.EEXIST, client.create, "hello", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    refused(errno.EISDIR, client.create, "sub")
    client.create("hello", os.O_RDWR | os.O_TRUNC)
    assert (folder / "hello").read_bytes() == b""


def test_open_flags_are_those_of_the_host(client: Client, folder: Path) -> None:
    refused(errno.EBADF, client.write, client.open("hello"), b"x")
    refused(errno.EISDIR, client.open, "sub", flags=os.O_RDWR)
    refused(errno.ENOTDIR, client.open, "hello", flags=os.O_DIRECTORY)
    fid = client.open("hello", flags=os.O_WRONLY | os.O_APPEND)
    client.write(fid, b"more", 0)
    assert (folder / "hello").read_bytes() == b"hello, guest\nmore"
    refused(errno.EBADF, client.call, p9.LOPEN, pack("dd", fid, 0))  # open already
    client.call(p9.FSYNC, pack("dd", fid, 0))
    client.call(p9.FSYNC, pack("dd", fid, 1))
    refused(errno.EBADF, client.call, p9.FSYNC, pack("dd", client.walk("hello"), 0))


def test_a_folder_is_listed_in_as_many_parts_as_it_takes(client: Client, folder: Path) -> None:
    for number in range(300):
        (folder / "sub" / f"name-{number:03}").touch()
    os.symlink("x", folder / "sub" / "link")
    expected = {os.fsencode(name) for name in os.listdir(folder / "sub")} | {b".", b".."}
    for count in (8192, 300, 65536):
        found = client.names(client.open("sub"), count)
        assert set(found) == expected
    assert (found[b"link"][1], found[b"deep"][1], found[b"file"][1]) == (10, 4, 8)
    assert found[b"file"][0].path == (folder / "sub" / "file").stat().st_ino
    fid = client.open("sub")
    assert client.names(fid) == client.names(fid)  # from the start again
    refused(errno.EINVAL, client.names, fid, 20)  # not even one name fits
    refused(errno.ENOTDIR, client.names, client.open("hello"))
    refused(errno.EBADF, client.names, ROOT)


def test_folders_links_and_files_are_made_and_taken_away(client: Client, folder: Path) -> None:
    client.call(p9.MKDIR, pack("dsdd", ROOT, "made", 0o750, 0))
    assert stat.S_IMODE((folder / "made").stat().st_mode) == 0o750
    client.call(p9.SYMLINK, pack("dssd", ROOT, "link", "/nowhere/at all", 0))
    assert os.readlink(folder / "link") == "/nowhere/at all"
    assert unpack("s", client.call(p9.READLINK, pack("d", client.walk("link")))) == [b"/nowhere/at all"]
    refused(errno.EINVAL, client.call, p9.READLINK, pack("d", client.walk("hello")))
    client.call(p9.LINK, pack("dds", client.walk("made"), client.walk("hello"), "second"))
    assert (folder / "hello").stat().st_nlink == 2
    assert (folder / "made" / "second").samefile(folder / "hello")
    refused(errno.EISDIR, client.call, p9.UNLINKAT, pack("dsd", ROOT, "made", 0))
    refused(errno.ENOTEMPTY, client.call, p9.UNLINKAT, pack("dsd", ROOT, "made", 0x200))
    client.call(p9.UNLINKAT, pack("dsd", client.walk("made"), "second", 0))
    client.call(p9.UNLINKAT, pack("dsd", ROOT, "made", 0x200))
    fid = client.walk("link")
    client.call(p9.REMOVE, pack("d", fid))
    refused(errno.EBADF, client.clunk, fid)  # gone with it
    assert sorted(os.listdir(folder)) == ["hello", "sub"]


def test_fifos_and_sockets_are_made_and_devices_are_not(client: Client, folder: Path) -> None:
    client.call(p9.MKNOD, pack("dsdddd", ROOT, "pipe", stat.S_IFIFO | 0o622, 0, 0, 0))
    client.call(p9.MKNOD, pack("dsdddd", ROOT, "sock", stat.S_IFSOCK | 0o600, 0, 0, 0))
    client.call(p9.MKNOD, pack("dsdddd", ROOT, "plain", 0o644, 0, 0, 0))
    modes = [(folder / name).stat().st_mode for name in ("pipe", "sock", "plain")]
    assert modes == [stat.S_IFIFO | 0o622, stat.S_IFSOCK | 0o600, stat.S_IFREG | 0o644]
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        refused(errno.EPERM, client.call, p9.MKNOD, pack("dsdddd", ROOT, "device", kind | 0o666, 1, 3, 0))


def test_no_program_of_the_guests_runs_as_somebody_else_on_the_host(client: Client, folder: Path) -> None:
    refused(errno.EPERM, client.create, "suid", mode=0o4755)
    fid = client.walk("hello")
    refused(errno.EPERM, client.setattr, fid, 1, mode=0o104755)
    refused(errno.EPERM, client.setattr, fid, 1, mode=0o102755)
    os.chmod(folder / "hello", 0o4755)
    client.setattr(fid, 1, mode=0o104711)  # it was one
    client.setattr(fid, 1, mode=0o711)
    os.chmod(folder / "hello", 0o6755)
    client.open("hello")
    assert stat.S_IMODE((folder / "hello").stat().st_mode) == 0o6755
    client.open("hello", flags=os.O_WRONLY)  # it may be another program by now
    assert stat.S_IMODE((folder / "hello").stat().st_mode) == 0o755
    os.chmod(folder / "hello", 0o4755)
    client.create("hello", os.O_RDWR)
    assert stat.S_IMODE((folder / "hello").stat().st_mode) == 0o755
    client.call(p9.MKDIR, pack("dsdd", ROOT, "group", 0o2775, 0))  # of a folder it means something else
    assert stat.S_IMODE((folder / "group").stat().st_mode) == 0o2775


def test_a_rename_is_seen_by_all_fids_of_the_file(client: Client, folder: Path) -> None:
    first, second = client.walk("hello"), client.walk("hello")
    client.call(p9.RENAMEAT, pack("dsds", ROOT, "hello", client.walk("sub"), "moved"))
    assert not (folder / "hello").exists()
    client.call(p9.RENAME, pack("dds", first, ROOT, "back"))
    assert (folder / "back").read_bytes() == b"hello, guest\n"
    client.call(p9.REMOVE, pack("d", second))
    assert sorted(os.listdir(folder)) == ["sub"]


def test_a_fid_does_not_remove_what_took_its_name(client: Client, folder: Path) -> None:
    fid = client.walk("hello")
    os.rename(folder / "hello", folder / "elsewhere")
    (folder / "hello").write_bytes(b"another")
    refused(errno.ESTALE, client.call, p9.RENAME, pack("dds", fid, ROOT, "x"))
    refused(errno.ESTALE, client.call, p9.REMOVE, pack("d", fid))
    assert (folder / "hello").read_bytes() == b"another"
    refused(errno.EBUSY, client.call, p9.REMOVE, pack("d", client.walk()))


def test_statfs_is_the_hosts(client: Client, folder: Path) -> None:
    got = unpack("ddqqqqqqd", client.call(p9.STATFS, pack("d", ROOT)))
    host = os.statvfs(folder)
    assert (got[0], got[1], got[2], got[8]) == (0x01021997, host.f_bsize, host.f_blocks, 255)


def test_extended_attributes(client: Client, folder: Path) -> None:
    try:
        os.setxattr(folder / "hello", "user.colour", b"green")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    fid = client.walk("hello")
    assert unpack("q", client.call(p9.XATTRWALK, pack("dds", fid, 90, "user.colour"))) == [5]
    assert client.read(90, 1) == b"reen"
    refused(errno.EINVAL, client.write, 90, b"x")
    client.clunk(90)
    refused(errno.ENODATA, client.call, p9.XATTRWALK, pack("dds", fid, 90, "user.none"))
    writer = client.walk("hello")
    client.call(p9.XATTRCREATE, pack("dsqd", writer, "user.size", 6, 0))
    client.write(writer, b"lar")
    client.write(writer, b"ger", 3)
    refused(errno.EINVAL, client.write, writer, b"beyond", 4)
    client.clunk(writer)
    assert os.getxattr(folder / "hello", "user.size") == b"larger"
    assert unpack("q", client.call(p9.XATTRWALK, pack("dds", fid, 91, ""))) == [22]
    assert sorted(client.read(91).split(b"\0")) == [b"", b"user.colour", b"user.size"]
    half = client.walk("hello")
    client.call(p9.XATTRCREATE, pack("dsqd", half, "user.half", 6, 0))
    client.write(half, b"abc")
    refused(errno.EINVAL, client.clunk, half)
    gone = client.walk("hello")
    client.call(p9.XATTRCREATE, pack("dsqd", gone, "user.colour", 0, 0))
    client.clunk(gone)
    assert os.listxattr(folder / "hello") == ["user.size"]


def test_attributes_that_give_rights_on_the_host_are_out_of_reach(client: Client, folder: Path) -> None:
    for name in ("security.capability", "trusted.x", "system.other", "user"):
        fid = client.walk("hello")
        refused(errno.EOPNOTSUPP, client.call, p9.XATTRCREATE, pack("dsqd", fid, name, 6, 0))
        refused(errno.EOPNOTSUPP, client.call, p9.XATTRWALK, pack("dds", fid, 90, name))
    refused(errno.E2BIG, client.call, p9.XATTRCREATE, pack("dsqd", client.walk("hello"), "user.big", 1 << 40, 0))


def test_what_is_made_by_root_belongs_to_the_guests_user(connect, folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    client = connect(uid=1234)
    client.create("mine", gid=77)
    client.call(p9.MKDIR, pack("dsdd", ROOT, "home", 0o700, 78))
    client.call(p9.SYMLINK, pack("dssd", ROOT, "link", "hello", 79))
    owners = [((folder / name).lstat().st_uid, (folder / name).lstat().st_gid) for name in ("mine", "home", "link")]
    assert owners == [(1234, 77), (1234, 78), (1234, 79)]
    client.setattr(client.walk("link"), 0x2 | 0x4, uid=5, gid=6)
    assert ((folder / "link").lstat().st_uid, (folder / "hello").stat().st_uid) == (5, 0)


CHANGES = {
    "lopen": (p9.LOPEN, lambda c: pack("dd", c.walk("hello"), os.O_RDWR)),
    "lopen to truncate": (p9.LOPEN, lambda c: pack("dd", c.walk("hello"), os.O_TRUNC)),
    "lcreate": (p9.LCREATE, lambda c: pack("dsddd", c.walk(), "new", os.O_RDWR, 0o644, 0)),
    "lcreate of what is there": (p9.LCREATE, lambda c: pack("dsddd", c.walk(), "hello", os.O_RDONLY, 0o644, 0)),
    "setattr": (p9.SETATTR, lambda c: pack("dddddqqqqq", c.walk("hello"), 1, 0o600, 0, 0, 0, 0, 0, 0, 0)),
    "mkdir": (p9.MKDIR, lambda c: pack("dsdd", ROOT, "new", 0o755, 0)),
    "mknod": (p9.MKNOD, lambda c: pack("dsdddd", ROOT, "new", stat.S_IFIFO, 0, 0, 0)),
    "symlink": (p9.SYMLINK, lambda c: pack("dssd", ROOT, "new", "x", 0)),
    "link": (p9.LINK, lambda c: pack("dds", ROOT, c.walk("hello"), "new")),
    "rename": (p9.RENAME, lambda c: pack("dds", c.walk("hello"), ROOT, "new")),
    "renameat": (p9.RENAMEAT, lambda c: pack("dsds", ROOT, "hello", ROOT, "new")),
    "unlinkat": (p9.UNLINKAT, lambda c: pack("dsd", ROOT, "hello", 0)),
    "remove": (p9.REMOVE, lambda c: pack("d", c.walk("hello"))),
    "xattrcreate": (p9.XATTRCREATE, lambda c: pack("dsqd", c.walk("hello"), "user.x", 1, 0)),
}


def test_a_read_only_share_refuses_every_change(connect, folder: Path) -> None:
    client = connect(ro="true")
    for kind, body in CHANGES.values():
        refused(errno.EROFS, client.call, kind, body(client))
    fid = client.open("hello")
    assert client.read(fid) == b"hello, guest\n"
    client.call(p9.FSYNC, pack("dd", fid, 0))
    assert set(client.names(client.open())) == {b".", b"..", b"hello", b"sub"}
    assert sorted(os.listdir(folder)) == ["hello", "sub"]
