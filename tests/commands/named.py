"""Runs the commands that work on named machines, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import kernels

DEVICES = "-A -H -s 0,hostbridge -s 31,lpc -l com1,stdio".split()


def command(name: str, *words: object) -> list[str]:
    return [sys.executable, "-m", f"pyhyve.commands.{name}", *map(str, words)]


def call(name: str, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(name, *words), capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        **options,
    )  # fmt: skip


def load(kernel: str, name: str = "vm0", *more: object) -> subprocess.CompletedProcess[str]:
    """``bhyveload`` of one of ``kernels``, which has to succeed."""
    done = call("bhyveload", "-m", "16M", *more, kernels.build(kernel), name)
    assert (done.returncode, done.stderr) == (0, "")
    return done


def bhyve(backend: str, *more: object, name: str = "vm0", devices: list[str] = DEVICES) -> list[str]:
    return command("bhyve", *devices, "-o", f"vmm.backend={backend}", *more, name)


def run(backend: str, *more: object, name: str = "vm0") -> subprocess.CompletedProcess[str]:
    """``bhyve`` of a machine, to its end."""
    return subprocess.run(
        bhyve(backend, *more, name=name), capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@contextmanager
def running(backend: str, said: str, *more: object, name: str = "vm0") -> Iterator[subprocess.Popen[str]]:
    """A ``bhyve`` whose guest has said its first line; killed at the end if it still runs."""
    pipe = subprocess.PIPE
    with subprocess.Popen(bhyve(backend, *more, name=name), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == said, (line, process.stderr.read() if process.stderr and not line else "")
            yield process
        finally:
            process.kill()


def boot(kernel: str) -> tuple[str, str]:
    """What makes ``bhyve`` load one of ``kernels`` itself."""
    return "-o", f"boot.kernel={kernels.build(kernel)}"


def machines() -> list[str]:
    """The folders of named machines."""
    place = Path(os.environ["PYHYVE_RUNTIME_DIR"], "pyhyve")
    return sorted(n for n in os.listdir(place) if not n.startswith(".")) if place.exists() else []
