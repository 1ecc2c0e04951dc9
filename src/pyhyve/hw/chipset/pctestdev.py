"""The PC test device (``-l pc-testdev``): what the KVM unit tests expect of their machine.

No document but bhyve's ``pctestdev.c``, after QEMU's ``pc-testdev``:

    ports 0xE0-0xE3              a 32-bit latch, read and written by byte, word or doubleword
    ports 0xF4-0xF7              end the machine (``debugexit``)
    ports 0x2000-0x2017          one for each input of the I/O APIC: a byte other than 0 raises the line, 0 lowers it
    0xFF000000, 64 KiB           memory that every access exits for
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.irq import GSIS, IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.debugexit import DebugExit
from pyhyve.lifecycle import State, check_version, saved_int, saved_list

LATCH_PORT, LATCH_SIZE = 0xE0, 4
IRQ_PORT = 0x2000
MEMORY_BASE, MEMORY_SIZE = 0xFF000000, 0x10000


class PcTestDevice:
    """All four parts. ``end`` is told the status that a guest ends with."""

    def __init__(self, router: IrqRouter, end: Callable[[int], None]) -> None:
        self.lock = threading.RLock()
        self._exit = DebugExit(end)
        self._lines = [router.line(gsi, "pc-testdev") for gsi in range(GSIS)]
        self._latch = bytearray(LATCH_SIZE)
        self._memory = bytearray(MEMORY_SIZE)

    def attach(self, pio: PioBus, mmio: MmioBus) -> None:
        """Answer at the ports and in memory. Raises ``ValueError`` if something is taken."""
        self._exit.attach(pio)
        pio.register(LATCH_PORT, LATCH_SIZE, _bytes(self._latch), "pc-testdev latch", self.lock)
        irqs = Callbacks(lambda offset, size: 0, self._write_irq)
        pio.register(IRQ_PORT, GSIS, irqs, "pc-testdev interrupts", self.lock, width=1)
        mmio.register(MEMORY_BASE, MEMORY_SIZE, _bytes(self._memory), "pc-testdev memory", self.lock)

    def _write_irq(self, offset: int, size: int, value: int) -> None:
        self._lines[offset].set(value != 0)

    def reset(self) -> None:
        """All zeros, and every line let go."""
        with self.lock:
            self._latch[:] = bytes(LATCH_SIZE)
            self._memory[:] = bytes(MEMORY_SIZE)
            for line in self._lines:
                line.lower()

    def save(self) -> State:
        """Latch, memory and the lines that are held."""
        with self.lock:
            latch = int.from_bytes(self._latch, "little")
            held = [line.gsi for line in self._lines if line.level]
            return {"version": 1, "latch": latch, "memory": bytes(self._memory), "held": list[object](held)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take them over."""
        check_version(self, state)
        latch, held, memory = saved_int(state, "latch"), saved_list(state, "held"), state.get("memory")
        if not isinstance(memory, bytes) or len(memory) != MEMORY_SIZE or not 0 <= latch < 1 << 8 * LATCH_SIZE:
            raise DeviceError("saved state of the PC test device is damaged")
        with self.lock:
            self._latch[:] = latch.to_bytes(LATCH_SIZE, "little")
            self._memory[:] = memory
            for line in self._lines:
                line.set(line.gsi in held)


def _bytes(store: bytearray) -> Callbacks:
    """A handler for plain bytes."""

    def read(offset: int, size: int) -> int:
        return int.from_bytes(store[offset : offset + size], "little")

    def write(offset: int, size: int, value: int) -> None:
        store[offset : offset + size] = value.to_bytes(size, "little")

    return Callbacks(read, write)
