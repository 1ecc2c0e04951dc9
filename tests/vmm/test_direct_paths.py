"""What lets a device of the host and the guest meet without a thread of ours: each backend does it, or says no."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from pyhyve.errors import BackendError
from pyhyve.vmm.api import Chip
from pyhyve.vmm.exits import Exit, InOut, InstEmul
from tests.vmm.test_guests import MSI, Boot, Guest, boot, ready

__all__ = ["boot"]

ROM = 0xD0000000


@pytest.fixture
def event():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def bind(guest: Guest, fd: int, vector: int) -> None:
    if not guest.vm.bind_msi(fd, MSI, vector):
        assert Chip.IOAPIC not in guest.vm.provides
        with pytest.raises(BackendError):
            guest.vm.unbind_msi(fd)
        pytest.skip("the backend does not send messages for an eventfd")


def test_an_eventfd_sends_its_message(boot: Boot, event: int) -> None:
    guest = boot("interrupt")
    ready(guest)
    bind(guest, event, 0x51)
    os.eventfd_write(event, 1)
    ready(guest)
    os.eventfd_write(event, 1)
    assert guest.until_end() == []
    assert guest.words(2) == [0x51, 0x51]


def test_the_message_of_an_eventfd_can_be_another_one(boot: Boot, event: int) -> None:
    guest = boot("priority")
    ready(guest)
    bind(guest, event, 0x61)
    bind(guest, event, 0x81)
    os.eventfd_write(event, 1)
    assert guest.until_end() == []
    assert guest.words(3) == [1, 0x81, 0]


def test_an_eventfd_that_is_not_bound_any_more_is_like_others(boot: Boot, event: int) -> None:
    guest = boot("priority")
    ready(guest)
    bind(guest, event, 0x81)
    guest.vm.unbind_msi(event)
    os.eventfd_write(event, 1)
    assert guest.until_end() == []
    assert guest.words(3) == [1, 0, 0]
    assert os.eventfd_read(event) == 1


def test_the_end_of_a_lines_interrupt_is_told(boot: Boot, event: int) -> None:
    guest = boot("ioapic")
    if Chip.IOAPIC not in guest.vm.provides:
        with pytest.raises(BackendError):
            guest.vm.watch_eoi(5, event)
        pytest.skip("the backend has no chip ioapic")
    ready(guest)
    guest.vm.watch_eoi(5, event)
    guest.vm.set_irq(5, True)

    def watch(found: Exit) -> None:
        if isinstance(found, InOut) and found.value == 3:
            guest.vm.set_irq(5, False)

    assert len(guest.until_end(watch)) == 3
    assert os.eventfd_read(event) == 3


def test_memory_of_the_host_is_reached_without_exits(boot: Boot) -> None:
    guest = boot("rom", ROM=ROM)
    page = mmap.mmap(-1, 8192)
    page[:8] = bytes(range(8))
    anchor = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(anchor)
    try:
        if not guest.vm.map_host(ROM, 8192, address):
            with pytest.raises(BackendError):
                guest.vm.unmap_host(ROM)
            assert guest.next() == InstEmul(ROM, 8, False)  # it exits as if nothing had been asked
            return
        assert guest.until_end() == []
        assert guest.words(2) == [int.from_bytes(range(8), "little"), 0]
        assert page[:8] == bytes(8)
        assert not guest.vm.map_host(ROM, 4096, address)  # taken
        guest.vm.unmap_host(ROM)
    finally:
        guest.close()
        del anchor
        page.close()


def test_code_that_a_device_wrote_runs_as_written(boot: Boot) -> None:
    guest = boot("dma")
    immediate = guest.memory.view(0x20001, 1)
    for value in (1, 1, 2, 2, 3):
        immediate[:] = bytes([value])  # as DMA does it: nobody is told
        guest.vm.device_wrote()
        found = guest.next()
        assert isinstance(found, InOut)
        assert found.value == value
    immediate.release()
    assert guest.until_end() == []
