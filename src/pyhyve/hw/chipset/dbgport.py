"""The debug port (``-g``): I/O port 0x224, bridged to TCP, for a gdb stub in the guest's own kernel.

No document but bhyve's ``dbgport.c``. bhyve holds the guest at its first character until a debugger connects; here the
guest runs on. It finds no input, and what it sends is kept, up to ``KEPT`` bytes, and comes first when a debugger is
there. ``charport`` says how bytes pass through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyhyve.hw.chipset.charport import CharPort
from pyhyve.hw.chipset.uart16550 import CharDevice

KEPT = 1 << 16


class Connection(CharDevice, Protocol):
    """A backend whose other end may be absent."""

    @property
    def connected(self) -> bool:
        """Whether somebody reads what is written now."""


class DebugPort(CharPort):
    """The port. ``on_wait`` is called when the guest first wants to talk and nobody is there."""

    NAME = "bvmdbg"
    PORT = 0x224
    SIGNATURE = ord("B") << 8 | ord("V")

    def __init__(self, backend: Connection, on_wait: Callable[[], None]) -> None:
        super().__init__(backend)
        self._connection = backend
        self._on_wait = on_wait
        self._waited = False
        self._kept = bytearray()

    def _send(self, data: bytes) -> None:
        if self._meet():
            self._backend.write(data)
        elif len(self._kept) < KEPT:
            self._kept += data

    def _next(self) -> int:
        self._meet()
        return super()._next()

    def _meet(self) -> bool:
        """Whether a debugger is there; it gets what was kept for it."""
        if not self._connection.connected:
            if not self._waited:
                self._waited = True
                self._on_wait()
            return False
        if self._kept:
            self._backend.write(bytes(self._kept))
            self._kept.clear()
        return True
