"""The initial RAM disk of the Debian guest: busybox, the modules a virtual machine can need, and an ``/init``.

``/init`` is process 1. It mounts the kernel's file systems, loads the modules whose hardware is there (the kernel tells
by ``modalias`` files; ``modprobe`` matches them), brings the network up in the background and becomes busybox's init,
which runs a login shell with job control on the console for ever. (A shell that a script starts in the background would
have SIGINT ignored, so that Ctrl-C interrupts nothing.) ``poweroff``, ``reboot`` and ``halt`` work with and without
``-f``: without it busybox signals process 1. The ACPI power button powers off. A second
archive behind this one in the same file may bring ``/etc/rc.local``, which runs before the shell.

It is written uncompressed: unpacking is then a copy, which under emulation is far quicker than any decompressor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO

from pyhyve.images.cpio import CpioWriter
from pyhyve.images.modules import Module, alias_file, dep_file

LAYOUT = 1
"""Raise this when ``write_initramfs`` changes, so that images in a cache are built anew."""

MODULES = (
    # buses and disks
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "ahci", "ata_piix", "sd_mod", "sr_mod", "nvme",
    # network
    "virtio_net", "e1000", "e1000e", "af_packet", "virtio_vsock", "vmw_vsock_virtio_transport",
    # the rest of the virtio family
    "virtio_rng", "virtio_console", "virtio_balloon", "virtio_input", "virtio_gpu",
    "9p", "9pnet_virtio", "virtiofs",
    # file systems
    "ext4", "crc32c_generic", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_utf8", "overlay", "squashfs", "fuse",
    # power button, keyboard and pointer, USB
    "button", "evdev", "psmouse", "xhci_pci", "usbhid", "usb_storage", "hid_generic",
    # watchdog
    "i6300esb",
)  # fmt: skip
"""What goes into the image, as far as the kernel has it as modules; their dependencies come along."""

INIT = r"""#!/bin/sh
# Process 1 of the pyhyve guest.
export PATH=/bin HOME=/root

mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts /dev/shm
mount -a
echo debian >/proc/sys/kernel/hostname

# A bus driver brings new devices, so look twice: PCI and ACPI first, then what hangs on virtio and SCSI.
coldplug() {
    cat "$@" 2>/dev/null | sort -u | xargs modprobe -abq 2>/dev/null
}
coldplug /sys/bus/pci/devices/*/modalias /sys/bus/acpi/devices/*/modalias /sys/bus/usb/devices/*/modalias
set -- /sys/bus/virtio/devices/*/modalias /sys/bus/scsi/devices/*/modalias
if [ -e "$1" ] || [ -e "$2" ]; then coldplug "$@"; fi
if [ -d /sys/module/libata ] || [ -d /sys/module/virtio_scsi ]; then modprobe -abq sd_mod sr_mod; fi

ip link set lo up
for nic in /sys/class/net/eth*; do
    [ -e "$nic" ] || continue
    nic=${nic##*/}
    ip link set "$nic" up
    udhcpc -i "$nic" -b -t 5 -S -s /etc/udhcpc >/dev/null 2>&1 &
done

# The power button is an input device; busybox's acpid runs /etc/acpi/PWRF/00000080 for it.
if [ -d /sys/module/button ]; then
    (modprobe -bq evdev; exec acpid -l /dev/null) >/dev/null 2>&1 &
fi

if [ -x /etc/rc.local ]; then /etc/rc.local; fi

read -r _ _ release _ </proc/version
echo
echo "Linux $release is up. 'poweroff -f' turns the machine off, 'reboot -f' resets it."
echo

# the shell of /etc/inittab, started anew when it ends; poweroff, reboot and halt without -f are signals to it
exec init
"""

INITTAB = "::respawn:/bin/cttyhack /bin/sh -l\n"

PROFILE = r"""export PATH=/bin HOME=/root USER=root TERM="${TERM:-linux}"
export PS1='root@debian:\w# '
cd
"""

UDHCPC = r"""#!/bin/sh
# Called by udhcpc when the lease changes.
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for router in $router; do ip route add default via "$router" dev "$interface"; done
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    ;;
esac
"""

FSTAB = """\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devpts /dev/pts devpts mode=620 0 0
tmpfs /dev/shm tmpfs mode=1777 0 0
tmpfs /run tmpfs mode=755 0 0
tmpfs /tmp tmpfs mode=1777 0 0
"""

POWER_BUTTON = "#!/bin/sh\nsync\nexec poweroff -f\n"

FILES = {
    "init": (INIT, 0o755),
    "etc/fstab": (FSTAB, 0o644),
    "etc/inittab": (INITTAB, 0o644),
    "etc/profile": (PROFILE, 0o644),
    "etc/udhcpc": (UDHCPC, 0o755),
    "etc/acpi/PWRF/00000080": (POWER_BUTTON, 0o755),
    "etc/passwd": ("root:x:0:0:root:/root:/bin/sh\n", 0o644),
    "etc/group": ("root:x:0:\n", 0o644),
    "etc/hosts": ("127.0.0.1 localhost debian\n", 0o644),
}


def write_initramfs(
    out: BinaryIO,
    busybox: bytes,
    applets: Iterable[str],
    version: str,
    modules: Iterable[Module],
    files: Mapping[str, tuple[str, int]] = FILES,
) -> None:
    """Write the archive to ``out``.

    ``applets`` are the commands that busybox answers to, ``version`` is the kernel's (``uname -r``), ``modules`` those
    to put in, dependencies first, ``files`` the scripts and settings with their modes, ``init`` among them.
    """
    cpio = CpioWriter(out)
    for path in ("bin", "dev", "etc", "proc", "sys", "run", "mnt", "lib", "var"):
        cpio.directory(path)
    cpio.directory("root", 0o700)
    cpio.directory("tmp", 0o1777)
    cpio.directory("usr")
    for link in ("sbin", "usr/bin", "usr/sbin"):
        cpio.symlink(link, "/bin")
    cpio.symlink("var/run", "/run")
    cpio.symlink("etc/mtab", "/proc/self/mounts")
    cpio.char_device("dev/console", 5, 1)
    cpio.char_device("dev/null", 1, 3, 0o666)
    for path, (text, mode) in files.items():
        cpio.file(path, text.encode(), mode)
    cpio.file("bin/busybox", busybox, 0o755)
    for applet in applets:
        if applet != "busybox":
            cpio.symlink(f"bin/{applet}", "busybox")
    folder = f"lib/modules/{version}"
    modules = list(modules)
    for module in modules:
        cpio.file(f"{folder}/{module.path}", module.data)
    cpio.file(f"{folder}/modules.dep", dep_file(modules).encode())
    cpio.file(f"{folder}/modules.alias", alias_file(modules).encode())
    cpio.finish()
