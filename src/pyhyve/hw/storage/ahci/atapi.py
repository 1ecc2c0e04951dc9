"""A CD drive: packet commands on an image of 2048-byte sectors.

Documents: ACS-2, IDENTIFY PACKET DEVICE and PACKET; SPC-3 §6 and §4.5 (sense data), MMC-5 §6 for the commands inside.

A packet command takes at most as much data as its allocation length asks for; a read goes straight from the image to
the driver's regions of guest memory. A command that fails ends with a sense key in the error register, and the whole
of the sense data is there for REQUEST SENSE.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

from pyhyve.backends.block import BlockBackend
from pyhyve.hw.storage.ahci.drive import Drive
from pyhyve.hw.storage.ahci.identify import Identity, identify_packet
from pyhyve.hw.storage.ahci.registers import FAILED, OK, AtaError, Header
from pyhyve.hw.storage.ahci.request import Request

SIGNATURE = 0xEB140101
SECTOR = 2048
_ULTRA_DMA_6 = 0x46
_BY_DMA = 0x01  # in the features register of PACKET
_DEVICE_RESET, _EXECUTE_DIAGNOSTIC, _IDENTIFY_DEVICE, _SET_FEATURES = 0x08, 0x90, 0xEC, 0xEF
_PACKET, _IDENTIFY_PACKET = 0xA0, 0xA1
_POWER = (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)
_CHECK_POWER = 0xE5
_TRANSFER_MODE = 0x03
_COMPLETE = 3  # interrupt reason: no more data, command done
_LEAD_OUT = 0xAA
_CDROM_PROFILE = 0x0008


class Scsi(IntEnum):
    """Packet commands."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    START_STOP = 0x1B
    PREVENT_REMOVAL = 0x1E
    READ_CAPACITY = 0x25
    READ_10 = 0x28
    SEEK = 0x2B
    SYNCHRONIZE_CACHE = 0x35
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS = 0x4A
    READ_DISC_INFORMATION = 0x51
    MODE_SENSE_10 = 0x5A
    REPORT_LUNS = 0xA0
    READ_12 = 0xA8


class Sense(NamedTuple):
    """Sense key, additional code and its qualifier."""

    key: int
    code: int
    qualifier: int = 0


NOTHING = Sense(0, 0)
NO_MEDIUM = Sense(2, 0x3A)
MEDIUM_ERROR = Sense(3, 0x11)
BAD_OPCODE = Sense(5, 0x20)
OUT_OF_RANGE = Sense(5, 0x21)
BAD_FIELD = Sense(5, 0x24)
WAS_RESET = Sense(6, 0x29)
_ANYTIME = (Scsi.INQUIRY, Scsi.REQUEST_SENSE, Scsi.GET_EVENT_STATUS, Scsi.GET_CONFIGURATION, Scsi.REPORT_LUNS)
"""What a drive answers before it has told that it was reset."""


class AtapiDrive(Drive):
    """A CD drive with a disc in it, at the end of a port."""

    signature = SIGNATURE
    ready_status = 0
    _FIELDS = ("_key", "_code", "_qualifier", "_loaded", "_transfer_mode")

    def __init__(self, backend: BlockBackend, identity: Identity) -> None:
        super().__init__(backend, identity)
        self._sectors = backend.size // SECTOR
        self._key, self._code, self._qualifier = WAS_RESET
        self._loaded = True
        self._transfer_mode = _ULTRA_DMA_6
        self._packets: dict[int, Callable[[Request, bytes], None]] = {
            Scsi.TEST_UNIT_READY: self._test_ready,
            Scsi.REQUEST_SENSE: self._request_sense,
            Scsi.INQUIRY: self._inquiry,
            Scsi.MODE_SENSE_6: self._mode_sense,
            Scsi.MODE_SENSE_10: self._mode_sense,
            Scsi.START_STOP: self._start_stop,
            Scsi.PREVENT_REMOVAL: self._succeed,
            Scsi.SEEK: self._test_ready,
            Scsi.SYNCHRONIZE_CACHE: self._succeed,
            Scsi.READ_CAPACITY: self._read_capacity,
            Scsi.READ_10: self._read,
            Scsi.READ_12: self._read,
            Scsi.READ_TOC: self._read_toc,
            Scsi.GET_CONFIGURATION: self._get_configuration,
            Scsi.GET_EVENT_STATUS: self._get_event_status,
            Scsi.READ_DISC_INFORMATION: self._read_disc_information,
            Scsi.REPORT_LUNS: self._report_luns,
        }

    def is_queued(self, request: Request) -> bool:
        """Packet devices have no queued commands."""
        return False

    def queue_failed(self, request: Request, status: int, error: int) -> None:
        """Packet devices have no queued commands."""

    def execute(self, request: Request) -> None:
        """Begin an ATA command; most are PACKET."""
        link, tf = self._link, request.tf
        command = tf.command
        if command == _PACKET:
            self._packet(request)
        elif command == _IDENTIFY_PACKET:
            link.send_pio(request, identify_packet(self._identity, self._transfer_mode))
        elif command == _SET_FEATURES and tf.features & 0xFF == _TRANSFER_MODE:
            self._transfer_mode = tf.count & 0xFF
            link.finish(request, OK)
        elif command in _POWER:
            link.finish(request, OK)
        elif command == _CHECK_POWER:
            link.finish(request, OK, count=0xFF)
        elif command in (_DEVICE_RESET, _EXECUTE_DIAGNOSTIC):
            self.reset()
            link.finish(request, self.ready_status, 0x01, lba=SIGNATURE >> 8, count=SIGNATURE & 0xFF)
        elif command == _IDENTIFY_DEVICE:  # the signature says what it is
            link.finish(request, FAILED, AtaError.ABORTED, lba=SIGNATURE >> 8, count=SIGNATURE & 0xFF)
        else:
            link.finish(request, FAILED, AtaError.ABORTED)

    # -- packets --

    def _packet(self, request: Request) -> None:
        if not request.flags & Header.ATAPI:
            self._link.finish(request, FAILED, AtaError.ABORTED)
            return
        packet = request.packet()
        handler = self._packets.get(packet[0])
        if self._key == WAS_RESET.key and packet[0] not in _ANYTIME:
            sense = Sense(self._key, self._code, self._qualifier)
            self._fail(request, sense)
            self._set_sense(NOTHING)
        elif handler is None:
            self._fail(request, BAD_OPCODE)
        else:
            handler(request, packet)

    def _set_sense(self, sense: Sense) -> None:
        self._key, self._code, self._qualifier = sense

    def _fail(self, request: Request, sense: Sense) -> None:
        self._set_sense(sense)
        self._link.finish(request, FAILED, sense.key << 4 | AtaError.ABORTED, count=_COMPLETE)

    def _succeed(self, request: Request, packet: bytes = b"") -> None:
        if packet[:1] != bytes((Scsi.REQUEST_SENSE,)):
            self._set_sense(NOTHING)
        self._link.finish(request, OK, count=_COMPLETE)

    def _send(self, request: Request, packet: bytes, data: bytes, allocated: int) -> None:
        """The command ends well with as much of ``data`` as the driver has room for."""
        data = data[:allocated]
        sent = request.put(data)
        if not request.tf.features & _BY_DMA and sent:
            self._link.pio_setup(request, sent, to_host=True, end_status=OK)
        self._succeed(request, packet)

    def _test_ready(self, request: Request, packet: bytes) -> None:
        if self._loaded:
            self._succeed(request)
        else:
            self._fail(request, NO_MEDIUM)

    def _request_sense(self, request: Request, packet: bytes) -> None:
        data = struct.pack(">BBBIBIBBBBH", 0x70, 0, self._key, 0, 10, 0, self._code, self._qualifier, 0, 0, 0)
        self._set_sense(NOTHING)
        self._send(request, packet, data, packet[4])

    def _inquiry(self, request: Request, packet: bytes) -> None:
        if packet[1] & 1:  # vital product data
            pages = {0x00: b"\x05\x00\x00\x01\x00"}
            if packet[2] not in pages:
                self._fail(request, BAD_FIELD)
                return
            self._send(request, packet, pages[packet[2]], packet[3] << 8 | packet[4])
            return
        if packet[2]:
            self._fail(request, BAD_FIELD)
            return
        vendor, _, product = self._identity.model.partition(" ")
        data = bytes((0x05, 0x80, 0x05, 0x32, 31, 0, 0, 0))
        data += (
            vendor.encode()[:8].ljust(8)
            + product.encode()[:16].ljust(16)
            + self._identity.revision.encode()[:4].ljust(4)
        )
        self._send(request, packet, data, packet[3] << 8 | packet[4])

    def _mode_sense(self, request: Request, packet: bytes) -> None:
        page, control = packet[2] & 0x3F, packet[2] >> 6
        pages = {
            0x01: struct.pack(">BBBBIHH", 0x01, 10, 0, 5, 0, 0, 0),  # error recovery: five retries
            0x0E: bytes((0x0E, 14, 4)) + bytes(13),  # audio control
            0x2A: self._capabilities_page(),
        }
        if control == 3 or page not in (*pages, 0x3F):
            self._fail(request, BAD_FIELD)
            return
        body = b"".join(pages.values()) if page == 0x3F else pages[page]
        if packet[0] == Scsi.MODE_SENSE_6:
            self._send(request, packet, struct.pack(">BBBB", len(body) + 3, 0, 0, 0) + body, packet[4])
        else:
            head = struct.pack(">HBBHH", len(body) + 6, 0, 0, 0, 0)
            self._send(request, packet, head + body, packet[7] << 8 | packet[8])

    @staticmethod
    def _capabilities_page() -> bytes:
        # reads CD-R, CD-RW; multi-session; tray, can be locked and ejected; 64 times, 512 KB buffer
        return struct.pack(
            ">BBBBBBBBHHHHBBHHH", 0x2A, 20, 0x03, 0, 0x41, 0, 0x29, 0, 11280, 0, 512, 11280, 0, 0, 0, 0, 0
        )

    def _start_stop(self, request: Request, packet: bytes) -> None:
        if packet[4] & 0x02:
            self._loaded = bool(packet[4] & 0x01)
        self._succeed(request)

    def _read_capacity(self, request: Request, packet: bytes) -> None:
        if not self._loaded:
            self._fail(request, NO_MEDIUM)
            return
        self._send(request, packet, struct.pack(">II", min(self._sectors - 1, 0xFFFFFFFF), SECTOR), 8)

    def _read(self, request: Request, packet: bytes) -> None:
        lba = int.from_bytes(packet[2:6], "big")
        count = int.from_bytes(packet[7:9] if packet[0] == Scsi.READ_10 else packet[6:10], "big")
        if not self._loaded:
            self._fail(request, NO_MEDIUM)
            return
        if lba + count > self._sectors:
            self._fail(request, OUT_OF_RANGE)
            return
        if not count:
            self._succeed(request)
            return
        length = count * SECTOR
        buffers = request.buffers(length)

        def then(error: int) -> None:
            request.received()
            if error:
                self._fail(request, MEDIUM_ERROR)
                return
            if not request.tf.features & _BY_DMA:
                self._link.pio_setup(request, length, to_host=True, end_status=OK)
            self._succeed(request)

        self._link.run(request, iter([partial(self._backend.readv, lba * SECTOR, buffers)]), then)

    def _read_toc(self, request: Request, packet: bytes) -> None:
        if not self._loaded:
            self._fail(request, NO_MEDIUM)
            return
        msf, kind, track = bool(packet[1] & 2), packet[2] & 0xF or packet[9] >> 6, packet[6]

        def entry(number: int, lba: int) -> bytes:
            where = _msf(lba) if msf else lba & 0xFFFFFFFF
            return struct.pack(">BBBBI", 0, 0x14, number, 0, where)

        match kind:
            case 0 if track <= 1 or track == _LEAD_OUT:
                entries = (entry(1, 0) if track <= 1 else b"") + entry(_LEAD_OUT, self._sectors)
            case 1:
                entries = entry(1, 0)
            case 2:
                points = ((0xA0, 0x00010000), (0xA1, 0x00010000), (0xA2, _msf(self._sectors)), (1, _msf(0)))
                entries = b"".join(
                    struct.pack(">BBBBBBBI", 1, 0x14, 0, point, 0, 0, 0, where) for point, where in points
                )
            case _:
                self._fail(request, BAD_FIELD)
                return
        data = struct.pack(">HBB", len(entries) + 2, 1, 1) + entries
        self._send(request, packet, data, packet[7] << 8 | packet[8])

    def _get_configuration(self, request: Request, packet: bytes) -> None:
        asked, first = packet[1] & 3, packet[2] << 8 | packet[3]
        current = int(self._loaded)
        features = {
            0x0000: struct.pack(">HBBHBB", 0x0000, 0x03, 4, _CDROM_PROFILE, current, 0),
            0x0001: struct.pack(">HBBII", 0x0001, 0x0B, 8, 7, 1),  # core, on serial ATA
            0x0003: struct.pack(">HBBI", 0x0003, 0x07, 4, 0x29000000),  # removable: tray, eject, lock
            0x0010: struct.pack(">HBBIHH", 0x0010, current, 8, SECTOR, 16, 0),  # random readable
            0x001E: struct.pack(">HBBI", 0x001E, current, 4, 0),  # CD read
        }
        chosen = [
            body
            for code, body in features.items()
            if (code == first if asked == 2 else code >= first) and (asked != 1 or body[2] & 1)
        ]
        body = b"".join(chosen)
        head = struct.pack(">IHH", len(body) + 4, 0, _CDROM_PROFILE if self._loaded else 0)
        self._send(request, packet, head + body, packet[7] << 8 | packet[8])

    def _get_event_status(self, request: Request, packet: bytes) -> None:
        if not packet[1] & 1:  # only polled, never told by itself
            self._fail(request, BAD_FIELD)
            return
        if packet[4] & 0x10:  # media events: none new; is there a disc
            data = struct.pack(">HBBBBBB", 6, 0x04, 0x10, 0, 0x02 if self._loaded else 0, 0, 0)
        else:
            data = struct.pack(">HBB", 2, 0x80, 0x10)
        self._send(request, packet, data, packet[7] << 8 | packet[8])

    def _read_disc_information(self, request: Request, packet: bytes) -> None:
        if not self._loaded:
            self._fail(request, NO_MEDIUM)
            return
        # one finished session with one track, on a disc that is complete
        data = struct.pack(">HBBBBBB", 32, 0x0E, 1, 1, 1, 1, 0x20) + bytes(8) + b"\xff" * 8 + bytes(10)
        self._send(request, packet, data, packet[7] << 8 | packet[8])

    def _report_luns(self, request: Request, packet: bytes) -> None:
        self._send(request, packet, struct.pack(">IIQ", 8, 0, 0), int.from_bytes(packet[6:10], "big"))

    # -- lifecycle --

    def reset(self) -> None:
        """By the link or the control register; the next command hears of it."""
        self._set_sense(WAS_RESET)
        self._loaded = True
        self._transfer_mode = _ULTRA_DMA_6


def _msf(lba: int) -> int:
    """An address as minute, second and frame, a byte each."""
    frames = lba + 150
    return (frames // (75 * 60) & 0xFF) << 16 | frames // 75 % 60 << 8 | frames % 75
