"""Builds the Debian guest: the cloud kernel and an initramfs with a busybox shell, from Debian's packages.

``linux-image-cloud-amd64`` is a meta package; the kernel package it depends on and ``busybox-static`` are fetched by
``PrivateApt``, unpacked by ``dpkg-deb``, and turned into ``vmlinuz`` and ``initrd`` in a folder of the cache, which
takes its final name only when it is whole. What was built is used again without a look at the network, until what goes
into an image (``initramfs``) changes or a refresh is asked for. A build that was interrupted goes on where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyhyve.images import initramfs
from pyhyve.images.apt import PASS_YOUR_OWN, PrivateApt, Progress
from pyhyve.images.error import ImageError
from pyhyve.images.modules import ModuleTree

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
KERNELS_32_BIT = "linux-image-686"
"""How the meta packages of Debian's i386 kernels begin."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What to boot: two files, and the kernel's version as ``uname -r`` gives it."""

    kernel: Path
    initrd: Path
    version: str


def default_cache_dir() -> Path:
    """The per-user cache, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the specification says to ignore a relative path
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "pyhyve"


def build_debian(
    progress: Progress | None = None,
    cache_dir: Path | None = None,
    *,
    refresh: bool = False,
    kernel: str = KERNEL_META_PACKAGE,
) -> GuestImage:
    """The Debian guest, built if it is not in the cache yet.

    ``progress`` hears of each step. ``refresh`` looks for a newer kernel. ``kernel`` is the meta package to take it
    from: the cloud kernel's has no AHCI driver, that of ``linux-image-amd64`` has; ``linux-image-686`` and
    ``linux-image-686-pae`` make a 32-bit guest. Raises ``ImageError``.
    """
    report: Progress = progress or (lambda message, fraction: None)
    if not re.fullmatch(r"linux-image-[a-z0-9.+-]+", kernel):
        raise ImageError(f"'{kernel}' is no package of a kernel; it is linux-image-amd64 or the like")
    name = "debian" if kernel == KERNEL_META_PACKAGE else f"debian-{kernel.removeprefix('linux-image-')}"
    folder = (cache_dir or default_cache_dir()) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        built = None if refresh else _built(folder, kernel)
        if built is not None:
            return built
        with _locked(folder, report):
            # another process may have built it while this one waited
            built = None if refresh else _built(folder, kernel)
            return built or _build(folder, report, refresh, kernel)
    except OSError as error:
        raise ImageError(f"cannot build the Debian guest in {folder}: {error}") from None


def _build(folder: Path, progress: Progress, refresh: bool, meta: str) -> GuestImage:
    apt = PrivateApt(folder / "apt", "i386" if meta.startswith(KERNELS_32_BIT) else "amd64")
    apt.update(progress, force=refresh)
    kernel_package = _kernel_package(apt, meta)
    try:
        files = apt.download([kernel_package, BUSYBOX_PACKAGE], progress)
    except ImageError:
        # the lists may be older than the archive: a package that was replaced is gone from it
        apt.update(progress, force=True)
        kernel_package = _kernel_package(apt, meta)
        files = apt.download([kernel_package, BUSYBOX_PACKAGE], progress)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpack-") as scratch:
        tree = Path(scratch)
        progress(f"unpacking {kernel_package}", None)
        for package in files.values():
            _unpack(package, tree)
        image = _assemble(folder, tree, progress, meta)
    apt.tidy(files.values())
    return image


def _kernel_package(apt: PrivateApt, meta: str) -> str:
    names = [name for name in apt.depends(meta) if name.startswith("linux-image-")]
    if not names:
        raise ImageError(f"apt knows no package {meta} from this host's sources; {PASS_YOUR_OWN}")
    return names[0]


def _unpack(package: Path, tree: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", package, tree], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["unknown reason"]
        package.unlink(missing_ok=True)
        raise ImageError(f"cannot unpack {package.name}: {reason[-1]}; it was removed, run this again")


def _assemble(folder: Path, tree: Path, progress: Progress, meta: str) -> GuestImage:
    kernel = _one(tree, "boot/vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    busybox = _one(tree, "bin/busybox", "usr/bin/busybox")
    module_root = _one(tree, f"lib/modules/{version}", f"usr/lib/modules/{version}")
    progress("building the initramfs", None)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    modules = ModuleTree(module_root).closure(initramfs.MODULES)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix="image-"))
    try:
        with (staging / "initrd").open("wb") as out:
            initramfs.write_initramfs(out, busybox.read_bytes(), applets, version, modules)
        shutil.copyfile(kernel, staging / "vmlinuz")
        recipe = _recipe(meta)
        name = f"{version}-{recipe}"
        sizes = {file: (staging / file).stat().st_size for file in ("vmlinuz", "initrd")}
        _write_atomically(staging / "image.json", {"version": version, "recipe": recipe, "sizes": sizes})
        staging.chmod(0o755)
        final = folder / name
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        _write_atomically(folder / "current.json", {"image": name})
        for old in folder.glob("*/image.json"):
            if old.parent != final:
                shutil.rmtree(old.parent, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return GuestImage(final / "vmlinuz", final / "initrd", version)


def _built(folder: Path, meta: str) -> GuestImage | None:
    """The image that is in the cache, if it is whole and made by today's recipe."""
    try:
        name = json.loads((folder / "current.json").read_text())["image"]
        image = folder / name
        facts = json.loads((image / "image.json").read_text())
        whole = all((image / file).stat().st_size == size for file, size in facts["sizes"].items())
        if whole and facts["recipe"] == _recipe(meta):
            return GuestImage(image / "vmlinuz", image / "initrd", facts["version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _recipe(meta: str) -> str:
    """A digest of what goes into an image besides the packages."""
    parts = (initramfs.LAYOUT, initramfs.MODULES, sorted(initramfs.FILES.items()), meta, BUSYBOX_PACKAGE)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _one(tree: Path, *patterns: str) -> Path:
    for pattern in patterns:
        found = sorted(tree.glob(pattern))
        if found:
            return found[-1]
    raise ImageError(f"Debian's packages hold no {patterns[0]}; {PASS_YOUR_OWN}")


def _write_atomically(path: Path, value: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Let one process build at a time; the lock ends with the process that holds it. Clears what a killed one left."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the guest", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in (*folder.glob("unpack-*"), *folder.glob("image-*")):
            shutil.rmtree(left_over, ignore_errors=True)
        yield
