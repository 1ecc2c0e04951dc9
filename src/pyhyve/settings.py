"""What the configuration tree means to the machine: variables turned into sizes, topologies, slots and addresses.

Each function reads the variables of one subject and raises a ``PyhyveError`` with one line where they make no sense.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence

from pyhyve.config import Config, parse_cpuset, parse_memsize
from pyhyve.errors import ConfigError, UsageError
from pyhyve.firmware.platform import SMBIOS_STRINGS, Domain
from pyhyve.hw.pci.bus import PciAddress
from pyhyve.hw.pci.config_space import Offset
from pyhyve.memory import PAGE, Region
from pyhyve.vmm.cpuid import Topology


def read_topology(config: Config) -> Topology:
    """``cpus``, ``sockets``, ``cores``, ``threads``; what is not given follows from the rest."""
    cores = config.get_int("cores", 1, minimum=1)
    threads = config.get_int("threads", 1, minimum=1)
    product = config.get_int("sockets", 1, minimum=1) * cores * threads
    cpus = config.get_int("cpus", minimum=1) if "cpus" in config else product
    sockets = config.get_int("sockets", max(1, cpus // (cores * threads)), minimum=1)
    topology = Topology(sockets, cores, threads)
    if topology.cpus != cpus:
        raise ConfigError(f"invalid cpu topology: {sockets} sockets * {cores} cores * {threads} threads is not {cpus}")
    return topology


def read_memory_size(config: Config) -> int:
    """Bytes of RAM: the sizes of the NUMA domains if all have one, else ``memory.size``.

    Raises ``UsageError`` for nonsense, ``ConfigError`` for more than the host has.
    """
    sizes = [_read_domain_size(config, ident) for ident in config.children("domains")]
    size = sum(s or 0 for s in sizes) if sizes and all(sizes) else _read_size(config, "memory.size")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > total:
        raise ConfigError(f"{size >> 20} MB of guest memory requested, but this host has {total >> 20} MB in all")
    return size


def _read_size(config: Config, name: str) -> int:
    text = config.require(name)
    try:
        return parse_memsize(text)
    except ValueError:
        what = "memsize" if name == "memory.size" else name
        raise UsageError(f"invalid {what} '{text}'") from None


def _read_domain_size(config: Config, ident: str) -> int | None:
    name = f"domains.{ident}.size"
    return _read_size(config, name) if name in config else None


def read_domains(config: Config, cpus: int, regions: Sequence[Region]) -> tuple[Domain, ...]:
    """The NUMA domains (``-n``), each with its piece of ``regions``, in the order of their numbers.

    Without a size for every domain the memory is shared out equally. Each vCPU must be in one domain.
    """
    idents = config.children("domains")
    if not idents:
        return ()
    if not config.get_bool("acpi_tables"):
        raise ConfigError("memory domains (-n) are told by ACPI tables: add -A")
    total = sum(region.size for region in regions)
    sizes = [_read_domain_size(config, ident) for ident in idents]
    if not all(sizes):
        part = total // len(idents) // PAGE * PAGE
        sizes = [*[part] * (len(idents) - 1), total - part * (len(idents) - 1)]
    elif sum(size or 0 for size in sizes) != total:
        given = sum(size or 0 for size in sizes)
        raise ConfigError(f"memory domains have {given >> 20} MB, but the machine has {total >> 20} MB")
    owner: dict[int, str] = {}
    found = []
    free = [(region.gpa, region.size) for region in regions]
    for ident, size in zip(idents, sizes, strict=True):
        if not ident.isdigit():
            raise ConfigError(f"domains.{ident}: a memory domain is a number")
        text = config.require(f"domains.{ident}.cpus")
        try:
            members = parse_cpuset(text)
        except ValueError:
            raise ConfigError(f"domains.{ident}.cpus: '{text}' is not a list of CPUs, such as 0,2 or 4-7") from None
        for cpu in members:
            if cpu >= cpus or cpu in owner:
                why = f"is in domain {owner[cpu]} too" if cpu in owner else f"does not exist, there are {cpus}"
                raise ConfigError(f"domains.{ident}.cpus: vCPU {cpu} {why}")
            owner[cpu] = ident
        found.append(Domain(int(ident), frozenset(members), tuple(_cut(free, size or 0))))
    if len(owner) < cpus:
        raise ConfigError(f"vCPU {min(set(range(cpus)) - set(owner))} is in no memory domain")
    return tuple(found)


def _cut(free: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Take ``size`` bytes from the front of ``free``."""
    while size:
        start, there = free.pop(0)
        part = min(size, there)
        yield start, part
        size -= part
        if part < there:
            free.insert(0, (start + part, there - part))


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


def read_pinning(config: Config, index: int) -> frozenset[int] | None:
    """The host CPUs that ``-p`` gives vCPU ``index``: its own list, or the one that follows from the first."""
    text = config.get(f"vcpu.{index}.cpuset")
    if text is not None:
        try:
            return frozenset(parse_cpuset(text))
        except ValueError:
            raise ConfigError(f"vcpu.{index}.cpuset: '{text}' is not a list of host CPUs, such as 0,2 or 4-7") from None
    if "vcpu.first_cpu" in config:
        return frozenset({config.get_int("vcpu.first_cpu", minimum=0) + index})
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


PCI_REGISTERS: Mapping[str, tuple[int, int]] = {
    "vendor": (Offset.VENDOR, 2),
    "device": (Offset.DEVICE, 2),
    "revid": (Offset.REVISION, 1),
    "subvendor": (Offset.SUBSYSTEM_VENDOR, 2),
    "subdevice": (Offset.SUBSYSTEM, 2),
}
"""Offset and size of the configuration registers that ``pcireg`` variables set."""


def read_pci_registers(config: Config, node: str) -> list[tuple[int, int, int]]:
    """``(offset, size, value)`` of each variable below ``node``, which is a device's ``pcireg``."""
    found = []
    for name in config.children(node):
        if name not in PCI_REGISTERS:
            raise ConfigError(f"{node}.{name}: the registers to set are {', '.join(PCI_REGISTERS)}")
        offset, size = PCI_REGISTERS[name]
        found.append((offset, size, config.get_int(f"{node}.{name}", minimum=0, maximum=(1 << 8 * size) - 1)))
    return found
