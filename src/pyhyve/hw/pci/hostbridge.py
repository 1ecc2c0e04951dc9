"""The host bridge in slot 0: a function that says who it is, and by a PCI Express capability that MSI works here.

``hostbridge`` carries bhyve's own numbers. ``amd_hostbridge`` looks like AMD's, for guests that will not use MSI or
extended configuration space behind a bridge they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.capabilities import PortType, add_express
from pyhyve.hw.pci.config_space import Identity
from pyhyve.hw.pci.function import PciFunction

_BRIDGE, _HOST = 0x06, 0x00


class HostBridge(PciFunction):
    """bhyve's host bridge."""

    identity = Identity(0x1275, 0x1275, _BRIDGE, _HOST)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        super().__init__(environment, options)
        add_express(self.config, PortType.ROOT_PORT)


class AmdHostBridge(HostBridge):
    """An AMD host bridge."""

    identity = Identity(0x1022, 0x7432, _BRIDGE, _HOST)
