"""A Debian root file system as an archive: packages installed by ``mmdebstrap``, with root or without.

``mmdebstrap`` unpacks the packages, runs their scripts in a ``chroot`` and writes the result as a tar file, in which
owners and modes are right whoever ran it. With root, or with a range of user ids in ``/etc/subuid``, it works in
namespaces of its own, which the kernel takes away with it; else by ``fakechroot``. Packages and their lists come from a
``PrivateApt``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from getpass import getuser
from pathlib import Path

from pyhyve.images.apt import PrivateApt, Progress
from pyhyve.images.error import ImageError

REQUIRED = ("?essential", "?priority(required)", "apt")
"""What ``mmdebstrap`` installs of itself, as apt's patterns."""

_STEPS = {
    "extracting archives": "unpacking the essential packages",
    "installing essential packages": "installing the essential packages",
    "installing remaining packages": "installing the other packages",
    "creating tarball": "packing the root file system",
}
_CONFIGURED = "Setting up "
_STOP_SECONDS = 20


def check_tools(*more: str) -> None:
    """Raise ``ImageError`` if this host or user cannot do it, or lacks one of ``more`` tools."""
    needed = ["mmdebstrap", *more] + (["fakeroot"] if os.geteuid() else [])
    for tool in needed:
        if shutil.which(tool, path=search_path()) is None:
            raise ImageError(f"building a Debian disk needs {tool}, which this host lacks; install that package")
    if _mode() == "fakechroot" and shutil.which("fakechroot") is None:
        raise ImageError(
            "building a Debian disk without root needs uidmap and a line for this user in /etc/subuid and /etc/subgid, "
            "or the package fakechroot"
        )


def search_path() -> str:
    """Where tools are: users often lack the folders of the system's."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def write_root(
    apt: PrivateApt,
    names: Sequence[str],
    debs: Mapping[str, Path],
    out: Path,
    progress: Progress,
    *,
    dpkg_options: Sequence[str] = (),
    customize: Sequence[str] = (),
) -> None:
    """Install the packages ``names`` and ``REQUIRED`` into a new tar file ``out``.

    ``debs`` are the files of all that this takes, by the packages' names. ``customize`` are shell lines, run with the
    tree as ``$1``. Raises ``ImageError``.
    """
    # what is there at the first step is taken for essential, so the rest comes behind it
    required = {package.name for package in apt.closure(REQUIRED)}
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix="debs-"))
    for place, group in (("first", required & debs.keys()), ("rest", debs.keys() - required)):
        (scratch / place).mkdir()
        for name in group:
            os.link(debs[name], scratch / place / debs[name].name)
    command = ["mmdebstrap", "--verbose", f"--mode={_mode()}", "--variant=minbase", "--architectures=amd64"]
    command += [f"--include={','.join(names)}", "--format=tar"]
    command += ["--skip=update,download/empty", "--aptopt=APT::Install-Recommends false"]
    command += [f"--dpkgopt={option}" for option in dpkg_options]
    command += ['--setup-hook=mkdir -p "$1/var/lib/apt/lists" "$1/var/cache/apt/archives"']
    lists, first, rest = (
        shlex.quote(str(path)) for path in (apt.folder / "lists", scratch / "first", scratch / "rest")
    )
    command += [f"--setup-hook=sync-in {lists} /var/lib/apt/lists"]
    command += [f"--setup-hook=sync-in {first} /var/cache/apt/archives"]
    command += [f"--essential-hook=sync-in {rest} /var/cache/apt/archives"]
    command += [f"--customize-hook={line}" for line in customize]
    command += ["", str(out), *(str(path) for path in sorted((apt.folder / "sources").iterdir()))]
    try:
        _run(command, progress, len(debs))
    finally:
        shutil.rmtree(scratch)


def _mode() -> str:
    if os.geteuid() == 0:
        return "unshare"
    if shutil.which("newuidmap") and all(_has_range(Path("/etc", name)) for name in ("subuid", "subgid")):
        return "unshare"
    return "fakechroot"


def _has_range(table: Path) -> bool:
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return False
    users = {getuser(), str(os.getuid())}
    return any(line.partition(":")[0] in users for line in lines)


def _run(command: Sequence[str], progress: Progress, packages: int) -> None:
    """Run ``mmdebstrap`` and pass on what it says."""
    # the RAM disk is ours, and the kernel's package would make another one
    environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8", "INITRD": "No"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    assert process.stdout is not None
    configured = 0
    step = "preparing the root file system"
    errors: list[str] = []
    try:
        progress(step, None)
        for line in process.stdout:
            found = next((text for said, text in _STEPS.items() if line.startswith(f"I: {said}")), None)
            if found is not None:
                step = found
                progress(step, None)
            elif line.startswith(_CONFIGURED):
                configured += 1
                progress(step, min(1.0, configured / max(1, packages)))
            elif re.match(r"E: |dpkg: error|mmdebstrap: ", line):
                errors.append(line.removeprefix("E: ").strip())
        if process.wait():
            raise ImageError(f"mmdebstrap could not install the packages: {errors[0] if errors else 'unknown reason'}")
    except BaseException:
        # it takes its folder away when it is asked to end, not when it is killed
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        process.stdout.close()
