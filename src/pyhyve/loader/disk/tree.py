"""A file system as its reader sees it: nodes with a kind, names in directories, bytes in files.

``Files`` walks paths over any of them. It follows symbolic links itself, from the tree's own root, so that a link in a
guest's tree never leads into the host's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from pyhyve.errors import LoaderError

LINKS_MAX = 40
"""Symbolic links in one path; more is a circle (Linux has the same limit)."""


class TreeError(LoaderError):
    """A file system that is damaged, or has what its reader does not know."""


class Kind(Enum):
    FILE = auto()
    DIRECTORY = auto()
    LINK = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Node:
    """A file of any kind. ``place`` is the file system's own way to find it; ``size`` is in bytes."""

    kind: Kind
    size: int
    place: object


class Tree(Protocol):
    """A file system, read only. All methods raise ``TreeError`` for one that is damaged."""

    kind: str
    root: Node

    def names(self, directory: Node) -> list[str]:
        """What is in a directory, but for ``.`` and ``..``."""

    def child(self, directory: Node, name: str) -> Node | None:
        """The node of that name, None if there is none."""

    def read(self, file: Node) -> bytes:
        """A file's content."""

    def target(self, link: Node) -> str:
        """Where a symbolic link leads."""


class Files:
    """Paths in a tree, from its root; they may be written with or without a slash at the start."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def find(self, path: str) -> Node | None:
        """What ``path`` is, all links followed; None where it leads nowhere."""
        stack = [self.tree.root]
        todo = _parts(path)
        links = 0
        while todo:
            name = todo.pop(0)
            if name == "..":
                del stack[max(1, len(stack) - 1) :]
                continue
            if stack[-1].kind is not Kind.DIRECTORY:
                return None
            node = self.tree.child(stack[-1], name)
            if node is None:
                return None
            if node.kind is Kind.LINK:
                links += 1
                if links > LINKS_MAX:
                    return None
                target = self.tree.target(node)
                if target.startswith("/"):
                    del stack[1:]
                todo = _parts(target) + todo
            else:
                stack.append(node)
        return stack[-1]

    def file(self, path: str) -> Node | None:
        """The regular file at ``path``, None if there is none."""
        node = self.find(path)
        return node if node is not None and node.kind is Kind.FILE else None

    def names(self, path: str) -> list[str]:
        """What is in the directory ``path``, sorted; empty if it is none."""
        node = self.find(path)
        return sorted(self.tree.names(node)) if node is not None and node.kind is Kind.DIRECTORY else []

    def read(self, path: str, limit: int) -> bytes:
        """The content of the file at ``path``. Raises ``TreeError`` if there is none or it has more than ``limit``."""
        node = self.file(path)
        if node is None:
            raise TreeError(f"there is no file {path}")
        if node.size > limit:
            raise TreeError(f"{path} has {node.size} bytes, more than the {limit} that there is room for")
        return self.tree.read(node)

    def text(self, path: str) -> str:
        """The content of a configuration file, as far as it is text; empty if there is none."""
        node = self.file(path)
        if node is None or node.size > CONFIGURATION_MAX:
            return ""
        return self.tree.read(node).decode(errors="replace")


CONFIGURATION_MAX = 4 << 20
"""A configuration file has at most these bytes."""


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
