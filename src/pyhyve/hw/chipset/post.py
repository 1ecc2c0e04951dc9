"""Diagnostic ports: 0x84, where firmware reports its progress, and 0x80, which also serves as a delay.

Document: IBM PC AT technical reference, §1 (manufacturing port). Linux writes 0x80 to let slow hardware catch up.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, restore_fields, save_fields

PORTS = (0x80, 0x84)


class Post:
    """Both ports; the last code written to either is kept."""

    def __init__(self) -> None:
        self._code = 0xFF

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x80 and 0x84."""
        for port in PORTS:
            pio.register(port, 1, self, "post", width=4, whole=True)

    @property
    def code(self) -> int:
        """The last progress code."""
        return self._code

    def read(self, offset: int, size: int) -> int:
        """All ones: the port is for output."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the code."""
        self._code = value & 0xFF

    def reset(self) -> None:
        """No code yet."""
        self._code = 0xFF

    def save(self) -> State:
        """The code."""
        return save_fields(self, ("_code",))

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the code."""
        restore_fields(self, ("_code",), state)
