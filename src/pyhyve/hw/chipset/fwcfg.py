"""QEMU's firmware configuration device (``-l fwcfg,qemu``): named blobs that a guest's firmware or kernel may read.

Document: QEMU, "Firmware Configuration (fw_cfg) Device" (docs/specs/fw_cfg). A guest writes an item's number to port
0x510 and reads its bytes from port 0x511, or has them copied to memory by a DMA request whose address it writes to
0x514. Item 0x19 is a directory of named files. The items here are those that bhyve has: signature, features, number of
CPUs, and the files given with ``-f``.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from enum import IntEnum, IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.lifecycle import State, restore_fields, save_fields
from pyhyve.memory import GuestMemory

SELECTOR_PORT = 0x510
DATA_PORT = 0x511
DMA_PORT, DMA_SIZE = 0x514, 8
PORTS = (SELECTOR_PORT, 12)
"""First port and count of all."""

DMA_SIGNATURE = int.from_bytes(b"QEMU CFG", "big")
NAME_SIZE = 56
"""Bytes of a file's name, with the zero at its end."""

_ITEM_MASK = 0x3FFF
_ARCH = 0x8000
_CHUNK = 1 << 20


class Item(IntEnum):
    """Numbers of items."""

    SIGNATURE = 0x00
    ID = 0x01
    NB_CPUS = 0x05
    MAX_CPUS = 0x0F
    FILE_DIR = 0x19
    FIRST_FILE = 0x20


class Feature(IntFlag):
    """Contents of ``Item.ID``."""

    PORTS = 1
    DMA = 2


class Dma(IntFlag):
    """Control word of a DMA request; with SELECT the upper half is the item's number."""

    ERROR = 0x01
    READ = 0x02
    SKIP = 0x04
    SELECT = 0x08
    WRITE = 0x10


class FwCfg:
    """The device, with files by name. Raises ``DeviceError`` for a name that does not fit."""

    def __init__(self, memory: GuestMemory, cpus: int, files: Mapping[str, bytes]) -> None:
        self.lock = threading.RLock()
        self._memory = memory
        self._selected = 0
        self._offset = 0
        self._address = 0
        count = struct.pack("<H", cpus)
        self._items: dict[int, bytes] = {
            Item.SIGNATURE: b"QEMU",
            Item.ID: struct.pack("<I", Feature.PORTS | Feature.DMA),
            Item.NB_CPUS: count,
            Item.MAX_CPUS: count,
        }
        self._files: dict[str, bytes] = {}
        self.add_files(files)

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """Give the guest these too, before it runs; what is there already under a name stays."""
        self._files = {**files, **self._files}
        directory = [struct.pack(">I", len(self._files))]
        for item, name in enumerate(sorted(self._files), Item.FIRST_FILE):
            text = name.encode("utf-8", "surrogateescape")
            if not text or len(text) >= NAME_SIZE:
                raise DeviceError(f"'{name}' is no name for firmware configuration: 1 to {NAME_SIZE - 1} bytes fit")
            self._items[item] = self._files[name]
            directory.append(struct.pack(f">IHxx{NAME_SIZE}s", len(self._files[name]), item, text))
        self._items[Item.FILE_DIR] = b"".join(directory)

    def attach(self, pio: PioBus) -> None:
        """Answer at the selector, the data port and the DMA address."""
        pio.register(SELECTOR_PORT, 1, Callbacks(self._read_selector, self._select), "fw_cfg", self.lock, whole=True)
        pio.register(DATA_PORT, 1, Callbacks(self._read_data, _ignore), "fw_cfg data", self.lock, width=1)
        pio.register(DMA_PORT, DMA_SIZE, Callbacks(self._read_dma, self._write_dma), "fw_cfg dma", self.lock)

    def _read_selector(self, offset: int, size: int) -> int:
        return self._selected if size == 2 else (1 << 8 * size) - 1

    def _select(self, offset: int, size: int, value: int) -> None:
        if size == 2:
            self._selected, self._offset = value, 0

    def _read_data(self, offset: int, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _take(self, length: int) -> bytes:
        """The next bytes of the selected item; zeros behind its end, and where there is no item."""
        item = b"" if self._selected & _ARCH else self._items.get(self._selected & _ITEM_MASK, b"")
        data = item[self._offset : self._offset + length]
        self._offset = min(self._offset + length, len(item))
        return data.ljust(length, b"\0")

    # The DMA register is big endian: its first four bytes are the upper half.

    def _read_dma(self, offset: int, size: int) -> int:
        return int.from_bytes(DMA_SIGNATURE.to_bytes(8, "big")[offset : offset + size], "little")

    def _write_dma(self, offset: int, size: int, value: int) -> None:
        register = bytearray(self._address.to_bytes(8, "big"))
        register[offset : offset + size] = value.to_bytes(size, "little")
        self._address = int.from_bytes(register, "big")
        if offset + size == DMA_SIZE:  # the lower half starts the request
            where, self._address = self._address, 0
            self._transfer(where)

    def _transfer(self, where: int) -> None:
        if not self._memory.contains(where, 16):
            return  # nowhere to report the error to
        control, length, address = struct.unpack(">IIQ", self._memory.read(where, 16))
        if control & Dma.SELECT:
            self._select(0, 2, control >> 16)
        failed = bool(control & Dma.WRITE)  # no item can be written
        if control & Dma.READ and not failed:
            failed = not self._memory.contains(address, length)
            while length and not failed:
                part = min(length, _CHUNK)
                self._memory.write(address, self._take(part))
                address, length = address + part, length - part
        elif control & Dma.SKIP and not failed:
            self._offset += length
        self._memory.write(where, struct.pack(">I", Dma.ERROR if failed else 0))

    def reset(self) -> None:
        """No item is selected."""
        with self.lock:
            self._selected = self._offset = self._address = 0

    def save(self) -> State:
        """What is selected, and how far it is read. The items come from the configuration."""
        return save_fields(self, ("_selected", "_offset", "_address"))

    def restore(self, state: Mapping[str, object]) -> None:
        """Take that over."""
        with self.lock:
            restore_fields(self, ("_selected", "_offset", "_address"), state)


def _ignore(offset: int, size: int, value: int) -> None:
    """Items are read only."""
