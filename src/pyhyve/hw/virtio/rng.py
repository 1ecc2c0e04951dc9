"""``virtio-rnd``: random bytes of the host's for the guest.

Document: Virtual I/O Device (VIRTIO) 1.2, §5.4. One queue of buffers, which the device fills.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pyhyve.hw.environment import Environment
from pyhyve.hw.virtio.device import VirtioDevice
from pyhyve.hw.virtio.queue import Queue

LARGEST = 1 << 16
"""Bytes given at a time, however much a guest asks for: the rest of its buffer stays as it is."""


class VirtioRandom(VirtioDevice):
    """The entropy device."""

    device_id, transitional_id, pci_class = 4, 0x1005, (0x10, 0x00)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        super().__init__(environment, options, queues=[64])

    def handle(self, index: int, ring: Queue) -> None:
        """Fill every buffer. ``getrandom`` does not wait on a host that has booted."""
        while (chain := ring.pop()) is not None:
            ring.push(chain, chain.write(os.urandom(min(chain.writable_size, LARGEST))))
