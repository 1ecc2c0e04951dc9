"""``pyhyve``: the friendly command. ``run`` boots a guest, ``image`` builds one, ``doctor`` and ``list`` look around,
``top`` shows a running machine, ``trace`` sums up what one left.

Like ``bhyve`` it only turns its arguments into a configuration tree (``run``) or calls one room (the others). The
status of ``run`` is that of bhyve(8) for how the guest ended: 0 reset, 1 power-off, 2 halted, 3 triple fault. Anything
that went wrong on this side is 4 or more.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

from pyhyve import __version__
from pyhyve.config import Config, parse_memsize
from pyhyve.errors import PyhyveError, Status, UsageError

IMAGES = ("debian",)
DEFAULT_NAME = "guest"
DEFAULT_MEMORY = "512M"
DEFAULT_CMDLINE = "console=ttyS0"


class _Parser(argparse.ArgumentParser):
    """argparse with the status of a wrong command line, EX_USAGE."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Status.USAGE, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pyhyve",
        description="A bhyve-compatible virtual machine monitor: on KVM, or on its own CPU engine.",
        epilog="The command line of bhyve(8) is the other command here: bhyve -h",
    )
    parser.add_argument("--version", action="version", version=f"pyhyve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="boot a guest on this terminal", description="Boot a guest on this terminal.")
    run.add_argument(
        "words", nargs="*", metavar="debian|NAME", help="the image to boot (debian) and the name of the machine"
    )
    run.add_argument("--kernel", metavar="FILE", help="a Linux bzImage, a vmlinux or a multiboot kernel")
    run.add_argument("--initrd", metavar="FILE", help="an initial RAM disk for it")
    run.add_argument("--append", metavar="TEXT", help=f"the kernel's command line (default: {DEFAULT_CMDLINE})")
    run.add_argument(
        "--disk",
        dest="disks",
        action="append",
        default=[],
        metavar="FILE[,DRIVER][,OPTIONS]",
        help="a disk image; DRIVER is virtio-blk (the default), ahci-hd or ahci-cd. Without a kernel the guest boots "
        "from the first disk",
    )
    run.add_argument(
        "--net",
        dest="networks",
        action="append",
        default=[],
        metavar="NETWORK",
        help="a network card: user (no root needed), user,hostfwd=tcp::8080-:80, tap0, socket=PATH",
    )
    run.add_argument("--memory", metavar="SIZE", default=DEFAULT_MEMORY, help="guest memory (default: %(default)s)")
    run.add_argument("--cpus", metavar="N", default="1", help="virtual CPUs (default: %(default)s)")
    run.add_argument("--backend", choices=("auto", "kvm", "soft"), default="auto", help="what runs the CPUs")
    run.add_argument(
        "-o", dest="variables", action="append", default=[], metavar="NAME=VALUE", help="set a configuration variable"
    )
    run.set_defaults(action=command_run)

    image = commands.add_parser("image", help="build a guest image", description="Build a bootable guest.")
    images = image.add_subparsers(dest="image", metavar="debian|debian-disk", required=True)
    small = images.add_parser("debian", help="a kernel and a RAM disk with a shell; they stay in the cache")
    small.set_defaults(action=command_image)
    disk = images.add_parser("debian-disk", help="a disk with a whole Debian and systemd")
    disk.add_argument("out", metavar="OUT", help="the image; its kernel and RAM disk are put beside it")
    disk.add_argument("--size", default="2G", help="of the disk (default: %(default)s)")
    disk.add_argument("--include", action="append", default=[], metavar="PKGS", help="more packages, with commas")
    disk.set_defaults(action=command_disk)
    for parts in (small, disk):
        parts.add_argument("--refresh", action="store_true", help="look for newer packages")
        parts.add_argument(
            "--kernel",
            metavar="cloud|generic|PACKAGE",
            default="cloud",
            help="Debian's cloud kernel, or the generic one, which drives AHCI disks too (default: %(default)s)",
        )

    machines = commands.add_parser("list", help="show the named machines", description="Show your named machines.")
    machines.set_defaults(action=command_list)

    top = commands.add_parser(
        "top", help="what a running machine does", description="Show what a running machine does, until q is pressed."
    )
    top.add_argument("name", nargs="?", metavar="NAME", help="the machine (default: the one that runs)")
    top.add_argument("-i", dest="interval", type=float, default=1.0, metavar="SECONDS", help="between two pictures (1)")
    top.add_argument("--once", action="store_true", help="print one table and end")
    top.add_argument("--json", action="store_true", help="print counters and rates as lines of JSON")
    top.set_defaults(action=command_top)

    trace = commands.add_parser("trace", help="sum up a trace", description="Sum up what bhyve -o trace=FILE wrote.")
    trace.add_argument("file", metavar="FILE", help="the trace; - is standard input")
    trace.set_defaults(action=command_trace)

    doctor = commands.add_parser(
        "doctor", help="what this host offers and what is missing", description="Look at this host, change nothing."
    )
    doctor.set_defaults(action=command_doctor)
    return parser


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """Shows what takes long: a bar on a terminal, else one line a step."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("looking for the guest image", total=None)

            def show(message: str, fraction: float | None) -> None:
                bar.update(task, description=message, total=None if fraction is None else 1.0, completed=fraction or 0)

            yield show
    else:
        last = ""

        def say(message: str, _fraction: float | None) -> None:
            nonlocal last
            if message != last:
                last = message
                print(f"pyhyve: {message}", file=sys.stderr, flush=True)

        yield say


def run_config(args: argparse.Namespace) -> Config:
    """The machine that ``pyhyve run`` means, but for the image's files. Raises ``UsageError``."""
    words = list(args.words)
    image = ""
    if args.kernel is None and args.initrd is not None:
        raise UsageError("--initrd needs --kernel")
    if args.kernel is None and (not args.disks or words[:1] == [IMAGES[0]]):
        image = words.pop(0) if words else IMAGES[0]
        if image not in IMAGES:
            raise UsageError(
                f"unknown image '{image}': there is {', '.join(IMAGES)}, or give --kernel FILE or --disk FILE"
            )
    if len(words) > 1:
        raise UsageError(f"one name is enough: '{words[1]}' is too much")
    try:
        parse_memsize(args.memory)
    except ValueError:
        raise UsageError(f"invalid memsize '{args.memory}'") from None
    if not args.cpus.isdigit() or int(args.cpus) < 1:
        raise UsageError(f"invalid number of CPUs '{args.cpus}'")
    values: dict[str, object] = {
        "name": words[0] if words else image or DEFAULT_NAME,
        "memory.size": args.memory,
        "cpus": args.cpus,
        "vmm.backend": args.backend,
        "acpi_tables": True,
        "x86.vmexit_on_hlt": True,
        "x86.strictmsr": True,
        "pci.0.0.0.device": "hostbridge",
        "pci.0.31.0.device": "lpc",
        "lpc.com1.path": "stdio",
        "boot.cmdline": Config.escape(DEFAULT_CMDLINE if args.append is None else args.append),
    }
    if image:
        values["image"] = image
    elif args.kernel is not None:
        values["boot.kernel"] = Config.escape(args.kernel)
        if args.initrd is not None:
            values["boot.initrd"] = Config.escape(args.initrd)
    config = Config.of(values)
    if args.disks or args.networks:
        from pyhyve.commands.attach import attach

        attach(config, args.disks, args.networks)
    for variable in args.variables:
        config.assign(variable)
    return config


def command_run(args: argparse.Namespace) -> int:
    """``pyhyve run``."""
    config = run_config(args)
    default = config.get("image") or DEFAULT_NAME
    if config.require("name") == default:
        from pyhyve.control.folder import free_name

        config.set("name", free_name(default))
    if config.get("image"):
        from pyhyve.images.debian import build_debian

        with _progress() as show:
            guest = build_debian(show)
        config.set("boot.kernel", Config.escape(str(guest.kernel)))
        config.set("boot.initrd", Config.escape(str(guest.initrd)))
    from pyhyve.runner import run_machine

    with ExitStack() as stack:
        if "boot.kernel" not in config and "lpc.bootrom" not in config:
            from pyhyve.commands.attach import booted_from, disk_file

            found = stack.enter_context(booted_from(config, disk_file(args.disks[0]), args.append))
            _announce(f"booting {found}")
        return run_machine(config, announce=_announce)


def _announce(text: str) -> None:
    print(f"pyhyve: {text}", file=sys.stderr, flush=True)


def command_image(args: argparse.Namespace) -> int:
    """``pyhyve image debian``: build it and say where it is."""
    from pyhyve.images.debian import build_debian

    with _progress() as show:
        guest = build_debian(show, refresh=args.refresh, kernel=args.kernel)
    print(f"version {guest.version}\nkernel  {guest.kernel}\ninitrd  {guest.initrd}")
    return 0


def command_disk(args: argparse.Namespace) -> int:
    """``pyhyve image debian-disk OUT``: build it and say what is there."""
    from pathlib import Path

    from pyhyve.images.debian_disk import build_debian_disk

    try:
        size = parse_memsize(args.size)
    except ValueError:
        raise UsageError(f"invalid size '{args.size}'") from None
    packages = [name.strip() for text in args.include for name in text.split(",") if name.strip()]
    with _progress() as show:
        made = build_debian_disk(
            Path(args.out), show, size=size, include=packages, kernel=args.kernel, refresh=args.refresh
        )
    print(f"version {made.version}\ndisk    {made.disk}\nkernel  {made.kernel}\ninitrd  {made.initrd}")
    print(f"cmdline {made.cmdline}")
    return 0


def command_list(_args: argparse.Namespace) -> int:
    """``pyhyve list``: this user's machines, loaded and running."""
    from pyhyve.commands.list import table

    print(table())
    return 0


def command_top(args: argparse.Namespace) -> int:
    """``pyhyve top``."""
    from pyhyve.commands.top import run_top

    return run_top(args.name, args.interval, once=args.once, as_lines=args.json)


def command_trace(args: argparse.Namespace) -> int:
    """``pyhyve trace FILE``."""
    from pyhyve.debug.summary import report, summarize

    try:
        with open(0 if args.file == "-" else args.file, "rb", closefd=args.file != "-") as file:
            summary = summarize(file)
    except OSError as error:
        raise UsageError(f"cannot read '{args.file}': {error.strerror}") from None
    if not summary.records:
        raise UsageError(f"'{args.file}' is not a trace")
    print("\n".join(report(summary)))
    return 0


def command_doctor(_args: argparse.Namespace) -> int:
    """``pyhyve doctor``: status 0 if this host can run a guest."""
    from pyhyve.commands.doctor import examine, report

    findings = examine()
    print(report(findings))
    return 0 if any(f.name == "backend" and f.good for f in findings) else Status.POWER_OFF


def _terminated(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def run(argv: Sequence[str]) -> int:
    """Run one command; errors are one line on standard error."""
    # A SIGTERM while an image is built unwinds like Ctrl-C: no half-written file, no hidden cursor.
    signal.signal(signal.SIGTERM, _terminated)
    args = build_parser().parse_args(argv)
    try:
        status: int = args.action(args)
    except PyhyveError as error:
        print(f"pyhyve: {error}", file=sys.stderr)
        # 1 is a guest that powered off; a machine that could not be built is an error.
        return Status.ERROR if error.status == Status.POWER_OFF else error.status
    except KeyboardInterrupt:
        print("pyhyve: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    return status


def main() -> int:
    """The console script."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
