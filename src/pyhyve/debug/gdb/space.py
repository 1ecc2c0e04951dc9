"""Guest memory as a debugger addresses it: through a vCPU's page tables, or guest-physical.

Pages are translated one by one, so a range may cross into any other page. What is not RAM (device memory, a hole, a
page that is not mapped) cannot be read or written: a read gives what comes before it, a write changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyhyve.errors import PyhyveError
from pyhyve.memory import PAGE, GuestMemory
from pyhyve.vmm.api import VirtualCpu

_WRAP = 1 << 64


class NotMapped(PyhyveError):
    """An address where no memory is."""


class Space:
    """The memory of one machine. ``physical`` says that addresses are guest-physical."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.physical = False

    def read(self, cpu: VirtualCpu, address: int, length: int) -> bytes:
        """``length`` bytes, or as many as there are. Raises ``NotMapped`` if there are none."""
        data = b""
        try:
            for gpa, size in self._pieces(cpu, address, length):
                data += self._memory.read(gpa, size)
        except NotMapped:
            if not data:
                raise
        return data

    def write(self, cpu: VirtualCpu, address: int, data: bytes) -> None:
        """Write all of ``data``. Raises ``NotMapped`` before it has written any."""
        at = 0
        for gpa, size in list(self._pieces(cpu, address, len(data))):
            self._memory.write(gpa, data[at : at + size])
            at += size

    def _pieces(self, cpu: VirtualCpu, address: int, length: int) -> Iterator[tuple[int, int]]:
        while length > 0:
            address %= _WRAP
            size = min(length, PAGE - address % PAGE)
            gpa = address if self.physical else cpu.translate(address)
            if gpa is None or not self._memory.contains(gpa, size):
                raise NotMapped(f"no memory at {address:#x}")
            yield gpa, size
            address += size
            length -= size
