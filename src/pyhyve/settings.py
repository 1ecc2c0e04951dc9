"""What the configuration tree means to the machine: variables turned into sizes, topologies, slots and addresses.

Each function reads the variables of one subject and raises a ``PyhyveError`` with one line where they make no sense.
"""

from __future__ import annotations

import os
import uuid

from pyhyve.config import Config, parse_memsize
from pyhyve.errors import ConfigError, UsageError
from pyhyve.firmware.platform import SMBIOS_STRINGS
from pyhyve.hw.pci.bus import PciAddress
from pyhyve.vmm.cpuid import Topology


def read_topology(config: Config) -> Topology:
    """``cpus``, ``sockets``, ``cores``, ``threads``; what is not given follows from the rest."""
    cores = config.get_int("cores", 1, minimum=1)
    threads = config.get_int("threads", 1, minimum=1)
    cpus = config.get_int("cpus", minimum=1)
    sockets = config.get_int("sockets", max(1, cpus // (cores * threads)), minimum=1)
    topology = Topology(sockets, cores, threads)
    if topology.cpus != cpus:
        raise ConfigError(f"invalid cpu topology: {sockets} sockets * {cores} cores * {threads} threads is not {cpus}")
    return topology


def read_memory_size(config: Config) -> int:
    """``memory.size`` in bytes. Raises ``UsageError`` for nonsense, ``ConfigError`` for more than the host has."""
    text = config.require("memory.size")
    try:
        size = parse_memsize(text)
    except ValueError:
        raise UsageError(f"invalid memsize '{text}'") from None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > total:
        raise ConfigError(f"{size >> 20} MB of guest memory requested, but this host has {total >> 20} MB in all")
    return size


def read_uuid(config: Config) -> uuid.UUID | None:
    """``uuid``, if it was given."""
    text = config.get("uuid")
    try:
        return None if text is None else uuid.UUID(text)
    except ValueError:
        raise ConfigError(f"uuid: '{text}' is not a UUID") from None


def read_smbios(config: Config) -> dict[str, str]:
    """The strings of SMBIOS; a variable that is not set has bhyve's value."""
    strings = {}
    for name, default in SMBIOS_STRINGS.items():
        text = config.get(name)
        if text is not None and not (text.isascii() and text.isprintable()):
            raise ConfigError(f"{name}: '{text}' has characters that SMBIOS cannot hold")
        strings[name] = default if text is None else text
    return strings


def read_pinning(config: Config, index: int) -> int | None:
    """The host CPU that ``-p`` gives vCPU ``index``."""
    if f"vcpu.{index}.cpuset" in config:
        return config.get_int(f"vcpu.{index}.cpuset", minimum=0)
    if "vcpu.first_cpu" in config:
        return config.get_int("vcpu.first_cpu", minimum=0) + index
    return None


def read_slots(config: Config) -> list[PciAddress]:
    """The PCI functions that the configuration names, by address."""
    found = []
    for bus in config.children("pci"):
        for slot in config.children(f"pci.{bus}"):
            for function in config.children(f"pci.{bus}.{slot}"):
                numbers = (bus, slot, function)
                if not all(n.isdigit() for n in numbers):
                    raise ConfigError(f"pci.{bus}.{slot}.{function}: a PCI slot is three numbers")
                found.append(PciAddress(*(int(n) for n in numbers)))
    return sorted(found)
