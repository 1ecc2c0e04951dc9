"""What a disk answers to the commands of drivers."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pyhyve.hw.storage.ahci.registers import Irq, Px
from tests.hw.storage.ahci.conftest import SECTORS
from tests.hw.storage.ahci.driver import D2H, DATA, PIO, Driver, disk, h2d

OK, FAILED = 0x50, 0x51
IDENTIFY = 0xEC


def words(driver: Driver) -> tuple[int, ...]:
    assert driver.command(h2d(IDENTIFY)) == OK
    return struct.unpack("<256H", driver.data())


def text(found: tuple[int, ...], first: int, last: int) -> str:
    return struct.pack(f">{last - first + 1}H", *found[first : last + 1]).decode().rstrip()


def test_identify_tells_names_and_size(hd: Driver) -> None:
    found = words(hd)
    assert text(found, 27, 46) == "BHYVE SATA DISK"
    assert text(found, 23, 26) == "001"
    assert text(found, 10, 19).startswith("BHYVE-")
    assert found[60] | found[61] << 16 == SECTORS
    assert found[100] == SECTORS
    assert found[75] == 31
    assert found[76] & 0x100
    assert found[106] == 0x6003  # eight logical sectors in a physical one
    assert found[0] & 0x8000 == 0
    assert sum(hd.data()) & 0xFF == 0
    assert hd.get(Px.IS) == Irq.PIO_SETUP
    frame = hd.frame(PIO)
    assert frame[0] == 0x5F
    assert frame[1] == 0x60
    assert frame[15] == OK
    assert int.from_bytes(frame[16:18], "little") == 512


def test_the_names_of_the_command_line_are_the_disks(image: Path) -> None:
    driver = Driver(disk(image, ser="S123", rev="2.0", model="My Disk", nmrr="7200", sectorsize="4096"))
    driver.start()
    found = words(driver)
    assert (text(found, 10, 19), text(found, 23, 26), text(found, 27, 46)) == ("S123", "2.0", "My Disk")
    assert found[217] == 7200
    assert found[106] & 0x1000
    assert found[117] | found[118] << 16 == 2048
    assert found[100] == SECTORS // 8
    driver.command(h2d(0x25, 1, 1), [(DATA, 4096)])
    assert driver.data(4096) == image.read_bytes()[4096:8192]
    driver.close()


READS = {0x20: False, 0x24: True, 0xC4: False, 0x29: True, 0xC8: False, 0x25: True}
WRITES = {0x30: False, 0x34: True, 0xC5: False, 0x39: True, 0xCA: False, 0x35: True, 0x3D: True, 0xCE: True}


@pytest.mark.parametrize("command", READS)
def test_every_read_reads(hd: Driver, image: Path, command: int) -> None:
    assert hd.command(h2d(command, 100, 3), [(DATA, 1536)]) == OK
    assert hd.data(1536) == image.read_bytes()[51200 : 51200 + 1536]


@pytest.mark.parametrize("command", WRITES)
def test_every_write_writes(hd: Driver, image: Path, command: int) -> None:
    before = image.read_bytes()
    hd.memory.write(DATA, b"\xc3" * 1536)
    assert hd.command(h2d(command, 100, 3), [(DATA, 1536)], write=True) == OK
    assert image.read_bytes() == before[:51200] + b"\xc3" * 1536 + before[51200 + 1536 :]


def test_a_count_of_zero_is_the_largest_one(hd: Driver, image: Path) -> None:
    assert hd.command(h2d(0xC8, 0, 0), [(DATA, 256 * 512)]) == OK
    assert hd.data(256 * 512) == image.read_bytes()[: 256 * 512]
    assert hd.command(h2d(0x25, 0, 0), [(DATA, 4096)]) == FAILED  # 65536 sectors are more than there are
    assert hd.get(Px.TFD) >> 8 == 0x10


def test_the_short_commands_use_the_device_register(hd: Driver) -> None:
    assert hd.command(h2d(0xC8, 0, 1, device=0x41)) == FAILED  # sector 1 << 24
    hd.recover()
    assert hd.command(h2d(0xC8, 0x1000000 | 5, 1)) == OK  # bits above 23 are not looked at


def test_addresses_without_lba_mode_are_aborted(hd: Driver) -> None:
    assert hd.command(h2d(0xC8, 0, 1, device=0)) == FAILED
    assert hd.get(Px.TFD) >> 8 == 0x04


@pytest.mark.parametrize(("lba", "count"), [(SECTORS, 1), (SECTORS - 1, 2), ((1 << 48) - 1, 1)])
def test_sectors_that_are_not_there(hd: Driver, image: Path, lba: int, count: int) -> None:
    before = image.read_bytes()
    assert hd.command(h2d(0x35, lba, count), [(DATA, 1024)], write=True) == FAILED
    assert hd.get(Px.TFD) >> 8 == 0x10
    assert image.read_bytes() == before


def test_flush_and_writes_without_a_cache_are_on_the_medium(hd: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    for command in (0xE7, 0xEA):
        assert hd.command(h2d(command)) == OK
    assert len(synced) == 2
    hd.command(h2d(0x35, 0, 1), write=True)
    assert len(synced) == 2
    hd.command(h2d(0x3D, 0, 1), write=True)
    assert len(synced) == 3
    hd.command(h2d(0xEF, features=0x82))
    assert len(synced) == 4
    hd.command(h2d(0x35, 0, 1), write=True)
    assert len(synced) == 5
    assert not words(hd)[85] & 0x20


def test_a_flush_that_fails_fails(hd: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    assert hd.command(h2d(0xEA)) == FAILED


def trim(*ranges: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<Q", lba | count << 48) for lba, count in ranges).ljust(512, b"\0")


def test_trim_makes_holes(hd: Driver, image: Path) -> None:
    found = words(hd)
    if not found[169] & 1:
        pytest.skip("the file system of the test directory has no holes")
    before = image.read_bytes()
    hd.memory.write(DATA, trim((8, 16), (0, 0), (64, 8)))
    assert hd.command(h2d(0x06, count=1, features=1), write=True) == OK
    zeroed = bytearray(before)
    zeroed[4096:12288] = bytes(8192)
    zeroed[32768:36864] = bytes(4096)
    assert image.read_bytes() == zeroed


def test_trim_outside_the_disk_changes_nothing(hd: Driver, image: Path) -> None:
    before = image.read_bytes()
    hd.memory.write(DATA, trim((0, 8), (SECTORS - 1, 2)))
    assert hd.command(h2d(0x06, count=1, features=1), write=True) == FAILED
    assert image.read_bytes() == before


def test_no_trim_without_discard(image: Path) -> None:
    driver = Driver(disk(image, nodelete="true"))
    driver.start()
    assert not words(driver)[169] & 1
    assert driver.command(h2d(0x06, count=1, features=1), write=True) == FAILED
    driver.close()


def test_a_read_only_disk_aborts_writes(image: Path) -> None:
    before = image.read_bytes()
    driver = Driver(disk(image, ro="true"))
    driver.start()
    assert driver.command(h2d(0x35, 0, 1), write=True) == FAILED
    assert driver.get(Px.TFD) >> 8 == 0x04
    driver.close()
    assert image.read_bytes() == before


def test_verify_reads_and_sees_what_is_gone(hd: Driver, image: Path) -> None:
    assert hd.command(h2d(0x42, 0, SECTORS), []) == OK
    os.truncate(image, 1000 * 512)
    assert hd.command(h2d(0x42, 0, SECTORS), []) == FAILED
    assert hd.get(Px.TFD) >> 8 == 0x40


def test_native_max(hd: Driver) -> None:
    assert hd.command(h2d(0x27), []) == OK
    frame = hd.frame(D2H)
    assert int.from_bytes(frame[4:7] + frame[8:11], "little") == SECTORS - 1
    assert hd.command(h2d(0xF8), []) == OK
    frame = hd.frame(D2H)
    assert int.from_bytes(frame[4:7], "little") | (frame[7] & 0xF) << 24 == SECTORS - 1


def test_power_modes(hd: Driver) -> None:
    assert hd.command(h2d(0xE5), []) == OK
    assert hd.frame(D2H)[12] == 0xFF
    assert hd.command(h2d(0xE0), []) == OK
    hd.command(h2d(0xE5), [])
    assert hd.frame(D2H)[12] == 0x00
    hd.command(h2d(0xE1), [])
    hd.command(h2d(0xE5), [])
    assert hd.frame(D2H)[12] == 0xFF


def test_transfer_modes(hd: Driver) -> None:
    assert words(hd)[88] == 0x407F
    assert hd.command(h2d(0xEF, features=3, count=0x45), []) == OK
    assert words(hd)[88] == 0x207F
    assert hd.command(h2d(0xEF, features=3, count=0x21), []) == OK
    found = words(hd)
    assert found[88] == 0x007F
    assert found[63] == 0x0207
    assert hd.command(h2d(0xEF, features=3, count=0x47), []) == FAILED


def test_set_multiple(hd: Driver) -> None:
    assert hd.command(h2d(0xC6, count=16), []) == OK
    assert words(hd)[59] == 0x0110
    assert hd.command(h2d(0xC6, count=3), []) == FAILED


def test_smart_as_drivers_ask(hd: Driver) -> None:
    smart = 0xC24F00
    for feature in (0xD0, 0xD1):
        assert hd.command(h2d(0xB0, smart, 1, features=feature)) == OK
        assert sum(hd.data()) & 0xFF == 0
    assert hd.command(h2d(0xB0, smart, features=0xDA), []) == OK
    assert hd.frame(D2H)[5:7] == b"\x4f\xc2"
    assert hd.command(h2d(0xB0, smart, features=0xD9), []) == OK
    assert not words(hd)[85] & 1
    assert hd.command(h2d(0xB0, smart, features=0xDA), []) == FAILED
    hd.recover()
    assert hd.command(h2d(0xB0, smart, features=0xD8), []) == OK
    assert hd.command(h2d(0xB0, 0, features=0xD0)) == FAILED


@pytest.mark.parametrize("command", [0x00, 0xF1, 0xF2, 0xF5, 0xF6, 0xA0, 0xA1, 0x45, 0xFF])
def test_what_is_not_there_is_aborted(hd: Driver, command: int) -> None:
    assert hd.command(h2d(command)) == FAILED
    assert hd.get(Px.TFD) >> 8 == 0x04


def test_the_log_directory(hd: Driver) -> None:
    assert hd.command(h2d(0x2F, 0, 1)) == OK
    directory = struct.unpack("<256H", hd.data())
    assert directory[0] == 1
    assert directory[0x10] == 1
    assert hd.command(h2d(0x47, 0, 1)) == OK  # by DMA
    assert struct.unpack("<256H", hd.data()) == directory
    assert hd.command(h2d(0x2F, 0x33, 1)) == FAILED
