"""Debian's fio and iperf3 for the guests: an archive that is unpacked behind that of the guest image.

The packages, and those of libraries that they depend on, come by the image builder's private apt. What goes into the
archive is the two programs and the shared libraries that they and their libraries name as needed, all in one folder
where the loader looks. Built once, in the cache; removing the folder ``bench-tools`` there has it built anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import BenchmarkError
from pyhyve.images.apt import PrivateApt
from pyhyve.images.cpio import CpioWriter
from pyhyve.images.debian import default_cache_dir
from pyhyve.images.error import ImageError

PACKAGES = ("fio", "iperf3")
PROGRAMS = ("usr/bin/fio", "usr/bin/iperf3")
LOADER = "ld-linux-x86-64.so.2"
LIBRARIES = "lib/x86_64-linux-gnu"
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")


def build_tools() -> Path:
    """The archive, built if it is not there. Raises ``BenchmarkError``."""
    folder = default_cache_dir() / "bench-tools"
    archive = folder / "tools.cpio"
    if archive.exists():
        return archive
    if shutil.which("readelf") is None:
        raise BenchmarkError("`readelf` is not on this host (binutils)")
    print("guest: fio and iperf3 with their libraries", file=sys.stderr)
    try:
        apt = PrivateApt(folder / "apt")
        apt.update(_silent)
        packages = apt.download(_with_libraries(apt), _silent)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            tree = Path(scratch)
            for package in packages.values():
                subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
            fresh = archive.with_suffix(".new")
            _write(fresh, tree)
            fresh.replace(archive)
        apt.tidy(())
    except (ImageError, OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(f"no fio and iperf3 for the guests: {error}") from None
    return archive


def add_tools(initrd: Path, folder: Path) -> Path:
    """A file in ``folder`` that is ``initrd`` and the archive behind it."""
    out = folder / f"tools-{initrd.parent.name}"
    if not out.exists():
        with out.open("wb") as file:
            for part in (initrd, build_tools()):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
                file.write(bytes(-file.tell() % 512))
    return out


def _silent(_message: str, _fraction: float | None) -> None:
    pass


def _with_libraries(apt: PrivateApt) -> list[str]:
    """The packages and all packages of libraries below them."""
    found, todo = set[str](), list(PACKAGES)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            depends = (depend.removesuffix(":any") for depend in apt.depends(name))
            todo += [depend for depend in depends if depend.startswith(("lib", "zlib"))]
    return sorted(found)


def _write(path: Path, tree: Path) -> None:
    libraries: dict[str, Path] = {}
    for folder, _, names in os.walk(tree):
        libraries.update({name: Path(folder, name) for name in names if ".so" in name})
    programs = [tree / program for program in PROGRAMS]
    wanted, todo = {LOADER}, list(programs)
    while todo:
        text = subprocess.run(["readelf", "-d", todo.pop()], capture_output=True, text=True, check=True).stdout
        for name in _NEEDED.findall(text):
            if name not in wanted and name in libraries:
                wanted.add(name)
                todo.append(libraries[name])
    with path.open("wb") as out:
        cpio = CpioWriter(out)
        for program in programs:
            cpio.file(f"bin/{program.name}", program.read_bytes(), 0o755)
        for name in sorted(wanted):
            cpio.file(f"{LIBRARIES}/{name}", libraries[name].read_bytes(), 0o755)
        cpio.symlink(f"lib64/{LOADER}", f"/{LIBRARIES}/{LOADER}")
        cpio.finish()
