"""The configuration tree: every option of a machine as a named string (``bhyve_config(5)``).

Names are paths with dots: ``pci.0.3.0.device``. A name is either a variable, which has a value, or a node, which has
children; never both. Values are strings; the accessors turn them into what is asked for and say clearly when they
cannot. A value may refer to another variable by its full path as ``%(name)``; ``%%``, ``\\%``, ``\\)`` and ``\\\\``
stand for the characters themselves. Expansion happens when a value is read.

The commands write the tree (``set``, ``load_file``), ``freeze`` closes it, the machine reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from pyhyve.errors import ConfigError

TRUE = frozenset({"true", "on", "yes", "1"})
FALSE = frozenset({"false", "off", "no", "0"})
SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MEGABYTE = 1 << 20
MAX_CPUSET = 8192
"""Host CPUs are numbered below this: the most that a Linux kernel can be built for."""

NAME_MAX = 128
"""Longest name of a machine, in bytes: with what is put behind it, it stays a file name."""

# What bhyve assumes where nothing is said (bhyve(8)).
DEFAULTS = {
    "acpi_tables": "false",
    "cpus": "1",
    "destroy_on_poweroff": "false",
    "lpc.fwcfg": "bhyve",
    "memory.guest_in_core": "false",
    "memory.size": "256M",
    "memory.wired": "false",
    "rtc.use_localtime": "true",
    "virtio_msix": "true",
    "vmm.backend": "auto",
    "x86.mptable": "true",
    "x86.strictio": "false",
    "x86.strictmsr": "true",
    "x86.vmexit_on_hlt": "false",
    "x86.vmexit_on_pause": "false",
    "x86.x2apic": "true",
}


def parse_memsize(text: str) -> int:
    """Bytes of guest memory from ``-m``: ``512M``, ``2g``, ``512`` (megabytes), rounded up to a page.

    A bare number below 1 MB means megabytes. Raises ``ValueError``.
    """
    digits, suffix = text, ""
    if text and text[-1].upper() in SUFFIXES:
        digits, suffix = text[:-1], text[-1].upper()
    if not digits.isascii() or not digits.isdigit():
        raise ValueError(f"not a size: {text!r}")
    size = int(digits) * SUFFIXES[suffix]
    if not suffix and size < MEGABYTE:
        size *= MEGABYTE
    if not 0 < size < 1 << 52:  # MAXPHYADDR cannot exceed 52 bits (SDM Vol. 3A section 4.1.4)
        raise ValueError(f"not a possible amount of memory: {text!r}")
    return -(-size // 4096) * 4096


def parse_number(text: str, low: int, high: int) -> int:
    """A whole number in plain decimal digits, or hexadecimal with 0x. Raises ``ValueError``."""
    value = int(text, 16 if text.startswith("0x") else 10) if text.isascii() and text.isalnum() else -1
    if not low <= value <= high:
        raise ValueError(f"{text!r} is not between {low} and {high}")
    return value


def parse_cpuset(text: str) -> list[int]:
    """Host CPUs from ``1``, ``1,3``, ``4-7`` or several of them, in order. Raises ``ValueError``."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start = parse_number(first, 0, MAX_CPUSET - 1)
        end = parse_number(last, start, MAX_CPUSET - 1) if dash else start
        found.update(range(start, end + 1))
    return sorted(found)


def check_vm_name(name: str) -> str:
    """A machine's name, which is also that of a folder. Raises ``ConfigError`` for one that cannot be."""
    if not name or name[0] == "." or "/" in name or not name.isprintable() or len(os.fsencode(name)) > NAME_MAX:
        raise ConfigError(f"invalid machine name '{name}': no slash, no dot in front, {NAME_MAX} bytes at most")
    return name


def _check_name(name: str) -> list[str]:
    parts = name.split(".")
    if not all(parts) or any(c.isspace() or c in "=%()#" or not c.isprintable() for c in name):
        raise ConfigError(f"invalid configuration variable name '{name}'")
    return parts


class Config:
    """A tree of variables. Reading falls back on ``DEFAULTS`` of bhyve for the names that have one."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._nodes: dict[str, int] = {}  # node -> how many variables lie below it
        self._frozen = False

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Config:
        """A tree from a mapping; ``True`` and ``False`` become ``true`` and ``false``."""
        config = cls()
        for name, value in values.items():
            config.set(name, str(value).lower() if isinstance(value, bool) else str(value))
        return config

    def set(self, name: str, value: str) -> None:
        """Give a variable a value. Raises ``ConfigError`` for a bad name, a clash with a node, or a frozen tree."""
        if self._frozen:
            raise ConfigError(f"{name}: the configuration is in use and cannot be changed")
        parts = _check_name(name)
        if any(c in value for c in "\n\r\0"):
            raise ConfigError(f"{name}: a value is one line of text")
        if name not in self._values:
            if name in self._nodes:
                raise ConfigError(f"{name}: has variables below it, so it cannot have a value of its own")
            parents = [".".join(parts[:depth]) for depth in range(1, len(parts))]
            for parent in parents:
                if parent in self._values:
                    raise ConfigError(f"{name}: {parent} is a variable, nothing can be below it")
            for parent in parents:
                self._nodes[parent] = self._nodes.get(parent, 0) + 1
        self._values[name] = value

    def assign(self, text: str) -> None:
        """``NAME=VALUE``, as ``-o`` and configuration files have it."""
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"invalid configuration variable '{text}': it must be NAME=VALUE")
        self.set(name, value)

    def unset(self, name: str) -> None:
        """Take a variable away, if it is there."""
        if self._frozen:
            raise ConfigError(f"{name}: the configuration is in use and cannot be changed")
        if self._values.pop(name, None) is None:
            return
        parts = name.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            self._nodes[parent] -= 1
            if not self._nodes[parent]:
                del self._nodes[parent]

    def load_file(self, path: str) -> None:
        """Read ``name=value`` lines; ``#`` starts a comment line. An error names the file and the line.

        The value is everything behind the equals sign, spaces too. A line with blanks around its name, such as
        ``name = value``, is written for people: there the blanks around the value go as well.
        """
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                for number, line in enumerate(file, 1):
                    try:
                        self._take_line(line.removesuffix("\n"))
                    except ConfigError as error:
                        raise ConfigError(f"{path}:{number}: {error}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"cannot read configuration file {path}: {reason}") from None

    def _take_line(self, line: str) -> None:
        if not line.strip() or line.lstrip().startswith("#"):
            return
        name, equals, value = line.partition("=")
        if equals and name != name.strip():
            self.set(name.strip(), value.strip())
        else:
            self.assign(line)

    def freeze(self) -> None:
        """From now on the tree is read only."""
        self._frozen = True

    @property
    def frozen(self) -> bool:
        return self._frozen

    def raw(self, name: str) -> str | None:
        """The value as it was set, unexpanded; bhyve's default where nothing was set."""
        return self._values.get(name, DEFAULTS.get(name))

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value with ``%(...)`` expanded, or ``default``."""
        value = self.raw(name)
        return default if value is None else self._expand(value, (name,))

    def require(self, name: str) -> str:
        """The value; ``ConfigError`` where there is none."""
        value = self.get(name)
        if value is None:
            raise ConfigError(f"{name} is not set")
        return value

    @staticmethod
    def escape(text: str) -> str:
        """``text`` as a value that expands to itself."""
        return text.replace("\\", "\\\\").replace("%", "\\%")

    def expand(self, text: str) -> str:
        """Expand ``%(name)`` references in any text."""
        return self._expand(text, ())

    def _expand(self, text: str, pending: tuple[str, ...]) -> str:
        if "%" not in text and "\\" not in text:
            return text
        where = pending[0] if pending else text
        out: list[str] = []
        at = 0
        while at < len(text):
            char = text[at]
            if char == "\\" and at + 1 < len(text) and text[at + 1] in "%)\\":
                out.append(text[at + 1])
                at += 2
            elif text.startswith("%%", at):
                out.append("%")
                at += 2
            elif text.startswith("%(", at):
                end = text.find(")", at + 2)
                if end < 0:
                    raise ConfigError(f"{where}: '%(' without ')' in '{text}'")
                name = text[at + 2 : end]
                if name in pending:
                    raise ConfigError(f"{where}: refers to itself through {' -> '.join((*pending, name))}")
                value = self.raw(name)
                if value is None:
                    raise ConfigError(f"{where}: refers to {name}, which is not set")
                out.append(self._expand(value, (*pending, name)))
                at = end + 1
            else:
                out.append(char)
                at += 1
        return "".join(out)

    def get_bool(self, name: str, default: bool | None = None) -> bool:
        """A truth value: true/on/yes/1 or false/off/no/0."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise ConfigError(f"{name} is not set")
            return default
        lower = value.strip().lower()
        if lower in TRUE:
            return True
        if lower in FALSE:
            return False
        raise ConfigError(f"{name}: '{value}' is not a truth value (true or false)")

    def get_int(
        self, name: str, default: int | None = None, *, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        """A whole number, decimal or with 0x, 0o, 0b, inside the bounds."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise ConfigError(f"{name} is not set")
            return default
        try:
            number = int(value.strip(), 10) if value.strip().isdigit() else int(value.strip(), 0)
        except ValueError:
            raise ConfigError(f"{name}: '{value}' is not a number") from None
        if minimum is not None and number < minimum:
            raise ConfigError(f"{name}: {number} is below {minimum}")
        if maximum is not None and number > maximum:
            raise ConfigError(f"{name}: {number} is above {maximum}")
        return number

    def get_size(self, name: str, default: int | None = None) -> int:
        """A number of bytes with an optional suffix K, M, G or T."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise ConfigError(f"{name} is not set")
            return default
        text = value.strip()
        suffix = text[-1:].upper()
        digits = text[:-1] if suffix in SUFFIXES and suffix else text
        if not digits.isascii() or not digits.isdigit():
            raise ConfigError(f"{name}: '{value}' is not a size (a number, then K, M, G or T if you like)")
        return int(digits) * SUFFIXES[suffix if digits is not text else ""]

    def children(self, name: str = "") -> list[str]:
        """The names just below a node, in order; numbers sort as numbers."""
        prefix = f"{name}." if name else ""
        found = {full[len(prefix) :].split(".", 1)[0] for full in self._values if full.startswith(prefix)}
        return sorted(found, key=lambda part: (0, int(part), "") if part.isdigit() else (1, 0, part))

    def below(self, name: str) -> dict[str, str]:
        """All variables below a node, expanded, by their names from there: what a PCI device's constructor is given."""
        prefix = f"{name}."
        return {
            variable.removeprefix(prefix): value
            for variable in self._values
            if variable.startswith(prefix) and (value := self.get(variable)) is not None
        }

    def names(self) -> list[str]:
        """Every variable that was set, sorted."""
        return sorted(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values or name in self._nodes

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """``(name, unexpanded value)`` of every variable that was set, sorted by name."""
        for name in self.names():
            yield name, self._values[name]

    def dump(self) -> str:
        """The whole tree, defaults included, as sorted ``name=value`` lines that ``load_file`` takes back.

        The default of ``cpus`` is left out: a topology may say more.
        """
        clashes = {"cpus", *self._nodes}
        assumed = {n: v for n, v in DEFAULTS.items() if n not in clashes and n.split(".")[0] not in self._values}
        merged = {**assumed, **self._values}
        return "".join(f"{name}={value}\n" for name, value in sorted(merged.items()))
