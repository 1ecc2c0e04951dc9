"""``pyhyve top``: what a running machine does, as a live view, as plain tables, or as JSON.

Each round asks the machine's control socket for its counters (``debug.stats`` has their names) and shows what happened
since the round before, by the machine's own clock. ``sheets`` makes tables of text of them; a terminal gets these
by way of rich on its alternate screen, anything else as they are. The terminal is put back on every way out.
"""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from pyhyve.debug.stats import EXITS, TIMES, owners, rates
from pyhyve.errors import PyhyveError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

SORTS = ("accesses", "bytes", "name")
SHORTEST, LONGEST = 0.1, 3600.0
ENGINE_COLUMNS = {
    "entries": "entered/s",
    "blocks": "translated/s",
    "helpers": "helpers/s",
    "tlb-misses": "TLB misses/s",
}
"""Counters of a vCPU that are shown where the backend has them."""

MOST_COLUMNS = 8
"""vCPUs that have a column each in the table of exits."""

Stats = Mapping[str, float]


class Source(Protocol):
    """Who is asked: ``control.client.Connection``."""

    def call(self, do: str, /) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One round: what the machine is, its counters, and what they did a second."""

    info: Mapping[str, Any]
    stats: Stats
    rates: Mapping[str, float]


class Watch:
    """Takes pictures of a machine. The first one has the averages since the machine's start."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._before: Stats = {}
        self.pictures = 0

    def look(self) -> Picture:
        """The machine now. Raises ``PyhyveError`` if it does not answer."""
        info, stats = self._source.call("info"), self._source.call("stats")
        if not all(isinstance(value, int | float) for value in stats.values()):
            raise PyhyveError(f"{info.get('name')}: these are not counters")
        before, self._before = self._before, stats
        self.pictures += 1
        return Picture(info, stats, rates(before, stats))


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of text; the first column is a name, the others are numbers."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)


def heading(picture: Picture) -> str:
    """Which machine this is, in a line."""
    info = picture.info
    up = int(picture.stats.get("vm.uptime-ns", 0) / 1e9)
    cpus = info.get("cpus", 0)
    parts = [
        f"{info.get('name')} on {info.get('backend')}",
        f"{cpus} vCPU{'' if cpus == 1 else 's'}",
        f"{int(info.get('memory', 0)) >> 20} MB",
        f"up {up // 3600}:{up // 60 % 60:02}:{up % 60:02}",
    ]
    return ", ".join(parts) + (", suspended" if info.get("suspended") else "")


def sheets(picture: Picture, sort: str = SORTS[0], most: int = 16) -> Iterator[Sheet]:
    """vCPUs, their exits by kind, devices (``most`` of them), serial ports and interrupt lines; none that is empty."""
    stats, rate = picture.stats, picture.rates
    vcpus = owners(stats, "vcpu")
    found = [_vcpus(stats, rate, vcpus), _exits(stats, rate, vcpus), _devices(stats, rate, sort, most)]
    chars = Sheet(("serial", "in B/s", "out B/s", "in", "out"))
    for name in owners(stats, "char"):
        counters = f"char.{name}.bytes-in", f"char.{name}.bytes-out"
        chars.rows.append((name, *(short(rate.get(c, 0)) for c in counters), *(short(stats[c]) for c in counters)))
    lines = Sheet(("interrupt", "raised/s", "in all"))
    for name in (*(f"irq.{gsi}.raised" for gsi in owners(stats, "irq")), "msi.sent"):
        if stats.get(name):
            what = "MSI" if name == "msi.sent" else f"line {name.split('.')[1]}"
            lines.rows.append((what, short(rate.get(name, 0)), short(stats[name])))
    yield from (sheet for sheet in (*found, chars, lines) if sheet.rows)


def _vcpus(stats: Stats, rate: Stats, vcpus: list[str]) -> Sheet:
    more = [name for name in ENGINE_COLUMNS if any(f"vcpu{n}.{name}" in stats for n in vcpus)]
    shares = [name.removesuffix("-ns") for name in TIMES]
    sheet = Sheet(("vCPU", *(f"{s} %" for s in shares), "exits/s", "interrupts/s", *(ENGINE_COLUMNS[m] for m in more)))
    for n in vcpus:
        parts = [f"{min(100 * rate.get(f'vcpu{n}.{name}', 0), 100):.1f}" for name in TIMES]
        exits = sum(rate.get(f"vcpu{n}.{name}", 0) for name in EXITS)
        numbers = (exits, *(rate.get(f"vcpu{n}.{name}", 0) for name in ("interrupts", *more)))
        sheet.rows.append((n, *parts, *map(short, numbers)))
    return sheet


def _exits(stats: Stats, rate: Stats, vcpus: list[str]) -> Sheet:
    several = vcpus if 1 < len(vcpus) <= MOST_COLUMNS else []
    sheet = Sheet(("exit", *(f"vCPU {n}/s" for n in several), "all/s", "in all"))
    for kind in EXITS:
        total = sum(stats.get(f"vcpu{n}.{kind}", 0) for n in vcpus)
        if total:
            each = [rate.get(f"vcpu{n}.{kind}", 0) for n in vcpus]
            sheet.rows.append((kind, *(map(short, each) if several else ()), short(sum(each)), short(total)))
    return sheet


def _devices(stats: Stats, rate: Stats, sort: str, most: int) -> Sheet:
    sheet = Sheet(("device", "reads/s", "writes/s", "read B/s", "written B/s", "accesses"))
    kinds = ("reads", "writes", "bytes-read", "bytes-written")
    found = []
    for name in owners(stats, "device"):
        total = stats.get(f"device.{name}.reads", 0) + stats.get(f"device.{name}.writes", 0)
        if total:
            found.append((name, [rate.get(f"device.{name}.{kind}", 0) for kind in kinds], total))
    if sort != "name":
        at = slice(0, 2) if sort == "accesses" else slice(2, 4)
        found.sort(key=lambda device: (-sum(device[1][at]), -device[2], device[0]))
    for name, each, total in found[:most]:
        sheet.rows.append((name, *map(short, each), short(total)))
    return sheet


def short(number: float) -> str:
    """A number in at most six characters: ``0``, ``0.25``, ``17``, ``4321``, ``43.2k``, ``1.20M``."""
    if number < 10 and number != int(number):
        return f"{number:.2f}"
    if round(number) < 10_000:
        return f"{number:.0f}"
    units = iter("kMGTPE")
    while round(number) >= 1000:
        number /= 1000
        unit = next(units)
    number = float(f"{number:.3g}")
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f}{unit}"


def plain(picture: Picture, sort: str = SORTS[0]) -> str:
    """The picture as text."""
    lines = [heading(picture)]
    for sheet in sheets(picture, sort):
        table = [sheet.head, *sheet.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(sheet.head))]
        lines.append("")
        for name, *numbers in table:
            cells = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
            lines.append("  ".join((name.ljust(widths[0]), *cells)))
    return "\n".join(lines)


def as_json(picture: Picture) -> str:
    """The picture as one line of JSON."""
    return json.dumps({"info": picture.info, "stats": picture.stats, "rates": picture.rates})


def rich_view(picture: Picture, sort: str, held: bool, height: int) -> RenderableType:
    """The picture for a terminal of ``height`` lines."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = Text(heading(picture) + (", held" if held else ""), style="bold")
    keys = Text(f"q quit   p {'go on' if held else 'hold'}   s sort ({sort})", style="dim")
    parts: list[RenderableType] = [title]
    used = 3
    for sheet in sheets(picture, sort, max(height // 3, 4)):
        table = Table(box=None, pad_edge=False, header_style="reverse", padding=(0, 2, 0, 0))
        for number, head in enumerate(sheet.head):
            table.add_column(head, justify="right" if number else "left", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*row)
        used += len(sheet.rows) + 2
        if used > height:
            break  # the most important tables come first
        parts += [Text(""), table]
    return Group(*parts, Text(""), keys)


class Keys:
    """The keyboard, a key at a time, while it lasts; nothing where standard input is no terminal.

    Ctrl-C stays an interrupt. Ctrl-Z does nothing: the alternate screen would stay behind.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._saved: list[Any] = []

    def __enter__(self) -> Self:
        if self._fd is not None:
            self._saved = termios.tcgetattr(self._fd)
            mode = termios.tcgetattr(self._fd)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VSUSP] = b"\0"  # _POSIX_VDISABLE
            termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None and self._saved:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)

    def wait(self, seconds: float) -> str:
        """The key that is pressed within so many seconds; empty if none is."""
        if self._fd is None:
            time.sleep(max(seconds, 0))
            return ""
        if not select.select([self._fd], [], [], max(seconds, 0))[0]:
            return ""
        return os.read(self._fd, 1).decode("latin-1")


def watch_live(watch: Watch, interval: float) -> None:
    """The view on a terminal, until a key ends it. Raises ``PyhyveError`` when the machine no longer answers."""
    from rich.live import Live

    sort, held = SORTS[0], False
    picture = watch.look()
    with Keys() as keys, Live(screen=True, auto_refresh=False) as live:
        while True:
            height = live.console.size.height
            live.update(rich_view(picture, sort, held, height), refresh=True)
            deadline = time.monotonic() + interval
            while key := keys.wait(deadline - time.monotonic()):
                if key in "qQ":
                    return
                if key in "pP ":
                    held = not held
                elif key in "sS":
                    sort = SORTS[(SORTS.index(sort) + 1) % len(SORTS)]
                live.update(rich_view(picture, sort, held, height), refresh=True)
            if not held:
                picture = watch.look()


def watch_plain(watch: Watch, interval: float, once: bool, show: Callable[[Picture], str]) -> None:
    """Pictures one after the other on standard output; with ``once`` one, of the time ``interval``."""
    picture = watch.look()
    if once and interval:
        time.sleep(interval)
        picture = watch.look()
    while True:
        print(show(picture), flush=True)
        if once:
            return
        time.sleep(interval)
        picture = watch.look()
        if show is plain:
            print()


def run_top(name: str | None, interval: float, *, once: bool, as_lines: bool) -> int:
    """``pyhyve top``. The status: 0, also when the machine ends meanwhile."""
    from pyhyve.control.client import Connection

    if not (0 if once else SHORTEST) <= interval <= LONGEST:
        raise UsageError(f"an interval of {interval:g} s makes no sense: {SHORTEST:g} to {LONGEST:g} s")
    with Connection(the_one_running() if name is None else name) as connection:
        watch = Watch(connection)
        try:
            if once or as_lines or sys.stdout is None or not sys.stdout.isatty():
                watch_plain(watch, interval, once, as_json if as_lines else plain)
            else:
                watch_live(watch, interval)
        except KeyboardInterrupt:
            pass  # how one leaves
        except BrokenPipeError:
            # the reader has enough; what Python still wants to write at its end goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except PyhyveError as error:
            if not watch.pictures:
                raise
            print(f"pyhyve: {error}", file=sys.stderr)
    return 0


def the_one_running() -> str:
    """The name of the machine, if exactly one runs. Raises ``UsageError``."""
    from pyhyve.control.client import Connection
    from pyhyve.control.folder import names

    running = []
    for name in names():
        try:
            Connection(name).close()
        except PyhyveError:
            continue
        running.append(name)
    if not running:
        raise UsageError("no virtual machine is running")
    if len(running) > 1:
        raise UsageError(f"several virtual machines are running: {', '.join(running)}; name one")
    return running[0]
