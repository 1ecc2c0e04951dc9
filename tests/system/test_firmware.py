"""What Linux makes of the firmware's tables, and of a machine without: SMBIOS, ACPI in PIC mode, no ACPI at all."""

import re
import signal

import pytest

from tests.system.console import Guest, command
from tests.system.log import complaints

pytestmark = pytest.mark.timeout(600)

UUID = "12345678-9abc-def0-1234-56789abcdef0"


def boot(backend, image, cmdline, *options, without=()):
    """A guest with more on its command lines; ``without`` some of bhyve's options."""
    argv = command(backend, image.kernel, image.initrd)
    argv = [f"{word} {cmdline}" if word.startswith("boot.cmdline=") else word for word in argv if word not in without]
    return Guest([*argv[:-1], *options, argv[-1]])


def about_firmware(log):
    """Complaints about tables, buses and interrupts; a busy host gives rise to others."""
    return [line for line in complaints(log) if re.search(r"ACPI|PNP|PCI|DMI|irq", line, re.IGNORECASE)]


def test_smbios_names_the_machine_as_its_variables_say(backend, image):
    options = ["-U", UUID, "-o", "system.product_name=Teapot", "-o", "board.asset_tag=418", "-o", "bios.vendor=Kettle"]
    with boot(backend, image, "", *options) as guest:
        # Linux shows an UUID in the byte order of SMBIOS 2.6
        names = "product_uuid product_name board_asset_tag bios_vendor sys_vendor chassis_version"
        shown = guest.output(f"(cd /sys/class/dmi/id; cat {names})").splitlines()
        assert shown == [UUID, "Teapot", "418", "Kettle", "FreeBSD", "1.0"]
        assert about_firmware(guest.output("dmesg -r")) == []


def test_in_pic_mode_interrupts_arrive_and_the_power_button_is_level_triggered(backend, image):
    with boot(backend, image, "noapic", "-S", "3,hostbridge") as guest:
        rows = [line.split() for line in guest.output("cat /proc/interrupts").splitlines()]
        shown = {row[-1]: (row[0], row[2], int(row[1])) for row in rows if row[0].rstrip(":").isdigit()}
        assert shown["acpi"][:2] == ("9:", "XT-PIC")
        assert shown["timer"][:2] == ("0:", "XT-PIC")
        assert shown["ttyS0"][2] > 0
        slot = "/sys/bus/pci/devices/0000:00:03.0"
        assert guest.output(f"echo 1 >{slot}/enable; cat {slot}/irq") == "5\n", "the first free interrupt"
        assert "LNKA: Enabled at IRQ 5" in guest.output("dmesg")
        guest.kill(signal.SIGTERM)
        assert guest.end() == 1


def test_with_the_io_apic_a_slots_interrupt_is_the_links_own_input(backend, image):
    with boot(backend, image, "", "-S", "3,hostbridge") as guest:
        slot = "/sys/bus/pci/devices/0000:00:03.0"
        assert guest.output(f"echo 1 >{slot}/enable; cat {slot}/irq") == "16\n"
        assert about_firmware(guest.output("dmesg -r")) == []


def test_without_acpi_and_with_xapics_the_kernel_boots_on_the_pic(backend, image):
    with boot(backend, image, "", "-a", without=("-A",)) as guest:
        assert "XT-PIC" in guest.output("cat /proc/interrupts")
        assert guest.run("test -d /sys/firmware/acpi/tables").status == 1
        guest.send("reboot -f\n")
        assert guest.end() == 0
