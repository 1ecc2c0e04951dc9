"""What ``pyhyve run`` makes of ``--disk`` and ``--net``: devices in slots, and the kernel that a disk itself boots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyhyve.commands.options import set_pci_device
from pyhyve.config import Config, parse_memsize
from pyhyve.errors import LoaderError, UsageError

DISK_DRIVERS = ("virtio-blk", "ahci-hd", "ahci-cd")
"""The first one is taken where none is named."""

_FIRST_SLOT = 2
_LAST_SLOT = 30


def attach(config: Config, disks: Sequence[str], networks: Sequence[str]) -> None:
    """Put a device for each of them on the bus, in this order, from slot 2 on.

    A disk is ``FILE[,DRIVER][,OPTIONS]``, a network is what follows ``virtio-net,`` with bhyve. Raises ``PyhyveError``.
    """
    devices = [_disk(text) for text in disks] + [f"virtio-net,{text}" for text in networks]
    if len(devices) > _LAST_SLOT + 1 - _FIRST_SLOT:
        raise UsageError(f"{len(devices)} disks and networks are more than there are slots for them")
    for slot, device in enumerate(devices, _FIRST_SLOT):
        set_pci_device(config, f"{slot},{device}")


def disk_file(text: str) -> str:
    """The image of ``--disk TEXT``. Raises ``UsageError`` if it names none."""
    path = text.partition(",")[0]
    if not path:
        raise UsageError(f"invalid disk '{text}': it must be FILE[,{'|'.join(DISK_DRIVERS)}][,OPTIONS]")
    return path


def _disk(text: str) -> str:
    path = disk_file(text)
    driver, _, options = text[len(path) + 1 :].partition(",")
    if driver not in DISK_DRIVERS:
        driver, options = DISK_DRIVERS[0], text[len(path) + 1 :]
    return f"{driver},{path}" + (f",{options}" if options else "")


@contextmanager
def booted_from(config: Config, disk: str, cmdline: str | None) -> Iterator[str]:
    """Let ``config`` boot what the boot configuration on ``disk`` names as default, and give that a name.

    ``cmdline`` is the kernel's command line if it is not to be the configuration's. Raises ``LoaderError``.
    """
    from pyhyve.loader.disk import bootconfig

    with bootconfig.from_disk(disk, parse_memsize(config.require("memory.size"))) as boot:
        config.set("boot.kernel", Config.escape(str(boot.kernel)))
        if boot.initrd is not None:
            config.set("boot.initrd", Config.escape(str(boot.initrd)))
        config.set("boot.cmdline", Config.escape(boot.cmdline if cmdline is None else cmdline))
        try:
            yield f"{boot.title}, {boot.named(str(boot.kernel))}"
        except LoaderError as error:
            raise LoaderError(boot.named(str(error))) from None
