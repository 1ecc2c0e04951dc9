"""Debian's kernel on virtio devices: its drivers find them, and data is what it was."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.console import Guest, command

pytestmark = pytest.mark.timeout(600)

DISK = 64 << 20
DEVICES = (
    "-s 4:0,virtio-blk,{disk},queues=2 -s 4:1,virtio-blk,{source},ro,ser=SOURCE"
    " -s 5,virtio-rnd -s 6,virtio-console,port={port}"
)
WAYS = {
    "modern": ("", ""),
    "legacy": ("", "virtio_pci.force_legacy=1"),
    "intx": ("-W", ""),
}


class Machine:
    """A guest with its disk, its source of data and its port."""

    def __init__(self, backend: str, image, folder: Path, way: str) -> None:
        options, parameters = WAYS[way]
        self.disk, self.source, self.port = folder / "disk.img", folder / "source.img", folder / "port.sock"
        with self.disk.open("wb") as file:
            file.truncate(DISK)
        self.data = os.urandom(8 << 20)
        self.source.write_bytes(self.data)
        argv = command(backend, image.kernel, image.initrd, cpus=2)
        devices = DEVICES.format(disk=self.disk, source=self.source, port=self.port)
        at = argv.index("-s")
        argv[at:at] = [*options.split(), *devices.split()]
        argv = [f"{arg} {parameters}" if arg.startswith("boot.cmdline=") else arg for arg in argv]
        argv[-1] = f"virtio-{way}"
        self.guest = Guest(argv)


@pytest.fixture(scope="module", params=WAYS)
def machine(request: pytest.FixtureRequest, backend: str, image, tmp_path_factory) -> Iterator[Machine]:
    machine = Machine(backend, image, tmp_path_factory.mktemp("virtio"), request.param)
    with machine.guest:
        yield machine


def test_drivers_find_their_devices(machine: Machine) -> None:
    out = machine.guest.output
    assert out("cat /sys/class/block/vda/size /sys/class/block/vdb/size").split() == [str(DISK // 512), str(8 << 11)]
    assert out("cat /sys/class/block/vdb/ro; cat /sys/class/block/vdb/serial").split() == ["1", "SOURCE"]
    assert out("cat /sys/class/misc/hw_random/rng_current").strip().startswith("virtio_rng")
    assert out("cat /sys/class/virtio-ports/vport*/name").strip() == "port"


def test_bytes_are_read_written_and_verified(machine: Machine) -> None:
    digest = hashlib.md5(machine.data).hexdigest()
    assert machine.guest.output("md5sum </dev/vdb").split()[0] == digest
    machine.guest.output("dd if=/dev/vdb of=/dev/vda bs=1M seek=3 oflag=direct conv=fsync 2>/dev/null")
    assert machine.disk.read_bytes()[3 << 20 : 11 << 20] == machine.data
    back = machine.guest.output("dd if=/dev/vda bs=4k skip=768 count=2048 iflag=direct 2>/dev/null | md5sum")
    assert back.split()[0] == digest


def test_a_file_system_keeps_what_was_synced(machine: Machine) -> None:
    if shutil.which("e2fsck") is None:
        pytest.skip("e2fsck is not installed")
    run = machine.guest.output
    run("mke2fs -F /dev/vda >/dev/null 2>&1; mkdir /m; mount -t ext4 /dev/vda /m")
    run("for i in $(seq 50); do seq $i 2000 >/m/$i; done; fsync /m/*; sync")
    expected = run("cat /m/* | md5sum")
    run("umount /m; mount -t ext4 /dev/vda /m")
    assert run("cat /m/* | md5sum") == expected
    run("umount /m")
    subprocess.run(["e2fsck", "-fn", machine.disk], check=True, capture_output=True)


def test_discarded_blocks_read_as_zeroes(machine: Machine) -> None:
    machine.guest.output("dd if=/dev/vdb of=/dev/vda bs=1M count=8 oflag=direct conv=fsync 2>/dev/null")
    assert machine.disk.read_bytes()[: 1 << 20] == machine.data[: 1 << 20]
    machine.guest.output("blkdiscard -o 0 -l 1048576 /dev/vda")
    assert machine.disk.read_bytes()[: 2 << 20] == bytes(1 << 20) + machine.data[1 << 20 : 2 << 20]


def test_the_guest_switches_the_write_cache(machine: Machine) -> None:
    place = "/sys/block/vda/cache_type"
    copy = "dd if=/dev/vdb of=/dev/vda bs=4k count=64 oflag=direct 2>/dev/null"
    switch = f"cat {place}; echo write through >{place}; cat {place}; {copy}; echo write back >{place}; cat {place}"
    out = machine.guest.output(switch)
    assert out.splitlines() == ["write back", "write through", "write back"]
    assert machine.disk.read_bytes()[: 256 << 10] == machine.data[: 256 << 10]


def test_random_bytes_come(machine: Machine) -> None:
    got = machine.guest.output("dd if=/dev/hwrng bs=512 count=8 2>/dev/null | md5sum; head -c 4096 /dev/zero | md5sum")
    random, zeroes = got.split()[0::2]
    assert random != zeroes


def test_a_port_is_a_socket(machine: Machine) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(machine.port))
        peer.settimeout(60)
        peer.sendall(b"from the host\n")
        assert machine.guest.output("head -n 1 /dev/vport*") == "from the host\n"
        expected = "".join(f"{n}\n" for n in range(1, 30001)).encode()
        machine.guest.send("seq 1 30000 | tee /dev/vport* >/dev/null\n")
        got = bytearray()
        while len(got) < len(expected):
            got += peer.recv(1 << 16)
        assert bytes(got) == expected
        machine.guest.run("true")


def test_interrupts_come_by_the_way_that_was_chosen(machine: Machine, request: pytest.FixtureRequest) -> None:
    lines = [line for line in machine.guest.output("cat /proc/interrupts").splitlines() if "virtio" in line]
    kind = "IO-APIC" if "intx" in request.node.name else "PCI-MSI"
    assert lines
    assert all(kind in line for line in lines)


def test_the_example_of_the_page(backend: str, image, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text().replace("\\\n", " ")
    examples = [block.partition("```")[0] for block in page.split("```sh\n")[1:]]
    words = next(shlex.split(example) for example in examples if "virtio-blk" in example)
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(DISK)
    files = {
        "disk.img": disk,
        "agent.sock": tmp_path / "agent.sock",
        "=vmlinuz": f"={image.kernel}",
        "=initrd": f"={image.initrd}",
    }
    for name, path in files.items():
        words = [word.replace(name, str(path)) for word in words]
    words[-1] = "virtio-page"
    with Guest([sys.executable, "-m", "pyhyve.commands.bhyve", "-o", f"vmm.backend={backend}", *words[1:]]) as guest:
        assert guest.output("cat /sys/block/vda/serial /sys/block/vda/queue/physical_block_size") == "DISK14096\n"
        assert guest.output("cat /sys/class/virtio-ports/vport*/name") == "agent\n"
        assert guest.output("head -c 16 /dev/hwrng | wc -c") == "16\n"
