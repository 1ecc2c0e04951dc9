"""Kernel modules of a package: what each needs and which hardware it answers to, as ``depmod`` works it out.

A module is an ELF object whose section ``.modinfo`` holds ``key=value`` strings (Linux, include/linux/moduleinfo.h).
``depends`` names the modules it needs; ``alias`` gives the patterns that udev-like loaders match against the
``modalias`` of a device. Debian's packages leave ``modules.dep`` and ``modules.alias`` to depmod at installation time;
here they are made from the modules themselves, and only for those that go into the image.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyhyve.images.error import ImageError

_SUFFIXES = (".ko", ".ko.xz", ".ko.gz")
_LAYOUTS = {b"\x01\x01": (32, 46, "IIII"), b"\x02\x01": (40, 58, "QQQQ")}
"""By class and encoding: where an ELF header has the section table's offset and sizes, and a section its four words."""


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its canonical name (underscores), file below ``/lib/modules/VERSION`` and uncompressed content."""

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    softdeps: tuple[str, ...]


def modinfo(data: bytes) -> list[tuple[str, str]]:
    """The ``key=value`` pairs of a module's ``.modinfo`` section. Raises ``ImageError`` if it is no module."""
    try:
        return _modinfo(data)
    except (struct.error, IndexError, ValueError):
        raise ImageError("damaged kernel module") from None


def _modinfo(data: bytes) -> list[tuple[str, str]]:
    if data[:4] != b"\x7fELF" or data[4:6] not in _LAYOUTS:
        raise ImageError("not a kernel module for x86")
    header, sizes, layout = _LAYOUTS[data[4:6]]
    section_table = int.from_bytes(data[header : header + struct.calcsize(layout[-1])], "little")
    entry_size, count, names_index = struct.unpack_from("<HHH", data, sizes)
    headers = [struct.unpack_from(f"<II{layout}", data, section_table + index * entry_size) for index in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, size in headers:
        start = names + name
        if data[start : data.index(b"\0", start)] == b".modinfo":
            pairs = (item.partition(b"=") for item in data[offset : offset + size].split(b"\0") if item)
            return [(key.decode(), value.decode("utf-8", "replace")) for key, _, value in pairs]
    return []


def canonical(name: str) -> str:
    """A module's name as the kernel spells it: ``virtio-rng`` is ``virtio_rng``."""
    return name.replace("-", "_")


class ModuleTree:
    """The modules under one ``lib/modules/VERSION`` folder, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, Path] = {}
        for suffix in _SUFFIXES:
            for path in root.rglob("*" + suffix):
                self._files[canonical(path.name.removesuffix(suffix))] = path
        self._read: dict[str, Module] = {}

    def __contains__(self, name: str) -> bool:
        return canonical(name) in self._files

    def get(self, name: str) -> Module:
        """The module called ``name``. Raises ``KeyError`` if there is none."""
        name = canonical(name)
        if name not in self._read:
            self._read[name] = self._load(name, self._files[name])
        return self._read[name]

    def closure(self, names: Iterable[str]) -> list[Module]:
        """The modules ``names`` that this kernel has, with all they depend on, dependencies first.

        A name that is not there is left out: it is built in, or this kernel lacks the driver.
        """
        ordered: dict[str, Module] = {}
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name in seen or name not in self:
                return
            seen.add(name)
            module = self.get(name)
            for dependency in (*module.depends, *module.softdeps):
                visit(dependency)
            ordered[module.name] = module

        for name in names:
            visit(canonical(name))
        return list(ordered.values())

    def _load(self, name: str, path: Path) -> Module:
        data = path.read_bytes()
        try:
            if path.suffix == ".xz":
                data = lzma.decompress(data)
            elif path.suffix == ".gz":
                data = gzip.decompress(data)
            info = modinfo(data)
        except (ImageError, lzma.LZMAError, OSError, EOFError) as error:
            raise ImageError(f"{path}: {error}") from None
        depends = [value.split(",") for key, value in info if key == "depends"]
        softdeps = [value.partition("pre:")[2].partition("post:")[0].split() for key, value in info if key == "softdep"]
        relative = path.relative_to(self.root).as_posix()
        return Module(
            name=name,
            path=relative[: relative.rindex(".ko") + 3],
            data=data,
            depends=tuple(canonical(item) for group in depends for item in group if item),
            aliases=tuple(value for key, value in info if key == "alias"),
            softdeps=tuple(canonical(item) for group in softdeps for item in group),
        )


def dep_file(modules: Sequence[Module]) -> str:
    """``modules.dep`` for ``modules``, which come dependencies first.

    Each has its direct and indirect dependencies behind it; ``modprobe`` loads them from the last to the first.
    """
    known = {module.name: module for module in modules}
    lines = []
    for module in modules:
        needed: set[str] = set()
        todo = list(module.depends)
        while todo:
            dependency = todo.pop()
            if dependency in known and dependency not in needed and dependency != module.name:
                needed.add(dependency)
                todo.extend(known[dependency].depends)
        paths = [other.path for other in reversed(modules) if other.name in needed]
        lines.append(f"{module.path}: {' '.join(paths)}".rstrip() + "\n")
    return "".join(lines)


def alias_file(modules: Iterable[Module]) -> str:
    """``modules.alias`` for ``modules``."""
    return "".join(f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases)
