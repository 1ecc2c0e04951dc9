"""Whether this host can run the KVM backend, and if not why, in one sentence.

Data comes from opening the device, its API version and extensions (KVM API documentation §4.1, §4.4), and from the
``flags`` of ``/proc/cpuinfo``: vmx or svm there means that the CPU itself runs the guest.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyhyve.errors import BackendError
from pyhyve.vmm.api import MAX_CPUS, Probe
from pyhyve.vmm.kvm import ioctls
from pyhyve.vmm.kvm.ioctls import Cap

DEVICE = "/dev/kvm"
CPUINFO = "/proc/cpuinfo"

REQUIRED = (
    Cap.USER_MEMORY,
    Cap.SET_TSS_ADDR,
    Cap.SET_IDENTITY_MAP_ADDR,
    Cap.EXT_CPUID,
    Cap.IRQCHIP,
    Cap.PIT2,
    Cap.IRQ_ROUTING,
    Cap.SIGNAL_MSI,
    Cap.IOEVENTFD,
    Cap.VCPU_EVENTS,
    Cap.DEBUGREGS,
    Cap.XSAVE,
    Cap.XCRS,
    Cap.IMMEDIATE_EXIT,
)

_OPEN_ERRORS = {
    errno.ENOENT: "there is no {0} (the kernel has no KVM, or its module is not loaded)",
    errno.EACCES: "{0} may not be opened by this user (join the group that owns it, usually kvm)",
    errno.EPERM: "{0} may not be opened by this user (join the group that owns it, usually kvm)",
    errno.EBUSY: "{0} is busy (another hypervisor is using the CPU's virtualization)",
    errno.ENODEV: "{0} has no driver behind it (the KVM module is not loaded)",
    errno.ENXIO: "{0} has no driver behind it (the KVM module is not loaded)",
}


def explain(error: OSError, what: str) -> str:
    """One sentence for a failure to open or use the device ``what``."""
    known = _OPEN_ERRORS.get(error.errno or 0)
    return known.format(what) if known else f"{what} cannot be used: {os.strerror(error.errno or 0)}"


def open_device(device: str = DEVICE) -> int:
    """Open the KVM device and check its API. Returns a descriptor, or raises ``BackendError``."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(explain(error, device)) from None
    try:
        _check(fd, device)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(fd: int, device: str) -> None:
    try:
        version = ioctls.call(fd, ioctls.GET_API_VERSION)
    except OSError:
        raise BackendError(f"{device} is not a KVM device") from None
    if version != ioctls.API_VERSION:
        raise BackendError(f"{device} speaks KVM API version {version}, not {ioctls.API_VERSION}")
    missing = [cap.name for cap in REQUIRED if not ioctls.extension(fd, cap)]
    if missing:
        raise BackendError(f"{device} lacks KVM extensions that are needed: {', '.join(missing)}")


def cpu_extension(cpuinfo: str = CPUINFO) -> str | None:
    """``vmx`` or ``svm`` if the first CPU in ``cpuinfo`` shows it, else None."""
    try:
        text = Path(cpuinfo).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            flags = value.split()
            return next((flag for flag in ("vmx", "svm") if flag in flags), None)
    return None


def probe(device: str = DEVICE, cpuinfo: str = CPUINFO) -> Probe:
    """Look at the host without changing anything."""
    try:
        fd = open_device(device)
    except BackendError as error:
        return Probe(usable=False, accelerated=False, reason=str(error))
    try:
        cpus = min(MAX_CPUS, ioctls.extension(fd, Cap.MAX_VCPUS) or 1)
    finally:
        os.close(fd)
    flag = cpu_extension(cpuinfo)
    if flag is None:
        reason = f"{device} opens, but the CPU shows neither vmx nor svm: this KVM emulates instructions in software"
        return Probe(usable=True, accelerated=False, reason=reason, max_cpus=cpus)
    return Probe(usable=True, accelerated=True, reason=f"{device} opens and the CPU has {flag}", max_cpus=cpus)
