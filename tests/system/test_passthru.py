"""Linux with devices of the host, which is a model: its drivers bind to them, interrupts come, and DMA arrives."""

from __future__ import annotations

import hashlib
import os
import shlex
import struct
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from pexpect.fdpexpect import fdspawn

from tests.system.console import PATIENCE, Guest

pytestmark = pytest.mark.timeout(600)

DISK, PROGRAMS = 16 << 20, 48
PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def program(number: int) -> bytes:
    """A page that is a program, like all the others but for a number in an instruction that it prints."""
    text = f"program{number:03}\n".encode()
    code = (
        b"\x48\xb8" + text[:8]  # mov $text, %rax
        + b"\x50"  # push %rax: room
        + b"\x48\x89\x04\x24"  # mov %rax, (%rsp)
        + b"\x66\xc7\x44\x24\x08" + text[8:10]  # movw $text, 8(%rsp)
        + b"\xc6\x44\x24\x0a\x0a"  # movb $10, 10(%rsp)
        + b"\xb8\x01\0\0\0\xbf\x01\0\0\0"  # write, standard output
        + b"\x48\x89\xe6\xba" + len(text).to_bytes(4, "little") + b"\x0f\x05"  # from %rsp
        + b"\xb8\x3c\0\0\0\x31\xff\x0f\x05"  # exit 0
    )  # fmt: skip
    base, entry = 0x400000, 0x400000 + 0x100
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, 4096, 4096, 4096)
    return (header + segment).ljust(0x100, b"\0") + code.ljust(4096 - 0x100, b"\xcc")


class Machine:
    """The guest of the page's example, with a few words replaced."""

    def __init__(self, backend: str, image, folder: Path) -> None:
        self.disk = folder / "disk.img"
        programs = b"".join(program(number) for number in range(PROGRAMS))
        self.data = programs + os.urandom(DISK - len(programs))
        self.disk.write_bytes(self.data)
        master, slave = os.openpty()
        tty.setraw(slave)
        self.wire = fdspawn(master, timeout=PATIENCE)
        page = PAGE.read_text().replace("\\\n", " ")
        examples = [shlex.split(block.partition("```")[0]) for block in page.split("```sh\n")[1:]]
        words = next(words for words in examples if any("passthru" in word for word in words))
        rom = folder / "card.rom"
        rom.write_bytes(b"\x55\xaa" + bytes(510))
        # By default the kernel clears each page that it gives out, and that write would be seen.
        words = [word + " init_on_alloc=0" if word.startswith("boot.cmdline=") else word for word in words]
        files = {"=vmlinuz": f"={image.kernel}", "=initrd": f"={image.initrd}", "card.rom": str(rom)}
        for name, path in files.items():
            words = [word.replace(name, path) for word in words]
        argv = ["-o", f"vmm.backend={backend}", *words[1:-1], "passthru"]
        runner = [sys.executable, "-m", "tests.system.modelled_host", str(self.disk), os.ttyname(slave)]
        self.guest = Guest([*runner, *argv])


@pytest.fixture(scope="module")
def machine(backend: str, image, tmp_path_factory) -> Iterator[Machine]:
    machine = Machine(backend, image, tmp_path_factory.mktemp("passthru"))
    with machine.guest:
        yield machine
    machine.wire.close()


def test_the_disk_driver_binds_and_reads_by_dma(machine: Machine) -> None:
    assert machine.guest.output("basename $(readlink /sys/bus/pci/devices/0000:00:05.0/driver)") == "virtio-pci\n"
    digest = hashlib.md5(machine.data).hexdigest()
    assert machine.guest.output("md5sum </dev/vda").split()[0] == digest


def test_what_is_written_reaches_the_hosts_disk(machine: Machine) -> None:
    machine.guest.output("head -c 1048576 /dev/urandom >/tmp/new")
    machine.guest.output("dd if=/tmp/new of=/dev/vda bs=64k seek=32 conv=fsync 2>/dev/null")
    digest = machine.guest.output("md5sum </tmp/new").split()[0]
    assert hashlib.md5(machine.disk.read_bytes()[2 << 20 : 3 << 20]).hexdigest() == digest


def test_programs_that_dma_brings_where_others_were_run_as_they_are(machine: Machine) -> None:
    """The engine has translated what was in these pages before; nobody tells it that a device wrote them."""
    run = machine.guest.output
    run(f"for i in $(seq 0 {PROGRAMS - 1}); do dd if=/dev/vda of=/tmp/p$i bs=4096 skip=$i count=1 2>/dev/null; done")
    run("chmod +x /tmp/p*; mke2fs -F -b 4096 /dev/vda >/dev/null 2>&1; mkdir -p /m; mount -t ext4 /dev/vda /m")
    run("cp /tmp/p* /m/; umount /m; mount -t ext4 /dev/vda /m")
    for order in (range(PROGRAMS), range(PROGRAMS - 1, -1, -1)):
        said = run(f"echo 3 >/proc/sys/vm/drop_caches; for i in {' '.join(map(str, order))}; do /m/p$i; done")
        assert said.split() == [f"program{n:03}" for n in order]
    run("umount /m")


def test_messages_come_for_the_disk_and_the_pin_for_the_card(machine: Machine) -> None:
    lines = machine.guest.output("cat /proc/interrupts").splitlines()
    disk = [line.split() for line in lines if "req.0" in line]
    assert disk
    assert int(disk[0][1]) > 0
    assert "PCI-MSI" in disk[0][2]


def test_the_serial_card_talks_both_ways(machine: Machine) -> None:
    assert "16550A" in machine.guest.output("grep ^1: /proc/tty/driver/serial")
    machine.guest.output("stty -F /dev/ttyS1 raw -echo; seq 1 200 >/dev/ttyS1")
    machine.wire.expect_exact("".join(f"{n}\n" for n in range(1, 201)))
    machine.guest.output("(head -n 1 /dev/ttyS1 >/tmp/line) & sleep 0.2; grep ttyS1 /proc/interrupts >/tmp/lines")
    machine.wire.send("from the host\n")
    assert machine.guest.output("wait; cat /tmp/line").splitlines()[-1] == "from the host"
    _, count, kind, *_ = machine.guest.output("cat /tmp/lines").split()
    assert int(count) > 0
    assert kind == "IO-APIC"


def test_at_the_end_the_host_has_everything_back(machine: Machine) -> None:
    machine.guest.send("poweroff -f\n")
    machine.guest.expect("host: 0000:03:00.0: no violations")
    machine.guest.expect("DMA []")
    machine.guest.expect("host: 0000:04:00.0: no violations")
    machine.guest.expect("host: 0 descriptors open")
    assert machine.guest.end() == 1
