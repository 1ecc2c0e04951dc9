"""The IOMMU of one machine: groups of devices, and guest memory at its guest-physical addresses for them.

Source: the kernel's documentation of VFIO, and <linux/vfio.h>. A container is made with the first device. Setting its
IOMMU needs a group in it; then every region of RAM is mapped once, and that pins it in the host's memory. Devices of
other groups join later and see the same mappings.

VFIO's container and group interface is used, and not IOMMUFD's: every kernel that has VFIO has it, IOMMUFD itself
offers it too, and nothing here needs what only IOMMUFD can do.
"""

from __future__ import annotations

import ctypes
import errno
import resource

from pyhyve.backends.vfio import host, uapi
from pyhyve.backends.vfio.device import VfioDevice
from pyhyve.backends.vfio.host import HostAddress
from pyhyve.backends.vfio.system import LinuxSystem, System
from pyhyve.backends.vfio.uapi import DmaFlag, GroupFlag, Request
from pyhyve.errors import DeviceError
from pyhyve.memory import GuestMemory


class Container:
    """Opens devices for one machine, whose memory is ``memory``."""

    def __init__(self, memory: GuestMemory, system: System | None = None) -> None:
        self._memory = memory
        self._system: System = system or LinuxSystem()
        self._fd = -1
        self._groups: dict[str, int] = {}
        self._mapped: list[tuple[int, int]] = []

    def open(self, address: HostAddress) -> VfioDevice:
        """Take a device of the host. Raises ``DeviceError`` with what is missing, in one line."""
        system = self._system
        group = host.find_group(system, address)
        if self._fd < 0:
            self._fd = self._open_container()
        if group not in self._groups:
            self._join(group, address)
        name = bytearray(f"{address}\0".encode())
        try:
            fd = system.ioctl(self._groups[group], Request.GROUP_GET_DEVICE_FD, name)
        except OSError as error:
            raise DeviceError(f"passthru: VFIO does not open device {address}: {error.strerror}") from None
        try:
            return VfioDevice(system, fd, str(address))
        except BaseException:
            system.close(fd)
            raise

    def _open_container(self) -> int:
        path = host.CONTAINER
        try:
            fd = self._system.open(path)
        except PermissionError:
            raise DeviceError(f"passthru: {path} is forbidden to you: run as root, or be given {path}") from None
        except OSError as error:
            raise DeviceError(f"passthru: {path} does not open: {error.strerror}") from None
        try:
            version = self._system.ioctl(fd, Request.GET_API_VERSION)
            typed = self._system.ioctl(fd, Request.CHECK_EXTENSION, uapi.TYPE1V2_IOMMU)
        except OSError as error:
            self._system.close(fd)
            raise DeviceError(f"passthru: {path} is not VFIO: {error.strerror}") from None
        if version != uapi.API_VERSION or not typed:
            self._system.close(fd)
            lack = f"has version {version}" if version != uapi.API_VERSION else "has no IOMMU of type 1"
            raise DeviceError(f"passthru: the host's VFIO {lack}; load vfio_iommu_type1 (modprobe vfio_iommu_type1)")
        return fd

    def _join(self, group: str, address: HostAddress) -> None:
        """Open a group and put it into the container; with the first one, set the IOMMU up."""
        path = f"/dev/vfio/{group}"
        who = f"passthru: device {address} (IOMMU group {group})"
        try:
            fd = self._system.open(path)
        except FileNotFoundError:
            raise DeviceError(f"{who} has no {path}: bind it to vfio-pci again") from None
        except PermissionError:
            raise DeviceError(f"{who}: {path} is forbidden to you: run as root, or be given {path}") from None
        except OSError as error:
            why = "another program uses the group" if error.errno == errno.EBUSY else error.strerror
            raise DeviceError(f"{who}: {path} does not open: {why}") from None
        try:
            self._check_viable(fd, group, who)
            self._system.ioctl(fd, Request.GROUP_SET_CONTAINER, bytearray(self._fd.to_bytes(4, "little")))
            if not self._groups:
                self._system.ioctl(self._fd, Request.SET_IOMMU, uapi.TYPE1V2_IOMMU)
                self._map_memory()
        except OSError as error:
            self._system.close(fd)
            hint = ""
            if error.errno == errno.EPERM:
                hint = "; without interrupt remapping only with allow_unsafe_interrupts=1 of vfio_iommu_type1"
            raise DeviceError(f"{who}: the host's IOMMU refuses it: {error.strerror}{hint}") from None
        except BaseException:
            self._system.close(fd)
            raise
        self._groups[group] = fd

    def _check_viable(self, fd: int, group: str, who: str) -> None:
        status = bytearray(uapi.GroupStatus(argsz=ctypes.sizeof(uapi.GroupStatus)))
        self._system.ioctl(fd, Request.GROUP_GET_STATUS, status)
        if not uapi.GroupStatus.from_buffer_copy(status).flags & GroupFlag.VIABLE:
            others = ", ".join(f"{a} (driver {d})" for a, d in host.foreign_members(self._system, group))
            raise DeviceError(f"{who}: the host still uses {others or 'a device'} of that group: give all to vfio-pci")

    def _map_memory(self) -> None:
        """Guest-physical addresses are the devices' bus addresses. Pins all of guest memory."""
        for region in self._memory.regions:
            address = self._memory.host_address(region.gpa, region.size)
            request = uapi.DmaMap(
                argsz=ctypes.sizeof(uapi.DmaMap),
                flags=int(DmaFlag.READ | DmaFlag.WRITE),
                vaddr=address,
                iova=region.gpa,
                size=region.size,
            )
            try:
                self._system.ioctl(self._fd, Request.IOMMU_MAP_DMA, bytearray(request))
            except OSError as error:
                self._unmap_memory()
                raise DeviceError(self._why_not_mapped(error)) from None
            self._mapped.append((region.gpa, region.size))

    def _why_not_mapped(self, error: OSError) -> str:
        size = self._memory.ram_size >> 20
        what = f"passthru: {size} MB of guest memory cannot be given to the IOMMU"
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if error.errno == errno.ENOMEM and limit != resource.RLIM_INFINITY and limit < self._memory.ram_size:
            return f"{what}: only {limit >> 20} MB may be locked (ulimit -l {self._memory.ram_size >> 10})"
        return f"{what}: {error.strerror}"

    def _unmap_memory(self) -> None:
        while self._mapped:
            gpa, size = self._mapped.pop()
            request = uapi.DmaUnmap(argsz=ctypes.sizeof(uapi.DmaUnmap), iova=gpa, size=size)
            self._system.ioctl(self._fd, Request.IOMMU_UNMAP_DMA, bytearray(request))

    def close(self) -> None:
        """Take guest memory from the IOMMU and give the groups back. The devices must be closed. Idempotent."""
        if self._fd < 0:
            return
        try:
            self._unmap_memory()
        except OSError:
            pass  # closing the container unmaps all the same
        for fd in self._groups.values():
            self._system.close(fd)
        self._groups.clear()
        self._system.close(self._fd)
        self._fd = -1
