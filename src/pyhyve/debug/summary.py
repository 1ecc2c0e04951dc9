"""What a trace says at a glance: kinds, devices, ports, lines, and how the exits are spread over time.

Input are the lines that ``trace`` writes, of any source; a line that is no record (the last one of a machine that was
killed) is counted and passed over.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyhyve.debug.trace import kind_of

TOP = 10
BARS = 20
BAR_WIDTH = 40


@dataclass(slots=True)
class Summary:
    """The sums over a trace. Times are in nanoseconds since its start."""

    head: Mapping[str, Any] = field(default_factory=dict)
    records: int = 0
    broken: int = 0
    lost: int = 0
    first: int = 0
    last: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    took: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    device_took: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, int, str, str]] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    exit_times: array[int] = field(default_factory=lambda: array("q"))
    """When each exit began."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record in. Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is none."""
        kind, t = kind_of(record), int(record["t"])
        if kind == "trace":
            self.head = record
        elif kind == "lost":
            self.lost += int(record["lost"])
        elif kind == "irq":
            if record["level"]:
                self.lines[f"irq {record['irq']} ({', '.join(record['devices'])})"] += 1
        elif kind == "msi":
            self.lines[f"msi to {record['msi']:#x}, data {record['data']:#x}"] += 1
        else:
            self._add_exit(kind, t, record)
        self.first = t if not self.records else min(self.first, t)
        self.last = max(self.last, t)
        self.records += 1

    def _add_exit(self, kind: str, t: int, record: Mapping[str, Any]) -> None:
        took = int(record["ns"])
        self.kinds[kind] += 1
        self.took[kind] += took
        self.exit_times.append(t)
        for place in ("port", "gpa", "msr"):
            if place in record:
                device = str(record.get("device") or ("" if place == "msr" else "nobody"))
                way = str(record.get("dir", "read" if kind == "rdmsr" else "write"))
                self.places[(place, int(record[place]), way, device)] += 1
                if device:
                    self.devices[device] += 1
                    self.device_took[device] += took


def summarize(lines: Iterable[str | bytes]) -> Summary:
    """The sums over the lines of a trace."""
    summary = Summary()
    for line in lines:
        try:
            summary.add(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            summary.broken += 1
    return summary


def report(summary: Summary) -> Iterator[str]:
    """The summary in lines of text."""
    head = summary.head
    seconds = max(summary.last - summary.first, 1) / 1e9
    exits = sum(summary.kinds.values())
    if head:
        yield f"{head.get('name')}: {head.get('vcpus')} vCPUs on {head.get('backend')}, from {head.get('started')}"
    yield f"{summary.records} records in {seconds:.3f} s, {exits} exits, {exits / seconds:.0f} a second"
    if summary.lost:
        yield f"{summary.lost} records were left out: the reader was too slow"
    if summary.broken:
        yield f"{summary.broken} lines are not records"
    if exits:
        yield from _table(
            ("exits", "count", "a second", "µs each"),
            (
                (kind, str(count), f"{count / seconds:.0f}", f"{summary.took[kind] / count / 1e3:.1f}")
                for kind, count in summary.kinds.most_common()
            ),
        )
    if summary.devices:
        yield from _table(
            ("devices", "accesses", "µs each"),
            (
                (name, str(count), f"{summary.device_took[name] / count / 1e3:.1f}")
                for name, count in summary.devices.most_common(TOP)
            ),
        )
    if summary.places:
        yield from _table(
            ("ports, addresses and MSRs", "direction", "count", "device"),
            (
                (f"{place} {number:#x}", way, str(count), device)
                for (place, number, way, device), count in summary.places.most_common(TOP)
            ),
        )
    if summary.lines:
        rows = ((name, str(count)) for name, count in summary.lines.most_common(TOP))
        yield from _table(("interrupts", "raised"), rows)
    if exits:
        yield from _histogram(summary.exit_times, summary.first, summary.last)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    yield ""
    for row in table:
        cells = (
            cell.rjust(width) if _is_number(table[1][i]) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _histogram(times: Iterable[int], first: int, last: int) -> Iterator[str]:
    """Exits over time, in at most ``BARS`` steps."""
    step = max(last - first, 1) / BARS
    bars = [0] * BARS
    for t in times:
        bars[min(int((t - first) / step), BARS - 1)] += 1
    highest = max(bars)
    yield ""
    yield f"exits over time, {step / 1e6:.3g} ms a line"
    for number, count in enumerate(bars):
        bar = "#" * -(-count * BAR_WIDTH // highest)
        yield f"{(first + number * step) / 1e9:9.3f} s  {bar:<{BAR_WIDTH}}  {count}"
