"""Reads ``grub.cfg`` as far as it takes to know what its default entry boots.

Document: GNU GRUB manual, "Writing full configuration files directly" and "GRUB's shell-like scripting language". The
file is a program. It is parsed into commands and run; commands that draw, search or load modules do nothing, and a
condition that is not a test of strings or files is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from pyhyve.loader.disk.choice import Choice
from pyhyve.loader.disk.tree import Files

_STATEMENTS_MAX = 20_000
_DEPTH_MAX = 50
_KERNEL = ("linux", "linux16", "linuxefi", "multiboot")
_INITRD = ("initrd", "initrd16", "initrdefi")
_ENTRIES = ("blscfg", "bls_import")
_ENDS = frozenset({"fi", "else", "elif", "then", "done", "do"})
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z0-9_?@*]+)\}|([A-Za-z_][A-Za-z0-9_]*|[?@*#0-9]))")

_Part = tuple[str, bool]
_Word = tuple[_Part, ...]
"""Pieces of a word, and whether variables in each are expanded."""


class _Broken(Exception):
    """The text is no script."""


@dataclass(slots=True)
class _Command:
    words: list[_Word]
    block: list[_Command] | None = None
    branches: list[tuple[list[_Command], list[_Command]]] = field(default_factory=list)
    """Of an ``if``: condition and commands; an ``else`` has no condition."""


@dataclass(slots=True)
class _Entry:
    title: str
    id: str
    block: list[_Command]
    variables: dict[str, str]
    is_menu: bool


def read_environment(text: str) -> dict[str, str]:
    """The variables of a ``grubenv`` block."""
    lines = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name.strip(): value for name, equals, value in lines if equals}


def choices(files: Files, path: str) -> tuple[list[Choice], bool]:
    """What the file at ``path`` can boot, its default first; and whether it wants the boot loader's entries too.

    Empty for a file that is no such script or names no kernel.
    """
    prefix = path.rpartition("/")[0]
    script = _Script(files, prefix)
    try:
        script.run(_parse(_tokens(files.text(path))), 0)
        entries = script.in_order()
    except (_Broken, RecursionError):
        return [], False
    return entries, script.wants_entries


# -- text to commands --


def _tokens(text: str) -> Iterator[_Word | str]:
    """Words, and the signs that stand for themselves: ``;`` (a line's end too), ``{`` and ``}``."""
    at, size = 0, len(text)
    word: list[_Part] = []
    started = False
    while at < size:
        char = text[at]
        if char == "\\" and text[at + 1 : at + 2] == "\n":
            at += 2
            continue
        if char in " \t\r\n;{}#" and not (char in "{}#" and started):
            if started:
                yield tuple(word)
                word, started = [], False
            if char == "#":
                end = text.find("\n", at)
                at = size if end < 0 else end
                continue
            if char in "\n;":
                yield ";"
            elif char in "{}":
                yield char
            at += 1
            continue
        started = True
        if char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise _Broken
            word.append((text[at + 1 : end], False))
            at = end + 1
        elif char == '"':
            piece, at = _double_quoted(text, at + 1)
            word += piece
        elif char == "\\":
            word.append((text[at + 1 : at + 2], False))
            at += 2
        else:
            end = at + 1
            while end < size and text[end] not in " \t\r\n;'\"\\":
                if text[end] == "}" and "{" not in text[at:end]:
                    break
                end += 1
            word.append((text[at:end], True))
            at = end
    if started:
        yield tuple(word)


def _double_quoted(text: str, at: int) -> tuple[list[_Part], int]:
    pieces: list[_Part] = []
    start = at
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\", "$"):
            pieces += [(text[start:at], True), (text[at + 1], False)]
            at += 2
            start = at
        else:
            at += 1
    if at >= len(text):
        raise _Broken
    return [*pieces, (text[start:at], True)], at + 1


def _plain(token: _Word | str) -> str:
    """A word that is written without quotes, as text; empty otherwise."""
    return token[0][0] if isinstance(token, tuple) and len(token) == 1 and token[0][1] else ""


def _parse(tokens: Iterator[_Word | str]) -> list[_Command]:
    return _Parser(list(tokens)).block(0)


class _Parser:
    def __init__(self, tokens: list[_Word | str]) -> None:
        self._tokens = tokens
        self._at = 0

    def block(self, depth: int, ends: frozenset[str] = frozenset()) -> list[_Command]:
        """Commands until one of the words or signs in ``ends``, which stays; at the top until the end."""
        if depth > _DEPTH_MAX:
            raise _Broken
        found: list[_Command] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token == ";":
                self._at += 1
            elif (token if isinstance(token, str) else _plain(token)) in ends:
                return found
            elif token in ("{", "}"):
                raise _Broken
            else:
                found.append(self._command(depth))
        if ends:
            raise _Broken
        return found

    def _command(self, depth: int) -> _Command:
        name = _plain(self._tokens[self._at])
        if name == "if":
            return self._if(depth)
        if name in ("for", "while", "until"):
            self._until("do")
            self.block(depth + 1, frozenset({"done"}))
            self._at += 1
            return _Command([])
        words: list[_Word] = []
        block = None
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token in (";", "}"):
                break
            self._at += 1
            if token == "{":
                block = self.block(depth + 1, frozenset({"}"}))
                self._at += 1
                break
            assert isinstance(token, tuple)
            words.append(token)
        return _Command(words, block)

    def _if(self, depth: int) -> _Command:
        command = _Command([])
        word = "if"
        while word != "fi":
            self._at += 1
            condition: list[_Command] = []
            if word != "else":
                condition = self.block(depth + 1, frozenset({"then"}))
                self._at += 1
            body = self.block(depth + 1, frozenset({"elif", "else", "fi"}))
            command.branches.append((condition, body))
            word = _plain(self._tokens[self._at])
        self._at += 1
        return command

    def _until(self, word: str) -> None:
        while self._at < len(self._tokens) and _plain(self._tokens[self._at]) != word:
            self._at += 1
        self._at += 1


# -- running them --


class _Script:
    """Runs commands; collects the entries of a menu, or the kernel of one entry."""

    def __init__(self, files: Files, prefix: str, variables: dict[str, str] | None = None) -> None:
        self._files = files
        self._prefix = prefix
        self._variables = {"prefix": prefix, "feature_menuentry_id": "y", **(variables or {})}
        self._entries: list[_Entry] = []
        self._left = _STATEMENTS_MAX
        self.wants_entries = False
        self.kernel: list[str] = []
        self.initrds: list[str] = []
        self.modules: list[str] = []

    def run(self, commands: list[_Command], depth: int) -> bool:
        """Whether the last command succeeded."""
        if depth > _DEPTH_MAX:
            raise _Broken
        good = True
        for command in commands:
            self._left -= 1
            if self._left < 0:
                raise _Broken
            if command.branches:
                for condition, body in command.branches:
                    if not condition or self.run(condition, depth + 1):
                        self.run(body, depth + 1)
                        break
                good = True
            elif command.words:
                good = self._simple(command)
        return good

    def _simple(self, command: _Command) -> bool:
        name, *words = [self._expand(word) for word in command.words]
        if name in ("menuentry", "submenu") and command.block is not None:
            identity = [b for a, b in pairwise(words) if a in ("--id", "")]
            marked = [w.removeprefix("--id=") for w in words if w.startswith("--id=")]
            title = words[0] if words else ""
            where = (*marked, *identity, title)[0]
            self._entries.append(_Entry(title, where, command.block, dict(self._variables), name == "submenu"))
        elif name == "set":
            for word in words:
                self._assign(word)
        elif "=" in name:
            self._assign(name)
        elif name == "load_env":
            self._variables.update(read_environment(self._files.text(f"{self._prefix}/grubenv")))
        elif name in _ENTRIES:
            self.wants_entries = True
        elif name in _KERNEL:
            self.kernel = [word for word in words if not word.startswith("--")] if name == "multiboot" else words
        elif name in _INITRD:
            self.initrds = [word for word in words if not word.startswith("--")]
        elif name == "module":
            self.modules += words[:1]  # of a multiboot kernel
        elif name in ("[", "test"):
            return self._test([word for word in words if word != "]"])
        return name == "true"

    def _assign(self, word: str) -> None:
        variable, equals, value = word.partition("=")
        if equals:
            self._variables[variable] = value

    def _test(self, words: list[str]) -> bool:
        match words:
            case ["!", *rest]:
                return not self._test(rest)
            case [("-s" | "-f" | "-e" | "-d") as what, path]:
                node = self._files.find(without_device(path))
                return node is not None and (what != "-s" or node.size > 0)
            case ["-n", text] | [text]:
                return bool(text)
            case ["-z", text]:
                return not text
            case [left, "=" | "==", right]:
                return left == right
            case [left, "!=", right]:
                return left != right
        return False

    def _expand(self, word: _Word) -> str:
        return "".join(_VARIABLE.sub(self._value, text) if expanded else text for text, expanded in word)

    def _value(self, match: re.Match[str]) -> str:
        return self._variables.get(match[1] or match[2], "")

    def in_order(self, depth: int = 0) -> list[Choice]:
        """What the entries boot, the default first."""
        wanted = self._variables.get("default", "")
        first, _, rest = wanted.partition(">")
        start = next((i for i, e in enumerate(self._entries) if first in (e.id, e.title, str(i))), 0)
        ordered = [self._entries[start], *self._entries[:start], *self._entries[start + 1 :]] if self._entries else []
        found: list[Choice] = []
        for entry in ordered:
            inner = _Script(self._files, self._prefix, {**entry.variables, "default": rest})
            inner.run(entry.block, depth + 1)
            if entry.is_menu and depth < _DEPTH_MAX:
                found += inner.in_order(depth + 1)
            elif inner.kernel and len(inner.modules) < 2:  # our multiboot loader takes one
                kernel, *words = inner.kernel
                cmdline = " ".join(f'"{word}"' if " " in word else word for word in words)
                initrds = tuple(without_device(path) for path in inner.initrds + inner.modules)
                found.append(Choice(entry.title, without_device(kernel), initrds, cmdline))
        return found


def without_device(path: str) -> str:
    """``(hd0,gpt2)/boot/vmlinuz`` as a path of the file system it lies in."""
    return path.partition(")")[2] if path.startswith("(") else path
