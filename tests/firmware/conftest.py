"""Fixtures of the firmware tests."""

import pytest

from pyhyve import firmware
from pyhyve.firmware.platform import Platform
from pyhyve.memory import GuestMemory
from tests.firmware.acpitools import find_tables
from tests.firmware.wiring import pci_interrupts


@pytest.fixture
def memory():
    """64 MiB of guest memory."""
    memory = GuestMemory(64 << 20)
    yield memory
    memory.close()


@pytest.fixture
def platform():
    """Four CPUs, an LPC bridge in slot 31, two serial ports, three PCI interrupt pins."""
    return Platform(
        name="test", cpus=4, lpc=(31, 0), com=(1, 3), pci_interrupts=pci_interrupts([(0, 3, 1), (0, 4, 1), (0, 4, 2)])
    )


@pytest.fixture
def tables(memory, platform):
    """The ACPI tables of ``platform``."""
    return find_tables(memory, firmware.build(memory, platform, acpi=True).rsdp)
