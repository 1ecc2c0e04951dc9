"""The workloads of ``table``: what runs, in which group, and what each group's ratio may be.

Most are C programs (``workloads/*.c``), built static with ``gcc -O2``; each prints a checksum that depends on nothing
but how much it does. The others are Debian's own programs on files that are made here. What runs in the guest runs
natively on the host too: the same files, the same command.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import BenchmarkError
from pyhyve.images import GuestImage
from tests.system.files import File, add_files, libraries, pack_python

SOURCES = Path(__file__).with_name("workloads")
FLAGS = "-std=gnu17 -O2 -static -pthread -ffp-contract=off".split()
PLACE = "/bench"
"""Where the guest has the files."""
TEXT_MB = 3


@dataclass(frozen=True, slots=True)
class Group:
    """A line of the goal: the most that our time over QEMU's may be, and what to aim for."""

    name: str
    limit: float
    aim: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One command, with ``{n}`` for how much of it, ``bin/NAME`` for programs of the host's, PYTHON for Python's."""

    name: str
    group: str
    command: str
    n: int = 0
    cpus: int = 1

    @property
    def needs(self) -> set[str]:
        """The programs of the host's that it takes."""
        return set(re.findall(r"\bbin/(\w+)", self.command))

    def line(self, quick: bool) -> str:
        """The command to run."""
        return self.command.format(n=max(1, self.n // 10) if quick else self.n)


GROUPS = {
    group.name: group
    for group in (
        Group("start", 0.8, "0.5"),
        Group("integer", 0.8, "native + 10 %"),
        Group("pointers", 0.4, "native × 2"),
        Group("calls", 0.4, "native × 2"),
        Group("floats", 0.2, "native × 1.3"),
        Group("memory", 0.3, "native × 1.2"),
        Group("programs", 0.4, "native × 2"),
        Group("kernel", 0.8, "0.5"),
        Group("paging", 0.8, "0.5"),
        Group("parallel", 0.5, "0.3"),
    )
}
ALL_LINES = 0.4
"""The most that the geometric mean of all lines may be."""


def _c(group: str, program: str, cpus: int = 1, **amounts: int) -> list[Workload]:
    return [Workload(name, group, f"./{program} {name} {{n}}", n, cpus=cpus) for name, n in amounts.items()]


WORKLOADS = [
    *_c("integer", "integer", loops=200000, branches=200000, automaton=20000),
    *_c("pointers", "pointers", sieve=200, sort=20, hash=30, list=15000, longlist=2000),
    *_c("calls", "calls", recursion=1000, calls=40000, indirect=20000, callback=100),
    *_c("floats", "floats", matrix=200, fft=2000, nbody=2000, x87=30000, sse=100000, avx2=60000),
    *_c("memory", "strings", copy=5000, fill=5000, bulk=300, bytes=20000, search=10000),
    Workload("gzip", "programs", "bin/gzip -n -c <text >out && bin/gzip -dc out | bin/sha256sum"),
    Workload("xz", "programs", "bin/xz -1 -c <text >out && bin/xz -dc out | bin/sha256sum"),
    Workload("zstd", "programs", "bin/zstd -5 -q -c <text >out && bin/zstd -q -dc out | bin/sha256sum"),
    Workload("sha256sum", "programs", "bin/sha256sum text text text text text text"),
    Workload("sqlite3", "programs", "bin/sqlite3 :memory: <queries.sql"),
    Workload("python3", "programs", "PYTHON {n}", 10),
    *_c("kernel", "kernel", syscalls=400, files=600, signals=500, pipes=60),
    *_c("paging", "paging", faults=40, forks=200, execs=200, mappings=60),
    *_c("parallel", "threads", cpus=2, apart=600, together=120000),
    Workload("xz2", "parallel", "bin/xz -T2 --block-size=768KiB -1 -c <text | bin/xz -dc | bin/sha256sum", cpus=2),
    Workload("pipeline", "parallel", "bin/gzip -n -c <text | bin/zstd -5 -q -c | bin/sha256sum", cpus=2),
]


@dataclass(frozen=True, slots=True)
class Cargo:
    """What the suite consists of on this host: ``folder`` has it for native runs, ``files`` for the guest."""

    folder: Path
    files: dict[str, File]
    missing: dict[str, str]
    """Workloads that cannot run here, and why."""
    python: str

    def command(self, workload: Workload, quick: bool) -> str:
        """What to type in the folder, or in ``PLACE`` of the guest."""
        return workload.line(quick).replace("PYTHON", self.python)


def pack(folder: Path) -> Cargo:
    """Build and gather everything under ``folder``. Raises ``BenchmarkError`` without a compiler."""
    if shutil.which("gcc") is None:
        raise BenchmarkError("`gcc` is not on this host")
    files: dict[str, File] = {}
    for source in sorted(SOURCES.glob("*.c")):
        out = folder / source.stem
        done = subprocess.run(["gcc", *FLAGS, "-o", out, source, "-lm"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{source.name}: {done.stderr.strip()}")
    (folder / "text").write_text(text(TEXT_MB << 20))
    shutil.copy(SOURCES / "queries.sql", folder)
    missing: dict[str, str] = {}
    (folder / "bin").mkdir()
    for workload in WORKLOADS:
        for name in workload.needs:
            program = shutil.which(name)
            if program is None:
                missing[workload.name] = f"`{name}` is not on this host"
                break
            shutil.copy(program, folder / "bin" / name)
            files |= {path: File(Path(path).read_bytes()) for path in libraries(program)}
    for path in folder.rglob("*"):
        if path.is_file():
            files[f"{PLACE}/{path.relative_to(folder)}"] = File(path.read_bytes())
    # Debian's interpreter where it is; else the one that runs this.
    debian = Path("/usr/bin/python3")
    python = pack_python(SOURCES / "program.py", "1", interpreter=str(debian) if debian.exists() else None)
    shutil.copy(SOURCES / "program.py", folder)
    packed = {path: file for path, file in python.files.items() if not path.startswith("/programs/")}
    files |= {**packed, f"{PLACE}/program.py": File((SOURCES / "program.py").read_bytes())}
    return Cargo(folder, files, missing, python.command.replace("/programs/", ""))


def guest_image(image: GuestImage, cargo: Cargo, initrd: Path) -> GuestImage:
    """``image`` with the suite in it; ``initrd`` is written."""
    add_files(image.initrd, initrd, cargo.files)
    return replace(image, initrd=initrd)


def text(size: int) -> str:
    """Something that compresses about as well as prose does; always the same."""
    source = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(source.choices(letters, range(26, 0, -1), k=source.randint(2, 9))) for _ in range(4000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    found = " ".join(source.choices(words, weights, k=size // 5))
    return found[: size - 1] + "\n"
