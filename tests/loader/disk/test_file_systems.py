"""Reading ext2/3/4 and FAT as the usual tools make them, and damaged ones."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.errors import LoaderError
from pyhyve.loader.disk.bootconfig import find
from pyhyve.loader.disk.ext import ExtTree
from pyhyve.loader.disk.fat import FatTree
from pyhyve.loader.disk.host import HostTree
from pyhyve.loader.disk.partitions import Extent, open_disk, partitions
from pyhyve.loader.disk.tree import Files, TreeError
from tests.loader.disk import images

MB = images.MEGABYTE
BIG = random.Random(1).randbytes(5 * MB + 123)


@pytest.fixture
def opened():
    """Opens images, and closes them again."""
    disks = []

    def open_it(path):
        disks.append(open_disk(str(path)))
        return disks[-1]

    yield open_it
    for found in disks:
        os.close(found.fd)


@pytest.fixture
def root(tmp_path):
    """A tree with what makes a reader work: large files, holes, links of both lengths, a directory of many names."""
    place = images.write(
        tmp_path / "root",
        {
            "vmlinuz": "->boot/vmlinuz-6.1",
            "boot/vmlinuz-6.1": BIG,
            "boot/absolute": "->/vmlinuz",
            "boot/up": "->../../../../boot/vmlinuz-6.1",
            "boot/" + "n" * 100: "->" + "/" * 80 + "boot/vmlinuz-6.1",
            "boot/circle": "->circle",
            "boot/nowhere": "->nothing/at/all",
            "empty": b"",
            "tiny": b"x",
            **{f"many/file-with-a-long-name-{n:04}": str(n) for n in range(600)},
        },
    )
    with (place / "holes").open("wb") as file:
        file.seek(3 * MB)
        file.write(b"end")
    return place


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ext2", ()),
        ("ext3", ()),
        ("ext4", ()),
        ("ext4", ("-b", "1024")),
        ("ext4", ("-O", "^64bit,^metadata_csum")),
        ("ext4", ("-I", "128")),
        ("ext2", ("-b", "1024", "-O", "^dir_index")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_an_ext_file_system_gives_back_what_is_in_it(kind, options, root, tmp_path, opened):
    tree = ExtTree(opened(images.ext(tmp_path / "image", root, kind, 32 * MB, *options)))
    files = Files(tree)
    for path in ("boot/vmlinuz-6.1", "/vmlinuz", "boot/absolute", "boot/up", "/boot/" + "n" * 100):
        assert files.read(path, 8 * MB) == BIG
    assert files.read("holes", 8 * MB) == bytes(3 * MB) + b"end"
    assert (files.read("empty", 0), files.read("tiny", 1)) == (b"", b"x")
    assert files.file("boot/circle") is files.file("boot/nowhere") is files.file("boot") is None
    assert files.file("vmlinuz/boot") is None
    assert files.names("many") == sorted(os.listdir(root / "many"))
    assert files.read("many/file-with-a-long-name-0599", 100) == b"599"
    assert "lost+found" in files.names("/")


@pytest.mark.parametrize(("bits", "size"), [(12, 8 * MB), (16, 32 * MB), (32, 64 * MB)])
def test_a_fat_file_system_gives_back_what_is_in_it(bits, size, tmp_path, opened):
    place = images.write(
        tmp_path / "root",
        {
            "EFI/a directory with a long name/grüße.txt": b"hello",
            "SHORT.TXT": b"short",
            "lower.txt": b"lower",
            "big": BIG,
            "empty": b"",
            **{f"many/file-with-a-long-name-{n:04}": str(n) for n in range(100)},
        },
    )
    tree = FatTree(opened(images.fat(tmp_path / "image", place, bits, size)))
    files = Files(tree)
    assert files.read("efi/A Directory With A Long Name/grüße.txt", 10) == b"hello"
    assert (files.read("short.txt", 10), files.read("LOWER.TXT", 10)) == (b"short", b"lower")
    assert files.read("big", 8 * MB) == BIG
    assert files.read("empty", 0) == b""
    assert files.names("many") == sorted(os.listdir(place / "many"))
    assert sorted(files.names("/")) == ["EFI", "SHORT.TXT", "big", "empty", "lower.txt", "many"]
    assert files.file("none") is files.file("big/none") is None


def test_a_fragmented_fat_file_is_read_in_order(tmp_path, opened):
    place = images.write(tmp_path / "root", {f"f{n}": bytes([n]) * 4096 for n in range(40)})
    image = images.fat(tmp_path / "image", place, 16, 32 * MB)
    images.call("mdel", "-i", image, *(f"::f{n}" for n in range(0, 40, 2)))
    (tmp_path / "big").write_bytes(BIG[: 1 * MB])
    images.call("mcopy", "-i", image, tmp_path / "big", "::")
    assert Files(FatTree(opened(image))).read("big", MB) == BIG[:MB]


def test_a_directory_of_the_host_does_not_lead_outside(tmp_path):
    (tmp_path / "outside").write_text("secret")
    place = images.write(
        tmp_path / "root",
        {
            "up": "->../outside",
            "away": f"->{tmp_path}/outside",
            "boot/k": b"k",
            "k": "->/boot/k",
            "boot/o": "->../../k",
        },
    )
    files = Files(HostTree(str(place)))
    assert files.file("up") is files.file("away") is files.file("../outside") is None
    assert files.read("k", 9) == files.read("boot/o", 9) == b"k"
    with pytest.raises(TreeError, match="is not a directory"):
        HostTree(str(tmp_path / "outside"))
    with pytest.raises(TreeError, match="cannot read"):
        HostTree(str(tmp_path / "nothing"))


def test_a_file_larger_than_the_room_for_it_is_refused(tmp_path):
    files = Files(HostTree(str(images.write(tmp_path / "root", {"k": b"12345"}))))
    with pytest.raises(TreeError, match="5 bytes, more than the 4"):
        files.read("k", 4)


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_partitions_are_found(label, tmp_path, opened):
    parts = []
    for number in range(3):
        root = images.write(tmp_path / f"root{number}", {"number": str(number)})
        parts.append(images.ext(tmp_path / f"part{number}", root, "ext2", 2 * MB))
    kinds = ["linux"] * 3 if label == "gpt" else ["83", "logical", "logical"]
    image = images.disk(tmp_path / "disk", label, list(zip(parts, kinds, strict=True)))
    (_, whole), *found = partitions(opened(image))
    with pytest.raises(TreeError):
        ExtTree(whole)
    assert [Files(ExtTree(extent)).read("number", 9) for _, extent in found] == [b"0", b"1", b"2"]
    names = ["1", "2", "3"] if label == "gpt" else ["1", "5", "6"]
    assert [name for name, _ in found] == [f"partition {number}" for number in names]


def test_what_is_no_disk_is_one_line(tmp_path):
    (tmp_path / "image.qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    for path, message in ((tmp_path, "neither a file"), (tmp_path / "x", "cannot open"), ("a\0b", "cannot open")):
        with pytest.raises(LoaderError, match=message):
            open_disk(str(path))
    with pytest.raises(LoaderError, match="is a qcow2 image"):
        open_disk(str(tmp_path / "image.qcow2"))


def test_a_feature_that_is_not_known_is_named(tmp_path, opened, root):
    image = images.ext(tmp_path / "image", root, "ext4", 32 * MB, "-O", "casefold")
    with pytest.raises(TreeError, match="case folding"):
        ExtTree(opened(image))


# -- damage --


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Small images to damage."""
    place = tmp_path_factory.mktemp("samples")
    root = images.write(
        place / "root",
        {
            "boot/grub/grub.cfg": "menuentry x { linux /boot/vmlinuz-1\n }",
            "boot/vmlinuz-1": b"k" * 30000,
            "vmlinuz-0": b"k",
        },
    )
    found = [images.ext(place / kind, root, kind, MB, "-b", "1024") for kind in ("ext2", "ext4")]
    found.append(images.fat(place / "fat", root, 12, MB))
    found.append(images.disk(place / "gpt", "gpt", [(found[0], "linux")]))
    found.append(images.disk(place / "dos", "dos", [(found[0], "83"), (found[2], "logical")]))
    return [path.read_bytes() for path in found]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
def test_damage_is_an_error_and_nothing_worse(samples, which, count, seed, cut):
    chance = random.Random(seed)
    data = bytearray(samples[which])
    used = [at for at in range(0, len(data), 64) if any(data[at : at + 64])]
    for _ in range(count):
        at = chance.choice(used) + chance.randrange(64)
        data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    if cut:
        del data[chance.randrange(len(data)) :]
    fd = os.memfd_create("damaged")
    try:
        os.write(fd, data)
        for _, extent in partitions(Extent(fd, 0, len(data))):
            for reader in (ExtTree, FatTree):
                try:
                    files = Files(reader(extent))
                    choice = find(files)
                    if choice is not None:
                        files.read(choice.kernel, MB)
                except LoaderError as error:
                    assert "\n" not in str(error)
    finally:
        os.close(fd)
