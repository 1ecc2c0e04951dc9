"""Registers that read as constants: which there are for which vendor."""

import pytest

from pyhyve.bus.msr import MsrBus
from pyhyve.hw import xmsr


@pytest.mark.parametrize(
    ("vendor", "index", "value"),
    [
        ("GenuineIntel", 0x8B, 0),
        ("GenuineIntel", 0x606, 0x000A1003),
        ("GenuineIntel", 0xC0010015, None),
        ("AuthenticAMD", 0x8B, 0),
        ("AuthenticAMD", 0xC0010015, 1 << 24),
        ("AuthenticAMD", 0xC0010007, 0),
        ("AuthenticAMD", 0x606, None),
        ("SomebodyElse", 0x8B, 0),
        ("SomebodyElse", 0x12345, None),
    ],
)
def test_a_register_is_known_to_its_vendor_and_ignores_writes(vendor, index, value):
    bus = MsrBus()
    xmsr.attach(bus, vendor)
    assert bus.read(index) == value
    assert bus.write(index, 0x1234) is (value is not None)
    assert bus.read(index) == value
