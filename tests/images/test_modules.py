"""Kernel modules: dependencies and aliases, as depmod would find them."""

import gzip
import lzma

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyhyve.images.error import ImageError
from pyhyve.images.modules import ModuleTree, alias_file, dep_file, modinfo
from tests.images.kernelmodule import module


@pytest.fixture
def tree(tmp_path):
    """virtio_blk and virtio-rng need virtio_ring and virtio; one is compressed by xz, one by gzip."""
    folder = tmp_path / "kernel"
    files = {
        "virtio/virtio.ko": module(depends=""),
        "virtio/virtio_ring.ko.xz": lzma.compress(module(depends="")),
        "virtio/virtio_pci.ko.gz": gzip.compress(
            module(depends="virtio,virtio_ring", alias=["pci:v00001AF4d*", "x:y"])
        ),
        "block/virtio_blk.ko": module(depends="virtio_ring,virtio", alias="virtio:d00000002v*"),
        "char/virtio-rng.ko": module(depends="virtio_blk", softdep="pre: virtio-pci post: nothing"),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return ModuleTree(tmp_path)


def test_dependencies_come_along_and_first(tree):
    names = [found.name for found in tree.closure(["virtio_blk"])]
    assert names == ["virtio_ring", "virtio", "virtio_blk"]


def test_modules_of_a_32_bit_kernel_are_read_too():
    assert modinfo(module(bits=32, depends="virtio", alias="x:y")) == [("depends", "virtio"), ("alias", "x:y")]


def test_soft_dependencies_and_dashes_count(tree):
    names = [found.name for found in tree.closure(["virtio-rng"])]
    assert names[-1] == "virtio_rng"
    assert set(names) == {"virtio", "virtio_ring", "virtio_blk", "virtio_pci", "virtio_rng"}


def test_module_that_this_kernel_has_not_is_left_out(tree):
    assert tree.closure(["ext4"]) == []
    assert "ext4" not in tree


def test_compressed_modules_are_unpacked(tree):
    found = tree.get("virtio_pci")
    assert found.path == "kernel/virtio/virtio_pci.ko"
    assert found.data[:4] == b"\x7fELF"
    assert tree.get("virtio_ring").path.endswith("virtio_ring.ko")


def test_dep_file_lists_indirect_dependencies_nearest_first(tree):
    lines = dep_file(tree.closure(["virtio-rng"])).splitlines()
    rng = next(line for line in lines if line.startswith("kernel/char/virtio-rng.ko:"))
    paths = rng.split()[1:]
    assert paths[0] == "kernel/block/virtio_blk.ko"
    assert set(paths[1:]) == {"kernel/virtio/virtio.ko", "kernel/virtio/virtio_ring.ko"}
    assert "kernel/virtio/virtio.ko:" in lines


def test_alias_file_names_each_alias(tree):
    text = alias_file(tree.closure(["virtio_blk", "virtio_pci"]))
    assert "alias virtio:d00000002v* virtio_blk\n" in text
    assert "alias pci:v00001AF4d* virtio_pci\nalias x:y virtio_pci\n" in text


def test_modules_that_need_each_other_come_to_an_end(tmp_path):
    (tmp_path / "a.ko").write_bytes(module(depends="b"))
    (tmp_path / "b.ko").write_bytes(module(depends="a"))
    found = ModuleTree(tmp_path).closure(["a"])
    assert {one.name for one in found} == {"a", "b"}
    assert "a.ko: b.ko" in dep_file(found)


@pytest.mark.parametrize("data", [b"", b"text", module(depends="x")[:80]])
def test_damaged_module_is_named(tmp_path, data):
    (tmp_path / "bad.ko").write_bytes(data)
    with pytest.raises(ImageError, match=r"bad\.ko"):
        ModuleTree(tmp_path).get("bad")


def test_damaged_compression_is_named(tmp_path):
    (tmp_path / "bad.ko.xz").write_bytes(b"no xz")
    with pytest.raises(ImageError, match=r"bad\.ko\.xz"):
        ModuleTree(tmp_path).get("bad")


@settings(deadline=None)
@example([(47, 255)], 0)  # a section table beyond what an offset can be
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=10), st.integers(0, 400))
def test_no_module_whatsoever_does_more_than_raise_image_error(changes, cut):
    data = bytearray(module(depends="a,b", alias=["c", "d"]))
    for offset, value in changes:
        data[offset % len(data)] = value
    try:
        modinfo(bytes(data[: len(data) - cut]))
    except ImageError as error:
        assert "\n" not in str(error)
