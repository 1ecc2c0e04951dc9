"""An ATA disk: the commands of ACS-2 that drivers use, on a block backend.

Document: ATA/ATAPI Command Set - 2 (ACS-2), §7; queued commands: §7.64 and §7.66, their errors §7.24.

Reads and writes become one backend request each, whose buffers are the driver's own regions of guest memory; a small
read that the host has in its cache is done at once; a write
that has to be on the medium when it ends (FUA, or the write cache off) is followed by a flush. What the host cannot do
is an uncorrectable error of that command.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial

from pyhyve.backends.block import BlockBackend
from pyhyve.hw.storage.ahci import logs
from pyhyve.hw.storage.ahci.drive import Drive, Step
from pyhyve.hw.storage.ahci.fis import LBA_MODE
from pyhyve.hw.storage.ahci.identify import Identity, identify_disk
from pyhyve.hw.storage.ahci.logs import Log, QueuedError, Smart
from pyhyve.hw.storage.ahci.registers import FAILED, OK, SLOTS, AtaError
from pyhyve.hw.storage.ahci.request import Request

SIGNATURE = 0x00000101
TRIM_BLOCKS = 8
"""512-byte blocks of ranges that one DATA SET MANAGEMENT takes."""
VERIFY_BYTES = 1 << 20
SMALL = 32 << 10
"""Bytes up to which a read is worth a look at the host's cache before it goes to another thread."""
_FUA = 0x80
_TRIM = 0x01
_ULTRA_DMA_6 = 0x46
_RANGES_PER_BLOCK = 64


class Command(IntEnum):
    NOP = 0x00
    DATA_SET_MANAGEMENT = 0x06
    READ_SECTORS = 0x20
    READ_SECTORS_EXT = 0x24
    READ_DMA_EXT = 0x25
    READ_NATIVE_MAX_EXT = 0x27
    READ_MULTIPLE_EXT = 0x29
    READ_LOG_EXT = 0x2F
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_EXT = 0x34
    WRITE_DMA_EXT = 0x35
    WRITE_MULTIPLE_EXT = 0x39
    WRITE_DMA_FUA_EXT = 0x3D
    READ_VERIFY = 0x40
    READ_VERIFY_EXT = 0x42
    READ_LOG_DMA_EXT = 0x47
    READ_QUEUED = 0x60
    WRITE_QUEUED = 0x61
    DIAGNOSTIC = 0x90
    INITIALIZE_PARAMETERS = 0x91
    SMART = 0xB0
    READ_MULTIPLE = 0xC4
    WRITE_MULTIPLE = 0xC5
    SET_MULTIPLE = 0xC6
    READ_DMA = 0xC8
    WRITE_DMA = 0xCA
    WRITE_MULTIPLE_FUA_EXT = 0xCE
    STANDBY_IMMEDIATE = 0xE0
    IDLE_IMMEDIATE = 0xE1
    STANDBY = 0xE2
    IDLE = 0xE3
    CHECK_POWER = 0xE5
    SLEEP = 0xE6
    FLUSH = 0xE7
    FLUSH_EXT = 0xEA
    IDENTIFY = 0xEC
    SET_FEATURES = 0xEF
    READ_NATIVE_MAX = 0xF8


class Feature(IntEnum):
    """Subcommands of SET FEATURES."""

    ENABLE_CACHE = 0x02
    TRANSFER_MODE = 0x03
    DISABLE_LOOK_AHEAD = 0x55
    DISABLE_CACHE = 0x82
    ENABLE_LOOK_AHEAD = 0xAA


_QUEUED = frozenset(map(int, (Command.READ_QUEUED, Command.WRITE_QUEUED)))
_STANDBY_POWER, _ACTIVE_POWER = 0x00, 0xFF
_SPIN_DOWN = (Command.STANDBY, Command.STANDBY_IMMEDIATE, Command.SLEEP)
# command -> writes, has 48-bit address and 16-bit count, by PIO, on the medium when it ends
_TRANSFERS: dict[int, tuple[bool, bool, bool, bool]] = {
    Command.READ_SECTORS: (False, False, True, False),
    Command.READ_SECTORS_EXT: (False, True, True, False),
    Command.READ_MULTIPLE: (False, False, True, False),
    Command.READ_MULTIPLE_EXT: (False, True, True, False),
    Command.READ_DMA: (False, False, False, False),
    Command.READ_DMA_EXT: (False, True, False, False),
    Command.WRITE_SECTORS: (True, False, True, False),
    Command.WRITE_SECTORS_EXT: (True, True, True, False),
    Command.WRITE_MULTIPLE: (True, False, True, False),
    Command.WRITE_MULTIPLE_EXT: (True, True, True, False),
    Command.WRITE_MULTIPLE_FUA_EXT: (True, True, True, True),
    Command.WRITE_DMA: (True, False, False, False),
    Command.WRITE_DMA_EXT: (True, True, False, False),
    Command.WRITE_DMA_FUA_EXT: (True, True, False, True),
}


class AtaDisk(Drive):
    """A disk at the end of a port."""

    signature = SIGNATURE
    ready_status = OK
    _FIELDS = ("_write_cache", "_look_ahead", "_smart", "_transfer_mode", "_multiple", "_standby")

    def __init__(self, backend: BlockBackend, identity: Identity) -> None:
        super().__init__(backend, identity)
        self._sector = backend.sector.logical
        self._sectors = backend.size // self._sector
        self._queued_error: QueuedError | None = None
        self._write_cache = True
        self._look_ahead = True
        self._smart = True
        self._transfer_mode = _ULTRA_DMA_6
        self._multiple = 128
        self._standby = False
        succeed: Callable[[Request], None] = self._succeed
        self._commands: dict[int, Callable[[Request], None]] = {
            **dict.fromkeys(_TRANSFERS, self._transfer),
            Command.DATA_SET_MANAGEMENT: self._data_set_management,
            Command.READ_NATIVE_MAX: self._native_max,
            Command.READ_NATIVE_MAX_EXT: self._native_max,
            Command.READ_LOG_EXT: self._read_log,
            Command.READ_LOG_DMA_EXT: self._read_log,
            Command.READ_VERIFY: self._verify,
            Command.READ_VERIFY_EXT: self._verify,
            Command.READ_QUEUED: self._queued,
            Command.WRITE_QUEUED: self._queued,
            Command.DIAGNOSTIC: self._diagnose,
            Command.INITIALIZE_PARAMETERS: succeed,
            Command.SMART: self._smart_command,
            Command.SET_MULTIPLE: self._set_multiple,
            Command.STANDBY_IMMEDIATE: self._power,
            Command.IDLE_IMMEDIATE: self._power,
            Command.STANDBY: self._power,
            Command.IDLE: self._power,
            Command.SLEEP: self._power,
            Command.CHECK_POWER: self._check_power,
            Command.FLUSH: self._flush,
            Command.FLUSH_EXT: self._flush,
            Command.IDENTIFY: self._identify,
            Command.SET_FEATURES: self._set_features,
        }

    def is_queued(self, request: Request) -> bool:
        """READ and WRITE FPDMA QUEUED."""
        return request.tf.command in _QUEUED

    def execute(self, request: Request) -> None:
        """Begin a command. One that is not known, security for example, is aborted."""
        self._commands.get(request.tf.command, self._abort)(request)

    def queue_failed(self, request: Request, status: int, error: int) -> None:
        """For log 0x10."""
        tf = request.tf
        self._queued_error = QueuedError(tf.count >> 3 & 0x1F, status, error, tf.lba, tf.device, tf.features)

    def _succeed(self, request: Request) -> None:
        self._link.finish(request, OK)

    def _abort(self, request: Request) -> None:
        self._link.finish(request, FAILED, AtaError.ABORTED)

    def _end(self, request: Request, error: int) -> None:
        """A command ends as its host requests did."""
        if error == errno.EROFS:
            self._link.finish(request, FAILED, AtaError.ABORTED)
        elif error:
            self._link.finish(request, FAILED, AtaError.UNCORRECTABLE)
        else:
            self._link.finish(request, OK)

    # -- data --

    def _range(self, request: Request, wide: bool) -> tuple[int, int] | None:
        """First sector and count of an ordinary command; None, and the command has ended, if they are wrong."""
        tf = request.tf
        lba, count = tf.lba, tf.count or 0x10000
        if not wide:
            lba = tf.lba & 0xFFFFFF | (tf.device & 0xF) << 24
            count = tf.count & 0xFF or 0x100
        if not tf.device & LBA_MODE:
            self._abort(request)
            return None
        return self._check(request, lba, count)

    def _check(self, request: Request, lba: int, count: int) -> tuple[int, int] | None:
        if lba + count > self._sectors:
            self._link.finish(request, FAILED, AtaError.NOT_FOUND)
            return None
        return lba, count

    def _transfer(self, request: Request) -> None:
        writes, wide, by_pio, to_medium = _TRANSFERS[request.tf.command]
        found = self._range(request, wide)
        if found is None:
            return
        length = found[1] * self._sector
        if writes:
            if by_pio:
                self._link.pio_setup(request, length, to_host=False, end_status=OK)
            self._write(request, found, to_medium)
            return

        def then(error: int) -> None:
            request.received()
            if by_pio and not error:
                self._link.pio_setup(request, length, to_host=True, end_status=OK)
            self._end(request, error)

        self._read(request, found, then)

    def _queued(self, request: Request) -> None:
        tf = request.tf
        if tf.count >> 3 & 0x1F != request.slot:
            self._abort(request)
            return
        found = self._check(request, tf.lba, tf.features or 0x10000)
        if found is None:
            return
        if tf.command == Command.WRITE_QUEUED:
            self._write(request, found, bool(tf.device & _FUA))
            return

        def then(error: int) -> None:
            request.received()
            self._end(request, error)

        self._read(request, found, then)

    def _read(self, request: Request, found: tuple[int, int], then: Callable[[int], None]) -> None:
        lba, count = found
        offset, buffers = lba * self._sector, request.buffers(count * self._sector)
        if count * self._sector <= SMALL and self._backend.read_cached(offset, buffers):
            then(0)
        else:
            self._link.run(request, iter([partial(self._backend.readv, offset, buffers)]), then)

    def _write(self, request: Request, found: tuple[int, int], to_medium: bool) -> None:
        lba, count = found
        steps: list[Step] = [partial(self._backend.writev, lba * self._sector, request.buffers(count * self._sector))]
        if to_medium or not self._write_cache:
            steps.append(self._backend.flush)

        def then(error: int) -> None:
            request.sent()
            self._end(request, error)

        self._link.run(request, iter(steps), then)

    def _verify(self, request: Request) -> None:
        found = self._range(request, request.tf.command == Command.READ_VERIFY_EXT)
        if found is None:
            return
        start, end = found[0] * self._sector, (found[0] + found[1]) * self._sector

        def steps() -> Iterator[Step]:
            for at in range(start, end, VERIFY_BYTES):
                yield partial(self._backend.readv, at, [memoryview(bytearray(min(VERIFY_BYTES, end - at)))])

        self._link.run(request, steps(), partial(self._end, request))

    def _data_set_management(self, request: Request) -> None:
        blocks = request.tf.count
        if not request.tf.features & _TRIM or not self._backend.can_discard or not 0 < blocks <= TRIM_BLOCKS:
            self._abort(request)
            return
        ranges = []
        for (entry,) in struct.iter_unpack("<Q", request.take(512 * blocks)):
            lba, count = entry & 0xFFFFFFFFFFFF, entry >> 48
            if count and lba + count > self._sectors:
                self._link.finish(request, FAILED, AtaError.ABORTED)
                return
            if count:
                ranges.append((lba * self._sector, count * self._sector))
        steps: Iterator[Step] = (partial(self._backend.discard, *each) for each in ranges)
        self._link.run(request, steps, partial(self._end, request))

    def _flush(self, request: Request) -> None:
        self._link.run(request, iter([self._backend.flush]), partial(self._end, request))

    # -- what the disk is --

    def _identify(self, request: Request) -> None:
        self._link.send_pio(request, self.identify_data())

    def identify_data(self) -> bytes:
        """IDENTIFY DEVICE as it is now."""
        return identify_disk(
            self._identity,
            self._sectors,
            self._backend.sector,
            queue_depth=SLOTS,
            trim_blocks=TRIM_BLOCKS if self._backend.can_discard else 0,
            write_cache=self._write_cache,
            look_ahead=self._look_ahead,
            smart=self._smart,
            transfer_mode=self._transfer_mode,
            multiple=self._multiple,
        )

    def _native_max(self, request: Request) -> None:
        last = self._sectors - 1
        if request.tf.command == Command.READ_NATIVE_MAX:
            last = min(last, 0x0FFFFFFF)
            self._link.finish(request, OK, lba=last & 0xFFFFFF, device=LBA_MODE | last >> 24)
        else:
            self._link.finish(request, OK, lba=last)

    def _read_log(self, request: Request) -> None:
        tf = request.tf
        address, first = tf.lba & 0xFF, tf.lba >> 8 & 0xFF | (tf.lba >> 32 & 0xFF) << 8
        pages = {Log.DIRECTORY: logs.directory, Log.QUEUED_ERROR: self._error_page}
        if address not in pages or first or tf.count != 1:
            self._abort(request)
            return
        self._send(request, pages[Log(address)]())

    def _send(self, request: Request, page: bytes) -> None:
        if request.tf.command == Command.READ_LOG_DMA_EXT:
            request.put(page)
            self._link.finish(request, OK)
        else:
            self._link.send_pio(request, page)

    def _error_page(self) -> bytes:
        failed, self._queued_error = self._queued_error, None
        return logs.with_checksum(logs.NO_QUEUED_ERROR) if failed is None else failed.page()

    def _smart_command(self, request: Request) -> None:
        tf = request.tf
        if tf.lba >> 8 & 0xFFFF != logs.SMART_SIGNATURE or not (self._smart or tf.features & 0xFF == Smart.ENABLE):
            self._abort(request)
            return
        match tf.features & 0xFF:
            case Smart.READ_DATA:
                self._link.send_pio(request, logs.smart_data())
            case Smart.READ_THRESHOLDS:
                self._link.send_pio(request, logs.smart_thresholds())
            case Smart.READ_LOG if tf.lba & 0xFF == Log.DIRECTORY:
                self._link.send_pio(request, logs.directory())
            case Smart.ENABLE | Smart.DISABLE:
                self._smart = tf.features & 0xFF == Smart.ENABLE
                self._succeed(request)
            case Smart.AUTOSAVE | Smart.OFFLINE_IMMEDIATE | Smart.RETURN_STATUS:
                self._succeed(request)  # the signature comes back unchanged: no threshold exceeded
            case _:
                self._abort(request)

    # -- what the disk is set to --

    def _set_multiple(self, request: Request) -> None:
        count = request.tf.count & 0xFF
        if count > 128 or count & (count - 1):
            self._abort(request)
            return
        self._multiple = count
        self._succeed(request)

    def _set_features(self, request: Request) -> None:
        tf = request.tf
        match tf.features & 0xFF:
            case Feature.ENABLE_CACHE:
                self._write_cache = True
            case Feature.DISABLE_CACHE:
                # what is in the cache so far goes to the medium
                self._write_cache = False
                self._flush(request)
                return
            case Feature.ENABLE_LOOK_AHEAD | Feature.DISABLE_LOOK_AHEAD:
                self._look_ahead = tf.features & 0xFF == Feature.ENABLE_LOOK_AHEAD
            case Feature.TRANSFER_MODE if self._is_mode(tf.count & 0xFF):
                self._transfer_mode = tf.count & 0xFF
            case _:
                self._abort(request)
                return
        self._succeed(request)

    @staticmethod
    def _is_mode(mode: int) -> bool:
        """PIO default, PIO flow control 0-4, multiword DMA 0-2, ultra DMA 0-6."""
        return mode in (0, 1) or 0x08 <= mode <= 0x0C or 0x20 <= mode <= 0x22 or 0x40 <= mode <= 0x46

    def _power(self, request: Request) -> None:
        self._standby = request.tf.command in _SPIN_DOWN
        if self._standby:
            self._flush(request)
        else:
            self._succeed(request)

    def _check_power(self, request: Request) -> None:
        self._link.finish(request, OK, count=_STANDBY_POWER if self._standby else _ACTIVE_POWER)

    def _diagnose(self, request: Request) -> None:
        self._link.finish(request, OK, 0x01, lba=self.signature >> 8, count=self.signature & 0xFF)

    # -- lifecycle --

    def reset(self) -> None:
        """By the link or the control register: every setting as after power-on."""
        self._queued_error = None
        self._standby = False
        self._write_cache = self._look_ahead = self._smart = True
        self._transfer_mode = _ULTRA_DMA_6
        self._multiple = 128
