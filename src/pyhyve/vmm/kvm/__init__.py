"""The backend that runs vCPUs on ``/dev/kvm``, by ioctl, in plain Python.

``KvmHypervisor`` is the door. ``probe`` says whether this host can, ``vm`` is one machine (memory slots, interrupt
entry, doorbells), ``vcpu`` one vCPU (the run loop and its exits), ``state`` its registers; ``ioctls`` and
``structs`` are KVM's binary interface.
"""

from __future__ import annotations

from pyhyve.vmm.kvm.hypervisor import KvmHypervisor

__all__ = ["KvmHypervisor"]
