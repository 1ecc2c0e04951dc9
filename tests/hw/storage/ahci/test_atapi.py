"""What a CD drive answers to packets."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyhyve.hw.storage.ahci.registers import Irq, Px
from tests.hw.storage.ahci.conftest import SECTORS
from tests.hw.storage.ahci.driver import D2H, DATA, PIO, Driver, h2d

OK, FAILED = 0x50, 0x51
BLOCKS = SECTORS // 4


@pytest.fixture
def drive(dvd: Driver) -> Driver:
    """A drive that has told of its reset."""
    status, _ = dvd.packet(bytes(6))
    assert status == FAILED
    assert dvd.get(Px.TFD) >> 12 == 6
    dvd.recover()
    return dvd


def sense(driver: Driver) -> tuple[int, int]:
    driver.recover()
    _, data = driver.packet(bytes((3, 0, 0, 0, 18)))
    assert data[0] == 0x70
    assert len(data) == 18
    return data[2], data[12]


def test_its_signature_tells_a_packet_device(dvd: Driver) -> None:
    assert dvd.get(Px.SIG) == 0xEB140101
    assert dvd.command(h2d(0xEC)) == FAILED
    dvd.recover()
    assert dvd.command(h2d(0xA1)) == OK
    words = struct.unpack("<256H", dvd.data())
    assert words[0] == 0x8580
    assert struct.pack(">20H", *words[27:47]).decode().rstrip() == "BHYVE SATA DVD ROM"


def test_a_reset_is_told_once(drive: Driver) -> None:
    assert drive.packet(bytes(6)) == (OK, b"")


def test_inquiry_is_answered_before_the_reset_is_told(dvd: Driver) -> None:
    status, data = dvd.packet(bytes((0x12, 0, 0, 0, 96)))
    assert status == OK
    assert len(data) == 36
    assert data[0] == 5
    assert data[1] == 0x80
    assert data[8:16] == b"BHYVE   "
    assert data[16:32] == b"SATA DVD ROM    "
    assert dvd.packet(bytes((0x12, 0, 0, 0, 5)))[1] == data[:5]


def test_capacity(drive: Driver) -> None:
    assert drive.packet(bytes((0x25,)) + bytes(9)) == (OK, struct.pack(">II", BLOCKS - 1, 2048))


@pytest.mark.parametrize("dma", [True, False])
@pytest.mark.parametrize("opcode", [0x28, 0xA8])
def test_reading(drive: Driver, image: Path, opcode: int, dma: bool) -> None:
    count = struct.pack(">BHB", 0, 3, 0) if opcode == 0x28 else struct.pack(">I", 3)
    status, data = drive.packet(struct.pack(">BBI", opcode, 0, 7) + count, 8192, dma=dma)
    assert status == OK
    assert data == image.read_bytes()[7 * 2048 : 10 * 2048]
    assert drive.frame(D2H)[12] == 3
    assert bool(drive.get(Px.IS) & Irq.PIO_SETUP) is not dma
    if not dma:
        assert int.from_bytes(drive.frame(PIO)[16:18], "little") == 6144


def test_reading_behind_the_end(drive: Driver) -> None:
    status, data = drive.packet(struct.pack(">BBIBHB", 0x28, 0, BLOCKS - 1, 0, 2, 0))
    assert (status, data) == (FAILED, b"")
    assert drive.get(Px.TFD) >> 8 == 0x54
    assert sense(drive) == (5, 0x21)
    assert sense(drive) == (0, 0)


def test_a_disc_that_was_cut_is_a_medium_error(drive: Driver, image: Path) -> None:
    import os

    os.truncate(image, 2048)
    status, _ = drive.packet(struct.pack(">BBIBHB", 0x28, 0, 100, 0, 1, 0))
    assert status == FAILED
    assert sense(drive) == (3, 0x11)


def test_the_table_of_contents(drive: Driver) -> None:
    _, data = drive.packet(struct.pack(">BBBBBBBHB", 0x43, 0, 0, 0, 0, 0, 0, 100, 0))
    assert data == struct.pack(">HBBBBBBIBBBBI", 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0x14, 0xAA, 0, BLOCKS)
    _, data = drive.packet(struct.pack(">BBBBBBBHB", 0x43, 2, 0, 0, 0, 0, 0xAA, 100, 0))
    minute, second, frame = data[9:12]
    assert (minute * 60 + second) * 75 + frame == BLOCKS + 150
    _, data = drive.packet(struct.pack(">BBBBBBBHB", 0x43, 0, 1, 0, 0, 0, 0, 12, 0))
    assert data[:4] == struct.pack(">HBB", 10, 1, 1)
    _, data = drive.packet(struct.pack(">BBBBBBBHB", 0x43, 0, 2, 0, 0, 0, 0, 100, 0))
    assert len(data) == 4 + 4 * 11
    assert data[:2] == struct.pack(">H", 46)


@pytest.mark.parametrize("page", [0x01, 0x0E, 0x2A, 0x3F])
def test_mode_sense_lengths_are_right(drive: Driver, page: int) -> None:
    _, data = drive.packet(bytes((0x5A, 0, page, 0, 0, 0, 0, 1, 0)))
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    at = 8
    while at < len(data):
        at += 2 + data[at + 1]
    assert at == len(data)
    _, short = drive.packet(bytes((0x1A, 0, page, 0, 255)))
    assert short[0] == len(short) - 1
    assert short[4:] == data[8:]


def test_configuration(drive: Driver) -> None:
    _, data = drive.packet(bytes((0x46, 0, 0, 0, 0, 0, 0, 1, 0)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[6:8] == b"\0\x08"  # a CD-ROM
    at = 8
    while at < len(data):
        at += 4 + data[at + 3]
    assert at == len(data)
    _, one = drive.packet(bytes((0x46, 2, 0, 0x1E, 0, 0, 0, 1, 0)))
    assert one[8:10] == b"\0\x1e"
    assert len(one) == 16


def test_events_are_polled(drive: Driver) -> None:
    assert drive.packet(bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)))[1] == bytes((0, 6, 4, 0x10, 0, 2, 0, 0))
    assert drive.packet(bytes((0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8)))[0] == FAILED
    assert sense(drive) == (5, 0x24)


def test_the_tray(drive: Driver) -> None:
    assert drive.packet(bytes((0x1E, 0, 0, 0, 1)))[0] == OK
    assert drive.packet(bytes((0x1B, 0, 0, 0, 2)))[0] == OK
    assert drive.packet(bytes(6))[0] == FAILED
    assert sense(drive) == (2, 0x3A)
    assert drive.packet(struct.pack(">BBIBHB", 0x28, 0, 0, 0, 1, 0))[0] == FAILED
    drive.recover()
    assert drive.packet(bytes((0x1B, 0, 0, 0, 3)))[0] == OK
    assert drive.packet(bytes(6))[0] == OK


def test_an_unknown_packet_says_so(drive: Driver) -> None:
    assert drive.packet(bytes((0x55,)))[0] == FAILED
    assert sense(drive) == (5, 0x20)


def test_other_answers(drive: Driver) -> None:
    assert drive.packet(struct.pack(">BBIIBB", 0xA0, 0, 0, 64, 0, 0))[1] == struct.pack(">IIQ", 8, 0, 0)
    _, data = drive.packet(bytes((0x51, 0, 0, 0, 0, 0, 0, 0, 64)))
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert drive.command(h2d(0xE5), []) == OK
    assert drive.command(h2d(0xEF, features=3, count=0x45), []) == OK
    assert drive.command(h2d(0xEF, features=0x99), []) == FAILED


def test_a_packet_command_without_a_packet_is_aborted(drive: Driver) -> None:
    assert drive.command(h2d(0xA0, features=1)) == FAILED


def test_less_room_than_data_takes_what_fits(drive: Driver) -> None:
    status, data = drive.packet(bytes((0x12, 0, 0, 0, 96)), 8)
    assert status == OK
    assert len(data) == 8
    status, _ = drive.packet(struct.pack(">BBIBHB", 0x28, 0, 0, 0, 2, 0), 2048)
    assert drive.get(Px.IS) & Irq.OVERFLOW
    assert drive.memory.read(DATA + 2048, 2048) == bytes(2048)


def test_device_reset_tells_of_a_reset_again(drive: Driver) -> None:
    assert drive.command(h2d(0x08), []) == 0
    assert drive.frame(D2H)[4:7] == bytes((0x01, 0x14, 0xEB))
    assert drive.packet(bytes(6))[0] == FAILED
