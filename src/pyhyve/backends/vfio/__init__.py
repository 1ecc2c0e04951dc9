"""PCI devices of the host, through Linux's VFIO.

``uapi`` has the kernel's numbers and structures, ``system`` the system calls, ``host`` what the host says of a device
before it is opened, ``container`` the IOMMU with guest memory in it, ``device`` one opened device.
"""
