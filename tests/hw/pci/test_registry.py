"""Devices by name."""

import subprocess
import sys

import pytest

from pyhyve.errors import DeviceError
from pyhyve.hw import registry
from pyhyve.hw.pci.function import PciFunction


@pytest.mark.parametrize(("name", "nearest"), [("hostbrigde", "hostbridge"), ("amd-hostbridge", "amd_hostbridge")])
def test_a_misspelt_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(DeviceError, match=f"unknown device '{name}'; did you mean {nearest}\\?"):
        registry.find(name)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(DeviceError, match=r"unknown device 'teapot'; there are .*hostbridge, .*lpc"):
        registry.find("teapot")


@pytest.mark.parametrize("name", registry.names())
def test_every_name_has_its_device(name):
    assert issubclass(registry.find(name), PciFunction)


def test_a_machine_imports_its_own_devices_only():
    program = """if True:
        import sys
        from pyhyve.hw import registry
        registry.find("hostbridge"), registry.names()
        print(sorted(module for module in sys.modules if module.startswith("pyhyve.hw.")))
    """
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pyhyve.hw.pci.hostbridge" in loaded
    assert not any(other in loaded for other in ("hw.net", "hw.storage", "hw.virtio", "passthru"))
