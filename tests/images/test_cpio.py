"""The cpio writer, read back by a reader of the format's documentation and by cpio itself."""

import io
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.images.cpio import CpioWriter

FIELDS = "ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check".split()


def read(data):
    """Entries as (name, fields, content), up to the trailer."""
    entries = []
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        values = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        fields = dict(zip(FIELDS, values, strict=True))
        start = position + 110
        name = data[start : start + fields["namesize"] - 1].decode()
        assert data[start + fields["namesize"] - 1] == 0
        content = -(-(start + fields["namesize"]) // 4) * 4
        end = content + fields["filesize"]
        if name == "TRAILER!!!":
            assert not data[end:].strip(b"\0")
            return entries
        entries.append((name, fields, data[content:end]))
        position = -(-end // 4) * 4


def archive(build):
    out = io.BytesIO()
    writer = CpioWriter(out)
    build(writer)
    writer.finish()
    return out.getvalue()


def test_every_kind_of_entry_is_written_as_documented():
    def build(cpio):
        cpio.directory("tmp", 0o1777)
        cpio.file("a/b/file", b"hello", 0o755)
        cpio.symlink("link", "a/b/file")
        cpio.char_device("dev/console", 5, 1)

    entries = {name: (fields, data) for name, fields, data in read(archive(build))}
    assert list(entries) == ["tmp", "a", "a/b", "a/b/file", "link", "dev", "dev/console"]
    assert entries["tmp"][0]["mode"] == stat.S_IFDIR | 0o1777
    assert entries["a/b/file"][0]["mode"] == stat.S_IFREG | 0o755
    assert entries["a/b/file"][1] == b"hello"
    assert entries["link"][0]["mode"] == stat.S_IFLNK | 0o777
    assert entries["link"][1] == b"a/b/file"
    assert entries["dev/console"][0]["mode"] == stat.S_IFCHR | 0o600
    assert (entries["dev/console"][0]["rdevmajor"], entries["dev/console"][0]["rdevminor"]) == (5, 1)
    assert len({fields["ino"] for fields, _ in entries.values()}) == len(entries)
    assert all(fields["uid"] == fields["gid"] == 0 for fields, _ in entries.values())


def test_equal_input_gives_an_equal_archive():
    def build(cpio):
        cpio.file("x/y", b"1")

    assert archive(build) == archive(build)
    assert len(archive(build)) % 512 == 0


def test_parents_come_once_and_before_their_children():
    def build(cpio):
        cpio.directory("a")
        cpio.directory("/a/")
        cpio.file("/a/b/c", b"")
        cpio.file("a/b/d", b"")

    assert [name for name, *_ in read(archive(build))] == ["a", "a/b", "a/b/c", "a/b/d"]


@given(st.dictionaries(st.text("abcdefg", min_size=1, max_size=9), st.binary(max_size=50), max_size=8))
def test_contents_survive_whatever_their_length(files):
    def build(cpio):
        for name, data in files.items():
            cpio.file(name, data)

    assert {name: data for name, _, data in read(archive(build))} == files


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_unpacks_it(tmp_path):
    def build(cpio):
        cpio.file("a/b", b"hello")
        cpio.symlink("c", "a/b")

    subprocess.run(["cpio", "-idm", "--quiet"], input=archive(build), cwd=tmp_path, check=True)
    assert (tmp_path / "c").read_bytes() == b"hello"
