"""The machines that docs/network.md starts: each boots, and what the page says of it holds."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from pyhyve.backends.net import libslirp
from pyhyve.errors import DeviceError
from tests.system.console import Guest

pytestmark = pytest.mark.timeout(600)

PAGE = Path(__file__).parents[2] / "docs" / "network.md"
ADDRESS = "until ip route | grep -q default; do usleep 50000; done"
CHECKS = {
    "virtio-net,user": (f"{ADDRESS}; ping -c 1 10.0.2.2", "1 packets received"),
    "hostfwd=": (f"{ADDRESS}; ip addr show dev eth0", "10.0.2.15/24"),
    "tap0": ("ip link set eth0 up; cat /sys/class/net/eth0/carrier", "1"),
    "socket=wire": ("ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up; ls /sys/class/net", "eth0"),
    "uart,": ("cat /proc/tty/driver/serial", "1: uart:16550A"),
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def examples() -> list[str]:
    """The page's commands that start a machine."""
    text = PAGE.read_text().replace("\\\n", " ")
    return re.findall(r"^    (bhyve .*)$", text, re.MULTILINE)


def test_the_page_starts_a_machine_with_every_backend():
    found = examples()
    assert all(any(key in line for line in found) for key in CHECKS)


@pytest.mark.parametrize("line", examples(), ids=lambda line: re.search(r"-s [34],(\S+)", line)[1])
def test_an_example_does_what_the_page_says(line, backend, image, tmp_path, monkeypatch):
    if "user" in line:
        try:
            libslirp.library()
        except DeviceError as error:
            pytest.skip(str(error))
    if "tap0" in line and not (os.getuid() == 0 and Path("/dev/net/tun").exists()):
        pytest.skip("no permission to make a tap interface")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinuz").symlink_to(image.kernel)
    (tmp_path / "initrd").symlink_to(image.initrd)
    script, answer = next(check for key, check in reversed(CHECKS.items()) if key in line)
    # the page's ports may be taken here
    words = shlex.split(re.sub(r"\b(8080|4444)\b", lambda _: str(free_port()), line))
    argv = [sys.executable, "-m", "pyhyve.commands.bhyve", "-o", f"vmm.backend={backend}", *words[1:-1]]
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1] / "src"))
    with Guest([*argv, f"example-{os.getpid()}"]) as guest:
        assert answer in guest.output(script)
