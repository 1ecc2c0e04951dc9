"""Finds what a guest's own boot configuration would boot, and takes it out of the guest's file system.

On a disk each file system is asked in turn, the first that names a kernel it has wins. In a file system the order is:
GRUB, syslinux, boot loader entries, and where none of them is, the newest kernel by its name with the RAM disk that
goes with it. A path may be meant from the root or from a /boot of its own: both are tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyhyve.loader.disk.choice import Choice, version_key
from pyhyve.loader.disk.entries import boot_loader_entries, syslinux
from pyhyve.loader.disk.ext import ExtTree
from pyhyve.loader.disk.fat import FatTree
from pyhyve.loader.disk.grub import choices, read_environment
from pyhyve.loader.disk.host import HostTree
from pyhyve.loader.disk.partitions import Extent, open_disk, partitions
from pyhyve.loader.disk.tree import Files, Tree, TreeError

_BOOT = ("/boot", "")
_GRUB = tuple(f"{base}/{name}" for base in _BOOT for name in ("grub/grub.cfg", "grub2/grub.cfg"))
_SYSLINUX = tuple(
    f"{base}/{name}"
    for base in _BOOT
    for name in ("extlinux/extlinux.conf", "extlinux.conf", "syslinux/syslinux.cfg", "syslinux.cfg")
)
_KERNELS = ("vmlinuz", "bzImage", "vmlinux", "kernel")
_READERS: tuple[Callable[[Extent], Tree], ...] = (ExtTree, FatTree)


@dataclass(frozen=True, slots=True)
class Boot:
    """A kernel and its RAM disk as open files of the host. The command line is that of the configuration."""

    title: str
    kernel: Path
    initrd: Path | None
    cmdline: str
    names: dict[str, str]
    """What the files are called in the guest, for messages."""

    def named(self, text: str) -> str:
        """``text`` with the guest's names for the files."""
        for path, name in self.names.items():
            text = text.replace(path, name)
        return text


@contextmanager
def from_directory(directory: str, room: int) -> Iterator[Boot]:
    """What the guest below ``directory`` boots; files may have ``room`` bytes. Raises ``LoaderError``."""
    files = Files(HostTree(directory))
    choice = find(files)
    if choice is None:
        raise TreeError(f"{directory} has no boot configuration and no kernel: {_looked()}")
    with _taken_out(files, choice, room, directory) as boot:
        yield boot


@contextmanager
def from_disk(path: str, room: int) -> Iterator[Boot]:
    """What the disk image at ``path`` boots. Raises ``LoaderError``."""
    disk = open_disk(path)
    try:
        files, choice = _search(path, disk)
        with _taken_out(files, choice, room, path) as boot:
            yield boot
    finally:
        os.close(disk.fd)


def _search(path: str, disk: Extent) -> tuple[Files, Choice]:
    seen: list[str] = []
    for place, extent in partitions(disk):
        tree, why = _open(extent)
        if tree is None:
            if why or place != "the whole disk":
                seen.append(f"{place}: {why or 'no ext or FAT file system'}")
            continue
        files = Files(tree)
        try:
            choice = find(files)
        except TreeError as error:
            seen.append(f"{place}: {error}")
            continue
        if choice is not None:
            return files, choice
        seen.append(f"{place}: {tree.kind}, no kernel")
    raise TreeError(f"disk {path} has nothing to boot: {'; '.join(seen) or 'no partition and no file system'}")


def _open(extent: Extent) -> tuple[Tree | None, str]:
    """The file system in ``extent``, or why there is none, if that is more than that nothing is there."""
    why = ""
    for reader in _READERS:
        try:
            return reader(extent), ""
        except TreeError as error:
            if not str(error).startswith(("there is no", "it wants")):
                why = why or str(error)
    return None, why


def find(files: Files) -> Choice | None:
    """What the file system in ``files`` boots, with paths that lead somewhere; None if it names nothing."""
    for choice in _candidates(files):
        kernel = _locate(files, choice.kernel)
        initrds = [_locate(files, initrd) for initrd in choice.initrds]
        if kernel is not None and None not in initrds:
            return Choice(choice.title, kernel, tuple(i for i in initrds if i is not None), choice.cmdline)
    return None


def _candidates(files: Files) -> Iterator[Choice]:
    environment: dict[str, str] = {}
    for path in _GRUB:
        if files.file(path) is not None:
            environment = read_environment(files.text(f"{path.rpartition('/')[0]}/grubenv"))
            found, wants_entries = choices(files, path)
            if wants_entries:
                yield from _entries(files, environment)
            yield from found
    for path in _SYSLINUX:
        if files.file(path) is not None:
            yield from syslinux(files, path)
    yield from _entries(files, environment)
    yield from _newest(files)


def _entries(files: Files, environment: dict[str, str]) -> Iterator[Choice]:
    for base in _BOOT:
        yield from boot_loader_entries(files, base, environment)


def _newest(files: Files) -> Iterator[Choice]:
    """Kernels by their names alone, the newest version first."""
    for base in _BOOT:
        names = files.names(base or "/")
        kernels = []
        for name in names:
            stem, _, version = name.partition("-")
            if stem in _KERNELS and files.file(f"{base}/{name}") is not None:
                kernels.append((version, name))
        for version, name in sorted(kernels, key=lambda k: ("rescue" not in k[0], version_key(k[0])), reverse=True):
            tail = f"-{version}" if version else ""
            disks = (f"initrd.img{tail}", f"initramfs{tail}.img", f"initrd{tail}", f"initrd{tail}.img")
            disk = next((d for d in (*disks, f"initramfs{tail}", "initrd.gz") if d in names), None)
            yield Choice(name, f"{base}/{name}", (f"{base}/{disk}",) if disk else ())


def _locate(files: Files, path: str) -> str | None:
    """``path`` as it is, or as seen from where /boot is the root, or the other way round."""
    tail = path.lstrip("/")
    for tried in (tail, f"boot/{tail}", tail.removeprefix("boot/")):
        if files.file(tried) is not None:
            return tried
    return None


def _looked() -> str:
    return "neither grub.cfg nor extlinux.conf nor loader/entries nor a vmlinuz"


@contextmanager
def _taken_out(files: Files, choice: Choice, room: int, where: str) -> Iterator[Boot]:
    """The files of ``choice`` in memory, with a path that any reader can open."""
    opened: list[int] = []
    names: dict[str, str] = {}

    def put(label: str, contents: list[bytes]) -> Path:
        fd = os.memfd_create("pyhyve-boot", os.MFD_CLOEXEC)
        opened.append(fd)
        with open(fd, "wb", closefd=False) as file:
            for data in contents:
                file.write(bytes(-file.tell() % 4))  # Linux takes RAM disks one behind the other, each aligned
                file.write(data)
        path = Path(f"/proc/{os.getpid()}/fd/{fd}")
        names[str(path)] = label
        return path

    try:
        try:
            kernel = put(f"{where}:{choice.kernel}", [files.read(choice.kernel, room)])
            initrd = None
            if choice.initrds:
                label = f"{where}:{choice.initrds[-1]}"
                initrd = put(label, [files.read(path, room) for path in choice.initrds])
        except TreeError as error:
            raise TreeError(f"{where}: {error}") from None
        yield Boot(choice.title, kernel, initrd, choice.cmdline, names)
    finally:
        for fd in opened:
            os.close(fd)
