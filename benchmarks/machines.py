"""How the two machines are started: command lines for a Linux guest and for a few bytes of assembly."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from benchmarks.measure import BenchmarkError
from benchmarks.tools import add_tools
from pyhyve.images import GuestImage, ImageError, build_debian
from pyhyve.images.debian import KERNEL_META_PACKAGE

MEMORY_MB = 512
_OPTIONS = "-A -H -s 0,hostbridge -s 31,lpc -l com1,stdio -o vmm.backend=soft".split()


def command(name: str) -> list[str]:
    """``bhyve`` or ``bhyvectl`` of the Python that runs this."""
    script = Path(sys.executable).with_name(name)
    return [str(script)] if script.exists() else [sys.executable, "-m", f"pyhyve.commands.{name}"]


def ours(
    kernel: Path,
    initrd: Path | None = None,
    *,
    cpus: int = 1,
    memory_mb: int = MEMORY_MB,
    slots: Sequence[str] = (),
    cmdline: str = "console=ttyS0",
) -> list[str]:
    """A machine of ours with devices in ``slots``; its name is ``bench``, with more than one vCPU ``benchN``."""
    argv = [*command("bhyve"), "-c", str(cpus), "-m", f"{memory_mb}M", *_OPTIONS]
    argv += [word for slot in slots for word in ("-s", slot)]
    argv += ["-o", f"boot.kernel={kernel}", "-o", f"boot.cmdline={cmdline}"]
    return [*argv, *(["-o", f"boot.initrd={initrd}"] if initrd else []), "bench" if cpus == 1 else f"bench{cpus}"]


def qemu_options(qemu: str, cpus: int = 1, memory_mb: int = MEMORY_MB) -> list[str]:
    """QEMU's machine, but for what it boots."""
    accel = "tcg,thread=multi" if cpus > 1 else "tcg"
    machine = f"-name bench,debug-threads=on -accel {accel} -cpu max -smp {cpus} -m {memory_mb}M"
    return [qemu, *machine.split(), "-nographic", "-no-reboot"]


def qemu_linux(qemu: str, image: GuestImage, *, cpus: int = 1, devices: Sequence[str] = ()) -> list[str]:
    """QEMU with a Linux guest."""
    options = [*qemu_options(qemu, cpus), *devices]
    return [*options, "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", "console=ttyS0"]


def _build(kernel: str) -> GuestImage:
    try:
        return build_debian(lambda message, _fraction: print(f"guest: {message}", file=sys.stderr), kernel=kernel)
    except ImageError as error:
        raise BenchmarkError(f"no Debian guest: {error}") from None


@dataclass(eq=False)
class Context:
    """What a benchmark may use: how often to run, QEMU if there is one, a folder for files, the Linux guest.

    For ``table``: only the workloads or groups ``only``, CPU time in place of wall time, a profile of each. For
    ``growth``: how many minutes.
    """

    runs: int
    quick: bool
    qemu: str | None
    folder: Path
    only: frozenset[str] = frozenset()
    cpu_time: bool = False
    profile: bool = False
    minutes: float = 2

    @cached_property
    def image(self) -> GuestImage:
        """The Debian guest, built on first use. Raises ``BenchmarkError``."""
        return _build(KERNEL_META_PACKAGE)

    @cached_property
    def generic_image(self) -> GuestImage:
        """The same with the kernel that has drivers for real machines' devices too."""
        return _build("linux-image-amd64")

    @cached_property
    def small_image(self) -> GuestImage:
        """The same with a 32-bit kernel and 32-bit programs."""
        return _build("linux-image-686")

    def with_tools(self, image: GuestImage) -> GuestImage:
        """``image`` with fio and iperf3 in it. Raises ``BenchmarkError``."""
        return replace(image, initrd=add_tools(image.initrd, self.folder))

    def assemble(self, name: str, source: str, *link: str) -> Path:
        """Assemble 32-bit ``source`` and link it with the options ``link``; the file."""
        for tool in ("as", "ld"):
            if shutil.which(tool) is None:
                raise BenchmarkError(f"`{tool}` is not on this host (binutils)")
        obj, out = self.folder / f"{name}.o", self.folder / name
        for argv in (["as", "--32", "-o", str(obj), "-"], ["ld", "-m", "elf_i386", *link, "-o", str(out), str(obj)]):
            done = subprocess.run(argv, input=source, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchmarkError(f"{argv[0]}: {done.stderr.strip()}")
        return out

    def kernel(self, name: str, body: str) -> Path:
        """A multiboot kernel that runs ``body`` in flat protected mode and then powers ours off."""
        return self.assemble(name, _MULTIBOOT + body + _POWER_OFF, "-Ttext=0x100000")

    def rom(self, name: str, body: str) -> Path:
        """64 KB of ROM that runs ``body`` in real mode, first of all that the machine executes."""
        return self.assemble(name, _ROM.format(body=body), "-Ttext=0", "--oformat=binary", "-e", "0")


_MULTIBOOT = """
.code32
.align 4
.long 0x1BADB002, 0, -0x1BADB002
.globl _start
_start:
    mov $0x80000, %esp
"""
_POWER_OFF = """
    mov $0x404, %dx     # PM1a control: SLP_EN, SLP_TYP 5
    mov $0x3400, %ax
    out %ax, %dx
1:  hlt
    jmp 1b
"""
_ROM = """
.code16
{body}
1:  hlt
    jmp 1b
.org 0xFFF0
    .byte 0xE9          # jmp 0, in a segment that begins with the ROM
    .word -0xFFF3
.org 0x10000
"""
