"""``ahci``, ``ahci-hd`` and ``ahci-cd``: the controller as a PCI function, with its disks.

Documents: bhyve(8), "AHCI device backends"; AHCI 1.3, §2.1 (PCI header).

    -s 3,ahci,hd:/vm/a.img,nocache,cd:/vm/b.iso     several drives on one controller
    -s 3,ahci-hd,/vm/a.img,ser=S1                   one disk
    -s 4,ahci-cd,/vm/b.iso                          one CD drive

In the configuration tree each drive is ``port.N`` below the slot, with ``type`` (``hd`` or ``cd``), ``path`` and the
drive's options. A guest's access comes through BAR 5 to ``AhciController``; commands begin in the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import BarKind
from pyhyve.hw.pci.config_space import Identity, Offset
from pyhyve.hw.pci.function import PciFunction
from pyhyve.lifecycle import State, saved_dict

# The parts are imported when a controller is made: a machine without one should not wait for them.
if TYPE_CHECKING:
    from pyhyve.hw.storage.ahci.drive import Drive

PORTS = 6
"""A controller has as many, or more where more drives are asked for."""

MAX_PORTS = 32
KINDS = ("hd", "cd")
DRIVE_OPTIONS = frozenset({"type", "ser", "rev", "model", "nmrr"})
MODELS = {"hd": "BHYVE SATA DISK", "cd": "BHYVE SATA DVD ROM"}
_OF_EVERY_SLOT = frozenset({"legacy"})


class Ahci(PciFunction):
    """An AHCI controller with the drives of its options."""

    identity = Identity(vendor=0x8086, device=0x2821, class_code=0x01, subclass=0x06, prog_if=0x01)
    default_kind = ""
    """What a drive without a type is."""

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        from pyhyve.hw.storage.ahci.hba import AhciController
        from pyhyve.hw.storage.ahci.registers import PORT_BASE, PORT_SIZE

        super().__init__(environment, options)
        drives: list[Drive | None] = []
        try:
            for drive_options in self._ports(options):
                drives.append(None if drive_options is None else self._open(drive_options))
        except BaseException:
            for drive in drives:
                if drive is not None:
                    drive.close()
            raise
        self.controller = AhciController(
            environment.memory,
            drives,
            self.lock,
            defer=environment.loop.call_soon_threadsafe,
            set_level=self.set_intx,
            send_message=self._send_message,
            bus_master=lambda: self.bus_master,
        )
        size = PORT_BASE + PORT_SIZE * len(drives)
        self.add_bar(5, BarKind.MEMORY_32, 1 << (size - 1).bit_length(), self.controller, "ahci")
        self.add_msi()
        self.use_intx()

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """``hd:PATH,option,...,cd:PATH,...``: options belong to the drive before them."""
        found: dict[str, str] = {}
        port = -1
        for part in conf.split(","):
            kind, colon, path = part.partition(":")
            if colon and kind in KINDS:
                port += 1
                found[f"port.{port}.type"] = kind
                found[f"port.{port}.path"] = path
            elif port < 0:
                raise DeviceError(f"ahci,{conf}: it is ahci,hd:PATH or ahci,cd:PATH, and more drives behind commas")
            elif part:
                name, equals, value = part.partition("=")
                found[f"port.{port}.{name}"] = value if equals else "true"
        return found

    def _ports(self, options: Mapping[str, str]) -> list[Mapping[str, str] | None]:
        """Each port's options, None for a port without a drive."""
        from pyhyve.backends import block

        known = DRIVE_OPTIONS | block.OPTIONS
        ports: dict[int, dict[str, str]] = {}
        for name, value in options.items():
            if name in _OF_EVERY_SLOT or name.startswith("pcireg."):
                continue
            parts = name.split(".")
            if len(parts) == 3 and parts[0] == "port" and parts[1].isascii() and parts[1].isdigit():
                number, option = int(parts[1]), parts[2]
            elif len(parts) == 1 and self.default_kind:
                number, option = 0, name
            else:
                raise DeviceError(f"{self._name}: there is no option '{name}'")
            if number >= MAX_PORTS:
                raise DeviceError(f"{self._name}: there is no port {number}; a controller has up to {MAX_PORTS}")
            if option not in known:
                import difflib

                near = difflib.get_close_matches(option, known, 1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise DeviceError(f"{self._name}: there is no option '{option}'{hint}")
            ports.setdefault(number, {})[option] = value
        if not ports and self.default_kind:
            raise DeviceError(f"{self._name}: which disk? it is {self._name},PATH")
        return [ports.get(number) for number in range(max(PORTS, *(number + 1 for number in ports), 0))]

    def _open(self, options: Mapping[str, str]) -> Drive:
        from pyhyve.backends.block import open_block
        from pyhyve.hw.storage.ahci.ata import AtaDisk
        from pyhyve.hw.storage.ahci.atapi import AtapiDrive
        from pyhyve.hw.storage.ahci.identify import Identity as DriveIdentity

        kind = options.get("type", self.default_kind)
        if kind not in KINDS:
            raise DeviceError(f"{self._name}: a port's type is hd or cd, not '{kind}'")
        path = options.get("path", "")
        if not path:
            raise DeviceError(f"{self._name}: which disk? it needs a path")
        identity = DriveIdentity.of(options, path, MODELS[kind])
        if kind == "cd":
            backend = open_block(path, {**options, "ro": "true"})
            if backend.size < 2048:
                backend.close()
                raise DeviceError(f"disc {path} has {backend.size} bytes, less than one sector of 2048")
            return AtapiDrive(backend, identity)
        return AtaDisk(open_block(path, options), identity)

    @property
    def _name(self) -> str:
        return {"hd": "ahci-hd", "cd": "ahci-cd"}.get(self.default_kind, "ahci")

    def _send_message(self) -> None:
        if self.msi is not None:
            self.msi.notify()

    def config_written(self, offset: int, size: int) -> None:
        """Commands that waited for bus mastering go on."""
        if offset < Offset.COMMAND + 2 and offset + size > Offset.COMMAND and self.bus_master:
            self.controller.kick()

    # -- lifecycle --

    def reset(self) -> None:
        """As after power-on."""
        self.controller.reset()
        super().reset()

    def save(self) -> State:
        """The function's state and the controller's, with nothing on its way."""
        self.controller.drain()
        with self.lock:
            return {**super().save(), "controller": self.controller.save()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over a state."""
        with self.lock:
            super().restore(state)
            self.controller.restore(saved_dict(state.get("controller"), "controller"))

    def close(self) -> None:
        """Finish what is on its way, close the images."""
        self.controller.close()


class _OneDrive(Ahci):
    """A controller with one drive, on port 0."""

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """``PATH,option,...``."""
        return Ahci.parse_options(f"{cls.default_kind}:{conf}")


class AhciHd(_OneDrive):
    """One disk."""

    default_kind = "hd"


class AhciCd(_OneDrive):
    """One CD drive."""

    default_kind = "cd"
