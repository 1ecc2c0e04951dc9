"""Registers that read as constants: which there are for which vendor, and which take a write."""

import pytest

from pyhyve.bus.msr import MsrBus
from pyhyve.hw import xmsr


@pytest.mark.parametrize(
    ("vendor", "index", "value", "takes_writes"),
    [
        ("GenuineIntel", 0x17, 0, False),
        ("GenuineIntel", 0x3A, 1, False),
        ("GenuineIntel", 0x79, None, True),
        ("GenuineIntel", 0x8B, 0, True),
        ("GenuineIntel", 0x606, 0x000A1003, False),
        ("GenuineIntel", 0x611, 0, False),
        ("GenuineIntel", 0xD04, None, True),
        ("GenuineIntel", 0xC0010015, None, False),
        ("AuthenticAMD", 0x8B, 0, False),
        ("AuthenticAMD", 0xC0010015, 0x01000210, True),
        ("AuthenticAMD", 0xC0010007, 0, True),
        ("AuthenticAMD", 0xC0010062, 0, True),
        ("AuthenticAMD", 0xC0010063, 0, False),
        ("AuthenticAMD", 0xC0010114, 0x10, False),
        ("AuthenticAMD", 0xC0011029, 1, False),
        ("AuthenticAMD", 0, 0, False),
        ("AuthenticAMD", 0xC0010299, 0x000A1003, False),
        ("AuthenticAMD", 0xC001029B, 0, False),
        ("AuthenticAMD", 0x606, None, False),
        ("HygonGenuine", 0xC0010015, 0x01000210, True),
        ("SomebodyElse", 0x8B, None, False),
        ("SomebodyElse", 0x12345, None, False),
    ],
)
def test_a_register_is_known_to_its_vendor_and_keeps_its_value(vendor, index, value, takes_writes):
    bus = MsrBus()
    xmsr.attach(bus, vendor)
    assert bus.read(index) == value
    assert bus.write(index, 0x1234) is takes_writes
    assert bus.read(index) == value
