"""What ``pyhyve list`` shows: this user's named machines, one a line."""

from __future__ import annotations

from dataclasses import dataclass

from pyhyve.control.client import Connection, NotRunning
from pyhyve.control.folder import Folder, NoSuchVm, VmError, names

PATIENCE = 2.0
HEADINGS = ("NAME", "STATE", "BACKEND", "CPUS", "MEMORY", "PID")


@dataclass(frozen=True, slots=True)
class Row:
    """A machine; what does not apply is a dash."""

    name: str
    state: str
    backend: str = "-"
    cpus: str = "-"
    memory: str = "-"
    pid: str = "-"

    @property
    def cells(self) -> tuple[str, ...]:
        return self.name, self.state, self.backend, self.cpus, self.memory, self.pid


def rows() -> list[Row]:
    """Every machine of this user, by name."""
    return [row for row in map(look, names()) if row is not None]


def look(name: str) -> Row | None:
    """The machine ``name`` as it is now; None if it has just gone."""
    try:
        with Connection(name, timeout=PATIENCE) as connection:
            info = connection.call("info")
    except NoSuchVm:
        return None
    except NotRunning:
        return _resting(Folder(name))
    except VmError:
        return Row(name, "does not answer")
    state = "suspended" if info["suspended"] else "running"
    return Row(name, state, info["backend"], str(info["cpus"]), _megabytes(info["memory"]), str(info["pid"]))


def _resting(folder: Folder) -> Row:
    try:
        settings = folder.settings()
        state = "loaded" if folder.loaded else "ended" if settings.get("ended") else "created"
        if settings.get("transient"):
            state = "killed"
        return Row(folder.name, state, memory=_megabytes(folder.memory_size))
    except VmError:
        return Row(folder.name, "damaged")


def _megabytes(size: int) -> str:
    return f"{size >> 20}M" if size else "-"


def table() -> str:
    """The lines to print; only the headings where there is no machine."""
    lines = [HEADINGS, *(row.cells for row in rows())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
