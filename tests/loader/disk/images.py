"""Disk images made by the tools that everybody makes them with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MEGABYTE = 1 << 20


def need(*tools: str) -> None:
    """Skip the test, by name, where a tool is missing."""
    for tool in tools:
        if shutil.which(tool) is None and shutil.which(f"/usr/sbin/{tool}") is None:
            pytest.skip(f"no `{tool}` on this host")


def call(*words: object, text: str | None = None) -> str:
    """Run a tool."""
    command = [str(word) for word in words]
    command[0] = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Make files below ``root``; a string is a link's target if it starts with ``->``, else text."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.startswith("->"):
            path.symlink_to(content.removeprefix("->"))
        else:
            path.write_text(content)
    return root


def ext(image: Path, root: Path, kind: str = "ext4", size: int = 32 * MEGABYTE, *options: str) -> Path:
    """An ext file system with the files below ``root``."""
    need("mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(size)
    call("mkfs.ext4", "-q", "-t", kind, "-d", root, *options, image)
    return image


def fat(image: Path, root: Path, bits: int = 32, size: int = 64 * MEGABYTE) -> Path:
    """A FAT file system with the files below ``root``."""
    need("mkfs.vfat", "mcopy")
    with image.open("wb") as file:
        file.truncate(size)
    call("mkfs.vfat", "-F", bits, image)
    for name in sorted(root.iterdir()):
        call("mcopy", "-s", "-i", image, name, "::")
    return image


def disk(image: Path, label: str, parts: list[tuple[Path, str]]) -> Path:
    """A disk with partitions that hold the given images. ``label`` is gpt or dos; types are sfdisk's."""
    need("sfdisk")
    sectors = [path.stat().st_size // 512 for path, _ in parts]
    with image.open("wb") as file:
        file.truncate((4096 * (len(parts) + 2) + sum(sectors)) * 512)
    lines = [f"label: {label}"]
    start = 2048
    starts = []
    logical = False
    for (_path, kind), count in zip(parts, sectors, strict=True):
        if kind == "logical" and not logical:
            lines.append(f"start={start}, type=5")
            logical = True
        if logical:
            start += 2048
        starts.append(start)
        lines.append(f"start={start}, size={count}, type={'83' if kind == 'logical' else kind}")
        start += count + (-count % 2048)
    call("sfdisk", "-q", image, text="\n".join(lines) + "\n")
    with image.open("r+b") as file:
        for (path, _), first in zip(parts, starts, strict=True):
            file.seek(first * 512)
            file.write(path.read_bytes())
    return image
