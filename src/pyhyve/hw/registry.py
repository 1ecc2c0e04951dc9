"""PCI devices by the name that a command line gives them.

The table says where each is: a machine imports its own devices and no others; who only asks for names imports none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pyhyve.errors import DeviceError

if TYPE_CHECKING:
    from pyhyve.hw.pci.function import PciFunction

# name: module below this package, class
_DEVICES = {
    "ahci": ("storage.ahci.device", "Ahci"),
    "ahci-cd": ("storage.ahci.device", "AhciCd"),
    "ahci-hd": ("storage.ahci.device", "AhciHd"),
    "amd_hostbridge": ("pci.hostbridge", "AmdHostBridge"),
    "hostbridge": ("pci.hostbridge", "HostBridge"),
    "ich9": ("pci.q35", "Ich9"),
    "lpc": ("pci.lpc", "Lpc"),
    "passthru": ("pci.passthru", "Passthru"),
    "q35": ("pci.q35", "Q35"),
    "uart": ("pci.uart", "PciUart"),
    "virtio-9p": ("virtio.p9.device", "Virtio9p"),
    "virtio-blk": ("virtio.block", "VirtioBlock"),
    "virtio-console": ("virtio.console", "VirtioConsole"),
    "virtio-net": ("net.virtio_net", "VirtioNet"),
    "virtio-rnd": ("virtio.rng", "VirtioRandom"),
}


def find(name: str) -> type[PciFunction]:
    """The class of device ``name``. Raises ``DeviceError`` for an unknown one."""
    try:
        module, cls = _DEVICES[name]
    except KeyError:
        import difflib

        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise DeviceError(f"unknown device '{name}'; {hint}") from None
    found: type[PciFunction] = getattr(importlib.import_module(f"pyhyve.hw.{module}"), cls)
    return found


def names() -> list[str]:
    """All device names, sorted."""
    return sorted(_DEVICES)
