"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time

from pyhyve import __version__

QEMU = "qemu-system-x86_64"


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else "unknown processor"


def qemu_version(text: str) -> str:
    """The version in the output of ``qemu-system-x86_64 --version``."""
    found = re.search(r"version (\S+(?: \(.*\))?)", text)
    return found[1] if found else "unknown version"


def find_qemu() -> str | None:
    """Where QEMU is, if it is installed."""
    return shutil.which(QEMU)


def describe(qemu: str | None, guest: str | None) -> list[str]:
    """The lines at the head of a report. ``guest`` is the version of the Linux that is booted, if one is."""
    with open("/proc/cpuinfo") as file:
        model = cpu_model(file.read())
    load = os.getloadavg()[0]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    lines = [
        f"date    {time.strftime('%Y-%m-%d %H:%M %Z')}",
        f"host    {model}, {os.cpu_count()} CPUs, Linux {platform.release()}, load {load:.2f}",
        f"ours    pyhyve {__version__}, {python}, vmm.backend=soft",
    ]
    if qemu is None:
        lines.append(f"peer    {QEMU} is not installed (Debian: qemu-system-x86): only our own figures, no ratios")
    else:
        text = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
        lines.append(f"peer    QEMU {qemu_version(text)}, -accel tcg -cpu max")
    if guest is not None:
        lines.append(f"guest   Linux {guest}, 512 MB, 1 CPU where nothing else is said")
    if load > 0.5 * (os.cpu_count() or 1):
        lines.append("        the host is busy: figures taken now are too high")
    return lines
