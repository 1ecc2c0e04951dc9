"""Commands that stand for apt's: they serve packages from the folder $REPOSITORY and log what they are asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

APT_GET = """#!/bin/sh
echo "$*" >> "$REPOSITORY/log"
state=$(dirname "$APT_CONFIG")
case "$1" in
update)
    [ -e "$REPOSITORY/offline" ] && exit 100
    touch "$state/lists/debian_Packages"
    ;;
--print-uris)
    case "$2" in -qq) shift 3 ;; *) shift 2 ;; esac
    for name; do
        [ "$name" = "?essential" ] && name=base-files
        if [ "$name" = nonsense ]; then echo "E: Unable to locate package nonsense" >&2; exit 100; fi
        for file in "$REPOSITORY/$name"_*.deb; do
            [ -e "$file" ] || continue
            sum=$(sha256sum "$file" | cut -d' ' -f1)
            echo "'http://x/$name' $(basename "$file") $(stat -c %s "$file") SHA256:$sum"
        done
    done
    ;;
download)
    if [ -e "$REPOSITORY/broken" ]; then echo "E: Failed to fetch it" >&2; exit 100; fi
    cp "$REPOSITORY"/*_*.deb .
    ;;
esac
"""
APT_CACHE = """#!/bin/sh
[ -e "$REPOSITORY/unknown" ] && exit 100
echo "Package: linux-image-cloud-amd64"
echo "Depends: {kernel} (= 6.1-1), other"
"""
APT_CONFIG = """#!/bin/sh
echo 'Acquire::http::Proxy "http://proxy.example/";'
echo 'Acquire::IndexTargets::deb "x";'
"""


def install(tools: Path, kernel: str) -> None:
    """Put the commands into the folder ``tools``; the newest kernel is the package ``kernel``."""
    for name, text in {
        "apt-get": APT_GET,
        "apt-cache": APT_CACHE.format(kernel=kernel),
        "apt-config": APT_CONFIG,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)


def make_package(folder: Path, name: str, files: dict[str, str | bytes]) -> None:
    """A package that has ``files``, all of them executable."""
    root = folder / f"tree-{name}"
    control = f"Package: {name}\nVersion: 1:2.0\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n"
    for path, data in {"DEBIAN/control": control, **files}.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        target.chmod(0o755)
    output = folder / f"{name}_1%3a2.0_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, output], check=True, capture_output=True)
    shutil.rmtree(root)


def log(repository: Path) -> list[str]:
    """What apt-get was asked to do, in order."""
    path = repository / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
