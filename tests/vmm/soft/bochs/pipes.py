"""Pickled objects through pipes, each behind its length in four bytes. Nothing is read ahead."""

from __future__ import annotations

import os
import pickle
from typing import Any


def _exactly(pipe: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(pipe, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive(pipe: int) -> Any:
    """The next object from a file descriptor; ``EOFError`` at its end."""
    return pickle.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, 4), "little")))


def send(pipe: int, value: object) -> None:
    """Write an object to a file descriptor."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    data = len(data).to_bytes(4, "little") + data
    while data:
        data = data[os.write(pipe, data) :]
