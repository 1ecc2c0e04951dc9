"""What tests bring into a guest: files in a second archive behind the initial RAM disk, a Python among them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyhyve.images.cpio import CpioWriter

# After the program it says, as its last line, where its modules came from.
_TRACE = """
import runpy, sys
program = sys.argv.pop(1)
sys.argv[0] = program
runpy.run_path(program)
import json
print(json.dumps(sorted({m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)})))
"""
# Byte code of each source, named by its number; prints where the interpreter looks for it.
_COMPILE = """
import importlib.util, os, py_compile, sys
for number, path in enumerate(sys.argv[2:]):
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(path, os.path.join(sys.argv[1], str(number)), doraise=True, invalidation_mode=mode)
    print(importlib.util.cache_from_source(path))
"""


@dataclass(frozen=True, slots=True)
class File:
    """A file's content and mode."""

    data: bytes
    mode: int = 0o755


def add_files(initrd: Path, out: Path, files: dict[str, File]) -> None:
    """Copy ``initrd`` to ``out`` and append an archive of ``files``, by absolute path."""
    archive = io.BytesIO()
    cpio = CpioWriter(archive)
    for path, file in files.items():
        cpio.file(path, file.data, file.mode)
    cpio.finish()
    # the kernel skips zeros between archives and wants each to begin at a multiple of four
    first = initrd.read_bytes()
    out.write_bytes(first + bytes(-len(first) % 512) + archive.getvalue())


@dataclass(frozen=True, slots=True)
class PythonCargo:
    """A Python program for the guest: the files, the command, and what the program prints on the host."""

    files: dict[str, File]
    command: str
    expected: str


def pack_python(program: Path, *arguments: str, interpreter: str | None = None) -> PythonCargo:
    """``program`` with this interpreter (or another one) and what it imports, each under the path that it has here.

    The modules go as byte code that is used without a look at the source: a guest would spend seconds compiling it.
    The command lacks the ``arguments``, with which the program is run here.
    """
    interpreter = os.path.realpath(interpreter or getattr(sys, "_base_executable", sys.executable))
    argv = [interpreter, "-I", "-S", "-c", _TRACE, str(program), *arguments]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines(keepends=True)
    modules: list[str] = json.loads(printed[-1])
    extensions = [path for path in modules if path.endswith(".so")]
    files = {path: File(_stripped(path)) for path in (interpreter, *extensions, *libraries(interpreter, *extensions))}
    folders = {os.path.dirname(path) for path in files}
    sources = [path for path in modules if path.endswith(".py")]
    with tempfile.TemporaryDirectory() as scratch:
        argv = [interpreter, "-I", "-S", "-c", _COMPILE, scratch, *sources]
        places = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        for number, (source, place) in enumerate(zip(sources, places, strict=True)):
            files[source] = File(b"", 0o644)
            files[place] = File(Path(scratch, str(number)).read_bytes(), 0o644)
    guest_program = f"/programs/{program.name}"
    files[guest_program] = File(program.read_bytes())
    command = f"LD_LIBRARY_PATH={':'.join(sorted(folders))} {interpreter} -I -S {guest_program}"
    return PythonCargo(files, command, "".join(printed[:-1]))


def libraries(*objects: str) -> set[str]:
    """The shared libraries that ``objects`` load, and the loader, as ldd(1) names them."""
    text = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", text, re.MULTILINE))


def _stripped(path: str) -> bytes:
    """An executable or library without its debugging information, where strip(1) can take it away."""
    strip = shutil.which("strip")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out")
        if strip and subprocess.run([strip, "-o", out, path], capture_output=True, check=False).returncode == 0:
            return out.read_bytes()
    return Path(path).read_bytes()
