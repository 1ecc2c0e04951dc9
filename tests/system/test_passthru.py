"""Linux with devices of the host, which is a model: its drivers bind to them, interrupts come, and DMA arrives."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.console import Guest, command

pytestmark = pytest.mark.timeout(600)

DISK = 32 << 20


class Machine:
    """A guest with the host's disk on bus 2 and the host's serial card in the second function of a slot."""

    def __init__(self, backend: str, image, folder: Path) -> None:
        self.disk = folder / "disk.img"
        self.data = os.urandom(DISK)
        self.disk.write_bytes(self.data)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        argv = command(backend, image.kernel, image.initrd)[3:]
        at = argv.index("-s")
        argv[at:at] = "-S -s 4,virtio-rnd -s 4:1,passthru,0000:04:00.0 -s 2:7:0,passthru,3/0/0".split()
        runner = [sys.executable, "-m", "tests.system.modelled_host", str(self.disk), f"tcp=127.0.0.1:{self.port}"]
        self.guest = Guest([*runner, *argv])


@pytest.fixture(scope="module")
def machine(backend: str, image, tmp_path_factory) -> Iterator[Machine]:
    machine = Machine(backend, image, tmp_path_factory.mktemp("passthru"))
    with machine.guest:
        yield machine


def test_the_disk_driver_binds_and_reads_by_dma(machine: Machine) -> None:
    assert machine.guest.output("basename $(readlink /sys/bus/pci/devices/0000:02:07.0/driver)") == "virtio-pci\n"
    digest = hashlib.md5(machine.data).hexdigest()
    assert machine.guest.output("md5sum </dev/vda").split()[0] == digest


def test_what_is_written_reaches_the_hosts_disk(machine: Machine) -> None:
    machine.guest.output("head -c 1048576 /dev/urandom >/tmp/new")
    machine.guest.output("dd if=/tmp/new of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null")
    digest = machine.guest.output("md5sum </tmp/new").split()[0]
    assert hashlib.md5(machine.disk.read_bytes()[1 << 20 : 2 << 20]).hexdigest() == digest


def test_programs_run_from_a_file_system_on_the_disk(machine: Machine) -> None:
    """Code that a device brings into memory where other code was."""
    run = machine.guest.output
    run("mke2fs -F /dev/vda >/dev/null 2>&1; mkdir -p /m; mount -t ext4 /dev/vda /m; cp /bin/busybox /m/; sync")
    for _ in range(3):
        run("umount /m; mount -t ext4 /dev/vda /m")  # forgets what it has read
        assert run("echo 3 >/proc/sys/vm/drop_caches; /m/busybox echo it runs") == "it runs\n"
    run("umount /m")


def test_messages_come_for_the_disk_and_the_pin_for_the_card(machine: Machine) -> None:
    lines = machine.guest.output("cat /proc/interrupts").splitlines()
    disk = [line.split() for line in lines if "req.0" in line]
    assert disk
    assert int(disk[0][1]) > 0
    assert "PCI-MSI" in disk[0][2]


def test_the_serial_card_talks_both_ways(machine: Machine) -> None:
    assert "16550A" in machine.guest.output("grep ^1: /proc/tty/driver/serial")
    with socket.create_connection(("127.0.0.1", machine.port), timeout=60) as wire:
        machine.guest.output("stty -F /dev/ttyS1 raw -echo; seq 1 200 >/dev/ttyS1")
        stream = wire.makefile()
        assert [stream.readline() for _ in range(200)] == [f"{n}\n" for n in range(1, 201)]
        machine.guest.output("(head -n 1 /dev/ttyS1 >/tmp/line) & sleep 0.2; grep ttyS1 /proc/interrupts >/tmp/lines")
        wire.sendall(b"from the host\n")
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
