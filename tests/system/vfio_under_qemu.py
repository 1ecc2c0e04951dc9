"""Passthru on Linux's own VFIO without hardware for it: ``python -m tests.system.vfio_under_qemu``.

QEMU has an IOMMU and devices. Debian's generic kernel runs on it with vfio-pci, over this host's files (read-only, by
9p), and there ``tests.backends.vfio.real`` takes the devices: first where the kernel must refuse, for want of interrupt
remapping, then where it may not. It takes a minute or two, a kernel of 70 MB the first time, and QEMU (not installed by
the suite, which is why this is no part of it). The status is 0 if everything was right.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import patch

import pexpect

from pyhyve.images import build_debian, initramfs
from pyhyve.images.debian import default_cache_dir
from tests.system.console import PROMPT

ROOT = Path(__file__).parents[2]
DEVICES = {"0000:00:02.0": "8086:10d3, a network card with MSI-X", "0000:00:05.0": "1234:11e8, the device edu"}
MACHINE = (
    "-accel tcg -M q35 -cpu max -m 1G -nographic -no-reboot -device intel-iommu,intremap=off -device edu,addr=5"
    " -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
).split()
PATIENCE = 600


class Host:
    """The machine in which VFIO is."""

    def __init__(self) -> None:
        with patch.object(initramfs, "MODULES", (*initramfs.MODULES, "vfio_pci", "vfio_iommu_type1")):
            image = build_debian(cache_dir=default_cache_dir() / "vfio", kernel="linux-image-amd64")
        boot = ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        boot += ["-append", "console=ttyS0 intel_iommu=on no_timer_check"]
        self._child = pexpect.spawn(
            "qemu-system-x86_64", [*MACHINE, *boot], timeout=PATIENCE, encoding="utf-8", dimensions=(50, 1000)
        )
        self._child.expect_exact(PROMPT)

    def run(self, script: str) -> tuple[str, int]:
        """What ``script`` prints, and its status."""
        self._child.sendline(f"echo '<'go'>'; {script}; echo '<'status $?'>'")
        self._child.expect_exact("<go>")
        self._child.expect(r"<status (\d+)>")
        found = str(self._child.before).replace("\r", ""), int(self._child.match[1])
        self._child.expect_exact(PROMPT)
        return found

    def close(self) -> None:
        self._child.sendline("poweroff -f")
        self._child.expect(pexpect.EOF)
        self._child.close()


def main() -> int:
    """Run everything and show it."""
    host = Host()
    host.run("modprobe -a vfio-pci vfio_iommu_type1; mkdir /h")
    host.run("mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /h")
    host.run("for i in dev proc sys; do mount --bind /$i /h/$i; done; ulimit -l unlimited")
    for address in DEVICES:
        host.run(f"echo {address} >/sys/bus/pci/devices/{address}/driver/unbind")
        host.run(f"echo vfio-pci >/sys/bus/pci/devices/{address}/driver_override")
        host.run(f"echo {address} >/sys/bus/pci/drivers_probe")
    python = f"cd {ROOT}; PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=src:. {os.path.abspath(sys.executable)}"
    wrong = 0
    for unsafe in "NY":
        host.run(f"echo {unsafe} >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
        for address, what in DEVICES.items():
            said, status = host.run(f"chroot /h /bin/sh -c '{python} -m tests.backends.vfio.real {address}'")
            print(f"-- {address} ({what}), unsafe interrupts {unsafe}: status {status}\n{said.strip()}", flush=True)
            refused = "allow_unsafe_interrupts=1" in said and status == 1
            wrong += not refused if unsafe == "N" else status != 0
    host.close()
    print(f"{wrong} of {2 * len(DEVICES)} were wrong" if wrong else "everything was right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
