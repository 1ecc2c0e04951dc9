"""Linux mounts folders of the host's by 9p: what one side writes the other side reads."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve.images import GuestImage, ImageError, build_debian
from tests.system.console import Guest, command

pytestmark = pytest.mark.timeout(600)
MOUNT = "mount -t 9p -o trans=virtio,version=9p2000.L"


@pytest.fixture(scope="module")
def generic() -> GuestImage:
    """The guest with Debian's generic kernel: the cloud kernel has no 9p."""
    try:
        return build_debian(kernel="linux-image-amd64")
    except ImageError as error:
        pytest.skip(f"no Debian guest with a generic kernel: {error}")


class Shared:
    """A guest with two folders, one of them read-only."""

    def __init__(self, backend: str, image: GuestImage, top: Path) -> None:
        self.folder, self.fixed, self.top = top / "folder", top / "fixed", top
        self.folder.mkdir()
        self.fixed.mkdir()
        (top / "secret").write_text("secret\n")
        (self.fixed / "file").write_text("as it is\n")
        argv = command(backend, image.kernel, image.initrd, cpus=2)
        at = argv.index("-o")
        argv[at:at] = ["-s", f"5,virtio-9p,share={self.folder}", "-s", f"6,virtio-9p,fixed={self.fixed},ro"]
        self.guest = Guest(argv)
        self.run = self.guest.output


@pytest.fixture(scope="module")
def shared(backend: str, generic: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(backend, generic, tmp_path_factory.mktemp("share"))
    with shared.guest:
        yield shared


@pytest.fixture(params=["none", "loose", "fscache", "mmap"])
def mounted(request: pytest.FixtureRequest, shared: Shared) -> Iterator[Shared]:
    """The folder on /mnt, with each of the client's ways to cache."""
    shared.run(f"{MOUNT},cache={request.param} share /mnt")
    yield shared
    shared.guest.run("umount /mnt")
    for name in os.listdir(shared.folder):
        shared.run(f"mkdir -p /d; {MOUNT} share /d; rm -rf /d/{name}; umount /d")
    assert os.listdir(shared.folder) == []


def test_both_sides_see_the_same(mounted: Shared) -> None:
    run, folder = mounted.run, mounted.folder
    content = os.urandom(3_000_000)
    (folder / "big").write_bytes(content)
    assert run("md5sum </mnt/big").split()[0] == hashlib.md5(content).hexdigest()
    run("cp /mnt/big /mnt/copy; mkdir -p /mnt/a/b; mv /mnt/copy /mnt/a/b/moved; sync")
    assert (folder / "a" / "b" / "moved").read_bytes() == content
    run("cd /mnt/a; ln -s b/moved link; ln b/moved hard; echo more >>hard; chmod 640 hard; cd")
    run("truncate -s 3000000 /mnt/a/link")
    assert os.readlink(folder / "a" / "link") == "b/moved"
    assert ((folder / "a" / "hard").stat().st_nlink, (folder / "a" / "hard").stat().st_mode & 0o777) == (2, 0o640)
    assert run("cd /mnt/a; cmp link /mnt/big; cmp b/moved hard; stat -c '%s %h' hard; cd") == "3000000 2\n"
    run("cd /mnt/a; touch -d @1234567 hard; mkfifo pipe; rm -r b; cd")
    assert (folder / "a" / "hard").stat().st_mtime == 1234567
    assert sorted(run("ls /mnt/a").split()) == sorted(os.listdir(folder / "a")) == ["hard", "link", "pipe"]
    # a program is run from there, its pages come through the page cache
    assert run("cp /bin/busybox /mnt/a/busybox; /mnt/a/busybox echo it runs") == "it runs\n"


def test_a_tree_of_files_is_the_same_on_both_sides(shared: Shared) -> None:
    run = shared.run
    run(f"{MOUNT} share /mnt; cp -r /lib/modules/*/kernel/drivers /etc /mnt")
    listed = run("cd /mnt; find . -type f | sort | xargs md5sum; cd; umount /mnt").splitlines()
    assert len(listed) > 50
    for line in listed:
        digest, name = line.split()
        assert hashlib.md5((shared.folder / name).read_bytes()).hexdigest() == digest
    run(f"{MOUNT},cache=loose share /mnt; rm -r /mnt/*; umount /mnt")
    assert os.listdir(shared.folder) == []


def test_a_program_writes_while_another_reads(shared: Shared) -> None:
    run = shared.run
    run(f"{MOUNT} share /mnt; (seq 1 20000 | dd of=/mnt/numbers bs=512 2>/dev/null) & (dd if=/dev/urandom of=/mnt/r"
        " bs=64k count=64 2>/dev/null; md5sum </mnt/r >/mnt/sum) & wait; fsync /mnt/numbers; umount /mnt")  # fmt: skip
    assert (shared.folder / "numbers").read_text() == "".join(f"{n}\n" for n in range(1, 20001))
    digest = hashlib.md5((shared.folder / "r").read_bytes()).hexdigest()
    assert (shared.folder / "sum").read_text().split()[0] == digest
    for path in shared.folder.iterdir():
        path.unlink()


def test_a_link_out_of_the_folder_is_the_guests_own(shared: Shared) -> None:
    os.symlink("/etc/hosts", shared.folder / "absolute")
    os.symlink("../secret", shared.folder / "relative")
    out = shared.run(f"{MOUNT} share /mnt; cat /mnt/absolute; cat /mnt/relative /mnt/../secret 2>&1; umount /mnt")
    assert out.splitlines()[0] == "127.0.0.1 localhost debian"
    assert out.count("No such file") == 2
    for name in ("absolute", "relative"):
        (shared.folder / name).unlink()


def test_a_read_only_folder_stays_as_it_is(shared: Shared) -> None:
    run = shared.guest.run
    shared.run(f"{MOUNT} fixed /mnt; cat /mnt/file")
    for change in ("echo x >/mnt/new", "echo x >>/mnt/file", "rm /mnt/file", "mkdir /mnt/d", "mv /mnt/file /mnt/x"):
        done = run(f"({change}) 2>&1")
        assert done.status
        assert "Read-only file system" in done.output
    shared.run("umount /mnt")
    assert (shared.fixed / "file").read_text() == "as it is\n"


def test_the_example_of_the_page(backend: str, generic: GuestImage, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text().replace("\\\n", " ")
    section = page.partition("## `virtio-9p`")[2]
    example, inside = (block.partition("```")[0] for block in section.split("```sh\n")[1:3])
    words = shlex.split(example)
    assert words[0] == "bhyve"
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "note").write_text("from the host\n")
    files = {"=shared": f"={tmp_path}/shared", "=vmlinuz": f"={generic.kernel}", "=initrd": f"={generic.initrd}"}
    for name, path in files.items():
        words = [word.replace(name, path) for word in words]
    with Guest([sys.executable, "-m", "pyhyve.commands.bhyve", "-o", f"vmm.backend={backend}", *words[1:]]) as guest:
        guest.output(inside.strip().replace("\n", "; "))
        assert guest.output("cat /mnt/note; ls /doc | head -n 1 | wc -l") == "from the host\n1\n"
