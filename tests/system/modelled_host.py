"""``bhyve`` on a host whose VFIO is the model, with two devices to give away: a disk and a serial card.

``python -m tests.system.modelled_host DISK SERIAL bhyve's arguments``: 0000:03:00.0 is a virtio disk with the image
DISK, which signals with MSI-X; 0000:04:00.0 is a 16550 card with its pin only, whose line is the character device
SERIAL. When the machine has ended, what the host saw is written to standard error.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

from pyhyve.commands.bhyve import run
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.uart import PciUart
from pyhyve.hw.virtio.block import VirtioBlock
from tests.backends.vfio.model import Hardware, ModelKernel


def main() -> int:
    """Run the machine; its status."""
    disk, serial, *argv = sys.argv[1:]

    def make_disk(environment: Environment) -> PciFunction:
        return VirtioBlock(environment, {"path": disk})

    def make_card(environment: Environment) -> PciFunction:
        return PciUart(environment, {"path": serial, "legacy": "true"})

    devices = {"0000:03:00.0": Hardware(make_disk), "0000:04:00.0": Hardware(make_card, group="8")}
    kernel = ModelKernel(devices)
    with patch("pyhyve.backends.vfio.container.LinuxSystem", lambda: kernel):
        status = run(argv)
    kernel.shut_down()
    for name, hardware in devices.items():
        said = ", ".join(hardware.violations) or "no violations"
        print(f"host: {name}: {said}, {hardware.resets} resets, DMA {hardware.dma}", file=sys.stderr)
    print(f"host: {len(kernel.fds)} descriptors open", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
