"""An AHCI 1.3 controller with SATA disks and CD drives.

``device`` is the PCI function, ``hba`` the generic registers, ``port`` a port's registers and command list,
``request`` a command in the driver's memory, ``fis`` the frames between controller and device, ``ata`` a disk,
``atapi`` a CD drive, ``identify`` and ``logs`` what they say of themselves.
"""

import pyhyve.hw.storage.ahci.device as device

__all__ = ["device"]
