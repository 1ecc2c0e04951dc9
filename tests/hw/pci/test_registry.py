"""Devices by name."""

import pytest

from pyhyve.errors import DeviceError
from pyhyve.hw import registry


@pytest.mark.parametrize(("name", "nearest"), [("hostbrigde", "hostbridge"), ("amd-hostbridge", "amd_hostbridge")])
def test_a_misspelt_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(DeviceError, match=f"unknown device '{name}'; did you mean {nearest}\\?"):
        registry.find(name)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(DeviceError, match=r"unknown device 'teapot'; there are .*hostbridge, .*lpc"):
        registry.find("teapot")
