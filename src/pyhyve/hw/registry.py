"""PCI devices by the name that a command line gives them.

A device's module registers its class: ``@device("virtio-blk")``. The modules are found by walking the families below
``hw``, so that adding a device touches one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pyhyve.hw
from pyhyve.errors import DeviceError

if TYPE_CHECKING:
    from pyhyve.hw.pci.function import PciFunction

_Class = TypeVar("_Class", bound="type[PciFunction]")

_devices: dict[str, type[PciFunction]] = {}


def device(name: str) -> Callable[[_Class], _Class]:
    """Register a class under ``name``. Raises ``ValueError`` if the name is taken."""

    def register(cls: _Class) -> _Class:
        if name in _devices:
            raise ValueError(f"two devices are named {name}")
        _devices[name] = cls
        return cls

    return register


def find(name: str) -> type[PciFunction]:
    """The class of device ``name``. Raises ``DeviceError`` for an unknown one."""
    if name not in _devices:
        _import_all()
    try:
        return _devices[name]
    except KeyError:
        import difflib

        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise DeviceError(f"unknown device '{name}'; {hint}") from None


def names() -> list[str]:
    """All device names, sorted."""
    _import_all()
    return sorted(_devices)


def _import_all() -> None:
    for family in pkgutil.iter_modules(pyhyve.hw.__path__, "pyhyve.hw."):
        if family.ispkg and not family.name.endswith(".chipset"):  # the chipset is not chosen by name
            package = importlib.import_module(family.name)
            for module in pkgutil.iter_modules(package.__path__, family.name + "."):
                importlib.import_module(module.name)
