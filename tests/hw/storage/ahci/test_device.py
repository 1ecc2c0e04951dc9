"""The PCI functions: options of the command line, configuration space, images given back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PioBus
from pyhyve.config import Config
from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from pyhyve.hw.pci.config_space import Offset
from pyhyve.memory import GuestMemory


@pytest.fixture
def environment():
    return SimpleNamespace(
        memory=GuestMemory(1 << 20),
        loop=SimpleNamespace(call_soon_threadsafe=lambda function: function()),
        send_msi=lambda address, data: None,
        pio=PioBus(),
        mmio=MmioBus(),
    )


@pytest.fixture
def make(environment) -> Callable[..., object]:
    def build(name: str, conf: str):
        cls = registry.find(name)
        return cls(environment, cls.parse_options(conf))

    return build


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for name in ("a.img", "b.iso"):
        (tmp_path / name).write_bytes(os.urandom(8192))
        paths.append(str(tmp_path / name))
    return paths


def test_options_belong_to_the_drive_before_them() -> None:
    options = registry.find("ahci").parse_options("hd:/a,nocache,ser=1,cd:/b.iso,hd:/c,sectorsize=4096")
    assert options == {
        "port.0.type": "hd", "port.0.path": "/a", "port.0.nocache": "true", "port.0.ser": "1",
        "port.1.type": "cd", "port.1.path": "/b.iso",
        "port.2.type": "hd", "port.2.path": "/c", "port.2.sectorsize": "4096",
    }  # fmt: skip
    assert registry.find("ahci-hd").parse_options("/a,ro") == {
        "port.0.type": "hd", "port.0.path": "/a", "port.0.ro": "true",
    }  # fmt: skip


def test_the_function_is_an_ahci_controller(make, images: list[str]) -> None:
    function = make("ahci", f"hd:{images[0]},cd:{images[1]}")
    assert function.config.get(Offset.PROG_IF, 3) == 0x010601
    assert [bar.index for bar in function.bars] == [5]
    assert function.controller.implemented == 3
    assert len(function.controller.ports) == 6
    assert function.msi is not None
    assert function.wants_intx
    assert function.controller.ports[0].sig == 0x101
    assert function.controller.ports[1].sig == 0xEB140101
    function.close()


def test_more_drives_than_six(make, tmp_path: Path) -> None:
    for index in range(8):
        (tmp_path / str(index)).write_bytes(bytes(4096))
    function = make("ahci", ",".join(f"hd:{tmp_path}/{index}" for index in range(8)))
    assert len(function.controller.ports) == 8
    assert function.bars[0].size == 0x800
    function.close()


def test_a_disk_of_a_configuration_file(environment, images: list[str]) -> None:
    config = Config.of({"pci.0.3.0.device": "ahci-hd", "pci.0.3.0.path": images[0], "pci.0.3.0.ro": True})
    options = config.below("pci.0.3.0")
    del options["device"]
    function = registry.find("ahci-hd")(environment, options)
    assert function.controller.implemented == 1
    function.close()


def test_without_messages_for_a_legacy_slot(environment, images: list[str]) -> None:
    function = registry.find("ahci-hd")(environment, {"path": images[0], "legacy": "true"})
    assert function.msi is None
    assert function.wants_intx
    function.close()


@pytest.mark.parametrize(
    ("name", "conf", "message"),
    [
        ("ahci-hd", "", "which disk"),
        ("ahci-hd", "{0},nocash", "did you mean 'nocache'"),
        ("ahci-hd", "{0},ser=" + "x" * 21, "up to 20"),
        ("ahci-hd", "{0},rev=" + "x" * 9, "up to 8"),
        ("ahci-hd", "{0},model=" + "x" * 41, "up to 40"),
        ("ahci-hd", "{0},nmrr=17", "rotation rate"),
        ("ahci-hd", "{0},nmrr=fast", "rotation rate"),
        ("ahci-hd", "{0},sectorsize=100", "powers of two"),
        ("ahci-hd", "/nowhere", "No such file"),
        ("ahci", "{0}", "ahci,hd:PATH"),
        ("ahci", "hd:{0},hd:{0}", "another device of this one"),
        ("ahci", "hd:{0},cd:/nowhere", "No such file"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_open(
    make, images: list[str], name: str, conf: str, message: str
) -> None:
    threads = threading.active_count()
    with pytest.raises(DeviceError, match=message) as caught:
        make(name, conf.format(*images))
    assert "\n" not in str(caught.value)
    assert not [fd for fd in os.listdir("/proc/self/fd") if _target(fd) in images]
    assert threading.active_count() == threads


def test_wrong_ports(environment, images: list[str]) -> None:
    cls = registry.find("ahci")
    for options, message in (
        ({"port.32.path": images[0]}, "up to 32"),
        ({"port.0.path": images[0]}, "hd or cd"),
        ({"path": images[0]}, "no option 'path'"),
        ({"port.0.type": "hd"}, "needs a path"),
    ):
        with pytest.raises(DeviceError, match=message):
            cls(environment, options)


def test_a_disc_smaller_than_a_sector(make, tmp_path: Path) -> None:
    (tmp_path / "tiny").write_bytes(bytes(1024))
    with pytest.raises(DeviceError, match="less than one sector"):
        make("ahci-cd", str(tmp_path / "tiny"))


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_a_function_is_reset_saved_and_restored(make, images: list[str]) -> None:
    function = make("ahci", f"hd:{images[0]},cd:{images[1]}")
    function.controller.write(0x100, 4, 0x12345400)
    state = function.save()
    function.reset()
    assert function.controller.read(0x100, 4) == 0
    function.restore(state)
    assert function.controller.read(0x100, 4) == 0x12345400
    assert function.save() == state
    with pytest.raises(DeviceError):
        function.restore({**state, "controller": {"version": 1}})
    function.close()
    function.close()
