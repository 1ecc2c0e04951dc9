"""Reads two more kinds of boot configuration: that of syslinux and extlinux, and boot loader entries.

Documents: The Syslinux Project, "Config" (SYSLINUX configuration file); the Boot Loader Specification (Linux UAPI
group), type 1 entries, and loader.conf(5) for their default.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyhyve.loader.disk.choice import Choice, version_key
from pyhyve.loader.disk.tree import Files

_ARCHITECTURES = ("", "x64", "x86-64", "x86_64")


@dataclass(slots=True)
class _Label:
    name: str
    title: str = ""
    kernel: str = ""
    append: str | None = None
    initrds: list[str] = field(default_factory=list)


def syslinux(files: Files, path: str) -> list[Choice]:
    """What ``syslinux.cfg`` or ``extlinux.conf`` at ``path`` can boot, its default first."""
    labels: list[_Label] = []
    default = ""
    common = _Label("")
    for line in files.text(path).splitlines():
        key, _, value = line.strip().partition(" ")
        key, value = key.lower(), value.strip()
        label = labels[-1] if labels else common
        match key:
            case "label":
                labels.append(_Label(value, value))
            case "default":
                default = default or value
            case "menu":
                what, _, rest = value.partition(" ")
                if what.lower() == "label" and labels:
                    label.title = rest.strip().replace("^", "")
                elif what.lower() == "default" and labels:
                    default = label.name
            case "kernel" | "linux":
                label.kernel = value
            case "append":
                label.append = value
            case "initrd":
                label.initrds = value.split(",")
    labels.sort(key=lambda label: label.name != default)
    place = posixpath.dirname(path)
    found = []
    for label in labels:
        if not label.kernel or label.kernel.endswith((".c32", ".com", ".bin", ".0")):
            continue
        words = (common.append or "") if label.append is None else label.append
        words = "" if words == "-" else words
        initrds = list(label.initrds)
        kept = []
        for word in words.split():
            if word.startswith("initrd="):
                initrds += word.removeprefix("initrd=").split(",")
            else:
                kept.append(word)
        absolute = tuple(_at(place, initrd) for initrd in initrds)
        found.append(Choice(label.title, _at(place, label.kernel), absolute, " ".join(kept)))
    return found


def _at(place: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(place, path))


def boot_loader_entries(files: Files, base: str, environment: Mapping[str, str]) -> list[Choice]:
    """What the entries below ``base``/loader boot, the default first, else the newest.

    ``environment`` are GRUB's variables, which some distributions use in options.
    """
    found: list[tuple[str, str, Choice]] = []
    for name in files.names(f"{base}/loader/entries"):
        if not name.endswith(".conf"):
            continue
        values: dict[str, list[str]] = {}
        for line in files.text(f"{base}/loader/entries/{name}").splitlines():
            key, _, value = line.strip().replace("\t", " ").partition(" ")
            if key and not key.startswith("#"):
                values.setdefault(key, []).append(value.strip())
        kernel = values.get("linux", [""])[-1]
        if kernel and values.get("architecture", [""])[-1].lower() in _ARCHITECTURES:
            options = " ".join(_expand(text, environment) for text in values.get("options", []))
            initrds = tuple(path for text in values.get("initrd", []) for path in _expand(text, environment).split())
            title = values.get("title", [name.removesuffix(".conf")])[-1]
            choice = Choice(title, kernel, initrds, options)
            found.append((name.removesuffix(".conf"), values.get("version", [name])[-1], choice))
    found.sort(key=lambda entry: version_key(entry[1]), reverse=True)
    default = environment.get("saved_entry", "") or _default(files.text(f"{base}/loader/loader.conf"))
    if default:
        found.sort(key=lambda entry: not _names(default, entry[0]))
    return [choice for _, _, choice in found]


def _default(text: str) -> str:
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "default":
            return value.strip()
    return ""


def _names(pattern: str, identity: str) -> bool:
    # a name may carry a counter of tries: entry+3-0.conf
    plain = identity.partition("+")[0]
    return any(fnmatch.fnmatchcase(name, pattern.removesuffix(".conf")) for name in (identity, plain))


def _expand(text: str, environment: Mapping[str, str]) -> str:
    return " ".join(environment.get(w[1:], "") if w.startswith("$") else w for w in text.split())
