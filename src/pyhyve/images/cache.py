"""The per-user cache of built images: where it is, who may build, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyhyve.images.apt import Progress


def default_cache_dir() -> Path:
    """The per-user cache, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the specification says to ignore a relative path
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "pyhyve"


def write_json(path: Path, value: object) -> None:
    """Replace ``path`` by ``value``, in one step."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


@contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
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
