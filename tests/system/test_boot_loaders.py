"""Firmware, boot loaders and 32-bit kernels of Debian's packages, each as far as the machine's devices carry it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyhyve.images import GuestImage, ImageError, build_debian
from tests.system.console import PROMPT, Guest, command

pytestmark = pytest.mark.timeout(900)

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
OVMF = Path("/usr/share/ovmf/OVMF.fd")
IPXE = Path("/usr/lib/ipxe/ipxe.iso")
MEMTEST = Path("/boot")
COM1 = 0x3F8


@pytest.fixture(scope="module")
def backend() -> str:
    """These guests run whatever the host: KVM runs them too, where the CPU does."""
    return "soft"


def packaged(path: Path, package: str) -> Path:
    """A file of a Debian package; its test is skipped where that is not installed."""
    if not path.exists():
        pytest.skip(f"{path} is missing: install the package {package}")
    return path


def machine(backend: str, name: str, *options: str, memory: str = "512M") -> list[str]:
    """``bhyve`` with QEMU's bridges, for firmware that looks for them, and the first serial port."""
    common = f"-a -A -m {memory} -H -s 0,q35 -s 31,ich9 -l com1,stdio".split()
    return [
        sys.executable, "-m", "pyhyve.commands.bhyve", *common, *options, "-o", f"vmm.backend={backend}", name
    ]  # fmt: skip


@pytest.fixture
def seabios(tmp_path: Path) -> list[str]:
    """SeaBIOS with its console on the serial port."""
    port = tmp_path / "sercon-port"
    port.write_bytes(COM1.to_bytes(8, "little"))
    rom = packaged(SEABIOS, "seabios")
    return ["-l", f"bootrom,{rom}", "-l", "fwcfg,qemu", "-f", f"etc/sercon-port,file={port}"]


@pytest.fixture
def ovmf() -> list[str]:
    """OVMF, which has its console there by itself."""
    return ["-l", f"bootrom,{packaged(OVMF, 'ovmf')}", "-l", "fwcfg,qemu"]


@pytest.fixture(scope="module")
def grub_disc(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disc whose GRUB, for a BIOS and for UEFI, starts the Debian guest."""
    for part, package in (
        (Path("/usr/lib/grub/i386-pc"), "grub-pc-bin"),
        (Path("/usr/lib/grub/x86_64-efi"), "grub-efi-amd64-bin"),
    ):
        packaged(part, package)
    for tool, package in (("grub-mkrescue", "grub-common"), ("xorriso", "xorriso"), ("mformat", "mtools")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: install the package {package}")
    folder = tmp_path_factory.mktemp("grub")
    boot = folder / "root/boot"
    (boot / "grub").mkdir(parents=True)
    shutil.copyfile(image.kernel, boot / "vmlinuz")
    shutil.copyfile(image.initrd, boot / "initrd")
    lines = [
        "serial --unit=0 --speed=115200",
        "terminal_input serial",
        "terminal_output serial",
        "echo GRUB is here",
        "linux /boot/vmlinuz console=ttyS0",
        "initrd /boot/initrd",
        "boot",
    ]
    (boot / "grub/grub.cfg").write_text("\n".join(lines) + "\n")
    disc = folder / "grub.iso"
    subprocess.run(["grub-mkrescue", "-o", disc, folder / "root"], check=True, capture_output=True)
    return disc


@pytest.mark.parametrize("kernel", ["linux-image-686", "linux-image-686-pae"])
def test_debians_32_bit_kernels_boot_to_a_shell(backend: str, kernel: str) -> None:
    try:
        image = build_debian(kernel=kernel)
    except ImageError as error:
        pytest.skip(f"no 32-bit Debian guest: {error}")
    argv = command(backend, image.kernel, image.initrd)
    with Guest([*argv[:-1], "-a", argv[-1]]) as guest:
        assert guest.output("uname -m") == "i686\n"
        pae = "pae" in guest.output("uname -r")
        assert pae == kernel.endswith("pae")
        # programs, pipes and page faults of 32-bit user code
        assert guest.output("seq 1000 | sort -n | tail -n 1") == "1000\n"
        assert guest.output("dd if=/dev/zero bs=64k count=64 2>/dev/null | md5sum").startswith(
            "b5cfa9d6c8febd618f91ac2843d50a1c"
        )
        guest.send("poweroff -f\n")
        assert guest.end() == 1


@pytest.mark.parametrize("kind", ["x64", "ia32"])
def test_memtest_finds_no_error(backend: str, kind: str) -> None:
    kernel = packaged(MEMTEST / f"memtest86+{kind}.bin", "memtest86+")
    options = "-a -A -m 32M -H -s 0,hostbridge -s 31,lpc -l com1,stdio".split()
    boot = ["-o", f"boot.kernel={kernel}", "-o", "boot.cmdline=console=ttyS0,115200"]
    argv = [sys.executable, "-m", "pyhyve.commands.bhyve", *options, "-o", f"vmm.backend={backend}", *boot]
    with Guest([*argv, f"memtest-{kind}"], at_prompt=False) as guest:
        guest.expect("Memtest86+")
        guest.expect("Using: All Cores")  # the second stage, over all memory
        guest.expect("Errors: 0")


def test_seabios_starts_ipxe_which_gets_an_address(backend: str, seabios: list[str]) -> None:
    disc = packaged(IPXE, "ipxe")
    with Guest(
        machine(backend, "ipxe", *seabios, "-s", f"3,ahci-cd,{disc}", "-s", "2,virtio-net,user"), at_prompt=False
    ) as guest:
        guest.expect("SeaBIOS (version")
        guest.expect("ISOLINUX")
        guest.expect("Open Source Network Boot Firmware")
        guest.expect("net0: 10.0.2.15/255.255.255.0")


def test_seabios_and_grub_start_linux(backend: str, seabios: list[str], grub_disc: Path) -> None:
    with Guest(machine(backend, "seabios-grub", *seabios, "-s", f"3,ahci-cd,{grub_disc}"), at_prompt=False) as guest:
        guest.expect("Booting from DVD/CD")
        guest.expect("GRUB is here")
        guest.expect(PROMPT)
        guest.run("dmesg -n 1")
        assert "PWRF" in guest.output("dmesg | grep 'ACPI: button'"), "the tables came through the firmware"
        assert guest.output("cat /sys/class/dmi/id/product_name") == "BHYVE\n"
        guest.send("poweroff -f\n")
        assert guest.end() == 1


def test_ovmf_comes_to_its_shell_and_resets(backend: str, ovmf: list[str]) -> None:
    with Guest(machine(backend, "ovmf", *ovmf), at_prompt=False) as guest:
        guest.expect("UEFI Interactive Shell")
        guest.expect("any other key to continue")
        guest.send("\x1b")
        guest.expect("Shell> ")
        guest.send("reset -c\r")
        assert guest.end() == 0


def test_ovmf_and_grub_start_linux(backend: str, ovmf: list[str], grub_disc: Path) -> None:
    with Guest(machine(backend, "ovmf-grub", *ovmf, "-s", f"3,ahci-cd,{grub_disc}"), at_prompt=False) as guest:
        guest.expect("GRUB is here")
        guest.expect(PROMPT)
        guest.run("dmesg -n 1")
        assert guest.run("test -d /sys/firmware/efi").status == 0
        assert "PWRF" in guest.output("dmesg | grep 'ACPI: button'"), "the tables came through the firmware"
        guest.send("poweroff -f\n")
        assert guest.end() == 1
