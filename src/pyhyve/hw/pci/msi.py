"""Message-signalled interrupts: an interrupt is a write of a value that the guest chose to an address that it chose.

Document: PCI Local Bus Specification 3.0, §6.8.1 (64-bit address, per-vector masking).

``notify(n)`` reads address and data from configuration space, puts the vector's number in the low bits of the data
and hands both to the machine. A masked vector becomes pending and is sent when the guest unmasks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntFlag

from pyhyve.hw.pci.capabilities import CapabilityId
from pyhyve.hw.pci.config_space import Command, ConfigSpace, Offset
from pyhyve.lifecycle import State, check_version

MAXIMUM = 32
_CONTROL, _ADDRESS, _DATA, _MASK, _PENDING = 2, 4, 12, 16, 20


class Control(IntFlag):
    ENABLE = 0x0001
    ALLOCATED = 0x0070  # log2 of the vectors that the guest granted
    WIDE = 0x0080  # 64-bit address
    MASKABLE = 0x0100


# Plain numbers for the path of every interrupt: the flags' own operators take ten times as long.
_ENABLE, _ALLOCATED = int(Control.ENABLE), int(Control.ALLOCATED)
_COMMAND, _BUS_MASTER = int(Offset.COMMAND), int(Command.BUS_MASTER)


class Msi:
    """The MSI capability of a function with ``vectors`` (1, 2, 4 ... 32) interrupts."""

    size = 24

    def __init__(self, config: ConfigSpace, send: Callable[[int, int], None], vectors: int = 1) -> None:
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")
        self.vectors = vectors
        self._config = config
        self._send = send
        control = (vectors.bit_length() - 1) << 1 | Control.WIDE | Control.MASKABLE
        body = control.to_bytes(2, "little") + bytes(20)
        writable = (
            int(Control.ENABLE | Control.ALLOCATED).to_bytes(2, "little")
            + (0xFFFFFFFFFFFFFFFC).to_bytes(8, "little")
            + b"\xff\xff\0\0"
            + ((1 << vectors) - 1).to_bytes(4, "little")
        )
        self.offset = config.add_capability(CapabilityId.MSI, body, writable)

    @property
    def enabled(self) -> bool:
        """Whether the guest has chosen MSI."""
        return bool(self._control & _ENABLE)

    @property
    def granted(self) -> int:
        """How many vectors the guest lets the function use."""
        return min(1 << ((self._control & _ALLOCATED) >> 4), self.vectors)

    def notify(self, vector: int = 0) -> None:
        """Raise interrupt ``vector``; where the guest granted fewer, several share one. Nothing while it is off.

        Call it with the function's lock held.
        """
        if not self.enabled or not self._config.get(_COMMAND, 2) & _BUS_MASTER:
            return
        granted = self.granted
        vector %= granted
        if self._get(_MASK) >> vector & 1:
            self._config.set(self.offset + _PENDING, 4, self._get(_PENDING) | 1 << vector)
            return
        address = self._config.get(self.offset + _ADDRESS, 8)
        self._send(address, self._config.get(self.offset + _DATA, 2) & ~(granted - 1) | vector)

    def written(self) -> None:
        """Send what has waited for its mask to go."""
        ready = self._get(_PENDING) & ~self._get(_MASK)
        if ready and self.enabled:
            self._config.set(self.offset + _PENDING, 4, self._get(_PENDING) & ~ready)
            for vector in range(self.vectors):
                if ready >> vector & 1:
                    self.notify(vector)

    def reset(self) -> None:
        """Everything is in configuration space."""

    def save(self) -> State:
        """Everything is in configuration space."""
        return {"version": 1}

    def restore(self, state: Mapping[str, object]) -> None:
        """Everything is in configuration space."""
        check_version(self, state)

    @property
    def _control(self) -> int:
        return self._config.get(self.offset + _CONTROL, 2)

    def _get(self, field: int) -> int:
        return self._config.get(self.offset + field, 4)
