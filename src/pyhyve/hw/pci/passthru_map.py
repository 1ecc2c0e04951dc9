"""Pages of a passed-through device's BARs that the guest's CPU reaches by itself, where the backend can map them.

Left out are the pages with the MSI-X table and its pending bits, which are modelled. While the device sleeps (PCI Power
Management Specification 1.2, §3.2.4: a power state other than D0) nothing is mapped: VFIO lets nobody touch its memory
then, and an access that exits can be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyhyve.backends.vfio.device import PAGE, Region, VfioDevice
from pyhyve.backends.vfio.system import Mapping
from pyhyve.hw.environment import DirectPaths
from pyhyve.hw.pci.bar import BARS, Bar, BarKind
from pyhyve.messages import complain


def cut(areas: Iterable[tuple[int, int]], holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """``areas`` (offset, size) without ``holes`` (first, end)."""
    left = [(offset, offset + size) for offset, size in areas]
    for first, end in holes:
        pieces = [piece for a, b in left for piece in ((a, min(b, first)), (max(a, end), b))]
        left = [(a, b) for a, b in pieces if a < b]
    return [(a, b - a) for a, b in left]


class MappedBars:
    """``modelled`` are places that must exit: BAR, first offset, end. Call everything with the function's lock held."""

    def __init__(self, device: VfioDevice, direct: DirectPaths, modelled: Iterable[tuple[int, int, int]]) -> None:
        self._device = device
        self._direct = direct
        self._modelled = list(modelled)
        self._areas: dict[int, list[tuple[int, int, Mapping]]] = {}
        self._there: dict[int, int] = {}  # guest-physical address: BAR
        self.asleep = False

    def move(self, bar: Bar) -> None:
        """Map a BAR where it is now, or nowhere."""
        if bar.index >= BARS or bar.kind is BarKind.IO:
            return
        for gpa in [gpa for gpa, index in self._there.items() if index == bar.index]:
            self._direct.unmap_host(gpa)
            del self._there[gpa]
        if bar.mapped is None or self.asleep:
            return
        if bar.index not in self._areas:
            self._areas[bar.index] = list(self._map(self._device.regions[bar.index]))
        for offset, size, mapping in self._areas[bar.index]:
            if self._direct.map_host(bar.mapped + offset, size, mapping.address):
                self._there[bar.mapped + offset] = bar.index

    def sleep(self, asleep: bool, bars: Iterable[Bar]) -> None:
        """The device goes to sleep, or is awake."""
        if asleep != self.asleep:
            self.asleep = asleep
            for bar in bars:
                self.move(bar)

    def _map(self, region: Region) -> Iterator[tuple[int, int, Mapping]]:
        """Offset, size and mapping of what the guest may reach without us."""
        holes = [
            (start // PAGE * PAGE, -(-end // PAGE) * PAGE) for bar, start, end in self._modelled if bar == region.index
        ]
        for offset, size in cut(region.areas, holes):
            try:
                yield offset, size, self._device.map(region, offset, size)
            except OSError as error:
                complain(f"passthru {self._device.name}: BAR {region.index} is not mapped: {error.strerror}")

    def close(self) -> None:
        """Unmap everything. Idempotent."""
        for gpa in self._there:
            self._direct.unmap_host(gpa)
        self._there.clear()
        for areas in self._areas.values():
            for _, _, mapping in areas:
                mapping.close()
        self._areas.clear()
