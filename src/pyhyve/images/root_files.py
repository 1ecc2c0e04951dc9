"""What the Debian disk has besides its packages: settings, boot configuration, and the RAM disk that finds its root.

The RAM disk is busybox with the drivers of disks and ext4. It finds ``root=`` (a device, ``UUID=`` or ``LABEL=``),
mounts it as ``ro`` or ``rw`` says and becomes the ``init`` on it. Debian's own goes the same way in several times the
instructions; its tools are installed all the same, so a kernel that is upgraded in the guest gets one of those.
"""

from __future__ import annotations

from pyhyve.images.initramfs import INITTAB

BASE_PACKAGES = (
    "systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "libpam-systemd", "busybox-static", "e2fsprogs",
    "iproute2", "iputils-ping", "kmod", "less", "nano", "netbase", "procps",
)  # fmt: skip
"""Besides Debian's essential and required packages, apt and the kernel."""

DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)
"""Manuals and translations stay away, as on Debian's other slim images."""

CUSTOMIZE = (
    'chroot "$1" passwd --quiet --delete root',
    'chroot "$1" systemctl --quiet enable systemd-networkd.service',
    # what is of the building host, and the second of two links to one kernel
    'rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/.resolv.conf.systemd-resolved.bak" "$1"/*.old',
)
"""Shell lines that are run on the installed tree ``$1``."""

MODULES = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "ahci", "ata_piix", "sd_mod", "nvme",
    "ext4", "crc32c_generic", "crc32c_intel",
)  # fmt: skip
"""What the RAM disk has of the kernel's modules, with their dependencies."""

INIT = r"""#!/bin/sh
# Process 1 until the root file system is there.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys

root='' type=ext4 options=ro init=/sbin/init
set -f
read -r line </proc/cmdline
for word in $line; do
    case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    rootflags=*) options=$options,${word#rootflags=} ;;
    ro | rw) options=$options,$word ;;
    init=*) init=${word#init=} ;;
    esac
done
set +f

coldplug() {
    cat "$@" 2>/dev/null | sort -u | xargs modprobe -abq 2>/dev/null
}
coldplug /sys/bus/pci/devices/*/modalias
modprobe -abq virtio_blk crc32c_intel crc32c_generic "$type" 2>/dev/null
if [ -d /sys/module/libata ] || [ -d /sys/module/virtio_scsi ]; then modprobe -abq sd_mod; fi

# Disks come up by themselves, some later than others.
find_root() {
    case $root in
    UUID=* | LABEL=*) device=$(findfs "$root" 2>/dev/null) ;;
    *) device=$root ;;
    esac
    [ -b "$device" ]
}
tries=0
until find_root; do
    tries=$((tries + 1))
    if [ $tries -gt 1000 ]; then
        echo "There is no root file system '$root'. Disks and partitions:"
        cat /proc/partitions
        exec init
    fi
    usleep 10000
done
if ! mount -t "$type" -o "$options" "$device" /mnt; then
    echo "The root file system '$root' cannot be mounted."
    exec init
fi
for folder in dev proc sys; do mount --move /$folder /mnt/$folder; done
exec switch_root /mnt "$init" "$@"
"""

INITRAMFS_FILES = {"init": (INIT, 0o755), "etc/inittab": (INITTAB, 0o644)}

NETWORK = """\
[Match]
Type=ether

[Network]
DHCP=yes
"""

BOOT = """\
default debian
label debian
    menu label Debian
    linux /vmlinuz
    initrd /initrd.img
    append {cmdline}
"""


def command_line(uuid: str) -> str:
    """The kernel's command line for the root file system with that UUID."""
    return f"root=UUID={uuid} ro console=ttyS0"


def files(uuid: str) -> dict[str, str]:
    """Path to content of the settings."""
    return {
        "boot/extlinux/extlinux.conf": BOOT.format(cmdline=command_line(uuid)),
        "etc/default/locale": "LANG=C.UTF-8\n",
        "etc/fstab": f"UUID={uuid} / ext4 errors=remount-ro 0 1\n",
        "etc/hostname": "debian\n",
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n",
        # empty: a name of its own at the first boot, without the questions of a first boot
        "etc/machine-id": "",
        "etc/systemd/network/80-dhcp.network": NETWORK,
    }


def links(version: str) -> dict[str, str]:
    """Path to target of the symbolic links, for the kernel of that version."""
    return {
        "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
        "initrd.img": f"boot/initrd.img-{version}",
        "vmlinuz": f"boot/vmlinuz-{version}",
    }
