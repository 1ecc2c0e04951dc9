"""``passthru``: a PCI device of the host, given to the guest through VFIO.

Documents: PCI Local Bus Specification 3.0; for the host's side ``backends.vfio``.

The function has the device's identity, BARs and capabilities (``passthru_config`` says which bytes are whose). An
access to a BAR exits and is done at the device with one access of the same size; where the backend can, whole pages of
it are mapped for the guest's CPU instead (``passthru_map``). The MSI-X table and its pending bits are modelled. DMA
goes by the IOMMU straight to guest memory. Interrupts come as eventfds (``passthru_irq``) and become the guest's: a
message for MSI and MSI-X; for the pin a level that lasts until the guest ends the interrupt, when the device is asked
again.

Whoever translates the guest's code hears nothing of DMA. So each interrupt, by which a driver learns that data has
arrived, is told as one (``Environment.device_wrote``).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from pyhyve.backends.vfio.device import Region, VfioDevice
from pyhyve.backends.vfio.host import HostAddress
from pyhyve.backends.vfio.uapi import IrqIndex
from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import BARS, Bar, BarKind
from pyhyve.hw.pci.bus import PciAddress, PciBus
from pyhyve.hw.pci.capabilities import CapabilityId
from pyhyve.hw.pci.config_space import SIZE, Identity, Offset
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxPin
from pyhyve.hw.pci.msi import MAXIMUM as MSI_MAXIMUM
from pyhyve.hw.pci.msi import Control as MsiControl
from pyhyve.hw.pci.msi import Msi, msi_size
from pyhyve.hw.pci.msix import ENTRY, Msix, Place
from pyhyve.hw.pci.passthru_config import (
    POWER,
    POWER_STATE,
    POWER_STATE_MASK,
    SHOWN,
    Found,
    find_capabilities,
    hardware_bytes,
)
from pyhyve.hw.pci.passthru_irq import HostInterrupts
from pyhyve.hw.pci.passthru_map import MappedBars
from pyhyve.hw.pci.rom import read_image
from pyhyve.lifecycle import State
from pyhyve.messages import complain

OPTIONS = frozenset({"domain", "bus", "slot", "func", "rom", "bootindex", "legacy"})
_BAR_FLAGS_IO, _BAR_64, _BAR_PREFETCHABLE = 0x1, 0x4, 0x8
_HEADER_KIND = 0x7F
_GRANTS = 0x3E
_MSIX_BIR = 7


def host_address(options: Mapping[str, str]) -> HostAddress:
    """The device that the options name. Raises ``DeviceError``."""
    if "pptdev" in options:
        raise DeviceError(_named_by_driver(options["pptdev"]))
    for option in options:
        if option not in OPTIONS and not option.startswith("pcireg"):
            raise DeviceError(f"passthru: unknown option '{option}'")
    parts = [options.get(name, "0" if name == "domain" else "") for name in ("domain", "bus", "slot", "func")]
    try:
        return HostAddress(*(int(part, 0) for part in parts))
    except ValueError:
        raise DeviceError("passthru needs a device of the host: -s slot,passthru,bus/slot/function") from None


def _named_by_driver(name: str) -> str:
    return f"passthru: '{name}' is a name of FreeBSD's ppt driver; name the device as bus/slot/function"


class _BarHandler:
    """Accesses to one BAR. With the function's lock held."""

    def __init__(self, function: Passthru, region: Region) -> None:
        self._function = function
        self._region = region

    def read(self, offset: int, size: int) -> int:
        function, region = self._function, self._region
        if function.in_vectors(region.index, offset, size):
            return function.read_vectors(region.index, offset, size)
        try:
            return function.host.read(region, offset, size)
        except OSError:
            return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        function, region = self._function, self._region
        if function.in_vectors(region.index, offset, size):
            function.write_vectors(region.index, offset, size, value)
            return
        with suppress(OSError):
            function.host.write(region, offset, size, value)


class Passthru(PciFunction):
    """The function. Options ``bus``, ``slot``, ``func``, ``domain`` (the host's device) and ``rom`` (a file)."""

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        address = host_address(options)
        image = read_image(options["rom"]) if "rom" in options else None
        if environment.vfio is None:
            raise DeviceError("passthru: this machine has no VFIO")
        self.host: VfioDevice = environment.vfio().open(address)
        try:
            self._read_device()
            super().__init__(environment, options)
            self._build(image)
        except OSError as error:
            self.host.close()
            raise DeviceError(f"passthru: device {address} does not answer: {error.strerror}") from None
        except BaseException:
            self.host.close()
            raise
        if not self.host.can_reset:
            complain(f"passthru {self.host.name}: no reset of its own: what a guest leaves in it, the next one finds")
        self._interrupts.announce(IrqIndex.ERROR)
        self._interrupts.announce(IrqIndex.REQUEST)

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """The device comes first: ``bus/slot/function`` or ``[DDDD:]BB:SS.F``; then ``rom=FILE``."""
        name, _, rest = conf.partition(",")
        if name.startswith("ppt"):
            raise DeviceError(_named_by_driver(name))
        try:
            address = HostAddress.parse(name)
        except ValueError:
            raise DeviceError(
                f"passthru: '{name}' names no device of the host; it must be bus/slot/function, or lspci's BB:SS.F"
            ) from None
        found = {"bus": str(address.bus), "slot": str(address.slot), "func": str(address.function)}
        if address.domain:
            found["domain"] = str(address.domain)
        return {**found, **super().parse_options(rest)}

    # -- building --

    def _read_device(self) -> None:
        read = self.host.read_config
        if read(Offset.HEADER_TYPE, 1) & _HEADER_KIND:
            raise DeviceError(f"passthru: device {self.host.name} is a bridge; name a device behind it")
        self.identity = Identity(
            read(Offset.VENDOR, 2),
            read(Offset.DEVICE, 2),
            read(Offset.CLASS, 1),
            read(Offset.SUBCLASS, 1),
            read(Offset.PROG_IF, 1),
            read(Offset.REVISION, 1),
            read(Offset.SUBSYSTEM_VENDOR, 2),
            read(Offset.SUBSYSTEM, 2),
        )

    def _build(self, image: bytes | None) -> None:
        self._pending_pin = False
        self._told_command: int | None = None
        self._closed = False
        self._table = self._pending = (BARS, 0, 0)  # BAR, offset, end: nowhere
        self._interrupts = HostInterrupts(self.host, self.environment.loop, self._arrived, self.environment.direct)
        self._told: set[str] = set()
        self._refused: IrqIndex | None = None
        self._power: int | None = None  # where power management is in configuration space
        self.config.set(_GRANTS, 2, self.host.read_config(_GRANTS, 2))
        self._add_capabilities()
        self._add_bars()
        direct = self.environment.direct
        self._maps = None if direct is None else MappedBars(self.host, direct, (self._table, self._pending))
        if image is not None:
            self.add_rom(image, self.host.name)
        if self.host.interrupts[IrqIndex.INTX].count and self.host.read_config(Offset.INTERRUPT_PIN, 1):
            self.use_intx()
        elif self.legacy:
            raise DeviceError(f"passthru: device {self.host.name} has no interrupt pin: use -s instead of -S")

    def _add_capabilities(self) -> None:
        """Link what the guest may see, in the device's order."""
        found = find_capabilities(self.host.read_config)
        self._theirs = hardware_bytes(found)
        for capability in found:
            if capability.ident == CapabilityId.MSI and not self.legacy and self.msi is None:
                self._add_device_msi(capability)
            elif capability.ident == CapabilityId.MSIX and not self.legacy and self.msix is None:
                self._add_device_msix(capability)
            elif capability.ident in SHOWN:
                self.config.place_capability(capability.offset, capability.ident, b"")
                if capability.ident == POWER:
                    self._power = capability.offset

    def _add_device_msi(self, capability: Found) -> None:
        control = self.host.read_config(capability.offset + 2, 2)
        vectors = min(1 << (control >> 1 & 7), MSI_MAXIMUM)
        while vectors > self.host.interrupts[IrqIndex.MSI].count:
            vectors >>= 1
        wide, maskable = bool(control & MsiControl.WIDE), bool(control & MsiControl.MASKABLE)
        if vectors and capability.size >= msi_size(wide=wide, maskable=maskable):
            send = self.environment.send_msi
            self.msi = Msi(self.config, send, vectors, at=capability.offset, wide=wide, maskable=maskable)
            self.capabilities.append(self.msi)

    def _add_device_msix(self, capability: Found) -> None:
        offset = capability.offset
        if capability.size < Msix.size or not self.host.interrupts[IrqIndex.MSIX].count:
            return
        vectors = (self.host.read_config(offset + 2, 2) & 0x7FF) + 1
        table, pending = (self.host.read_config(offset + at, 4) for at in (4, 8))
        place = Place(offset, table, pending)
        table_bar, pending_bar = table & _MSIX_BIR, pending & _MSIX_BIR
        self.msix = Msix(self.config, self.environment.send_msi, vectors, table_bar, place=place)
        self.capabilities.append(self.msix)
        table, pending = table & ~_MSIX_BIR, pending & ~_MSIX_BIR
        self._table = (table_bar, table, table + ENTRY * vectors)
        self._pending = (pending_bar, pending, pending + (vectors + 63) // 64 * 8)

    def _add_bars(self) -> None:
        for index in range(BARS):
            region = self.host.regions[index]
            if not region.size or any(index in bar.indexes for bar in self.bars):
                continue
            register = self.host.read_config(Offset.BAR0 + 4 * index, 4)
            if register & _BAR_FLAGS_IO:
                kind = BarKind.IO
            else:
                kind = BarKind.MEMORY_64 if register & _BAR_64 else BarKind.MEMORY_32
            prefetchable = kind is not BarKind.IO and bool(register & _BAR_PREFETCHABLE)
            name = f"passthru {self.host.name}"
            try:
                self.add_bar(index, kind, region.size, _BarHandler(self, region), name, prefetchable=prefetchable)
            except ValueError as error:
                raise DeviceError(f"passthru: {error}") from None

    # -- the MSI-X table and its pending bits --

    def in_vectors(self, bar: int, offset: int, size: int) -> bool:
        """Whether an access touches what is modelled."""
        modelled = self._table, self._pending
        return any(bar == where and offset < end and offset + size > start for where, start, end in modelled)

    def read_vectors(self, bar: int, offset: int, size: int) -> int:
        """Table or pending bits; zero for an access that is only half in them."""
        if self.msix is None:
            return 0
        where, start, end = self._table
        if bar == where and start <= offset and offset + size <= end:
            return self.msix.read(offset - start, size)
        where, start, end = self._pending
        if bar == where and start <= offset and offset + size <= end:
            return self.msix.read_pending(offset - start, size)
        return 0

    def write_vectors(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write the table, and let a vector come that is no longer masked."""
        where, start, end = self._table
        if self.msix is None or bar != where or offset < start or offset + size > end:
            return
        self.msix.write(offset - start, size, value)
        for vector in {(offset - start) // ENTRY, (offset - start + size - 1) // ENTRY}:
            self._listen(vector)
            self._shorten(vector)

    def _listen(self, vector: int) -> None:
        if self.msix is not None and not self.msix.masked(vector):
            try:
                self._interrupts.listen(vector)
            except OSError as error:
                self._tell_once(f"MSI-X vectors cannot be had: {error.strerror}")

    def _tell_once(self, text: str) -> None:
        """A line for people; a guest cannot make it come again and again."""
        if text not in self._told:
            self._told.add(text)
            complain(f"passthru {self.host.name}: {text}")

    # -- configuration space --

    def read_config(self, offset: int, size: int) -> int:
        """Ours and the device's bytes together."""
        if offset + size > SIZE:
            return (1 << 8 * size) - 1
        value = self.config.get(offset, size)
        status = offset < Offset.STATUS + 2 and offset + size > Offset.STATUS
        theirs = self._theirs[offset : offset + size]
        if not status and not any(theirs):
            return value
        try:
            hardware = self.host.read_config(offset, size)
        except OSError:
            return value
        mask = int.from_bytes((0xFF * one for one in theirs), "little")
        if status:
            bits = int.from_bytes((0xEF, 0xFF), "little") << 8 * Offset.STATUS >> 8 * offset
            mask |= bits & (1 << 8 * size) - 1
        return value & ~mask | hardware & mask

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The guest's write, first for the bytes that are ours."""
        if offset + size > SIZE:
            return
        super().write_config(offset, size, value)
        end = offset + size
        state = None if self._power is None else self._power + POWER_STATE
        falls_asleep = state is not None and offset <= state < end and value >> 8 * (state - offset) & POWER_STATE_MASK
        if falls_asleep and self._maps is not None:
            self._maps.sleep(True, self.bars)
        for at in range(offset, end):
            if self._is_theirs(at) and not (at > offset and self._is_theirs(at - 1)):
                stop = next((i for i in range(at, end) if not self._is_theirs(i)), end)
                self._write_hardware(at, stop - at, value >> 8 * (at - offset))
        if self._maps is not None and self._maps.asleep and state is not None:
            with suppress(OSError):
                self._maps.sleep(bool(self.host.read_config(state, 1) & POWER_STATE_MASK), self.bars)

    def _is_theirs(self, offset: int) -> bool:
        return bool(self._theirs[offset]) or Offset.STATUS <= offset < Offset.STATUS + 2

    def _write_hardware(self, offset: int, size: int, value: int) -> None:
        """As the largest accesses that are aligned."""
        while size:
            width = next(w for w in (4, 2, 1) if w <= size and offset % w == 0)
            with suppress(OSError):
                self.host.write_config(offset, width, value & (1 << 8 * width) - 1)
            offset, size, value = offset + width, size - width, value >> 8 * width

    def update_bars(self) -> None:
        """Decoding is on at the device before the guest can reach it, and off only after it cannot any more."""
        command = self.config.get(Offset.COMMAND, 2)
        self._tell_command(command | (self._told_command or 0))
        super().update_bars()
        self._tell_command(command)

    def _tell_command(self, command: int) -> None:
        if command != self._told_command:
            self._told_command = command
            self._write_hardware(Offset.COMMAND, 2, command)

    def config_written(self, offset: int, size: int) -> None:
        """MSI or MSI-X may be on or off now, or its messages may be others."""
        self._choose_interrupts()
        if offset < Offset.COMMAND + 2 or any(
            offset < own.offset + own.size and own.offset < offset + size for own in self.capabilities
        ):
            for vector in self._interrupts.vectors():
                self._shorten(vector)

    def bar_moved(self, bar: Bar) -> None:
        """What of it is mapped for the guest's CPU goes along."""
        if self._maps is not None:
            self._maps.move(bar)

    # -- interrupts --

    def connect(self, bus: PciBus, address: PciAddress, pin: IntxPin | None) -> None:
        super().connect(bus, address, pin)
        if pin is not None:
            pin.on_end(self._ended)
        with self.lock:
            self._choose_interrupts()

    def _choose_interrupts(self) -> None:
        """Use what the guest has chosen; its pin, where it has chosen no messages."""
        kind, vectors = None, 1
        if self.msix is not None and self.msix.enabled:
            kind, vectors = IrqIndex.MSIX, self.msix.vectors
        elif self.msi is not None and self.msi.enabled:
            kind, vectors = IrqIndex.MSI, self.msi.granted
        elif self.wants_intx and self._pin is not None:
            kind = IrqIndex.INTX
        if kind is self._interrupts.kind or self._closed or (kind is not None and kind is self._refused):
            return
        self._release_pin()
        self._refused = None
        try:
            self._interrupts.use(kind, vectors)
        except OSError as error:
            self._refused = kind
            self._tell_once(f"the host refuses interrupts of this kind: {error.strerror}")
            return
        if kind is IrqIndex.MSIX:
            for vector in range(vectors):
                self._listen(vector)
        for vector in self._interrupts.vectors():
            self._shorten(vector)

    def _shorten(self, vector: int) -> None:
        """Let a vector go to the guest without us, where the backend can do that, as long as nothing masks it."""
        kind = self._interrupts.kind
        if kind is IrqIndex.MSIX and self.msix is not None:
            self._interrupts.bind(vector, self.msix.message(vector))
        elif kind is IrqIndex.MSI and self.msi is not None:
            self._interrupts.bind(vector, self.msi.message(vector))

    def _arrived(self, kind: IrqIndex, vector: int) -> None:
        """The device has signalled; in the loop's thread."""
        if kind is IrqIndex.ERROR:
            complain(f"passthru {self.host.name}: the device reports an error that it cannot recover from")
            return
        if kind is IrqIndex.REQUEST:
            complain(f"passthru {self.host.name}: the host wants the device back; end this machine")
            return
        self.environment.device_wrote()
        with self.lock:
            if self._closed or kind is not self._interrupts.kind:
                return
            if kind is IrqIndex.INTX:
                self._pending_pin = True
                self.set_intx(True)
            elif kind is IrqIndex.MSI and self.msi is not None:
                self.msi.notify(vector)
            elif self.msix is not None:
                self.msix.notify(vector)

    def _ended(self) -> None:
        """The guest has ended an interrupt of the pin's line: let the device say whether it still wants one."""
        with self.lock:
            if self._pending_pin and not self._closed:
                self._release_pin()
                with suppress(OSError):
                    self._interrupts.unmask_pin()

    def _release_pin(self) -> None:
        self._pending_pin = False
        self.set_intx(False)

    # -- lifecycle --

    def reset(self) -> None:
        """Reset the device, and what is modelled of it."""
        with self.lock:
            with suppress(OSError):
                self._interrupts.use(None)
            with suppress(OSError):
                self.host.reset()
            self._told_command = None
            super().reset()
            self._release_pin()
            self._choose_interrupts()

    def save(self) -> State:
        """Raises ``DeviceError``: nobody can read the state of hardware."""
        raise DeviceError(f"passthru: the state of device {self.host.name} cannot be saved")

    def restore(self, state: Mapping[str, object]) -> None:
        """Raises ``DeviceError``."""
        raise DeviceError(f"passthru: the state of device {self.host.name} cannot be restored")

    def close(self) -> None:
        """Reset the device and give it back."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            with suppress(OSError):
                self._interrupts.use(None)
            with suppress(OSError):
                self.host.reset()
            if self._maps is not None:
                self._maps.close()
            self.host.close()
        self._interrupts.close()
