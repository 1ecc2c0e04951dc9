"""What a device looks like to a bus: the handler protocol that ports and memory-mapped ranges share.

A device registers an object with ``read`` and ``write``; the bus calls it with an offset into the range, a size in
bytes and, for a write, a value that already fits the size. The bus holds the registration's lock during the call, so a
device reads as if there were one thread. A device that has callbacks from elsewhere (timers, backends) keeps the same
lock in its ``lock`` attribute and takes it there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol


class Lock(Protocol):
    """What ``threading.RLock()`` returns, as far as the buses use it."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Handler(Protocol):
    """Somebody who answers at an address range."""

    def read(self, offset: int, size: int, /) -> int:
        """The ``size``-byte value at ``offset`` of the range. Never raises; fits in ``size`` bytes."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Write ``size`` bytes at ``offset`` of the range. Never raises."""


@dataclass(frozen=True, slots=True, eq=False)
class Callbacks:
    """A handler made of two functions, for a device that answers at several unrelated ranges."""

    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]


@dataclass(slots=True, eq=False)
class Traffic:
    """What a device has been asked: how many reads and writes there were of each size (index 1 to 8, in bytes).

    The bus counts under the device's lock, with one operation on a list: that is as little as counting can cost.
    """

    reads: list[int] = field(default_factory=lambda: [0] * 9)
    writes: list[int] = field(default_factory=lambda: [0] * 9)


def choose_lock(handler: Handler, registered: Iterable[tuple[Handler, Lock]]) -> Lock:
    """The lock for a registration that names none: the device's own, the one it has already, or a new one."""
    own: Lock | None = getattr(handler, "lock", None)
    if own is not None:
        return own
    for other, lock in registered:
        if other is handler:
            return lock
    return threading.RLock()
