"""``bhyveload``: puts a guest into the memory of a named machine, as bhyveload(8) does for FreeBSD.

Here the guest is a kernel that is given (Linux, an ELF with a PVH entry, or multiboot), or the one that a directory's
or a disk's own boot configuration names as default. It leaves memory and registers; ``bhyve NAME`` runs them.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyhyve.config import parse_memsize
from pyhyve.errors import LoaderError, PyhyveError, Status, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhyve.control.folder import Folder
    from pyhyve.loader.disk.bootconfig import Boot

USAGE = """\
usage: bhyveload [-S] [-c CONSOLE] [-C CMDLINE] [-e NAME=VALUE] [-i INITRD] [-m SIZE] KERNEL vmname
       bhyveload [-S] [-c CONSOLE] [-C CMDLINE] [-e NAME=VALUE] [-i INITRD] [-m SIZE] -h DIR | -d DISK vmname

  KERNEL  a Linux bzImage, a vmlinux with a PVH entry, or a multiboot kernel
  -h  boot what the boot configuration below this directory names as default
  -d  boot what the boot configuration on this disk image names as default
  -c  the terminal that is told what is loaded: stdio (default) or a device
  -C  the kernel's command line; with -h and -d instead of the configuration's
  -e  add NAME=VALUE to it: Linux hands it to the first process's environment
  -i  initial RAM disk; with -h and -d instead of the configuration's
  -m  guest memory, default 256M                -S  wire guest memory
"""
DEFAULT_MEMORY = "256M"


class Usage(Exception):
    """Print the usage text and end with status 1."""


@dataclass(slots=True)
class Options:
    """The command line, read."""

    name: str = ""
    kernel: str | None = None
    directory: str | None = None
    disk: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    environment: list[str] = field(default_factory=list)
    memory: str = DEFAULT_MEMORY
    console: str = "stdio"
    wired: bool = False


def parse(argv: Sequence[str]) -> Options:
    """Read the command line. Raises ``Usage``, or ``UsageError`` for a value that is wrong."""
    options = Options()
    try:
        found, words = getopt.getopt(list(argv), "c:C:d:e:h:i:m:S")
    except getopt.GetoptError as error:
        print(f"bhyveload: {error}", file=sys.stderr)
        raise Usage from None
    for letter, text in found:
        match letter:
            case "-c":
                options.console = text
            case "-C":
                options.cmdline = text
            case "-d":
                options.disk = text
            case "-e":
                options.environment.append(kernel_word(text))
            case "-h":
                options.directory = text
            case "-i":
                options.initrd = text
            case "-m":
                options.memory = text
            case "-S":
                options.wired = True
    sources = [source for source in (options.directory, options.disk) if source is not None]
    if len(sources) > 1:
        raise UsageError("-h and -d contradict each other: one of them says where the guest is")
    if len(words) != (1 if sources else 2):
        raise Usage
    options.kernel = None if sources else words[0]
    options.name = words[-1]
    try:
        parse_memsize(options.memory)
    except ValueError:
        raise UsageError(f"invalid memsize '{options.memory}'") from None
    return options


def kernel_word(text: str) -> str:
    """``NAME=VALUE`` as one word of a kernel's command line. Raises ``UsageError``."""
    name, equals, value = text.partition("=")
    if not equals or not name or any(c.isspace() or c in "\"'" for c in name) or '"' in value or "\n" in value:
        raise UsageError(f"invalid environment '{text}': it must be NAME=VALUE, without double quotes")
    return f'{name}="{value}"' if any(c.isspace() for c in value) else text


def command_line(given: str, environment: Sequence[str]) -> str:
    """``given`` with the words of ``environment``, which go before ``--``: what is behind it is for init."""
    if not environment:
        return given
    kernel, separator, init = f" {given} ".partition(" -- ")
    words = " ".join([kernel.strip(), *environment]).strip()
    return f"{words} -- {init.strip()}" if separator else words


@contextmanager
def _source(options: Options, room: int) -> Iterator[Boot]:
    """The kernel and RAM disk to load."""
    from pyhyve.loader.disk import bootconfig

    if options.directory is not None:
        with bootconfig.from_directory(options.directory, room) as boot:
            yield boot
    elif options.disk is not None:
        with bootconfig.from_disk(options.disk, room) as boot:
            yield boot
    else:
        assert options.kernel is not None
        yield bootconfig.Boot("", Path(options.kernel), None, "", {})


def load_guest(options: Options) -> None:
    """Load, and leave everything in the machine's folder. Raises ``PyhyveError``."""
    from pyhyve.control.folder import Folder

    size = parse_memsize(options.memory)
    with (
        _terminal(options.console) as tell,
        _source(options, size) as boot,
        Folder(options.name).claim(create=True) as folder,
    ):
        fresh = not folder.settings()
        try:
            folder.set(transient=False, pid=os.getpid(), ended=None, wired=options.wired or None)
            _fill(folder, options, boot, size)
            folder.set(pid=None)
        except BaseException:
            if fresh:
                folder.remove()
            else:
                folder.drop_memory()
            raise
        if boot.title:
            with suppress(OSError):  # a terminal that hung up, or that nobody reads
                tell(f"loaded {boot.title}: {boot.named(str(boot.kernel))}")


def _fill(folder: Folder, options: Options, boot: Boot, size: int) -> None:
    from pyhyve.control.state import from_entry
    from pyhyve.loader import load
    from pyhyve.memory import GuestMemory

    initrd = Path(options.initrd) if options.initrd is not None else boot.initrd
    cmdline = command_line(boot.cmdline if options.cmdline is None else options.cmdline, options.environment)
    memory = GuestMemory(size, fd=folder.make_memory(size))
    try:
        entry = load(memory, boot.kernel, initrd, cmdline)
    except LoaderError as error:
        raise LoaderError(boot.named(str(error))) from None
    finally:
        memory.close()
    folder.write_registers(from_entry(entry), entry.rsdp_pointer)


@contextmanager
def _terminal(console: str) -> Iterator[Callable[[str], object]]:
    """The loader's terminal, opened before anything is loaded: writes a line."""
    if console == "stdio":
        yield lambda text: print(text, flush=True)
        return
    try:
        # a serial device may wait for its carrier in open
        fd = os.open(console, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write to console {console}: {reason}") from None
    with open(fd, "wb", buffering=0) as terminal:
        yield lambda text: terminal.write(f"{text}\r\n".encode(errors="replace"))


def run(argv: Sequence[str]) -> int:
    """Load one guest; 0 if it lies there, else 1 or EX_USAGE with one line."""
    try:
        load_guest(parse(argv))
    except Usage:
        sys.stderr.write(USAGE)
        return Status.POWER_OFF
    except PyhyveError as error:
        print(f"bhyveload: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 128 + 2
    return 0


def main() -> int:
    """The console script."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
