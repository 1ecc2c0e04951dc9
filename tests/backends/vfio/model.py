"""A model of the kernel's VFIO, with hardware behind it: what ``backends.vfio.system.System`` asks for.

The hardware is a PCI function of this project, as if it sat in a slot of the host: its configuration space, its BARs
and its interrupts are what vfio-pci offers of them, and it reaches memory through what was mapped for DMA and through
nothing else. It has an event loop in a thread of its own. What vfio-pci would not let through (BAR addresses, the
host's MSI message) counts as a violation: nothing here may try.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pyhyve.backends.vfio import uapi
from pyhyve.backends.vfio.uapi import DeviceFlag, GroupFlag, IrqFlag, IrqIndex, RegionFlag, RegionIndex, Request, SetIrq
from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import Bar, BarKind
from pyhyve.hw.pci.bus import PciAddress, PciBus
from pyhyve.hw.pci.config_space import Command, Offset
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxRouting
from pyhyve.hw.pci.msix import ENTRY
from pyhyve.loop import EventLoop
from pyhyve.memory import OutsideMemory

SLOT = 5
"""Where the hardware sits on its own bus."""
_REGION_SHIFT = 40


class DmaMemory:
    """Memory as a device sees it: bus addresses that the IOMMU knows."""

    def __init__(self, mappings: list[tuple[int, int, int]]) -> None:
        self._mappings = mappings  # bus address, size, address in this process

    @property
    def low_size(self) -> int:
        return next((size for iova, size, _ in self._mappings if iova == 0), 0)

    def view(self, gpa: int, length: int) -> memoryview:
        for iova, size, address in self._mappings:
            if iova <= gpa and gpa + length <= iova + size and length >= 0:
                return memoryview((ctypes.c_char * length).from_address(address + gpa - iova)).cast("B")
        raise OutsideMemory(f"no DMA mapping at {gpa:#x}, {length} bytes")

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes) -> None:
        self.view(gpa, len(data))[:] = data

    def written(self, gpa: int, length: int) -> None:
        """Nobody hears of DMA."""


class NoDoorbells:
    def add_doorbell(self, *args: object, **options: object) -> None: ...

    def remove_doorbell(self, *args: object, **options: object) -> None: ...


def refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Hardware:
    """A device of the host, bound to vfio-pci unless ``driver`` says otherwise; ``make`` builds its function."""

    def __init__(
        self,
        make: Callable[[Environment], PciFunction],
        *,
        group: str = "7",
        driver: str | None = "vfio-pci",
        can_reset: bool = True,
        hidden: Mapping[int, bytes] | None = None,
    ) -> None:
        self.group, self.driver, self.can_reset = group, driver, can_reset
        self.resets = 0
        self.refuses: set[IrqIndex] = set()
        self.violations: list[str] = []
        self.accesses: list[tuple[str, int, int, int]] = []
        """Reads and writes of registers: what, region, offset, size."""
        self.loop = EventLoop()
        self.dma: list[tuple[int, int, int]] = []
        lines = IrqRouter(self._line)
        environment = Environment(
            loop=self.loop, memory=DmaMemory(self.dma), pio=PioBus(), mmio=MmioBus(), router=lines,
            send_msi=self._message, doorbells=NoDoorbells(), power=lambda reason: None, name="host",
        )  # fmt: skip
        bus = PciBus(environment, IntxRouting(lines))
        self.function = make(environment)
        bus.create(PciAddress(0, 0, 0), "hostbridge", {})
        bus.add(PciAddress(0, SLOT, 0), self.function)
        for offset, data in (hidden or {}).items():
            self.function.config.set(offset, len(data), int.from_bytes(data, "little"))
        self.function.keep_as_initial()
        self._thread = threading.Thread(target=self.loop.run, name="hardware", daemon=True)
        self._thread.start()
        self.lock = self.function.lock
        self.kind: IrqIndex | None = None
        self.vectors = 0
        self.triggers: dict[tuple[int, int], int] = {}
        self.masked = False
        self._level = False

    def close(self) -> None:
        self.function.close()
        self.loop.stop()
        self._thread.join(10)
        self.loop.close()

    # -- interrupts --

    def interrupt_count(self, index: int) -> int:
        function = self.function
        return {
            IrqIndex.INTX: 1 if function.wants_intx else 0,
            IrqIndex.MSI: function.msi.vectors if function.msi else 0,
            IrqIndex.MSIX: function.msix.vectors if function.msix else 0,
            IrqIndex.ERROR: 1,
            IrqIndex.REQUEST: 1,
        }.get(IrqIndex(index), 0)

    def _signal(self, kind: int, vector: int) -> None:
        fd = self.triggers.get((kind, vector))
        if fd is not None:
            os.eventfd_write(fd, 1)

    def raise_event(self, kind: IrqIndex) -> None:
        """The host's own events: an error, or a wish for the device."""
        self._signal(kind, 0)

    def _message(self, address: int, data: int) -> None:
        if self.kind is not None:
            self._signal(self.kind, data)

    def _line(self, gsi: int, level: bool) -> None:
        if gsi >= 16:
            with self.lock:
                self._level = level
                self._try_line()

    def _try_line(self) -> None:
        if self._level and not self.masked and self.kind is IrqIndex.INTX:
            self.masked = True
            self._signal(IrqIndex.INTX, 0)

    def set_irqs(self, flags: int, index: int, start: int, count: int, events: Sequence[int]) -> int:
        with self.lock:
            if start + count > self.interrupt_count(index):
                raise refuse(errno.EINVAL)
            if index in (IrqIndex.ERROR, IrqIndex.REQUEST):
                self.triggers[index, 0] = events[0]
                return 0
            kind = IrqIndex(index)
            if flags & SetIrq.UNMASK:
                if self.kind is not kind:
                    raise refuse(errno.EINVAL)
                self.masked = False
                self._try_line()
                return 0
            if flags & SetIrq.DATA_NONE:
                if self.kind is kind:
                    self._disable()
                return 0
            if self.kind not in (None, kind):
                raise refuse(errno.EINVAL)
            if kind in self.refuses:
                raise refuse(errno.ENOSPC)
            if self.kind is None:
                self._enable(kind, start + count)
            elif start + count > self.vectors:
                raise refuse(errno.EINVAL)
            for vector, fd in enumerate(events, start):
                self.triggers.pop((index, vector), None)
                if fd >= 0:
                    self.triggers[index, vector] = os.dup(fd)
            self._try_line()
            return 0

    def _enable(self, kind: IrqIndex, vectors: int) -> None:
        self.kind, self.vectors, self.masked = kind, vectors, False
        config, msi, msix = self.function.config, self.function.msi, self.function.msix
        with self.function.lock:
            if kind is IrqIndex.MSI and msi is not None:
                config.set(
                    msi.offset + 2, 1, config.get(msi.offset + 2, 1) & 0x8E | 1 | (vectors.bit_length() - 1) << 4
                )
            elif kind is IrqIndex.MSIX and msix is not None:
                for vector in range(msix.vectors):
                    msix.write(vector * ENTRY, 8, 0xFEE00000)
                    msix.write(vector * ENTRY + 8, 8, vector)
                config.set(msix.offset + 2, 2, msix.vectors - 1 | 0x8000)

    def _disable(self) -> None:
        config, msi, msix = self.function.config, self.function.msi, self.function.msix
        if self.kind is IrqIndex.MSI and msi is not None:
            config.set(msi.offset + 2, 1, config.get(msi.offset + 2, 1) & 0x8E)
        elif self.kind is IrqIndex.MSIX and msix is not None:
            config.set(msix.offset + 2, 2, msix.vectors - 1)
        for key in [key for key in self.triggers if key[0] == self.kind]:
            os.close(self.triggers.pop(key))
        self.kind, self.vectors, self.masked = None, 0, False

    # -- regions --

    def bar(self, index: int) -> Bar | None:
        return next((bar for bar in self.function.bars if bar.index == index), None)

    def areas(self, index: int) -> list[tuple[int, int]]:
        """What of a BAR can be mapped; the function says it by an attribute."""
        found: dict[int, list[tuple[int, int]]] = getattr(self.function, "mappable", {})
        return found.get(index, [])

    def read(self, index: int, offset: int, size: int) -> bytes:
        if index == RegionIndex.CONFIG:
            with self.function.lock:
                return self.function.read_config(offset, size).to_bytes(size, "little")
        self.accesses.append(("read", index, offset, size))
        bar = self._decoded(index, offset, size)
        with self.function.lock:
            return bar.handler.read(offset, size).to_bytes(size, "little")

    def write(self, index: int, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if index == RegionIndex.CONFIG:
            self._write_config(offset, len(data), value)
            return
        self.accesses.append(("write", index, offset, len(data)))
        bar = self._decoded(index, offset, len(data))
        with self.function.lock:
            bar.handler.write(offset, len(data), value)

    def _decoded(self, index: int, offset: int, size: int) -> Bar:
        bar = self.bar(index)
        if bar is None or offset + size > bar.size:
            raise refuse(errno.EINVAL)
        wanted = Command.IO if bar.kind is BarKind.IO else Command.MEMORY
        if not self.function.config.get(Offset.COMMAND, 2) & wanted:
            raise refuse(errno.EIO)
        return bar

    def _write_config(self, offset: int, size: int, value: int) -> None:
        msi, msix = self.function.msi, self.function.msix
        guarded = [range(Offset.REVISION, 0x40), *(range(c.offset, c.offset + c.size) for c in (msi, msix) if c)]
        if any(at in own for own in guarded for at in range(offset, offset + size)):
            self.violations.append(f"write of {size} bytes at {offset:#x} of configuration space")
            return
        with self.function.lock:
            self.function.write_config(offset, size, value)

    def reset(self) -> None:
        self.resets += 1
        command = self.function.config.get(Offset.COMMAND, 2)
        self.function.reset()  # vfio-pci keeps the configuration over a reset
        self.function.write_config(Offset.COMMAND, 2, command)


class MappedMemory:
    """A mapping of a file that stands for a BAR's memory."""

    def __init__(self, fd: int, size: int, offset: int) -> None:
        self._map = mmap.mmap(fd, size, offset=offset)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.closed = False

    def close(self) -> None:
        self.closed = True


@dataclass
class _Group:
    name: str
    container: _Container | None = None


@dataclass
class _Container:
    groups: list[_Group] = field(default_factory=list)
    iommu: int = 0
    dma: list[tuple[int, int, int]] = field(default_factory=list)


class ModelKernel:
    """The host: ``devices`` by their address, such as 0000:01:00.0."""

    def __init__(self, devices: Mapping[str, Hardware]) -> None:
        self.devices = dict(devices)
        self.neighbours: dict[str, tuple[str, str]] = {}
        """More devices: address, then group and driver."""
        self.forbidden: set[str] = set()
        self.missing: set[str] = set()
        self.busy: set[str] = set()
        self.dma_limit: int | None = None
        self.safe_interrupts = True
        self.version = uapi.API_VERSION
        self.mappings: list[MappedMemory] = []
        self.fds: dict[int, object] = {}
        self._numbers = itertools.count(100_000)

    def shut_down(self) -> None:
        for hardware in self.devices.values():
            hardware.close()

    # -- files --

    def exists(self, path: str) -> bool:
        if path in self.missing:
            return False
        name = path.rpartition("/")[2]
        return path == "/dev/vfio/vfio" or name in self.devices or name in self.neighbours

    def readlink(self, path: str) -> str:
        address, what = path.split("/")[-2:]
        group, driver = self._told(address)
        found = {"driver": driver, "iommu_group": group}[what]
        if found is None or path in self.missing:
            raise refuse(errno.ENOENT)
        return f"../../../somewhere/{found}"

    def _told(self, address: str) -> tuple[str | None, str | None]:
        if address in self.devices:
            return self.devices[address].group, self.devices[address].driver
        return self.neighbours.get(address, (None, None))

    def listdir(self, path: str) -> list[str]:
        everything = [*self.devices, *self.neighbours]
        if path == "/sys/bus/pci/devices":
            return everything
        if path == "/sys/kernel/iommu_groups":
            return sorted({group for group, _ in map(self._told, everything) if group is not None})
        group = path.split("/")[-2]
        return [a for a in everything if self._told(a)[0] == group]

    def open(self, path: str) -> int:
        if path in self.missing:
            raise refuse(errno.ENOENT)
        if path in self.forbidden:
            raise refuse(errno.EACCES)
        if path in self.busy:
            raise refuse(errno.EBUSY)
        name = path.rpartition("/")[2]
        return self._give(_Container() if name == "vfio" else _Group(name))

    def _give(self, thing: object) -> int:
        fd = next(self._numbers)
        self.fds[fd] = thing
        return fd

    def close(self, fd: int) -> None:
        thing = self.fds.pop(fd)
        if isinstance(thing, Hardware):
            with thing.lock:
                thing._disable()
            thing.reset()
            thing.function.write_config(Offset.COMMAND, 2, 0)
        elif isinstance(thing, _Container):
            thing.dma.clear()

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._device(fd).read(offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1, size)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._device(fd).write(offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1, data)
        return len(data)

    def mmap(self, fd: int, size: int, offset: int, *, writable: bool) -> MappedMemory:
        device, index, at = self._device(fd), offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1
        if not any(first <= at and at + size <= first + length for first, length in device.areas(index)):
            raise refuse(errno.EINVAL)
        found = MappedMemory(device.function.memory_fd, size, at)
        self.mappings.append(found)
        return found

    def _device(self, fd: int) -> Hardware:
        thing = self.fds.get(fd)
        if not isinstance(thing, Hardware):
            raise refuse(errno.EBADF)
        return thing

    # -- ioctls --

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        thing = self.fds.get(fd)
        if isinstance(thing, _Container):
            return self._container(thing, request, argument)
        assert isinstance(argument, bytearray) or request == Request.DEVICE_RESET
        if isinstance(thing, _Group):
            return self._group(thing, request, argument)
        return self._device_request(self._device(fd), request, argument)

    def _container(self, container: _Container, request: int, argument: bytearray | int) -> int:
        if request == Request.GET_API_VERSION:
            return self.version
        if request == Request.CHECK_EXTENSION:
            return int(argument == uapi.TYPE1V2_IOMMU)
        if request == Request.SET_IOMMU:
            if not container.groups:
                raise refuse(errno.EINVAL)
            if not self.safe_interrupts:
                raise refuse(errno.EPERM)
            container.iommu = int(argument)
            return 0
        if not container.iommu:
            raise refuse(errno.EINVAL)
        assert isinstance(argument, bytearray)
        if request == Request.IOMMU_MAP_DMA:
            new = uapi.DmaMap.from_buffer_copy(argument)
            if new.argsz != 32 or new.flags != 3 or (new.vaddr | new.iova | new.size) & 0xFFF or not new.size:
                raise refuse(errno.EINVAL)
            if self.dma_limit is not None and sum(m[1] for m in container.dma) + new.size > self.dma_limit:
                raise refuse(errno.ENOMEM)
            container.dma.append((new.iova, new.size, new.vaddr))
        elif request == Request.IOMMU_UNMAP_DMA:
            gone = uapi.DmaUnmap.from_buffer_copy(argument)
            container.dma[:] = [m for m in container.dma if m[:2] != (gone.iova, gone.size)]
        else:
            raise refuse(errno.ENOTTY)
        for hardware in self.devices.values():
            if any(group.name == hardware.group for group in container.groups):
                hardware.dma[:] = container.dma
        return 0

    def _group(self, group: _Group, request: int, argument: bytearray) -> int:
        if request == Request.GROUP_GET_STATUS:
            foreign = [a for a in self.listdir(f"/{group.name}/devices") if self._told(a)[1] not in ("vfio-pci", None)]
            flags = 0 if foreign else GroupFlag.VIABLE
            argument[:] = struct.pack("<II", 8, flags)
        elif request == Request.GROUP_SET_CONTAINER:
            container = self.fds[int.from_bytes(argument, "little")]
            assert isinstance(container, _Container)
            group.container = container
            container.groups.append(group)
            for hardware in self.devices.values():
                if hardware.group == group.name:
                    hardware.dma[:] = container.dma
        elif request == Request.GROUP_GET_DEVICE_FD:
            name = argument.rstrip(b"\0").decode()
            hardware = self.devices.get(name)
            if group.container is None or hardware is None or hardware.group != group.name:
                raise refuse(errno.ENODEV)
            return self._give(hardware)
        else:
            raise refuse(errno.ENOTTY)
        return 0

    def _device_request(self, device: Hardware, request: int, argument: bytearray | int) -> int:
        if request == Request.DEVICE_RESET:
            if not device.can_reset:
                raise refuse(errno.EINVAL)
            device.reset()
            return 0
        assert isinstance(argument, bytearray)
        size = int.from_bytes(argument[:4], "little")
        assert size <= len(argument)
        if request == Request.DEVICE_GET_INFO:
            flags = DeviceFlag.PCI | (DeviceFlag.RESET if device.can_reset else 0)
            argument[:16] = struct.pack("<IIII", 20, flags, 9, 5)
        elif request == Request.DEVICE_GET_REGION_INFO:
            self._region_info(device, argument, size)
        elif request == Request.DEVICE_GET_IRQ_INFO:
            index = struct.unpack_from("<I", argument, 8)[0]
            if index == IrqIndex.INTX:
                flags = int(IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED)
            else:
                flags = int(IrqFlag.EVENTFD | IrqFlag.NORESIZE)
            argument[:16] = struct.pack("<IIII", 16, flags, index, device.interrupt_count(index))
        elif request == Request.DEVICE_SET_IRQS:
            _, flags, index, start, count = struct.unpack_from("<5I", argument)
            events = struct.unpack_from(f"<{count}i", argument, 20) if flags & SetIrq.DATA_EVENTFD else ()
            return device.set_irqs(flags, index, start, count, events)
        else:
            raise refuse(errno.ENOTTY)
        return 0

    def _region_info(self, device: Hardware, argument: bytearray, size: int) -> None:
        index = struct.unpack_from("<I", argument, 8)[0]
        bar = device.bar(index) if index < RegionIndex.ROM else None
        length = 256 if index == RegionIndex.CONFIG else bar.size if bar else 0
        flags, chain = RegionFlag(0), b""
        if length:
            flags = RegionFlag.READ | RegionFlag.WRITE
        areas = device.areas(index)
        if areas:
            flags |= RegionFlag.MMAP
            if areas != [(0, length)]:
                flags |= RegionFlag.CAPS
                chain = struct.pack("<HHIII", uapi.SPARSE_MMAP, 1, 0, len(areas), 0)
                chain += b"".join(struct.pack("<QQ", *area) for area in areas)
        wanted = 32 + len(chain)
        fits = size >= wanted
        at = 32 if chain and fits else 0
        answer = struct.pack("<IIIIQQ", wanted, flags, index, at, length, index << _REGION_SHIFT)
        argument[: 32 + (len(chain) if fits else 0)] = answer + (chain if fits else b"")
