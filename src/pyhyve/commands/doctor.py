"""What ``pyhyve doctor`` says: what this host offers a machine, and what is missing, in words.

Nothing is changed and nothing is fetched. Each finding is a name, whether it is good, and one sentence.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhyve.backends.vfio.system import System

# x86-64-v3 (x86-64 psABI, micro-architecture levels) by the names of /proc/cpuinfo. The engine's address translation
# is made of BMI2 instructions; the rest is what its guests are told they have.
V3_FLAGS = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
ESSENTIAL_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """``good`` is None where there is nothing to judge."""

    name: str
    good: bool | None
    text: str


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first processor in the text of ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def examine_cpu(cpuinfo: str) -> Iterable[Finding]:
    flags = cpu_flags(cpuinfo)
    if platform.machine() != "x86_64":
        yield Finding("cpu", False, f"{platform.machine()}: pyhyve runs x86-64 guests on x86-64 hosts only")
        return
    missing = [flag for flag in V3_FLAGS if flag not in flags]
    if missing:
        text = f"{cpu_model(cpuinfo)}: the engine needs x86-64-v3, this CPU lacks {', '.join(missing)}"
        yield Finding("cpu", False, text)
    else:
        yield Finding("cpu", True, f"{cpu_model(cpuinfo)}: has x86-64-v3, which the engine needs")
    if flags & {"vmx", "svm"}:
        yield Finding("virtualization", True, "hardware virtualization is there (vmx or svm)")
    else:
        yield Finding("virtualization", None, "the CPU shows neither vmx nor svm: guests run on the engine")


def examine_kvm(device: str = "/dev/kvm") -> Finding:
    if not os.path.exists(device):
        return Finding("kvm", None, f"{device} is missing: no KVM on this host, or its modules are not loaded")
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Finding("kvm", False, f"{device} is there but forbidden to you: join the group that owns it (often kvm)")
    except OSError as error:
        return Finding("kvm", False, f"{device} does not open: {error.strerror}")
    if os.path.exists("/sys/module/kvm_pvm"):
        return Finding("kvm", True, f"{device} opens, but it is kvm_pvm: guests run without hardware help, slowly")
    return Finding("kvm", True, f"{device} opens")


def examine_backends() -> Iterable[Finding]:
    from pyhyve.errors import PyhyveError
    from pyhyve.vmm.select import choose

    try:
        _, why = choose("auto")
    except PyhyveError as error:
        yield Finding("backend", False, str(error))
    else:
        yield Finding("backend", True, f"guests run on {why}")


def examine_passthru(system: System | None = None) -> Finding:
    """Whether devices of the host can be given to a guest. Nobody has to want that: nothing of it is bad."""
    from pyhyve.backends.vfio import host
    from pyhyve.backends.vfio.system import LinuxSystem

    system = system or LinuxSystem()
    if not host.has_iommu(system):
        text = "no IOMMU: it is off in the firmware's setup or in the host's kernel (intel_iommu=on), or there is none"
        return Finding("passthru", None, text)
    if not system.exists(host.CONTAINER):
        return Finding("passthru", None, f"no {host.CONTAINER}: load VFIO with modprobe vfio-pci")
    try:
        system.close(system.open(host.CONTAINER))
    except OSError as error:
        return Finding("passthru", None, f"{host.CONTAINER} does not open: {error.strerror}")
    devices = host.ready_devices(system)
    if not devices:
        text = "VFIO is there, but has no device: driverctl set-override DDDD:BB:SS.F vfio-pci gives it one"
        return Finding("passthru", None, text)
    return Finding("passthru", True, f"VFIO has {', '.join(devices)}")


def examine_compiler() -> Finding:
    names = os.environ.get("CC", "").split()[:1] or ["cc", "gcc"]
    for name in names:
        if shutil.which(name):
            shown = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
            return Finding("compiler", True, f"{name}: {shown.splitlines()[0] if shown else 'no version shown'}")
    text = f"no C compiler ({' or '.join(names)}): the engine cannot be compiled; install gcc"
    return Finding("compiler", False, text)


def examine_apt() -> Finding:
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        text = f"{', '.join(missing)} missing: 'pyhyve image debian' cannot work, use --kernel and --initrd"
        return Finding("apt", False, text)
    return Finding("apt", True, "apt can fetch the Debian guest")


def examine_disk_tools() -> Finding:
    from pyhyve.images import ImageError, bootstrap, ext4

    try:
        bootstrap.check_tools(*ext4.TOOLS)
    except ImageError as error:
        return Finding("debian-disk", None, str(error))
    return Finding("debian-disk", True, "mmdebstrap and e2fsprogs can make a Debian disk")


def examine_memory(meminfo: str) -> Finding:
    rows = [line.split() for line in meminfo.splitlines()]
    values = {row[0].rstrip(":"): int(row[1]) // 1024 for row in rows if len(row) > 1}
    total, available = values.get("MemTotal", 0), values.get("MemAvailable", 0)
    return Finding("memory", available >= ESSENTIAL_MEMORY_MB, f"{available} MB of {total} MB are available")


def examine_terminal() -> Finding:
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        return Finding("terminal", True, f"a terminal ({os.environ.get('TERM', 'TERM is not set')})")
    text = "standard input or output is no terminal: the console is a plain stream, without an escape key"
    return Finding("terminal", None, text)


def examine_python() -> Finding:
    try:
        loop = f"uvloop {version('uvloop')}"
    except PackageNotFoundError:
        loop = "no uvloop, the event loop is asyncio's own"
    return Finding("python", True, f"{platform.python_version()}, {loop}")


def examine() -> list[Finding]:
    """All findings, in the order in which they are told."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    meminfo = Path("/proc/meminfo").read_text()
    return [
        examine_python(),
        *examine_cpu(cpuinfo),
        examine_kvm(),
        *examine_backends(),
        examine_passthru(),
        examine_compiler(),
        examine_apt(),
        examine_disk_tools(),
        examine_memory(meminfo),
        examine_terminal(),
    ]


def report(findings: Iterable[Finding]) -> str:
    """One line a finding: a mark, the name, the sentence."""
    marks = {True: "ok", False: "no", None: "--"}
    return "\n".join(f"{marks[f.good]}  {f.name:<15} {f.text}" for f in findings)
