"""Debian's kernel with a network card: by ``user`` to the host and back, to a second machine, to a tap interface."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve.backends.net import libslirp
from pyhyve.backends.net.tap import Tap
from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop
from tests.system.console import Guest, command
from tests.system.files import File

pytestmark = pytest.mark.timeout(600)

BULK = bytes(n * n % 251 for n in range(1 << 16)) * 48
DIGEST = hashlib.sha256(BULK).hexdigest()
ADDRESS = "until ip route | grep -q default; do usleep 50000; done"
"""Waits for the lease that the image's start asks for."""


@pytest.fixture(scope="module", autouse=True)
def slirp():
    try:
        libslirp.library()
    except DeviceError as error:
        pytest.skip(str(error))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def booted(backend, image, name: str, *slots: str) -> Guest:
    argv = command(backend, image.kernel, image.initrd)
    options = [word for slot in slots for word in ("-s", slot)]
    return Guest([*argv[:-1], *options, f"{name}-{os.getpid()}"])


class Received(http.server.SimpleHTTPRequestHandler):
    """A web server that keeps what is sent to it."""

    posted: bytes = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BULK)))
        self.end_headers()
        self.wfile.write(BULK)

    def do_POST(self) -> None:
        type(self).posted = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    """The port of a web server on the host's loopback."""
    with http.server.ThreadingHTTPServer(("", 0), Received) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {"web": free_port(), "serial": free_port()}


@pytest.fixture(scope="module")
def guest(backend, image, ports):
    card = f"3,virtio-net,user,mac=58:9c:fc:0:0:9,mtu=1400,hostfwd=tcp:127.0.0.1:{ports['web']}-:80"
    with booted(backend, image, "net", card, f"4,uart,tcp=127.0.0.1:{ports['serial']}") as one:
        one.run(ADDRESS)
        yield one


def test_dhcp_gave_an_address_a_router_and_a_name_server(guest):
    assert "inet 10.0.2.15/24" in guest.output("ip addr show dev eth0")
    assert "default via 10.0.2.2" in guest.output("ip route")
    assert guest.output("cat /etc/resolv.conf") == "nameserver 10.0.2.3\n"


def test_the_card_is_as_the_options_say(guest):
    link = guest.output("ip link show dev eth0")
    assert "58:9c:fc:00:00:09" in link
    assert "mtu 1400" in link
    assert "LOWER_UP" in link


def test_the_router_answers_pings(guest):
    assert ", 0% packet loss" in guest.output("ping -c 3 -i 0.2 10.0.2.2")


def test_the_guest_fetches_from_the_host(guest, web):
    assert guest.output(f"wget -q -O - http://10.0.2.2:{web}/ | sha256sum") == f"{DIGEST}  -\n"


def test_the_guest_sends_to_the_host(guest, web):
    guest.output("seq 1 300000 >/tmp/numbers")
    assert guest.output(f"wget -q -O - --post-file /tmp/numbers http://10.0.2.2:{web}/") == "ok"
    assert Received.posted == "".join(f"{n}\n" for n in range(1, 300_001)).encode()


def test_the_host_fetches_from_the_guest(guest, ports):
    guest.output("mkdir -p /tmp/www && seq 1 100000 >/tmp/www/numbers && httpd -p 80 -h /tmp/www")
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['web']}/numbers", timeout=60) as answer:
        assert answer.read() == "".join(f"{n}\n" for n in range(1, 100_001)).encode()


def test_long_segments_travel_in_one_piece(guest, web):
    before = int(guest.output("cat /sys/class/net/eth0/statistics/rx_packets"))
    guest.output(f"wget -q -O /dev/null http://10.0.2.2:{web}/")
    packets = int(guest.output("cat /sys/class/net/eth0/statistics/rx_packets")) - before
    assert packets < len(BULK) / 1360 / 2


def test_the_serial_card_works_with_linuxs_driver(guest, ports):
    assert "16550A" in guest.output("grep ^1: /proc/tty/driver/serial")
    with socket.create_connection(("127.0.0.1", ports["serial"]), timeout=60) as wire:
        guest.output("stty -F /dev/ttyS1 raw -echo; echo from the guest >/dev/ttyS1")
        assert wire.makefile().readline() == "from the guest\n"
        guest.output("(head -n 1 /dev/ttyS1 >/tmp/line) & sleep 0.2")
        wire.sendall(b"from the host\n")
        assert guest.output("wait; cat /tmp/line") == "from the host\n"


@pytest.mark.parametrize("legacy", ["Y", "N"])
def test_the_driver_comes_back_with_either_interface(guest, web, legacy):
    guest.output(f"rmmod virtio_net virtio_pci && modprobe virtio_pci force_legacy={legacy} && modprobe virtio_net")
    features = guest.output("cat /sys/bus/virtio/devices/*/features").strip()
    assert features[32] == ("0" if legacy == "Y" else "1")  # VIRTIO_F_VERSION_1
    guest.output("ip link set eth0 up; udhcpc -q -i eth0 -s /etc/udhcpc >/dev/null 2>&1")
    assert guest.output(f"wget -q -O - http://10.0.2.2:{web}/ | sha256sum") == f"{DIGEST}  -\n"


def test_the_kernel_has_nothing_to_complain_about(guest):
    assert guest.output("dmesg | grep -i -e 'virtio.*fail' -e 'eth0.*error' -e 'tx timeout' -e BUG: | cat") == ""


def test_two_machines_talk_over_a_socket(backend, image, tmp_path):
    slot = f"3,virtio-net,socket={tmp_path}/wire"
    with booted(backend, image, "one", slot) as one, booted(backend, image, "two", slot) as two:
        one.output("ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up")
        two.output("ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up")
        assert ", 0% packet loss" in one.output("ping -c 3 -i 0.2 10.9.0.2")
        two.output("(nc -l -p 7 | sha256sum >/tmp/sum) & until netstat -lnt | grep -q :7; do usleep 50000; done")
        digest = hashlib.sha256("".join(f"{n}\n" for n in range(1, 200_001)).encode()).hexdigest()
        one.output("seq 1 200000 | nc 10.9.0.2 7")
        assert two.output("wait; cat /tmp/sum") == f"{digest}  -\n"
        assert two.output("cat /sys/class/net/eth0/carrier") == "1\n"
        one.close()
        two.output("until grep -q 0 /sys/class/net/eth0/carrier; do usleep 50000; done")


def test_a_tap_interface_connects_host_and_guest(backend, image):
    name = f"tap{os.getpid()}"
    loop = EventLoop()
    try:
        Tap(name, 1, loop).close()
    except DeviceError as error:
        pytest.skip(f"no tap interface here: {error}")
    finally:
        loop.close()
    with booted(backend, image, "tap", f"3,virtio-net,{name},queues=2") as guest:
        subprocess.run(["ip", "addr", "add", "198.51.100.1/24", "dev", name], check=True)
        guest.output("ip addr add 198.51.100.2/24 dev eth0 && ip link set eth0 up")
        assert ", 0% packet loss" in guest.output("ping -c 3 -i 0.2 198.51.100.1")
        with http.server.ThreadingHTTPServer(("198.51.100.1", 0), Received) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                fetched = guest.output(f"wget -q -O - http://198.51.100.1:{server.server_port}/ | sha256sum")
            finally:
                server.shutdown()
                thread.join()
        assert fetched == f"{DIGEST}  -\n"
        assert Path(f"/sys/class/net/{name}/carrier").read_text() == "1\n"


def test_rings_get_another_size_under_way(backend, image, web, initrd_with, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this host")
    binary = tmp_path / "rings"
    subprocess.run(["gcc", "-O1", "-static", "-o", binary, Path(__file__).with_name("rings.c")], check=True)
    initrd = initrd_with({"/bin/rings": File(binary.read_bytes())})
    argv = command(backend, image.kernel, initrd)
    with Guest([*argv[:-1], "-s", "3,virtio-net,user", f"rings-{os.getpid()}"]) as guest:
        guest.run(ADDRESS)
        assert guest.output("rings eth0 64") == "64 64 of 256\n"
        fetch = f"wget -q -O - http://10.0.2.2:{web}/ | sha256sum"
        assert guest.output(fetch).split()[0] == DIGEST
        # while data flows; a packet that was in a ring is lost, and sent again
        resize = "for n in 128 16 256 32 128; do rings eth0 $n >/dev/null; usleep 20000; done"
        assert guest.output(f"({resize}) & {fetch}; wait").split()[0] == DIGEST
        assert guest.output("rings eth0 256") == "256 256 of 256\n"
        assert guest.run("dmesg | grep -iE 'virtio_net.*(fail|error|broken)'").output == ""
