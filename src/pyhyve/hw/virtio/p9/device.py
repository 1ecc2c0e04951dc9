"""``virtio-9p``: the virtio device in front of the 9P server.

Documents: the 9P device of virtio as Linux has it (include/uapi/linux/virtio_9p.h); the protocol is in ``wire``.

One queue. A chain is a request, to be read, and room for its answer, to be written. A request is taken and checked in
the loop's thread and done in one of a few threads of its own, as anything it does can wait for the host's disk. What a
read gives goes from the file into the guest's buffers, what a write takes from there into the file, without a copy.

A flush is answered when the request that it names is; nothing is aborted, since nothing here waits for anybody.

``-s slot,virtio-9p,NAME=/path[,ro]``: the guest mounts NAME.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from enum import IntFlag

from pyhyve.backends.block import is_set
from pyhyve.backends.pool import WorkerPool
from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.virtio.device import VirtioDevice
from pyhyve.hw.virtio.p9 import wire
from pyhyve.hw.virtio.p9.wire import LARGEST_MESSAGE, Kind, Request
from pyhyve.hw.virtio.queue import Chain, Queue
from pyhyve.lifecycle import State, saved_dict

QUEUE_SIZE = 128
LONGEST_TAG = 255
EXAMPLE = "-s slot,virtio-9p,NAME=/path/of/folder[,ro]"


class Feature(IntFlag):
    MOUNT_TAG = 1 << 0


class Virtio9p(VirtioDevice):
    """The 9P device."""

    device_id, transitional_id, pci_class = 9, 0x1009, (0x01, 0x80)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        name, path = options.get("sharename"), options.get("path")
        if not name or not path:
            raise DeviceError(f"virtio-9p needs a folder: {EXAMPLE}")
        for option in options:
            if option not in ("sharename", "path", "ro", "legacy") and not option.startswith("pcireg."):
                raise DeviceError(f"virtio-9p: unknown option '{option}'")
        tag = os.fsencode(name)
        if len(tag) > LONGEST_TAG:
            raise DeviceError(f"virtio-9p: a name of {len(tag)} bytes: it has up to {LONGEST_TAG}")
        # here, as machines without a shared folder have no use for it
        from pyhyve.hw.virtio.p9.files import Share
        from pyhyve.hw.virtio.p9.server import Server

        self.server = Server(Share(path, read_only=is_set(options, "ro")))
        self._running: dict[int, int] = {}
        """How many requests with a tag are being done."""
        self._flushes: dict[int, list[tuple[Chain, int]]] = {}
        """By the tag that they wait for: flushes with their own tags."""
        config = struct.pack("<H", len(tag)) + tag
        try:
            super().__init__(environment, options, queues=[QUEUE_SIZE], features=Feature.MOUNT_TAG, config=config)
        except BaseException:
            self.server.share.close()
            raise
        self._initial_config = config
        self._pool = WorkerPool("9p")

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """``NAME=PATH`` and ``ro``; the variables are ``sharename``, ``path`` and ``ro``."""
        options: dict[str, str] = {}
        for part in conf.split(","):
            name, equals, path = part.partition("=")
            if equals and (name != "ro" or "path" not in options):
                if "path" in options:
                    raise DeviceError(f"virtio-9p: more than one folder: '{part}'")
                options |= {"sharename": name, "path": path}
            elif part:
                options[name] = path if equals else "true"
        return options

    def config_changed(self) -> None:
        """Nothing of it can be written."""
        self.device_config[:] = self._initial_config

    def handle(self, index: int, ring: Queue) -> None:
        """Take every request and have it done."""
        while (chain := ring.pop()) is not None:
            self._start(chain)

    def _start(self, chain: Chain) -> None:
        start = _head(chain, wire.HEADER.size)
        if len(start) < wire.HEADER.size:
            chain.queue.push(chain, 0)  # no message, so no answer
            return
        size, kind, tag = wire.HEADER.unpack(start)
        # A write's data stays where it is; its length is a matter of the chain (Linux before 5.2 said a wrong size).
        size = wire.WRITE_HEADER if kind == Kind.WRITE else size
        whole = b"" if size > LARGEST_MESSAGE else _head(chain, size)
        if len(whole) != size or size < wire.HEADER.size:
            chain.queue.push(chain, self._write(chain, wire.error(tag, errno.EINVAL), tag))
            return
        request = Request(kind, tag, whole[wire.HEADER.size :])
        if kind == Kind.FLUSH and len(request.body) == 2:
            old = int.from_bytes(request.body, "little")
            if old in self._running:
                self._flushes.setdefault(old, []).append((chain, tag))
            else:
                chain.queue.push(chain, self._write(chain, wire.message(Kind.FLUSH + 1, tag), tag))
            return
        self._running[tag] = self._running.get(tag, 0) + 1
        self._pool.submit(lambda: self._do(chain, request), _ignore)

    def _do(self, chain: Chain, request: Request) -> int:
        """Do a request and give its chain back, in a thread of the pool."""
        data = _behind(chain.readable, wire.WRITE_HEADER) if request.kind == Kind.WRITE else []
        room = _behind(chain.writable, wire.READ_HEADER) if request.kind == Kind.READ else []
        answer, more = self.server.answer(request, data, room)
        written = self._write(chain, answer, request.tag)
        with self.lock:
            self.complete(chain, written + more)
            left = self._running.get(request.tag, 1) - 1
            if left:
                self._running[request.tag] = left
                return 0
            self._running.pop(request.tag, None)
            for flush, tag in self._flushes.pop(request.tag, ()):
                self.complete(flush, self._write(flush, wire.message(Kind.FLUSH + 1, tag), tag))
        return 0

    def _write(self, chain: Chain, answer: bytes, tag: int) -> int:
        """Write an answer, or an error if there is no room for it; how many bytes."""
        room = chain.writable_size
        if len(answer) > room:
            answer = wire.error(tag, errno.EMSGSIZE)
        return chain.write(answer) if len(answer) <= room else 0

    # -- lifecycle --

    def device_reset(self) -> None:
        self.server.reset()

    def save(self) -> State:
        with self.lock:
            return {**super().save(), "server": self.server.save()}

    def restore(self, state: Mapping[str, object]) -> None:
        with self.lock:
            super().restore(state)
            self.server.restore(saved_dict(state.get("server"), "server"))

    def close(self) -> None:
        super().close()
        self._pool.close()
        self.server.reset()
        self.server.share.close()


def _ignore(result: int) -> None:
    pass


def _head(chain: Chain, size: int) -> bytes:
    """The first bytes of a request, fewer if there are fewer: copied, as the guest may change them."""
    parts = []
    for buffer in chain.readable:
        parts.append(bytes(buffer[:size]))
        size -= len(parts[-1])
        if not size:
            break
    return b"".join(parts)


def _behind(buffers: list[memoryview], count: int) -> list[memoryview]:
    """The buffers without their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
