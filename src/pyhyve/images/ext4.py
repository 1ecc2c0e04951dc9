"""Turns an archive of a root file system into a raw disk image with ext4, without mounting anything.

The archive is unpacked into a folder and ``mke2fs -d`` copies the folder into the new file system. A user who is not
root runs both under ``fakeroot``, which remembers the owners and devices that only root could give. Extended attributes
(the capabilities of ``ping``, access lists) go past the folder: ``fakeroot`` 1.31 forgets what kind of file it is that
gets one, and root in a container may not set them either. ``debugfs`` writes them into the image.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyhyve.images.bootstrap import search_path
from pyhyve.images.error import ImageError

TOOLS = ("tar", "mke2fs", "debugfs")
"""What has to be installed for this."""

_FICLONE = 0x40049409  # include/uapi/linux/fs.h
_CHUNK = 64 << 20
_PIECE = 1 << 20
_ATTRIBUTE = "SCHILY.xattr."  # pax header of GNU tar

Attribute = tuple[str, str, bytes]
"""Path of a file, name and value of an extended attribute."""


def attributes(archive: Path) -> list[Attribute]:
    """The extended attributes of the files in a tar file."""
    found = []
    with tarfile.open(archive, encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            for header, value in member.pax_headers.items():
                if header.startswith(_ATTRIBUTE):
                    name = header.removeprefix(_ATTRIBUTE)
                    found.append((member.name.removeprefix("."), name, value.encode("utf-8", "surrogateescape")))
    return found


def unpack(archive: Path, tree: Path) -> None:
    """Unpack a tar file into the folder ``tree``, over what is there; owners, modes and devices as root would."""
    options = ["--numeric-owner", "--no-xattrs", "--no-acls", "-xpf", str(archive), "-C", str(tree)]
    _run(["tar", *options], _state(tree), "unpack the root file system")


def make(tree: Path, out: Path, size: int, uuid: str, extra: Sequence[Attribute] = ()) -> None:
    """Write the sparse image ``out`` of ``size`` bytes with what is in ``tree``, and ``extra`` attributes.

    Raises ``ImageError``.
    """
    options = ["-q", "-F", "-t", "ext4", "-L", "debian", "-U", uuid, "-E", "lazy_itable_init=0,root_owner=0:0"]
    with out.open("xb") as file:
        file.truncate(size)
    _run(["mke2fs", *options, "-d", str(tree), str(out)], _state(tree), "fill the file system")
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        lines = []
        for number, (path, name, value) in enumerate(extra):
            content = Path(folder, str(number))
            content.write_bytes(value)
            lines.append(f'ea_set -f "{content}" "{path}" {name}\n')
        commands = Path(folder, "commands")
        commands.write_text("".join(lines))
        said = _run(["debugfs", "-w", "-f", str(commands), str(out)], None, "set the files' attributes")
        wrong = [line for line in said.splitlines() if not line.startswith("debugfs")]  # else a banner, an echo
        if wrong:
            raise ImageError(f"cannot set the files' attributes: {wrong[0]}")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, its holes as holes; where the host's file system can, both share blocks until one is written."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new, _FICLONE, old.fileno())
            return
        except OSError:
            pass
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # no data behind this
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            while at < end:
                try:
                    count = os.copy_file_range(old.fileno(), new.fileno(), min(end - at, _CHUNK), at, at)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                        raise
                    # not between these two file systems
                    count = os.pwrite(new.fileno(), os.pread(old.fileno(), min(end - at, _PIECE), at), at)
                if not count:
                    raise ImageError(f"{source} became shorter while it was copied")
                at += count


def _state(tree: Path) -> Path:
    return tree.with_suffix(".fakeroot")


def _run(command: Sequence[str], state: Path | None, what: str) -> str:
    """Run a tool, as root would if there is a ``state`` file to remember that by. What it said on standard error."""
    if os.geteuid() and state is not None:
        state.touch()
        command = ["fakeroot", "-i", str(state), "-s", str(state), "--", *command]
    environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["unknown reason"]
        hint = "; a larger --size is needed" if "Could not allocate" in lines[-1] else ""
        raise ImageError(f"cannot {what}: {lines[-1]}{hint}")
    return done.stderr
