"""``virtio-blk``: a disk.

Document: Virtual I/O Device (VIRTIO) 1.2, §5.2.

A request is a chain: a header to read (what, and the first sector), data to read or to write, and one byte to write,
the outcome. Data moves between the image and the guest's buffers without a copy here: the block backend gets the
buffers and calls back, in a thread of its own, when it is done. Many requests are under way at a time, and end in any
order.

A flush is done when the host's disk has everything that was written before. A driver that knows no flush, or switches
the cache off, gets a disk without one: each of its writes is flushed before it is done.

Options: those of the block backend, ``ser=`` (the serial number, up to 20 bytes), and ``queues=`` (1 to 16 of them).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag

from pyhyve.backends.block import OPTIONS, open_block
from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.virtio.device import VirtioDevice
from pyhyve.hw.virtio.queue import Chain, Queue

QUEUE_SIZE = 256
SEGMENTS = QUEUE_SIZE - 2
MAX_QUEUES = 16
SECTOR = 512
SERIAL_SIZE = 20
SHORT = 64 << 10
"""Reads of up to so many bytes are done at once where the host has the data in memory: a thread would cost more."""
ALONE = 1 << 20
"""The same for a read that is the only request under way: there is nothing that a thread would let go on meanwhile."""

MAX_RANGES = 16
"""Ranges in one discard or write-zeroes request."""
MAX_RANGE_SECTORS = 1 << 22

_header = struct.Struct("<I4xQ")
_range = struct.Struct("<QII")
# capacity, size_max, seg_max, geometry; block size, exponent, alignment, minimum, optimal; cache, queues;
# discard: sectors, ranges, alignment; write zeroes: sectors, ranges, may unmap
_config = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")


class Feature(IntFlag):
    SEG_MAX = 1 << 2
    READ_ONLY = 1 << 5
    BLOCK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    QUEUES = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class Request(IntEnum):
    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Outcome(IntEnum):
    OK = 0
    IO_ERROR = 1
    UNSUPPORTED = 2


UNMAP = 1
WRITE_BACK = 32
"""Where the configuration says whether writes may be in the host's cache when they end; the driver changes it."""
_IN, _OUT, _OK = int(Request.IN), int(Request.OUT), int(Outcome.OK)


class VirtioBlock(VirtioDevice):
    """The block device."""

    device_id, transitional_id, pci_class = 2, 0x1001, (0x01, 0x00)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        path = options.get("path")
        if not path:
            raise DeviceError("virtio-blk needs a disk: -s slot,virtio-blk,/path/of/image")
        for name in options:
            if name not in OPTIONS | {"legacy", "ser", "queues"}:
                raise DeviceError(f"virtio-blk: unknown option '{name}'")
        queues = _queue_count(options.get("queues", "1"))
        self.serial = _serial(options.get("ser"), path)
        self.backend = backend = open_block(path, options)
        self._size = backend.size
        self._sector_mask = backend.sector.logical - 1
        features = Feature.SEG_MAX | Feature.BLOCK_SIZE | Feature.FLUSH | Feature.TOPOLOGY | Feature.QUEUES
        features |= Feature.CONFIG_WCE
        if backend.read_only:
            features |= Feature.READ_ONLY
        else:
            features |= Feature.WRITE_ZEROES
        if backend.can_discard:
            features |= Feature.DISCARD
        logical, physical = backend.sector
        config = _config.pack(
            backend.size // SECTOR, 0, SEGMENTS, 0, 0, 0,
            logical, (physical // logical).bit_length() - 1, 0, max(1, physical // logical), 0, 1, queues,
            MAX_RANGE_SECTORS, MAX_RANGES, physical // SECTOR, MAX_RANGE_SECTORS, MAX_RANGES, int(backend.can_discard),
        )  # fmt: skip
        try:
            super().__init__(environment, options, queues=[QUEUE_SIZE] * queues, features=features, config=config)
        except BaseException:
            backend.close()
            raise
        self._initial_config = config
        self._emptying = self._empty_again = False

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """The image comes first: ``-s slot,virtio-blk,PATH[,options]``."""
        path, _, rest = conf.partition(",")
        return {"path": path, **super().parse_options(rest)}

    def config_changed(self) -> None:
        """Whether there is a write cache can be written, and nothing else."""
        cached = self.device_config[WRITE_BACK] & 1 if self.negotiated(Feature.CONFIG_WCE) else 1
        self.device_config[:] = self._initial_config
        self.device_config[WRITE_BACK] = cached
        if not cached:
            self._empty_cache()

    def _empty_cache(self) -> None:
        """Flush what was written before the cache was switched off; one flush at a time, however often that is."""
        if self._emptying:
            self._empty_again = True
            return
        self._emptying, self._empty_again = True, False
        self.backend.flush(self._emptied)

    def _emptied(self, error: int) -> None:
        with self.lock:
            self._emptying = False
            if self._empty_again and not self._closed:
                self._empty_cache()

    def device_reset(self) -> None:
        """A driver finds a disk with a cache."""
        self.device_config[:] = self._initial_config

    def handle(self, index: int, ring: Queue) -> None:
        """Start every request."""
        while (chain := ring.pop()) is not None:
            self._start(chain)

    def _start(self, chain: Chain) -> None:
        readable, writable = chain.readable, chain.writable
        if not writable:
            chain.queue.push(chain, 0)  # no place even for the outcome
            return
        if readable and len(readable[0]) == 16:
            header, data = readable[0], readable[1:]
        else:
            whole = chain.read()
            header, data = memoryview(whole[:16]), [memoryview(whole)[16:]]
            if len(header) < 16:
                self._finish(chain, Outcome.IO_ERROR)
                return
        kind, sector = _header.unpack(header)
        if kind == _IN:
            last = writable[-1]
            into = writable[:-1] if len(last) == 1 else [*writable[:-1], last[:-1]]
            length = sum(map(len, into))
            if self._is_inside(sector, length):
                at_once = length <= SHORT or (length <= ALONE and chain.queue.in_flight == 1)
                if at_once and self.backend.read_cached(sector * SECTOR, into):
                    self._finish(chain, _OK, length)
                    return

                def read(error: int) -> None:
                    self._end(chain, error, length)

                self.backend.readv(sector * SECTOR, into, read)
                return
        elif kind == _OUT:
            if self._is_inside(sector, sum(map(len, data))):
                self.backend.writev(sector * SECTOR, data, self._after_write(chain))
                return
        elif kind == Request.FLUSH:
            self.backend.flush(lambda error: self._end(chain, error))
            return
        elif kind == Request.GET_ID:
            room = chain.writable_size - 1
            self._finish(chain, Outcome.OK, chain.write(self.serial.ljust(SERIAL_SIZE, b"\0")[:room]))
            return
        elif kind in (Request.DISCARD, Request.WRITE_ZEROES):
            self._ranges(chain, kind, b"".join(data))
            return
        else:
            self._finish(chain, Outcome.UNSUPPORTED)
            return
        self._finish(chain, Outcome.IO_ERROR)

    def _is_inside(self, sector: int, length: int) -> bool:
        offset = sector * SECTOR
        return not (offset | length) & self._sector_mask and offset + length <= self._size

    def _after_write(self, chain: Chain) -> Callable[[int], None]:
        """What a write does when it is done: with a driver that cannot flush or wants no cache, flush."""
        if self.negotiated(Feature.FLUSH) and self.device_config[WRITE_BACK]:
            return lambda error: self._end(chain, error)

        def written(error: int) -> None:
            if error:
                self._end(chain, error)
            else:
                self.backend.flush(lambda error: self._end(chain, error))

        return written

    def _ranges(self, chain: Chain, kind: int, data: bytes) -> None:
        """Discard or zero up to ``MAX_RANGES`` ranges, one after the other."""
        if not data or len(data) % _range.size or len(data) > MAX_RANGES * _range.size:
            self._finish(chain, Outcome.IO_ERROR)
            return
        ranges = list(_range.iter_unpack(data))
        allowed = UNMAP if kind == Request.WRITE_ZEROES else 0
        if any(flags & ~allowed for _, _, flags in ranges) or (
            kind == Request.DISCARD and not self.backend.can_discard
        ):
            self._finish(chain, Outcome.UNSUPPORTED)
            return
        if any(n > MAX_RANGE_SECTORS or not self._is_inside(sector, n * SECTOR) for sector, n, _ in ranges):
            self._finish(chain, Outcome.IO_ERROR)
            return

        def proceed(error: int) -> None:
            if error or not ranges:
                self._end(chain, error)
                return
            sector, count, flags = ranges.pop(0)
            if kind == Request.DISCARD:
                self.backend.discard(sector * SECTOR, count * SECTOR, proceed)
            else:
                self.backend.write_zeroes(sector * SECTOR, count * SECTOR, proceed, unmap=bool(flags & UNMAP))

        proceed(0)

    def _end(self, chain: Chain, error: int, written: int = 0) -> None:
        """The backend is done, in its thread."""
        chain.writable[-1][-1] = Outcome.IO_ERROR if error else _OK
        self.complete(chain, written + 1)

    def _finish(self, chain: Chain, outcome: int, written: int = 0) -> None:
        """Answer at once, from ``handle``."""
        chain.writable[-1][-1] = outcome
        chain.queue.push(chain, written + 1)

    def close(self) -> None:
        super().close()
        self.backend.close()


def _queue_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_QUEUES:
        raise DeviceError(f"virtio-blk: queues={text}: it is a number from 1 to {MAX_QUEUES}")
    return int(text)


def _serial(given: str | None, path: str) -> bytes:
    """The serial number; by default one made from the path, as bhyve makes it."""
    if given is None:
        digest = hashlib.md5(path.encode(), usedforsecurity=False).hexdigest().upper()
        return f"BHYVE-{digest[:4]}-{digest[4:8]}-{digest[8:12]}".encode()
    serial = given.encode()
    if not 0 < len(serial) <= SERIAL_SIZE:
        raise DeviceError(f"virtio-blk: ser={given}: a serial number has 1 to {SERIAL_SIZE} bytes")
    return serial
