import pytest

from pyhyve.backends.net import libslirp, open_net, read_mac, read_mtu, read_queues, tap
from pyhyve.errors import DeviceError


def test_a_card_without_a_backend_has_no_link(loop):
    card = open_net({}, loop)
    assert not card.link
    assert card.send(bytes(12), [bytes(60)])
    card.close()


@pytest.mark.parametrize("spec", ["taap", "eth0", "user2", "socket", "socket=", "bridge"])
def test_an_unknown_backend_is_refused_with_those_there_are(loop, spec):
    with pytest.raises(DeviceError, match=r"unknown network backend.*use user, tapN"):
        open_net({"backend": spec}, loop)


def test_a_type_says_the_kind_where_the_name_does_not(loop, monkeypatch):
    monkeypatch.setattr(tap, "DEVICE", "/nonexistent/tun")
    with pytest.raises(DeviceError, match="network backend vm0: cannot open /nonexistent/tun"):
        open_net({"backend": "vm0", "type": "tap"}, loop)
    with pytest.raises(DeviceError, match="unknown type of network backend 'bridge': use tap, user or slirp"):
        open_net({"backend": "vm0", "type": "bridge"}, loop)


def test_netgraph_is_said_to_be_freebsds(loop):
    with pytest.raises(DeviceError, match="FreeBSD only"):
        open_net({"backend": "netgraph", "path": "vmbridge:"}, loop)


def test_mac_addresses_are_read_as_ethers_5_has_them():
    assert read_mac("58:9c:fc:0:1:ff") == bytes.fromhex("589cfc0001ff")


@pytest.mark.parametrize(
    "text",
    ["", "58:9c:fc:0:1", "58:9c:fc:0:1:2:3", "58-9c-fc-00-00-01", "58:9c:fc:00:00:100", "zz:0:0:0:0:0", "-1:0:0:0:0:0"],
)
def test_what_is_no_mac_address_is_refused(text):
    with pytest.raises(DeviceError, match="xx:xx:xx:xx:xx:xx"):
        read_mac(text)


@pytest.mark.parametrize("text", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
def test_a_group_address_is_no_cards(text):
    with pytest.raises(DeviceError, match="single card"):
        read_mac(text)


@pytest.mark.parametrize("text", ["67", "65536", "-1", "1500x", ""])
def test_an_mtu_that_no_link_has_is_refused(text):
    with pytest.raises(DeviceError, match="68 to 65535"):
        read_mtu({"mtu": text})


@pytest.mark.parametrize("text", ["0", "9", "two"])
def test_a_number_of_queues_that_cannot_be_is_refused(text):
    with pytest.raises(DeviceError, match="1 to 8"):
        read_queues({"queues": text})


def test_a_missing_library_is_named_with_its_package(loop, monkeypatch):
    monkeypatch.setattr(libslirp, "_SONAME", "libnothere.so.0")
    monkeypatch.setattr(libslirp.ctypes.util, "find_library", lambda name: None)
    libslirp.library.cache_clear()
    with pytest.raises(DeviceError, match=r"libslirp is not installed \(Debian: apt install libslirp0\)"):
        open_net({"backend": "user"}, loop)
