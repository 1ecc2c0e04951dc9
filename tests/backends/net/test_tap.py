"""An interface of the host, in a network of the host's: needs the right to make one."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from pyhyve.backends.net import Offload, open_net
from pyhyve.backends.net import frames as f
from pyhyve.backends.net import tap as tap_module
from pyhyve.errors import DeviceError
from tests.backends.net.ether import MAC, PATIENCE, Card, ethernet, tcp_is_sound

NAME = f"tap{os.getpid()}"
PLACE = Path("/sys/class/net") / NAME
HOST, GUEST = "198.51.100.1", "198.51.100.2"


@pytest.fixture
def tap(loop):
    opened = []

    def build(**options: str) -> Card:
        try:
            card = Card(open_net({"backend": NAME, **options}, loop))
        except DeviceError as error:
            pytest.skip(f"no tap interface here: {error}")
        opened.append(card)
        return card

    yield build
    for card in opened:
        card.backend.close()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def card(tap):
    """A card whose host has an address and knows the guest's."""
    card = tap()
    ip("addr", "add", f"{HOST}/24", "dev", NAME)
    ip("neigh", "add", GUEST, "lladdr", ":".join(f"{byte:02x}" for byte in MAC), "dev", NAME)
    return card


def test_the_interface_comes_up_and_goes_with_the_machine(tap, thread):
    card = tap()
    assert int((PLACE / "flags").read_text(), 16) & 1
    card.backend.close()
    thread.settle()
    assert not PLACE.exists()


def test_a_frame_of_the_guests_reaches_the_host(card):
    arp = struct.pack(">HHBBH", 1, f.IPV4, 6, 4, 1) + MAC + socket.inet_aton(GUEST) + bytes(6) + socket.inet_aton(HOST)
    assert card.send(ethernet(arp, 0x0806))
    reply = card.frame(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")
    assert ":".join(f"{byte:02x}" for byte in reply[6:12]) == (PLACE / "address").read_text().strip()


def test_a_datagram_of_the_hosts_reaches_the_guest(card):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (GUEST, 9))
    frame = card.frame(lambda frame: frame[12:14] == b"\x08\0" and frame[23] == f.UDP)
    assert frame[:6] == MAC
    assert frame[42:] == b"hello"


def first_syn(card: Card) -> tuple[f.Header, bytes]:
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex((GUEST, 80)) == errno.EINPROGRESS
        return card.packet(lambda frame: frame[12:14] == b"\x08\0" and frame[23] == f.TCP)


def test_checksums_are_left_undone_only_for_a_guest_that_finishes_them(card):
    header, frame = first_syn(card)
    assert not header.flags & f.Flag.NEEDS_CSUM
    assert tcp_is_sound(frame)
    card.backend.set_offload(Offload.CSUM | Offload.TSO4)
    header, frame = first_syn(card)
    assert header.flags & f.Flag.NEEDS_CSUM
    assert not tcp_is_sound(frame)


def test_nonsense_does_no_harm(card):
    assert card.send(b"")
    assert card.send(bytes(70_000))
    assert card.send(ethernet(bytes(40)), b"\xff" * 12)
    test_a_frame_of_the_guests_reaches_the_host(card)


def test_queues_are_attached_as_the_guest_serves_them(tap):
    card = tap(queues="4")
    assert card.backend.queues == 4
    for pairs in (1, 4, 2, 1):
        card.backend.set_queues(pairs)
        assert card.backend.send(f.PLAIN, [ethernet(bytes(46))], pairs - 1)


def test_an_interface_that_is_taken_away_is_a_link_that_goes_down(tap):
    card = tap()
    ip("link", "delete", NAME)
    assert card.links.get(timeout=PATIENCE) is False
    assert card.send(ethernet(bytes(46)))


def test_an_interface_in_use_is_refused(tap, loop):
    tap()
    with pytest.raises(DeviceError, match=f"network backend {NAME}: another program uses it"):
        open_net({"backend": NAME}, loop)


def test_an_interface_with_other_queues_is_refused(tap, loop):
    tap()
    with pytest.raises(DeviceError, match="other queues than asked for"):
        open_net({"backend": NAME, "queues": "2"}, loop)


def test_without_permission_the_command_that_helps_is_named(loop, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(tap_module, "DEVICE", os.devnull)
    monkeypatch.setattr(tap_module.fcntl, "ioctl", refuse)
    with pytest.raises(DeviceError, match=r"as root: ip tuntap add tap0 mode tap user \d+ && ip link set tap0 up"):
        open_net({"backend": "tap0"}, loop)
    with pytest.raises(DeviceError, match="mode tap multi_queue user"):
        open_net({"backend": "tap0", "queues": "2"}, loop)


def test_a_device_file_that_may_not_be_opened_is_named_with_the_commands(loop, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tap_module.os, "open", refuse)
    with pytest.raises(DeviceError, match=r"Permission denied; as root: chmod 0666 /dev/net/tun && ip tuntap add tap0"):
        open_net({"backend": "tap0"}, loop)


def test_without_the_device_file_it_is_named(loop, monkeypatch):
    monkeypatch.setattr(tap_module, "DEVICE", "/nonexistent/tun")
    with pytest.raises(
        DeviceError,
        match="network backend vmnet0: cannot open /nonexistent/tun: No such file or directory; as root: modprobe tun",
    ):
        open_net({"backend": "vmnet0"}, loop)


@pytest.mark.parametrize("name", ["tap0123456789abcd", "tap0/x", "tap 0"])
def test_what_is_no_name_of_an_interface_is_refused(loop, name):
    with pytest.raises(DeviceError, match="no name of an interface"):
        open_net({"backend": name}, loop)
