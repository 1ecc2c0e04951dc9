"""A result, and the line that tells it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class BenchmarkError(Exception):
    """Something that keeps a benchmark from giving its figure, in one line or with the output that shows it."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report: ``ours`` and, where there is a peer, ``qemu``, in ``unit``, one value a run.

    ``limit`` is the most that our median may be, ``least`` the least; ``ratio_limit`` and ``ratio_least`` are those of
    our median over QEMU's.
    ``note`` says what the line cannot.
    """

    what: str
    unit: str
    ours: Sequence[float]
    qemu: Sequence[float] = ()
    limit: float | None = None
    least: float | None = None
    ratio_limit: float | None = None
    ratio_least: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our median over QEMU's, where there is one."""
        return statistics.median(self.ours) / statistics.median(self.qemu) if self.qemu else None

    @property
    def kept(self) -> bool | None:
        """Whether the limits are kept; None where there are none, or none that can be checked without QEMU."""
        checks = []
        if self.limit is not None:
            checks.append(statistics.median(self.ours) <= self.limit)
        if self.least is not None:
            checks.append(statistics.median(self.ours) >= self.least)
        if self.ratio_limit is not None and self.ratio is not None:
            checks.append(self.ratio <= self.ratio_limit)
        if self.ratio_least is not None and self.ratio is not None:
            checks.append(self.ratio >= self.ratio_least)
        return all(checks) if checks else None

    def line(self) -> str:
        """The result in one line."""
        parts = [f"{self.what:<44}", f"{spread(self.ours, self.unit):>26}"]
        if self.qemu:
            parts += [f"  qemu {spread(self.qemu, self.unit):>26}", f"  ratio {self.ratio:5.2f}"]
        bounds = []
        if self.limit is not None:
            bounds.append(f"at most {quantity(self.limit, self.unit)}")
        if self.least is not None:
            bounds.append(f"at least {quantity(self.least, self.unit)}")
        if self.ratio_limit is not None:
            bounds.append(f"ratio at most {self.ratio_limit:g}")
        if self.ratio_least is not None:
            bounds.append(f"ratio at least {self.ratio_least:g}")
        if bounds:
            verdict = {True: "kept", False: "NOT KEPT", None: "not checked"}[self.kept]
            parts.append(f"  [{', '.join(bounds)}: {verdict}]")
        if self.note:
            parts.append(f"  ({self.note})")
        return "".join(parts)


def quantity(value: float, unit: str) -> str:
    """A value with three significant digits; seconds below one tenth in milliseconds."""
    if unit == "s" and value < 0.1:
        value, unit = value * 1000, "ms"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def spread(values: Sequence[float], unit: str) -> str:
    """The median and, of several values, the smallest and the largest."""
    text = quantity(statistics.median(values), unit)
    if len(values) > 1:
        text += f" ({quantity(min(values), unit)}–{quantity(max(values), unit)})"
    return text


def alternate(runs: int, ours: Callable[[], T], qemu: Callable[[], T] | None) -> tuple[list[T], list[T]]:
    """``runs`` times ours and, unless it is None, QEMU's, in turn."""
    found: tuple[list[T], list[T]] = ([], [])
    for _ in range(runs):
        found[0].append(ours())
        if qemu is not None:
            found[1].append(qemu())
    return found
