"""Builds the Debian disk: a whole Debian with systemd on a raw ext4 image, with its kernel and RAM disk beside it.

``bootstrap`` installs the packages into an archive, ``root_files`` says what is added to it, ``ext4`` makes the image.
What was built stays in the cache, one image for each kernel, size and set of packages, and each disk asked for is a
copy of it: the network is looked at again only when a refresh is asked for or the recipe changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyhyve.images import bootstrap, ext4, root_files
from pyhyve.images.apt import Package, PrivateApt, Progress
from pyhyve.images.cache import default_cache_dir, locked, write_json
from pyhyve.images.debian import KERNEL_META_PACKAGE, KERNELS, kernel_of
from pyhyve.images.error import ImageError
from pyhyve.images.initramfs import LAYOUT, write_initramfs
from pyhyve.images.modules import ModuleTree

DEFAULT_SIZE = 2 << 30
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk, the kernel and RAM disk that boot it, the kernel's version, and its command line."""

    disk: Path
    kernel: Path
    initrd: Path
    version: str
    cmdline: str


def build_debian_disk(
    out: Path,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
    *,
    size: int = DEFAULT_SIZE,
    include: Iterable[str] = (),
    kernel: str = KERNEL_META_PACKAGE,
    refresh: bool = False,
) -> DiskImage:
    """A Debian disk of ``size`` bytes at ``out``, its kernel and RAM disk beside it as ``.vmlinuz`` and ``.initrd``.

    ``include`` are more packages, ``kernel`` is the kernel's meta package or a key of ``KERNELS``. Files of these names
    are replaced when the new ones are whole. Raises ``ImageError``.
    """
    report: Progress = progress or (lambda message, fraction: None)
    meta = KERNELS.get(kernel, kernel)
    extra = tuple(sorted(set(include)))
    for name in (meta, *extra):
        if not _NAME.fullmatch(name):
            raise ImageError(f"'{name}' is no name of a package")
    if size % _BLOCK:
        raise ImageError(f"a disk of {size} bytes is not a multiple of {_BLOCK}")
    if not out.name or out.is_dir():
        raise ImageError(f"'{out}' is a folder: name the image, {out / 'debian.img'} for example")
    if not out.parent.is_dir():
        raise ImageError(f"there is no folder {out.parent}")
    if out.suffix in (".vmlinuz", ".initrd"):
        raise ImageError(f"{out} is the name of what lies beside the disk; call the disk {out.with_suffix('.img')}")
    folder = (cache_dir or default_cache_dir()) / "debian-disk"
    recipe = _recipe(meta, extra, size)
    label = f"{meta.removeprefix('linux-image-')}-{size >> 20}M-{hashlib.sha256(repr(extra).encode()).hexdigest()[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, report):
            cached = folder / label
            if refresh or not _whole(cached, recipe):
                _build(folder, cached, report, refresh, meta, extra, size, recipe)
            return _copied(cached, out, report)
    except OSError as error:
        raise ImageError(f"cannot build the Debian disk: {error}") from None


def _build(
    folder: Path,
    final: Path,
    progress: Progress,
    refresh: bool,
    meta: str,
    extra: Sequence[str],
    size: int,
    recipe: str,
) -> None:
    bootstrap.check_tools(*ext4.TOOLS)
    apt = PrivateApt(folder / "apt")
    apt.update(progress, force=refresh)
    try:
        names, debs = _fetch(apt, meta, extra, progress)
    except ImageError:
        # the lists may be older than the archive: a package that was replaced is gone from it
        apt.update(progress, force=True)
        names, debs = _fetch(apt, meta, extra, progress)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpack-") as scratch_name:
        scratch = Path(scratch_name)
        scratch.chmod(0o755)
        archive = scratch / "root.tar"
        bootstrap.write_root(
            apt,
            names,
            debs,
            archive,
            progress,
            dpkg_options=root_files.DPKG_OPTIONS,
            customize=root_files.CUSTOMIZE,
        )
        progress("unpacking the root file system", None)
        tree = scratch / "tree"
        tree.mkdir()
        ext4.unpack(archive, tree)
        attributes = ext4.attributes(archive)
        archive.unlink()
        staging = Path(tempfile.mkdtemp(dir=folder, prefix="image-"))
        try:
            _assemble(scratch, tree, attributes, staging, progress, size, recipe)
            if final.exists():
                shutil.rmtree(final)
            staging.rename(final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    _tidy(apt, debs)


def _fetch(apt: PrivateApt, meta: str, extra: Sequence[str], progress: Progress) -> tuple[list[str], dict[str, Path]]:
    """The names to install, and the files of all packages that this takes."""
    names = [kernel_of(apt, meta), *root_files.BASE_PACKAGES, *extra]
    packages: list[Package] = apt.closure([*bootstrap.REQUIRED, *names])
    return names, apt.download([p.name for p in packages], progress, f"{len(packages)} packages")


def _assemble(
    scratch: Path,
    tree: Path,
    attributes: Sequence[ext4.Attribute],
    staging: Path,
    progress: Progress,
    size: int,
    recipe: str,
) -> None:
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise ImageError("the kernel's package brought no /boot/vmlinuz")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    progress("building the RAM disk", None)
    busybox = tree / "usr/bin/busybox"
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    modules = ModuleTree(tree / "usr/lib/modules" / version).closure(root_files.MODULES)
    with (staging / "initrd").open("wb") as out:
        write_initramfs(out, busybox.read_bytes(), applets, version, modules, root_files.INITRAMFS_FILES)
    shutil.copyfile(kernels[-1], staging / "vmlinuz")
    identity = str(uuid.uuid4())
    additions = scratch / "additions.tar"
    _write_additions(additions, identity, version, (staging / "initrd").read_bytes())
    ext4.unpack(additions, tree)
    progress(f"making the file system ({size >> 20} MB)", None)
    ext4.make(tree, staging / "disk.img", size, identity, attributes)
    sizes = {file: (staging / file).stat().st_size for file in ("disk.img", "vmlinuz", "initrd")}
    facts = {"version": version, "cmdline": root_files.command_line(identity), "recipe": recipe, "sizes": sizes}
    write_json(staging / "image.json", facts)
    staging.chmod(0o755)


def _write_additions(out: Path, identity: str, version: str, initrd: bytes) -> None:
    contents = {path: text.encode() for path, text in root_files.files(identity).items()}
    contents[f"boot/initrd.img-{version}"] = initrd
    now = int(time.time())
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in contents.items():
            entry = tarfile.TarInfo(f"./{path}")
            entry.size, entry.mtime = len(data), now
            tar.addfile(entry, io.BytesIO(data))
        for path, target in root_files.links(version).items():
            entry = tarfile.TarInfo(f"./{path}")
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            entry.mode, entry.mtime = 0o777, now
            tar.addfile(entry)


def _copied(cached: Path, out: Path, progress: Progress) -> DiskImage:
    """Copies of what is in the cache, each with its name only when it is whole; the disk comes last."""
    facts = json.loads((cached / "image.json").read_text())
    image = DiskImage(out, out.with_suffix(".vmlinuz"), out.with_suffix(".initrd"), facts["version"], facts["cmdline"])
    progress(f"writing {out}", None)
    for name, target in (("vmlinuz", image.kernel), ("initrd", image.initrd), ("disk.img", image.disk)):
        temporary = target.with_name(f".{target.name}.new")
        try:
            ext4.copy_sparse(cached / name, temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return image


def _whole(cached: Path, recipe: str) -> bool:
    try:
        facts = json.loads((cached / "image.json").read_text())
        whole = all((cached / file).stat().st_size == size for file, size in facts["sizes"].items())
        return bool(whole and facts["recipe"] == recipe and facts["version"] and facts["cmdline"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _recipe(meta: str, extra: Sequence[str], size: int) -> str:
    """A digest of what goes into an image besides the versions of the packages."""
    parts = (
        LAYOUT,
        meta,
        extra,
        size,
        root_files.BASE_PACKAGES,
        root_files.DPKG_OPTIONS,
        root_files.CUSTOMIZE,
        root_files.MODULES,
        sorted(root_files.INITRAMFS_FILES.items()),
        sorted(root_files.files("").items()),
        sorted(root_files.links("").items()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _tidy(apt: PrivateApt, debs: dict[str, Path]) -> None:
    """Give back the space of packages that newer ones have replaced; other images may want the rest."""
    kept = [path for path in apt.downloads.iterdir() if path.name.split("_")[0] not in debs or path in debs.values()]
    apt.tidy(kept)
