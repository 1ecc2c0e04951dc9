"""A directory of the host as a guest's root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyhyve.loader.disk.tree import Kind, Node, TreeError


class HostTree:
    """The files below ``directory``. Raises ``TreeError`` if it is not a directory."""

    kind = "a directory"

    def __init__(self, directory: str) -> None:
        self.root = self._node(Path(directory))
        if self.root.kind is Kind.LINK:
            self.root = self._node(Path(os.path.realpath(directory)))
        if self.root.kind is not Kind.DIRECTORY:
            raise TreeError(f"{directory} is not a directory")

    def names(self, directory: Node) -> list[str]:
        try:
            return os.listdir(_path(directory))
        except OSError as error:
            raise TreeError(f"cannot read {_path(directory)}: {error.strerror}") from None

    def child(self, directory: Node, name: str) -> Node | None:
        path = _path(directory) / name
        try:
            return self._node(path) if os.path.lexists(path) else None
        except ValueError:  # a zero byte in a name that some file gave
            return None

    def read(self, file: Node) -> bytes:
        try:
            return _path(file).read_bytes()
        except OSError as error:
            raise TreeError(f"cannot read {_path(file)}: {error.strerror}") from None

    def target(self, link: Node) -> str:
        return os.readlink(_path(link))

    def _node(self, path: Path) -> Node:
        try:
            status = os.lstat(path)
        except OSError as error:
            raise TreeError(f"cannot read {path}: {error.strerror}") from None
        return Node(_KINDS.get(stat.S_IFMT(status.st_mode), Kind.OTHER), status.st_size, path)


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}


def _path(node: Node) -> Path:
    assert isinstance(node.place, Path)
    return node.place
