"""Model-specific registers that the machine answers itself (Intel SDM Vol. 4).

Only registers that the backend does not know come here, as ``RdMsr`` and ``WrMsr`` exits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Msr:
    """One register: how to read it, how to write it; None where it cannot be."""

    read: Callable[[], int] | None
    write: Callable[[int], None] | None
    name: str


class MsrBus:
    """Who answers for an MSR index."""

    def __init__(self) -> None:
        self._registers: dict[int, Msr] = {}

    def register(
        self, index: int, read: Callable[[], int] | None, write: Callable[[int], None] | None, name: str
    ) -> None:
        """Answer for MSR ``index``; without ``read`` or ``write`` that access is nobody's.

        Raises ``ValueError`` if somebody does already.
        """
        if index in self._registers:
            raise ValueError(f"msr {index:#x} of {name} belongs to {self._registers[index].name}")
        self._registers[index] = Msr(read, write, name)

    def read(self, index: int) -> int | None:
        """RDMSR; None for a register that nobody knows or that is write-only."""
        register = self._registers.get(index)
        return None if register is None or register.read is None else register.read() & _MASK64

    def write(self, index: int, value: int) -> bool:
        """WRMSR; False for a register that nobody knows or that is read-only."""
        register = self._registers.get(index)
        if register is None or register.write is None:
            return False
        register.write(value)
        return True
