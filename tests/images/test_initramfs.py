"""What is in the initial RAM disk."""

import io
import shutil
import subprocess

import pytest

from pyhyve.images import initramfs, root_files
from pyhyve.images.modules import Module
from tests.images.test_cpio import read


@pytest.fixture
def content():
    """name → (fields, data) of an initramfs with two modules."""
    modules = [
        Module("virtio", "kernel/virtio.ko", b"V", (), (), ()),
        Module("virtio_blk", "kernel/virtio_blk.ko", b"B", ("virtio",), ("virtio:d2",), ()),
    ]
    out = io.BytesIO()
    initramfs.write_initramfs(out, b"BUSYBOX", ["ls", "sh", "busybox"], "6.1.0-test", modules)
    return {name: (fields, data) for name, fields, data in read(out.getvalue())}


def test_init_is_an_executable_script(content):
    fields, data = content["init"]
    assert fields["mode"] == 0o100755
    assert data.startswith(b"#!/bin/sh\n")


def test_console_exists_before_devtmpfs_is_mounted(content):
    assert (content["dev/console"][0]["rdevmajor"], content["dev/console"][0]["rdevminor"]) == (5, 1)


def test_applets_are_links_to_busybox(content):
    assert content["bin/busybox"] == (content["bin/busybox"][0], b"BUSYBOX")
    assert content["bin/ls"][1] == content["bin/sh"][1] == b"busybox"
    assert content["sbin"][1] == content["usr/bin"][1] == b"/bin", "the kernel calls /sbin/modprobe"


def test_modules_lie_where_modprobe_looks(content):
    root = "lib/modules/6.1.0-test"
    assert content[f"{root}/kernel/virtio_blk.ko"][1] == b"B"
    assert content[f"{root}/modules.dep"][1] == b"kernel/virtio.ko:\nkernel/virtio_blk.ko: kernel/virtio.ko\n"
    assert content[f"{root}/modules.alias"][1] == b"alias virtio:d2 virtio_blk\n"


SCRIPTS = [
    (path, text, mode)
    for files in (initramfs.FILES, root_files.INITRAMFS_FILES)
    for path, (text, mode) in files.items()
    if text.startswith("#!/bin/sh")
]


@pytest.mark.parametrize(("path", "text", "mode"), SCRIPTS, ids=[path for path, _, _ in SCRIPTS])
def test_scripts_are_valid_shell(path, text, mode):
    shell = shutil.which("dash") or shutil.which("sh")
    assert mode == 0o755
    done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
