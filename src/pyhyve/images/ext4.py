"""Turns an archive of a root file system into a raw disk image with ext4, without mounting anything.

The archive is unpacked into a folder and ``mke2fs -d`` copies the folder into the new file system. A user who is not
root runs both under ``fakeroot``, which remembers the owners and devices that only root could give.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pyhyve.images.bootstrap import search_path
from pyhyve.images.error import ImageError

_FICLONE = 0x40049409  # include/uapi/linux/fs.h
_CHUNK = 64 << 20


def unpack(archive: Path, tree: Path) -> None:
    """Unpack a tar file into the folder ``tree``, over what is there; owners, modes and attributes as root would."""
    state = _state(tree)
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", str(archive), "-C", str(tree)]
    _run(["tar", *options], state, "unpack the root file system")


def make(tree: Path, out: Path, size: int, uuid: str) -> None:
    """Write the sparse image ``out`` of ``size`` bytes with what is in ``tree``. Raises ``ImageError``."""
    options = ["-q", "-F", "-t", "ext4", "-L", "debian", "-U", uuid, "-E", "lazy_itable_init=0,root_owner=0:0"]
    with out.open("xb") as file:
        file.truncate(size)
    _run(["mke2fs", *options, "-d", str(tree), str(out)], _state(tree), "fill the file system")


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
            except OSError:  # no data behind this
                return
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            while at < end:
                count = os.copy_file_range(old.fileno(), new.fileno(), min(end - at, _CHUNK), at, at)
                if not count:
                    raise ImageError(f"{source} became shorter while it was copied")
                at += count


def _state(tree: Path) -> Path:
    return tree.with_suffix(".fakeroot")


def _run(command: Sequence[str], state: Path, what: str) -> None:
    if os.geteuid():
        state.touch()
        command = ["fakeroot", "-i", str(state), "-s", str(state), "--", *command]
    environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["unknown reason"]
        raise ImageError(f"cannot {what}: {lines[-1]}")
