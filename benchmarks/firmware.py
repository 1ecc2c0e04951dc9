"""``firmware``: what is not 64-bit Linux, each from the process's start to something that it says.

    OVMF          to the shell's banner: 32-bit code that makes page tables for all of memory, then 64-bit drivers
    SeaBIOS       to the end of its search for something to boot: 16- and 32-bit code
    memtest86+    through the tests before the last, which only waits: 32 MB of memory, by 64-bit and by 32-bit code
    Debian's 686  to the shell's prompt: a 32-bit kernel and its programs

All have their consoles on the serial port. QEMU has the same files, and its machine ``q35`` for the first two. Each is
a line of wall time and one of processor time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.console import PROMPT, Console
from benchmarks.idle import used
from benchmarks.machines import MEMORY_MB, Context, command, ours, qemu_linux, qemu_options
from benchmarks.measure import Result, alternate

OVMF = Path("/usr/share/ovmf/OVMF.fd")
SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
MEMTEST = Path("/boot")
MEMTEST_MB = 32
RUNS_MAX = 3
"""A test of memory takes ten seconds and more."""

_COM1 = 0x3F8
_SERIAL = "console=ttyS0,115200"
_BANNER = b"UEFI Interactive Shell"
_NOTHING = b"No bootable device"
_LAST_TEST = b"Bit fade test"


@dataclass(frozen=True, slots=True)
class Guest:
    """A line: both command lines, without QEMU's own options, what the guest says in the end, what it takes."""

    name: str
    ours: Sequence[str]
    qemu: Sequence[str]
    until: bytes
    file: Path
    package: str
    memory_mb: int = MEMORY_MB


def run_firmware(context: Context) -> Iterator[Result | str]:
    """Each guest whose files are there; a line of text for each that is missing."""
    for guest in (*_roms(context), *_memtests()):
        if not guest.file.exists():
            yield f"{guest.name}: {guest.file} is missing: install the package {guest.package}"
            continue
        qemu = [*qemu_options(context.qemu, memory_mb=guest.memory_mb), *guest.qemu] if context.qemu else None
        yield from _measure(context, guest.name, guest.ours, qemu, guest.until)
    image = context.small_image
    mine = ours(image.kernel, image.initrd)
    mine.insert(-1, "-a")  # the kernel knows no x2APIC
    theirs = qemu_linux(context.qemu, image) if context.qemu else None
    yield from _measure(context, "Debian's 686 kernel to its shell", mine, theirs, PROMPT)


def _roms(context: Context) -> Iterator[Guest]:
    port = context.folder / "sercon-port"
    port.write_bytes(_COM1.to_bytes(8, "little"))
    board = f"-a -A -H -m {MEMORY_MB}M -s 0,q35 -s 31,ich9 -l com1,stdio -l fwcfg,qemu -o vmm.backend=soft".split()
    bhyve = [*command("bhyve"), *board]
    peer = ["-M", "q35", "-nic", "none"]
    rom = ["-l", f"bootrom,{OVMF}", "bench"]
    yield Guest("OVMF to its shell", [*bhyve, *rom], [*peer, "-bios", str(OVMF)], _BANNER, OVMF, "ovmf")
    rom = ["-l", f"bootrom,{SEABIOS}", "-f", f"etc/sercon-port,file={port}", "bench"]
    yield Guest(
        "SeaBIOS, nothing to boot", [*bhyve, *rom], [*peer, "-bios", str(SEABIOS)], _NOTHING, SEABIOS, "seabios"
    )


def _memtests() -> Iterator[Guest]:
    for kind, bits in (("x64", 64), ("ia32", 32)):
        kernel = MEMTEST / f"memtest86+{kind}.bin"
        mine = ours(kernel, memory_mb=MEMTEST_MB, cmdline=_SERIAL)
        mine.insert(-1, "-a")
        theirs = ["-nic", "none", "-kernel", str(kernel), "-append", _SERIAL]
        name = f"memtest86+, {bits}-bit, {MEMTEST_MB} MB"
        yield Guest(name, mine, theirs, _LAST_TEST, kernel, "memtest86+", MEMTEST_MB)


def _measure(
    context: Context, name: str, mine: Sequence[str], theirs: Sequence[str] | None, until: bytes
) -> Iterator[Result]:
    def start(argv: Sequence[str]) -> tuple[float, float]:
        with Console(argv) as console:
            seconds = console.expect(until) - console.spawned
            return seconds, used(console)

    found, peer = alternate(
        min(context.runs, RUNS_MAX), lambda: start(mine), (lambda: start(theirs)) if theirs is not None else None
    )
    yield Result(name, "s", [wall for wall, _ in found], [wall for wall, _ in peer])
    yield Result("    processor time of it", "s", [cpu for _, cpu in found], [cpu for _, cpu in peer])
