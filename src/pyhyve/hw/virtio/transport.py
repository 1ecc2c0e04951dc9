"""How a driver reaches a virtio device over PCI: the legacy registers and the modern ones, both at once.

Document: Virtual I/O Device (VIRTIO) 1.2, §4.1; the legacy interface is §4.1.4.8.

BAR 0 holds the legacy registers in ports, BAR 1 the MSI-X table, BAR 2 the modern structures in memory, a page each;
capabilities in configuration space say where. The registers are tables of fields; an access of a field's own width at
its place is one dictionary look-up, any other is taken apart.

A notification is a doorbell on both BARs, moved along with them. The handlers below see one only where a driver writes
it in an unusual width, or by way of configuration space.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from pyhyve.errors import PyhyveError
from pyhyve.hw.pci.bar import Bar, BarKind
from pyhyve.hw.pci.capabilities import add_vendor
from pyhyve.lifecycle import State, restore_fields, save_fields

if TYPE_CHECKING:
    from pyhyve.hw.virtio.device import QueueSetup, VirtioDevice

LEGACY_BAR, MODERN_BAR = 0, 2
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
MODERN_SIZE = 0x4000
NOTIFY_STEP = 4
LEGACY_NOTIFY = 16
LEGACY_CONFIG = 20
"""Where the device's configuration begins; 4 bytes further while MSI-X is on."""

_PAGE = 0x1000
_Bell = tuple[int, int, bool, int | None]  # address, eventfd, in port space, the value that rings it


class CapabilityType(IntEnum):
    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5


@dataclass(frozen=True, slots=True)
class Field:
    """A register of ``size`` bytes at ``offset``."""

    offset: int
    size: int
    read: Callable[[], int]
    write: Callable[[int], None] | None = None


class Registers:
    """A table of fields that answers accesses of any width and place."""

    def __init__(self, *fields: Field) -> None:
        self._exact = {(field.offset, field.size): field for field in fields}
        self._at = {field.offset + i: field for field in fields for i in range(field.size)}

    def read(self, offset: int, size: int) -> int:
        """What is there; zero where no field is."""
        exact = self._exact.get((offset, size))
        if exact is not None:
            return exact.read()
        value, at, end = 0, offset, offset + size
        while at < end:
            field = self._at.get(at)
            if field is None:
                at += 1
                continue
            value |= field.read() >> 8 * (at - field.offset) << 8 * (at - offset)
            at = field.offset + field.size
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the fields that the access covers whole."""
        exact = self._exact.get((offset, size))
        if exact is not None:
            if exact.write is not None:
                exact.write(value)
            return
        for at in range(offset, offset + size):
            field = self._at.get(at)
            if field is not None and field.offset == at and at + field.size <= offset + size and field.write:
                field.write(value >> 8 * (at - offset) & (1 << 8 * field.size) - 1)


class PciTransport:
    """The registers of one device."""

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.reset()
        self._bells: dict[int, list[_Bell]] = {}
        self._common = Registers(*self._common_fields())
        self._legacy = Registers(*self._legacy_fields())
        self._add_capabilities()
        legacy_size = LEGACY_CONFIG + 4 + len(device.device_config)
        device.add_bar(LEGACY_BAR, BarKind.IO, 1 << (legacy_size - 1).bit_length(), _LegacyWindow(self))
        device.add_bar(MODERN_BAR, BarKind.MEMORY_32, MODERN_SIZE, _ModernWindow(self))

    def reset(self) -> None:
        """As a driver finds the registers."""
        self.feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0

    # -- the fields --

    def _common_fields(self) -> list[Field]:
        """The common configuration structure (§4.1.4.3)."""
        device = self.device
        return [
            Field(0, 4, lambda: self.feature_select, lambda v: setattr(self, "feature_select", v)),
            Field(4, 4, lambda: device.offered(self.feature_select)),
            Field(8, 4, lambda: self.driver_feature_select, lambda v: setattr(self, "driver_feature_select", v)),
            Field(12, 4, self._driver_feature, lambda v: device.accept(self.driver_feature_select, v)),
            Field(16, 2, lambda: device.config_vector, self._set_config_vector),
            Field(18, 2, lambda: len(device.queues)),
            Field(20, 1, lambda: device.status, device.set_status),
            Field(21, 1, lambda: device.generation),
            Field(22, 2, lambda: self.queue_select, lambda v: setattr(self, "queue_select", v)),
            self._queue_field(24, 2, "size"),
            Field(26, 2, self._vector, self._set_vector),
            Field(28, 2, lambda: self._get("enabled"), self._enable),
            Field(30, 2, lambda: self.queue_select if self._queue() is not None else 0),
            *(
                self._queue_field(offset + 4 * half, 4, name, 32 * half)
                for offset, name in ((32, "descriptors"), (40, "driver"), (48, "device"))
                for half in (0, 1)
            ),
            Field(58, 2, lambda: 0, self._reset_queue),  # it has ended when the write has
        ]

    def _legacy_fields(self) -> list[Field]:
        """The legacy header (§4.1.4.8)."""
        device = self.device
        return [
            Field(0, 4, lambda: device.offered(0)),
            Field(4, 4, lambda: device.driver_features & 0xFFFFFFFF, self._accept_legacy),
            Field(8, 4, lambda: self._get("page"), self._place_legacy),
            Field(12, 2, lambda: self._get("maximum")),
            Field(14, 2, lambda: self.queue_select, lambda v: setattr(self, "queue_select", v)),
            Field(LEGACY_NOTIFY, 2, lambda: 0, self.notify),
            Field(18, 1, lambda: device.status, device.set_status),
            Field(19, 1, device.read_isr),
            Field(20, 2, lambda: device.config_vector, self._set_config_vector),
            Field(22, 2, self._vector, self._set_vector),
        ]

    def _queue(self) -> QueueSetup | None:
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def _get(self, name: str) -> int:
        """A value of the selected queue; zero where there is none of that number."""
        queue = self._queue()
        return 0 if queue is None else int(getattr(queue, name))

    def _queue_field(self, offset: int, size: int, name: str, shift: int = 0) -> Field:
        """Part of a value of the selected queue, which a driver changes as long as the queue is off."""
        mask = (1 << 8 * size) - 1

        def write(value: int) -> None:
            queue = self._queue()
            if queue is not None and not queue.enabled:
                setattr(queue, name, getattr(queue, name) & ~(mask << shift) | value << shift)

        return Field(offset, size, lambda: self._get(name) >> shift & mask, write)

    def _driver_feature(self) -> int:
        word = self.driver_feature_select
        return self.device.driver_features >> 32 * word & 0xFFFFFFFF if word < 2 else 0

    def _set_config_vector(self, value: int) -> None:
        self.device.config_vector = self._usable(value)

    def _vector(self) -> int:
        queue = self._queue()
        return 0xFFFF if queue is None else queue.vector

    def _set_vector(self, value: int) -> None:
        queue = self._queue()
        if queue is not None:
            queue.vector = self._usable(value)

    def _usable(self, vector: int) -> int:
        """A vector that MSI-X has, else none: the driver reads back that it cannot be (§4.1.5.1.2)."""
        msix = self.device.msix
        return vector if msix is not None and vector < msix.vectors else 0xFFFF

    def _enable(self, value: int) -> None:
        queue = self._queue()
        if value == 1 and queue is not None and not queue.enabled:
            self.device.enable(queue)

    def _reset_queue(self, value: int) -> None:
        queue = self._queue()
        if value == 1 and queue is not None:
            self.device.reset_queue(queue)

    def _accept_legacy(self, value: int) -> None:
        """A legacy driver takes what it knows; bits that were not offered do not count."""
        self.device.driver_features = value & self.device.offered(0)

    def _place_legacy(self, value: int) -> None:
        queue = self._queue()
        if queue is None:
            return
        if queue.enabled:
            self.device.disable(queue)
        queue.page = value
        if value:
            self.device.enable(queue)

    def notify(self, index: int) -> None:
        """The driver says that queue ``index`` has something."""
        if index < len(self.device.queues):
            self.device.queues[index].notify()

    # -- the windows --

    def read_legacy(self, offset: int, size: int) -> int:
        """A read of BAR 0."""
        start = self._legacy_config()
        if offset >= start:
            return self.read_device(offset - start, size)
        return self._legacy.read(offset, size)

    def write_legacy(self, offset: int, size: int, value: int) -> None:
        """A write to BAR 0."""
        start = self._legacy_config()
        if offset >= start:
            self.write_device(offset - start, size, value)
        else:
            self._legacy.write(offset, size, value)

    def _legacy_config(self) -> int:
        msix = self.device.msix
        return LEGACY_CONFIG + 4 if msix is not None and msix.enabled else LEGACY_CONFIG

    def read_modern(self, offset: int, size: int) -> int:
        """A read of BAR 2."""
        page, at = offset & -_PAGE, offset & _PAGE - 1
        if page == COMMON:
            return self._common.read(at, size)
        if page == DEVICE:
            return self.read_device(at, size)
        if page == ISR and at == 0:
            return self.device.read_isr()
        return 0

    def write_modern(self, offset: int, size: int, value: int) -> None:
        """A write to BAR 2."""
        page, at = offset & -_PAGE, offset & _PAGE - 1
        if page == COMMON:
            self._common.write(at, size, value)
        elif page == DEVICE:
            self.write_device(at, size, value)
        elif page == NOTIFY:
            self.notify(at // NOTIFY_STEP)

    def read_device(self, offset: int, size: int) -> int:
        """The device's own configuration; zero behind its end."""
        self.device.refresh_config()
        return int.from_bytes(self.device.device_config[offset : offset + size], "little")

    def write_device(self, offset: int, size: int, value: int) -> None:
        """The device decides what of it counts."""
        config = self.device.device_config
        end = min(offset + size, len(config))
        if offset < end:
            config[offset:end] = value.to_bytes(size, "little")[: end - offset]
            self.device.config_changed()

    # -- doorbells --

    def moved(self, bar: Bar) -> None:
        """A BAR is elsewhere, or nowhere: so are its doorbells."""
        doorbells = self.device.environment.doorbells
        for address, fd, pio, match in self._bells.pop(bar.index, ()):
            doorbells.remove_doorbell(address, 2, fd, pio=pio, match=match)
        if bar.mapped is None or bar.index not in (LEGACY_BAR, MODERN_BAR):
            return
        bells = self._bells[bar.index] = []
        for index, queue in enumerate(self.device.queues):
            bell: _Bell
            if bar.index == LEGACY_BAR:
                bell = (bar.mapped + LEGACY_NOTIFY, queue.bell, True, index)
            else:
                bell = (bar.mapped + NOTIFY + NOTIFY_STEP * index, queue.bell, False, None)
            address, fd, pio, match = bell
            try:
                doorbells.add_doorbell(address, 2, fd, pio=pio, match=match)
            except (PyhyveError, OSError):
                continue  # the write comes as an exit then, and its handler notifies
            bells.append(bell)

    def close(self) -> None:
        """Take the doorbells away."""
        doorbells = self.device.environment.doorbells
        for bells in self._bells.values():
            for address, fd, pio, match in bells:
                doorbells.remove_doorbell(address, 2, fd, pio=pio, match=match)
        self._bells.clear()

    # -- configuration space --

    def _add_capabilities(self) -> None:
        config = self.device.config
        queues = len(self.device.queues)
        structures = [
            (CapabilityType.COMMON, COMMON, 60, b""),
            (CapabilityType.NOTIFY, NOTIFY, NOTIFY_STEP * queues, struct.pack("<I", NOTIFY_STEP)),
            (CapabilityType.ISR, ISR, 1, b""),
        ]
        if self.device.device_config:
            structures.append((CapabilityType.DEVICE, DEVICE, len(self.device.device_config), b""))
        for kind, offset, length, more in structures:
            add_vendor(config, struct.pack("<BB3xII", kind, MODERN_BAR, offset, length) + more)
        # by way of configuration space: BAR, offset, length and the data can be written
        body = struct.pack("<BB3xII4x", CapabilityType.PCI, 0, 0, 0)
        self._window = add_vendor(config, body, b"\0\xff\0\0\0" + b"\xff" * 12)

    def before_config_read(self, offset: int, size: int) -> None:
        """Fetch the data of the PCI configuration access capability (§4.1.4.9) if it is about to be read."""
        if offset < self._window + 20 and offset + size > self._window + 16:
            target = self._target()
            if target is not None:
                bar, at, length = target
                self.device.config.set(self._window + 16, length, bar.handler.read(at, length))

    def config_written(self, offset: int, size: int) -> None:
        """Pass on the data of that capability if it was written."""
        if offset < self._window + 20 and offset + size > self._window + 16:
            target = self._target()
            if target is not None:
                bar, at, length = target
                bar.handler.write(at, length, self.device.config.get(self._window + 16, length))

    def _target(self) -> tuple[Bar, int, int] | None:
        config = self.device.config
        index, offset, length = (config.get(self._window + at, size) for at, size in ((4, 1), (8, 4), (12, 4)))
        for bar in self.device.bars:
            if bar.index == index and length in (1, 2, 4) and not offset % length and offset + length <= bar.size:
                return bar, offset, length
        return None

    def save(self) -> State:
        """The selectors."""
        return save_fields(self, _SELECTORS)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the selectors."""
        restore_fields(self, _SELECTORS, state)


_SELECTORS = ("driver_feature_select", "feature_select", "queue_select")


class _LegacyWindow:
    """BAR 0 as a handler."""

    def __init__(self, transport: PciTransport) -> None:
        self.read = transport.read_legacy
        self.write = transport.write_legacy


class _ModernWindow:
    """BAR 2 as a handler."""

    def __init__(self, transport: PciTransport) -> None:
        self.read = transport.read_modern
        self.write = transport.write_modern
