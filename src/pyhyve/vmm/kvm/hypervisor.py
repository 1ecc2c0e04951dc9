"""The door of the KVM backend: probing the host and creating machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhyve.errors import BackendError
from pyhyve.vmm.api import Hypervisor, Probe
from pyhyve.vmm.kvm import ioctls, probe
from pyhyve.vmm.kvm.vm import KvmMachine

if TYPE_CHECKING:
    from pyhyve.memory import GuestMemory


class KvmHypervisor(Hypervisor):
    """Virtual machines on ``device``."""

    name = "kvm"

    def __init__(self, device: str = probe.DEVICE, cpuinfo: str = probe.CPUINFO) -> None:
        self.device = device
        self.cpuinfo = cpuinfo

    def probe(self) -> Probe:
        return probe.probe(self.device, self.cpuinfo)

    def create(self, name: str, memory: GuestMemory, cpus: int) -> KvmMachine:
        system = probe.open_device(self.device)
        try:
            limit = ioctls.extension(system, ioctls.Cap.MAX_VCPUS) or 1
            if not 1 <= cpus <= limit:
                raise BackendError(f"{cpus} vCPUs requested but only {limit} available")
            return KvmMachine(name, system, self._create_vm(system), memory, cpus)
        except BaseException:
            os.close(system)
            raise

    def _create_vm(self, system: int) -> int:
        while True:
            try:
                return ioctls.call(system, ioctls.CREATE_VM)
            except InterruptedError:  # KVM gives up this one call when any signal arrives
                continue
            except OSError as error:
                why = probe.explain(error, self.device)
                raise BackendError(f"KVM cannot create a virtual machine: {why}") from None
