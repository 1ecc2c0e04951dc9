"""What a boot configuration says: a kernel, its RAM disks, its command line. Paths are those of the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to boot."""

    title: str
    kernel: str
    initrds: tuple[str, ...] = ()
    cmdline: str = ""


def version_key(text: str) -> list[tuple[int, int, str]]:
    """Orders file names and versions as people do: 6.10 is newer than 6.9, a release newer than its candidates."""
    parts = re.findall(r"\d+|[^\d]+", text)
    return [*((2, int(p), "") if p.isdigit() else (0 if p.startswith("~") else 1, 0, p) for p in parts), (1, 0, "")]
