"""pyhyve: a bhyve-compatible virtual machine monitor for x86-64 Linux hosts.

    from pyhyve import Config, Machine

    config = Config.of({"name": "demo", "memory.size": "256M", "boot.kernel": "vmlinuz"})
    with Machine(config) as machine:
        machine.start()
        status = machine.wait()

The names below are imported when they are first used, so that ``import pyhyve`` and ``bhyve -h`` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyhyve.config import Config
    from pyhyve.errors import (
        BackendError,
        ConfigError,
        DeviceError,
        LoaderError,
        MemoryError_,
        PyhyveError,
        Status,
        UsageError,
    )
    from pyhyve.machine import Machine
    from pyhyve.memory import GuestMemory

_HOMES = {
    "Config": "config",
    "Machine": "machine",
    "GuestMemory": "memory",
    "BackendError": "errors",
    "ConfigError": "errors",
    "DeviceError": "errors",
    "LoaderError": "errors",
    "MemoryError_": "errors",
    "PyhyveError": "errors",
    "Status": "errors",
    "UsageError": "errors",
}

__all__ = [
    "BackendError",
    "Config",
    "ConfigError",
    "DeviceError",
    "GuestMemory",
    "LoaderError",
    "Machine",
    "MemoryError_",
    "PyhyveError",
    "Status",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pyhyve' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"pyhyve.{home}"), name)
    globals()[name] = value
    return value
