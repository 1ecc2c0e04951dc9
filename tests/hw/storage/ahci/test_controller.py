"""Registers, resets, interrupts and errors of the controller, as a driver meets them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pyhyve.hw.storage.ahci.registers import Cmd, Ghc, Hba, Irq, Px
from tests.hw.storage.ahci.conftest import SECTORS
from tests.hw.storage.ahci.driver import D2H, DATA, FIS, LIST, MEMORY, SDB, TABLES, Driver, h2d

READ_DMA, WRITE_DMA, IDENTIFY, READ_QUEUED, WRITE_QUEUED, LOG = 0x25, 0x35, 0xEC, 0x60, 0x61, 0x2F
OK = 0x50


def queued(slot: int, lba: int, count: int, *, write: bool = False, device: int = 0x40) -> bytes:
    return h2d(WRITE_QUEUED if write else READ_QUEUED, lba, slot << 3, features=count, device=device)


class Held:
    """A backend whose requests wait until they are let go."""

    def __init__(self, backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list = []
        self.readv = backend.readv
        monkeypatch.setattr(backend, "readv", lambda *args: self.waiting.append(args))
        monkeypatch.setattr(backend, "read_cached", lambda *args: False)

    def release(self) -> None:
        while self.waiting:
            self.readv(*self.waiting.pop(0))


@pytest.fixture
def held(hd: Driver, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(hd.hba.ports[0].drive._backend, monkeypatch)


def test_the_controller_says_what_it_is(hd: Driver) -> None:
    cap = hd.read(Hba.CAP)
    assert cap >> 8 & 0x1F == 31  # 32 slots
    assert cap & 0x1F == 1  # two ports
    assert cap & (1 << 30)
    assert cap & (1 << 31)
    assert hd.read(Hba.PI) == 1
    assert hd.read(Hba.VS) == 0x00010300
    assert hd.read(Hba.GHC) & Ghc.AHCI_ENABLE


def test_a_device_is_there_and_its_signature_tells_a_disk(hd: Driver) -> None:
    assert hd.get(Px.SSTS) == 0x133
    assert hd.get(Px.SIG) == 0x00000101
    assert hd.get(Px.TFD) == 0x150
    assert hd.get(Px.SSTS, 1) == 0
    assert hd.get(Px.CMD, 1) == 0


def test_registers_can_be_read_in_parts_and_pairs(hd: Driver) -> None:
    assert hd.hba.read(0x100 + Px.SSTS, 1) == 0x33
    assert hd.hba.read(0x100 + Px.SSTS + 1, 1) == 0x01
    assert hd.hba.read(Hba.CAP, 8) == hd.read(Hba.CAP) | hd.read(Hba.GHC) << 32
    hd.hba.write(0x100 + Px.CLB, 8, 0x123456789ABCDEF0)
    assert hd.get(Px.CLB) == 0x9ABCDC00  # 1 KiB aligned
    assert hd.get(Px.CLBU) == 0x12345678
    hd.hba.write(0x100 + Px.CLB, 1, 0xFF)
    assert hd.get(Px.CLB) == 0x9ABCDC00


def test_a_read_by_dma_ends_with_a_frame_an_interrupt_and_the_data(hd: Driver, image: Path) -> None:
    status = hd.command(h2d(READ_DMA, 3, 4), [(DATA, 1024), (DATA + 0x2000, 1024)])
    assert status == OK
    expected = image.read_bytes()[1536 : 1536 + 2048]
    assert hd.memory.read(DATA, 1024) + hd.memory.read(DATA + 0x2000, 1024) == expected
    assert hd.get(Px.CI) == 0
    assert hd.get(Px.IS) == Irq.D2H
    assert hd.read(Hba.IS) == 1
    assert hd.level
    assert hd.messages == 1
    assert hd.memory.read_uint(LIST + 4, 4) == 2048  # PRDBC
    frame = hd.frame(D2H)
    assert frame[:4] == bytes((0x34, 0x40, OK, 0))


def test_who_caches_memory_hears_what_a_read_has_changed(hd: Driver) -> None:
    changed: list[tuple[int, int]] = []
    hd.memory.on_write.append(lambda gpa, length: changed.append((gpa, length)))
    hd.prepare(0, h2d(READ_DMA, 0, 4), [(DATA, 512), (DATA + 512, 512), (DATA + 0x4000, 1024)])
    changed.clear()
    hd.issue(1)
    assert (DATA, 1024) in changed
    assert (DATA + 0x4000, 1024) in changed


def test_an_interrupt_of_a_region(hd: Driver) -> None:
    hd.command(h2d(READ_DMA, 0, 1), interrupt=True)
    assert hd.get(Px.IS) == Irq.D2H | Irq.DESCRIPTOR


def test_the_level_follows_the_bits_and_the_enables(hd: Driver) -> None:
    hd.command(h2d(READ_DMA, 0, 1))
    assert hd.level
    hd.put(Px.IS, 0xFFFFFFFF)
    assert hd.level  # IS is still set
    hd.write(Hba.IS, 1)
    assert not hd.level
    hd.put(Px.IE, 0)
    hd.command(h2d(READ_DMA, 0, 1))
    assert not hd.level
    assert hd.get(Px.IS) == Irq.D2H
    hd.put(Px.IE, Irq.D2H)
    assert hd.level
    hd.write(Hba.GHC, Ghc.AHCI_ENABLE)
    assert not hd.level
    hd.write(Hba.GHC, Ghc.AHCI_ENABLE | Ghc.INTERRUPTS)
    assert hd.level


def test_no_message_is_lost_between_clearing_a_port_and_clearing_is(hd: Driver) -> None:
    hd.command(h2d(READ_DMA, 0, 1))
    hd.put(Px.IS, 0xFFFFFFFF)
    hd.command(h2d(READ_DMA, 0, 1))  # while IS is still set: no new message
    assert hd.messages == 1
    hd.write(Hba.IS, 1)
    assert hd.messages == 2
    assert hd.read(Hba.IS) == 1


def test_nothing_is_fetched_without_bus_mastering(hd: Driver) -> None:
    hd.master = False
    hd.prepare(0, h2d(READ_DMA, 0, 1), [(DATA, 512)])
    hd.issue(1)
    assert hd.get(Px.CI) == 1
    assert hd.get(Px.IS) == 0
    hd.master = True
    hd.hba.kick()
    hd.settle()
    assert hd.get(Px.CI) == 0


def test_nothing_is_fetched_while_the_list_is_stopped(hd: Driver) -> None:
    hd.put(Px.CMD, Cmd.FIS_ENABLE)
    assert not hd.get(Px.CMD) & Cmd.LIST_RUNNING
    hd.prepare(0, h2d(READ_DMA, 0, 1), [(DATA, 512)])
    hd.issue(1)
    assert hd.get(Px.CI) == 0
    assert hd.get(Px.IS) == 0


# -- queued commands --


def test_queued_commands_run_side_by_side_and_end_by_device_bits(hd: Driver, held: Held, image: Path) -> None:
    for slot in (0, 5, 31):
        hd.prepare(slot, queued(slot, 8 * slot, 2), [(DATA + 0x1000 * slot, 1024)])
    slots = 1 | 1 << 5 | 1 << 31
    hd.put(Px.SACT, slots)
    hd.put(Px.CI, slots)
    hd.turn()
    assert len(held.waiting) == 3
    assert hd.get(Px.CI) == 0
    assert hd.get(Px.SACT) == slots
    assert hd.get(Px.TFD) & 0x80 == 0
    held.release()
    hd.settle()
    assert hd.get(Px.SACT) == 0
    assert hd.get(Px.IS) == Irq.DEVICE_BITS
    data = image.read_bytes()
    for slot in (0, 5, 31):
        assert hd.memory.read(DATA + 0x1000 * slot, 1024) == data[4096 * slot : 4096 * slot + 1024]
    assert hd.frame(SDB, 4)[0] == 0xA1


def test_a_command_that_is_not_queued_waits_for_the_queue(hd: Driver, held: Held) -> None:
    hd.prepare(1, queued(1, 0, 1), [(DATA, 512)])
    hd.prepare(2, h2d(IDENTIFY), [(DATA + 512, 512)])
    hd.put(Px.SACT, 2)
    hd.put(Px.CI, 6)
    hd.turn()
    assert hd.get(Px.CI) == 4
    held.release()
    hd.settle()
    assert hd.get(Px.CI) == 0
    assert hd.get(Px.SACT) == 0


def test_a_queued_error_stops_the_list_and_is_in_the_log(hd: Driver) -> None:
    hd.prepare(3, queued(3, SECTORS, 8), [(DATA, 4096)])
    hd.prepare(4, queued(4, 0, 1), [(DATA, 512)])
    hd.put(Px.SACT, 0x18)
    hd.put(Px.CI, 0x18)
    hd.settle()
    assert hd.get(Px.IS) & Irq.TASK_FILE
    assert hd.get(Px.TFD) == 0x1051
    assert hd.get(Px.SACT) & 1 << 3
    hd.recover()
    assert hd.get(Px.SACT) == 0
    assert hd.command(h2d(LOG, 0x10, 1)) == OK
    page = hd.data()
    assert page[0] == 3
    assert page[2] == 0x51
    assert page[3] == 0x10
    assert int.from_bytes(page[4:7], "little") == SECTORS
    assert sum(page) & 0xFF == 0
    hd.command(h2d(LOG, 0x10, 1))
    assert hd.data()[0] == 0x80  # told once


def test_a_tag_that_is_not_its_slot_is_aborted(hd: Driver) -> None:
    hd.prepare(3, queued(4, 0, 1), [(DATA, 512)])
    hd.issue(1 << 3, queued=True)
    assert hd.get(Px.TFD) == 0x451


def test_queued_writes_reach_the_image_and_fua_the_medium(
    hd: Driver, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    hd.memory.write(DATA, b"\x5a" * 1024)
    hd.prepare(0, queued(0, 10, 2, write=True), [(DATA, 1024)], write=True)
    hd.issue(1, queued=True)
    assert image.read_bytes()[5120:6144] == b"\x5a" * 1024
    assert not synced
    hd.prepare(0, queued(0, 10, 2, write=True, device=0xC0), [(DATA, 1024)], write=True)
    hd.issue(1, queued=True)
    assert len(synced) == 1


# -- errors --


def test_a_failed_command_keeps_its_slot_and_stops_the_list(hd: Driver) -> None:
    hd.prepare(1, h2d(IDENTIFY), [(DATA, 512)])
    hd.prepare(0, h2d(READ_DMA, SECTORS - 1, 2), [(DATA, 1024)])
    hd.issue(3)
    assert hd.get(Px.CI) == 3
    assert hd.get(Px.IS) & Irq.TASK_FILE
    hd.recover()
    assert hd.command(h2d(READ_DMA, 0, 1)) == OK


@pytest.mark.parametrize("where", ["list", "table", "region", "region_end", "between"])
def test_an_address_outside_memory_is_a_fatal_bus_error(hd: Driver, where: str) -> None:
    region = {"region": MEMORY, "region_end": MEMORY - 512, "between": (1 << 64) - 1024}.get(where, DATA)
    hd.prepare(0, h2d(READ_DMA, 0, 2), [(region, 1024)])
    if where == "list":
        hd.put(Px.CMD, Cmd.FIS_ENABLE)
        hd.put(Px.CLB, MEMORY)
        hd.put(Px.CMD, Cmd.FIS_ENABLE | Cmd.START)
    elif where == "table":
        hd.memory.write_uint(LIST + 8, MEMORY + 0x1000, 8)
    hd.issue(1)
    assert hd.get(Px.IS) & Irq.HOST_BUS_FATAL
    assert hd.get(Px.CI) == 1
    hd.put(Px.CLB, LIST)
    hd.recover()
    assert hd.command(h2d(READ_DMA, 0, 1)) == OK


def test_a_received_fis_area_outside_memory_is_a_fatal_bus_error(hd: Driver) -> None:
    hd.put(Px.FB, MEMORY)
    hd.command(h2d(READ_DMA, 0, 1))
    assert hd.get(Px.IS) & Irq.HOST_BUS_FATAL


def test_too_few_regions_are_an_overflow(hd: Driver) -> None:
    hd.prepare(0, h2d(READ_DMA, 0, 8), [(DATA, 1024)])
    hd.issue(1)
    assert hd.get(Px.IS) == Irq.OVERFLOW


def test_what_is_no_fis_is_an_interface_error(hd: Driver) -> None:
    hd.prepare(0, b"\x34" * 20)
    hd.issue(1)
    assert hd.get(Px.IS) == Irq.INTERFACE_FATAL


def test_a_host_error_is_an_uncorrectable_error_of_that_command(
    hd: Driver, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(image, 512 * 100)
    hd.command(h2d(READ_DMA, 200, 1))
    assert hd.get(Px.TFD) == 0x4051
    hd.recover()
    assert hd.command(h2d(READ_DMA, 99, 1)) == OK

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    os.truncate(image, 512 * SECTORS)
    hd.command(h2d(WRITE_DMA, 0, 1), write=True)
    assert hd.get(Px.TFD) == 0x4051
    hd.recover()
    assert hd.command(h2d(READ_DMA, 0, 1)) == OK


# -- resets --


def test_stopping_waits_for_what_is_on_its_way_and_reports_nothing(hd: Driver, held: Held) -> None:
    hd.prepare(0, h2d(READ_DMA, 0, 1), [(DATA, 512)])
    hd.put(Px.CI, 1)
    hd.turn()
    hd.put(Px.CMD, Cmd.FIS_ENABLE)
    assert hd.get(Px.CI) == 0
    assert hd.get(Px.CMD) & Cmd.LIST_RUNNING
    held.release()
    hd.settle()
    assert not hd.get(Px.CMD) & Cmd.LIST_RUNNING
    assert hd.get(Px.IS) == 0


def test_a_link_reset_brings_the_device_back_when_memory_is_left_alone(hd: Driver, held: Held) -> None:
    hd.prepare(0, h2d(READ_DMA, 0, 1), [(DATA, 512)])
    hd.put(Px.CI, 1)
    hd.turn()
    hd.put(Px.CMD, Cmd.FIS_ENABLE)
    hd.put(Px.SCTL, 0x301)
    assert hd.get(Px.SSTS) & 0xF != 3
    hd.put(Px.SCTL, 0x300)
    assert hd.get(Px.SSTS) & 0xF != 3
    held.release()
    hd.settle()
    assert hd.get(Px.SSTS) == 0x133
    assert hd.get(Px.TFD) == 0x150
    assert hd.get(Px.IS) == Irq.CONNECT
    hd.put(Px.SERR, 0xFFFFFFFF)
    assert hd.get(Px.IS) == 0


def test_the_speed_that_a_driver_limits_is_the_speed(hd: Driver) -> None:
    hd.put(Px.SCTL, 0x311)
    hd.put(Px.SCTL, 0x310)
    assert hd.get(Px.SSTS) == 0x113


def test_a_port_can_be_switched_off_and_on(hd: Driver) -> None:
    hd.put(Px.SCTL, 0x304)
    assert hd.get(Px.SSTS) == 4
    hd.put(Px.SCTL, 0x301)
    hd.put(Px.SCTL, 0x300)
    assert hd.get(Px.SSTS) == 0x133


def test_a_controller_reset_ends_when_memory_is_left_alone(hd: Driver, held: Held) -> None:
    hd.prepare(0, h2d(READ_DMA, 0, 1), [(DATA, 512)])
    hd.put(Px.CI, 1)
    hd.turn()
    hd.write(Hba.GHC, Ghc.AHCI_ENABLE | Ghc.RESET)
    assert hd.read(Hba.GHC) & Ghc.RESET
    held.release()
    hd.settle()
    assert hd.read(Hba.GHC) == Ghc.AHCI_ENABLE
    assert hd.get(Px.CI) == 0
    assert hd.get(Px.IE) == 0
    assert hd.get(Px.CLB) == 0
    assert not hd.level
    hd.start()
    assert hd.command(h2d(IDENTIFY)) == OK


def test_a_soft_reset_gives_the_signature(hd: Driver) -> None:
    hd.command(h2d(0xEF, features=0x82))  # write cache off
    hd.command(h2d(0, flags=0, control=4))
    assert hd.get(Px.CI) == 0
    hd.command(h2d(0, flags=0, control=0))
    assert hd.frame(D2H)[2:8] == bytes((OK, 1, 1, 0, 0, 0))
    assert hd.frame(D2H)[12] == 1
    hd.command(h2d(IDENTIFY))
    assert hd.data()[2 * 85] & 0x20  # on again


def test_list_override_clears_busy(hd: Driver, held: Held) -> None:
    hd.prepare(0, h2d(READ_DMA, 0, 1), [(DATA, 512)])
    hd.put(Px.CI, 1)
    hd.turn()
    assert hd.get(Px.TFD) & 0x80
    hd.put(Px.CMD, Cmd.FIS_ENABLE)
    hd.put(Px.CMD, Cmd.FIS_ENABLE | Cmd.LIST_OVERRIDE)
    assert not hd.get(Px.TFD) & 0x80
    assert not hd.get(Px.CMD) & Cmd.LIST_OVERRIDE
    held.release()


# -- where commands are begun --


def read_one(hd: Driver, slot: int, lba: int = 0) -> None:
    """A queued read that the host has in its cache."""
    hd.prepare(slot, queued(slot, lba, 1), [(DATA + 512 * slot, 512)])
    hd.put(Px.SACT, 1 << slot)
    hd.put(Px.CI, 1 << slot)


def test_a_command_is_over_when_the_write_is(hd: Driver, image: Path) -> None:
    read_one(hd, 0, 5)
    assert not hd.deferred
    assert hd.get(Px.SACT) == 0
    assert hd.messages == 1
    assert hd.memory.read(DATA, 512) == image.read_bytes()[5 * 512 : 6 * 512]


def test_so_are_others_whose_driver_does_not_wait_for_interrupts(hd: Driver, image: Path) -> None:
    read_one(hd, 0)
    read_one(hd, 1, 6)  # the first one's interrupt has not been taken
    assert not hd.deferred
    assert hd.get(Px.CI) == hd.get(Px.SACT) == 0
    assert hd.memory.read(DATA + 512, 512) == image.read_bytes()[6 * 512 : 7 * 512]


def test_a_command_that_waits_for_the_disk_holds_nobody_up(hd: Driver, held: Held, image: Path) -> None:
    read_one(hd, 0)
    read_one(hd, 1, 6)
    assert hd.get(Px.SACT) == 3
    held.release()
    hd.settle()
    assert hd.get(Px.SACT) == 0
    assert hd.memory.read(DATA + 512, 512) == image.read_bytes()[6 * 512 : 7 * 512]


# -- state --


def test_what_runs_when_it_is_saved_is_done_after_it_is_restored(hd: Driver, held: Held, image: Path) -> None:
    hd.prepare(2, queued(2, 7, 1), [(DATA, 512)])
    hd.put(Px.SACT, 4)
    hd.put(Px.CI, 4)
    hd.turn()
    state = hd.hba.save()
    held.release()
    hd.settle()
    hd.memory.write(DATA, bytes(512))
    hd.hba.restore(state)
    assert hd.get(Px.CI) == 4
    hd.turn()
    held.release()
    hd.settle()
    assert hd.get(Px.SACT) == 0
    assert hd.memory.read(DATA, 512) == image.read_bytes()[7 * 512 : 8 * 512]


def test_a_saved_state_is_plain_and_comes_back(hd: Driver) -> None:
    hd.command(h2d(0xEF, features=0x82))
    state = hd.hba.save()
    hd.hba.reset()
    assert hd.get(Px.CLB) == 0
    hd.hba.restore(state)
    assert hd.hba.save() == state
    hd.settle()
    hd.put(Px.IS, 0xFFFFFFFF)
    hd.command(h2d(IDENTIFY))
    assert not hd.data()[2 * 85] & 0x20


def test_commands_come_from_any_thread_while_others_end(hd: Driver) -> None:
    """Thirty-two readers at once, the completions in the backend's threads."""
    for slot in range(32):
        hd.prepare(slot, queued(slot, slot, 1), [(DATA + 512 * slot, 512)])
    for _ in range(20):
        hd.issue(0xFFFFFFFF, queued=True)
        assert hd.get(Px.SACT) == 0
    assert threading.active_count() < 40


def test_the_frames_stay_inside_their_area(hd: Driver) -> None:
    hd.memory.write(FIS, bytes(256))
    hd.memory.write(FIS + 256, b"\xaa" * 256)
    hd.command(h2d(IDENTIFY))
    hd.command(h2d(READ_DMA, 0, 1))
    assert hd.memory.read(FIS + 256, 256) == b"\xaa" * 256
    assert hd.memory.read(TABLES - 256, 256) == bytes(256)
