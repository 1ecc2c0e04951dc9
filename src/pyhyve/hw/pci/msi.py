"""Message-signalled interrupts: an interrupt is a write of a value that the guest chose to an address that it chose.

Document: PCI Local Bus Specification 3.0, §6.8.1. Address and data follow the control register, with a 64-bit address
in one more doubleword; masks and pending bits, where there are any, follow the data.

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
_CONTROL, _ADDRESS = 2, 4


class Control(IntFlag):
    ENABLE = 0x0001
    ALLOCATED = 0x0070  # log2 of the vectors that the guest granted
    WIDE = 0x0080  # 64-bit address
    MASKABLE = 0x0100


# Plain numbers for the path of every interrupt: the flags' own operators take ten times as long.
_ENABLE, _ALLOCATED = int(Control.ENABLE), int(Control.ALLOCATED)
_COMMAND, _BUS_MASTER = int(Offset.COMMAND), int(Command.BUS_MASTER)


def msi_size(*, wide: bool, maskable: bool) -> int:
    """Bytes of a capability of that form."""
    return 10 + (4 if wide else 0) + (10 if maskable else 0)


class Msi:
    """The MSI capability of a function with ``vectors`` (1, 2, 4 ... 32) interrupts.

    A passed-through device has it at the offset ``at`` and in the form that its hardware has.
    """

    def __init__(
        self,
        config: ConfigSpace,
        send: Callable[[int, int], None],
        vectors: int = 1,
        *,
        at: int | None = None,
        wide: bool = True,
        maskable: bool = True,
    ) -> None:
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")
        self.vectors = vectors
        self._config = config
        self._send = send
        self._address_size = 8 if wide else 4
        self._data = _ADDRESS + self._address_size
        self._mask = self._data + 4 if maskable else 0
        self._pending = self._mask + 4
        self.size = msi_size(wide=wide, maskable=maskable)
        control = (vectors.bit_length() - 1) << 1
        control |= (Control.WIDE if wide else 0) | (Control.MASKABLE if maskable else 0)
        writable = (
            int(Control.ENABLE | Control.ALLOCATED).to_bytes(2, "little")
            + (0xFFFFFFFFFFFFFFFC).to_bytes(8, "little")[: self._address_size]
            + b"\xff\xff\0\0"
            + ((1 << vectors) - 1).to_bytes(4, "little")
        )
        body = control.to_bytes(2, "little") + bytes(self.size - 4)
        if at is None:
            at = config.add_capability(CapabilityId.MSI, body, writable)
        else:
            config.place_capability(at, CapabilityId.MSI, body, writable)
        self.offset = at

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
        vector %= self.granted
        message = self.message(vector)
        if message is None:
            self._config.set(self.offset + self._pending, 4, self._get(self._pending) | 1 << vector)
        else:
            self._send(*message)

    def message(self, vector: int) -> tuple[int, int] | None:
        """Address and data that ``notify`` would send now, None if it would not."""
        if not self.enabled or not self._config.get(_COMMAND, 2) & _BUS_MASTER:
            return None
        if self._mask and self._get(self._mask) >> vector & 1:
            return None
        address = self._config.get(self.offset + _ADDRESS, self._address_size)
        return address, self._config.get(self.offset + self._data, 2) & ~(self.granted - 1) | vector

    def written(self) -> None:
        """Send what has waited for its mask to go."""
        ready = self._get(self._pending) & ~self._get(self._mask) if self._mask else 0
        if ready and self.enabled:
            self._config.set(self.offset + self._pending, 4, self._get(self._pending) & ~ready)
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
