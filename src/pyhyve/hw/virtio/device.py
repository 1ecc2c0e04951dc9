"""What every virtio device is, whichever way its driver reaches it: status, features, queues, interrupts.

Document: Virtual I/O Device (VIRTIO) 1.2, §2 (basic facilities) and §3 (initialization).

A device is a subclass that says its number, its features and its queues, and implements ``handle``: take the chains of
a queue, do what they ask, push them back. A request that takes time is handed to a backend and its chain pushed by
``complete`` when it is done, from whatever thread.

The driver's notification does not run any of this in the vCPU's thread: it signals an eventfd (a doorbell), the event
loop reads that and calls ``handle`` with the device's lock held. While it works the driver is told not to ring.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from enum import IntFlag
from functools import partial

from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bar import Bar
from pyhyve.hw.pci.config_space import Command, Identity, Offset
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.msix import NO_VECTOR
from pyhyve.hw.virtio.queue import Chain, Layout, PackedQueue, Queue, RingError, SplitQueue
from pyhyve.hw.virtio.transport import PciTransport
from pyhyve.lifecycle import State, restore_fields, save_fields, saved_dict, saved_list

VENDOR = 0x1AF4
DRAIN_SECONDS = 10.0
"""How long a reset waits for requests that the host still works on."""


class Status(IntFlag):
    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Feature(IntFlag):
    """Those of the rings and the transport (§6)."""

    ANY_LAYOUT = 1 << 27
    INDIRECT = 1 << 28
    EVENT_INDEX = 1 << 29
    VERSION_1 = 1 << 32
    PACKED = 1 << 34
    RING_RESET = 1 << 40


COMMON_FEATURES = (
    Feature.ANY_LAYOUT | Feature.INDIRECT | Feature.EVENT_INDEX | Feature.VERSION_1 | Feature.PACKED
    | Feature.RING_RESET
)  # fmt: skip

# Plain numbers for the path of every request: the flags' own operators take ten times as long.
_DRIVER_OK, _NEEDS_RESET, _VERSION_1 = int(Status.DRIVER_OK), int(Status.NEEDS_RESET), int(Feature.VERSION_1)

ISR_QUEUE, ISR_CONFIG = 1, 2


class QueueSetup:
    """One queue as the driver configures it, and the ring once it is enabled."""

    __slots__ = ("bell", "descriptors", "device", "driver", "enabled", "maximum", "page", "ring", "size", "vector")

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.ring: Queue | None = None
        self.reset()

    def reset(self) -> None:
        self.size = self.maximum
        self.vector = NO_VECTOR
        self.descriptors = self.driver = self.device = 0
        self.enabled = 0
        self.page = 0  # the legacy interface's one address, in units of 4 KiB
        self.ring = None

    def notify(self) -> None:
        """Have the event loop look at the queue."""
        with contextlib.suppress(BlockingIOError):  # a full counter is signalled already
            os.eventfd_write(self.bell, 1)


_QUEUE_FIELDS = ("descriptors", "device", "driver", "enabled", "page", "size", "vector")


class VirtioDevice(PciFunction):
    """Base of all virtio devices."""

    device_id: int
    """The virtio device number (§5)."""
    transitional_id: int
    """The PCI device number of a transitional device (§4.1.2)."""
    pci_class: tuple[int, int]
    """PCI class and subclass, as legacy drivers know them."""

    def __init__(
        self,
        environment: Environment,
        options: Mapping[str, str],
        *,
        queues: Sequence[int],
        features: int = 0,
        config: bytes = b"",
    ) -> None:
        class_code, subclass = self.pci_class
        self.identity = Identity(
            VENDOR,
            self.transitional_id,
            class_code,
            subclass,
            subsystem_vendor=VENDOR,
            subsystem=self.device_id,
        )
        super().__init__(environment, options)
        self.features = int(features | COMMON_FEATURES)
        self.device_config = bytearray(config)
        self.generation = 0
        self.driver_features = 0
        self.status = 0
        self.isr = 0
        self.config_vector = NO_VECTOR
        self._idle = threading.Condition(self.lock)
        self._closed = False
        self._retired: list[Queue] = []
        """Rings of before a reset that the host still works for."""
        self.queues = [QueueSetup(size) for size in queues]
        self.use_intx()
        if environment.virtio_msix:
            self.add_msix(len(queues) + 1, bar=1)
        else:
            self.add_msi()
        self.transport = PciTransport(self)
        for index, queue in enumerate(self.queues):
            environment.loop.add_reader(queue.bell, partial(self._rung, index))

    # -- for the device --

    @abstractmethod
    def handle(self, index: int, ring: Queue) -> None:
        """Take what is in queue ``index``. Called with the lock held; may raise ``RingError``."""

    def device_reset(self) -> None:
        """The driver has reset the device; no chain of before will come back. With the lock held."""

    def config_changed(self) -> None:
        """The driver wrote ``device_config``. With the lock held."""

    def refresh_config(self) -> None:
        """The driver is about to read ``device_config``. With the lock held."""

    def negotiated(self, feature: int) -> bool:
        """Whether the driver accepted ``feature``."""
        return bool(self.driver_features & feature)

    def complete(self, chain: Chain, written: int) -> None:
        """Give a chain back and interrupt the driver if it wants that. From any thread."""
        with self.lock:
            ring = chain.queue
            ring.push(chain, written)
            index = self._index_of(ring)
            if index is not None:  # the driver has not reset the device meanwhile
                self.interrupt(index, ring)
            if not ring.in_flight:
                self._idle.notify_all()

    def interrupt(self, index: int, ring: Queue) -> None:
        """Tell the driver what was pushed, if it wants to be told. With the lock held."""
        if ring.wants_interrupt():
            self._signal(self.queues[index].vector, ISR_QUEUE)

    def announce_config(self) -> None:
        """Tell the driver that ``device_config`` has changed."""
        with self.lock:
            self.generation = self.generation + 1 & 0xFF
            if self.status & Status.DRIVER_OK:
                self._signal(self.config_vector, ISR_CONFIG)

    # -- for the transport, with the lock held --

    def offered(self, word: int) -> int:
        """32 bits of the features that the device has."""
        return self.features >> 32 * word & 0xFFFFFFFF if word < 2 else 0

    def accept(self, word: int, value: int) -> None:
        """32 bits of the features that the driver takes; too late after it said that these are all."""
        if word < 2 and not self.status & Status.FEATURES_OK:
            self.driver_features = self.driver_features & ~(0xFFFFFFFF << 32 * word) | value << 32 * word

    def set_status(self, value: int) -> None:
        """The driver reports how far it is; zero resets the device."""
        if value == 0:
            self.reset_device()
            return
        before = self.status
        if value & Status.FEATURES_OK and not before & Status.FEATURES_OK and self._features_are_wrong():
            value &= ~Status.FEATURES_OK
        self.status = int(value | before & Status.NEEDS_RESET)
        if value & Status.DRIVER_OK and not before & Status.DRIVER_OK:
            self.notify_all()

    def _features_are_wrong(self) -> bool:
        return bool(self.driver_features & ~self.features) or not self.driver_features & Feature.VERSION_1

    def notify_all(self) -> None:
        """Look at every queue."""
        for queue in self.queues:
            if queue.ring is not None:
                queue.notify()

    def enable(self, setup: QueueSetup) -> None:
        """The driver has put a queue where its setup says."""
        legacy = setup.page != 0
        if legacy:
            layout = Layout.legacy(setup.maximum, setup.page << 12)
        else:
            layout = Layout(setup.size, setup.descriptors, setup.driver, setup.device)
        packed = self.negotiated(Feature.PACKED) and not legacy
        kind = PackedQueue if packed else SplitQueue
        try:
            setup.ring = kind(self.environment.memory, layout, event_index=self.negotiated(Feature.EVENT_INDEX))
        except (RingError, ValueError):
            self.fail()
            return
        setup.enabled = 1
        if self.status & Status.DRIVER_OK:
            setup.notify()

    def disable(self, setup: QueueSetup) -> None:
        """The driver takes a queue away: by the legacy interface, or to enable it anew (§2.6.1)."""
        setup.enabled = 0
        self._retire([setup])
        self._drain()

    def reset_queue(self, setup: QueueSetup) -> None:
        """The driver resets one queue, and may set it up in another way. Waits as ``reset_device`` does."""
        if self.negotiated(Feature.RING_RESET):
            self._retire([setup])
            setup.reset()  # before it lets go of the lock, as another vCPU may reset the device meanwhile
            self._drain()

    def fail(self) -> None:
        """The guest did what cannot be: stop until it resets the device (§2.1.2)."""
        if not self.status & Status.NEEDS_RESET:
            self.status |= _NEEDS_RESET
            self.announce_config()

    def reset_device(self) -> None:
        """Back to the state that a driver finds. Waits for requests in flight: they reach into guest memory."""
        self.status = 0
        self._retire(self.queues)
        self._drain()
        for queue in self.queues:
            queue.reset()
        self.driver_features = 0
        self.isr = 0
        self.config_vector = NO_VECTOR
        self.transport.reset()
        self.set_intx(False)
        self.device_reset()

    def read_isr(self) -> int:
        """Why the pin is asserted; reading releases it."""
        value, self.isr = self.isr, 0
        self.set_intx(False)
        return value

    # -- inside --

    def _rung(self, index: int) -> None:
        """The driver has notified queue ``index``; in the loop's thread."""
        queue = self.queues[index]
        with self.lock:
            if self._closed:
                return
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(queue.bell)
            ring = queue.ring
            if ring is None or not self.status & _DRIVER_OK or not self._may_reach_memory():
                return
            try:
                while not self.status & _NEEDS_RESET:
                    ring.stop_notifications()
                    self.handle(index, ring)
                    if not self.wants(index) or not ring.want_notifications():
                        break
            except RingError:
                self.fail()
                return
            self.interrupt(index, ring)

    def wants(self, index: int) -> bool:
        """Whether the device wants to hear of new chains in a queue. With the lock held."""
        return True

    def _may_reach_memory(self) -> bool:
        """Bus mastering is on; a legacy driver may forget it (old Linux did)."""
        return self.bus_master or not self.driver_features & _VERSION_1

    def _index_of(self, ring: Queue) -> int | None:
        for index, queue in enumerate(self.queues):
            if queue.ring is ring:
                return index
        return None

    def _signal(self, vector: int, why: int) -> None:
        if self.msix is not None and self.msix.enabled:
            self.msix.notify(vector)
            return
        self.isr |= why
        if self.msi is not None and self.msi.enabled:
            self.msi.notify()
        self.set_intx(True)

    def _retire(self, queues: Sequence[QueueSetup]) -> None:
        """Take the rings of ``queues`` away: nothing of them is completed to the driver any more."""
        rings = [queue.ring for queue in queues if queue.ring is not None]
        for queue in queues:
            queue.ring = None
        self.cancel(rings)
        self._retired += rings

    def _drain(self) -> None:
        """Wait until the host has done what it was asked by retired rings, whoever retired them.

        Lets go of the lock meanwhile.
        """
        self._idle.wait_for(lambda: not any(ring.in_flight for ring in self._retired), DRAIN_SECONDS)
        self._retired = [ring for ring in self._retired if ring.in_flight]

    def cancel(self, rings: Sequence[Queue]) -> None:
        """Forget the chains of ``rings`` that wait for something that may never come. With the lock held."""

    # -- for the bus --

    def bar_moved(self, bar: Bar) -> None:
        self.transport.moved(bar)

    def read_config(self, offset: int, size: int) -> int:
        self.transport.before_config_read(offset, size)
        return super().read_config(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        self.transport.config_written(offset, size)
        if offset <= Offset.COMMAND < offset + size and self.config.get(Offset.COMMAND, 2) & Command.BUS_MASTER:
            self.notify_all()

    def reset(self) -> None:
        with self.lock:
            self.reset_device()
            super().reset()

    def save(self) -> State:
        with self.lock:
            rings = [*self._retired, *(queue.ring for queue in self.queues if queue.ring is not None)]
            self._idle.wait_for(lambda: not any(ring.in_flight for ring in rings), DRAIN_SECONDS)
            state = super().save()
            queues: list[object] = []
            for queue in self.queues:
                fields = save_fields(queue, _QUEUE_FIELDS)
                if queue.ring is not None:
                    fields["ring"] = queue.ring.save()
                queues.append(fields)
            return {
                **state,
                "virtio": save_fields(self, _FIELDS),
                "device_config": bytes(self.device_config),
                "queues": queues,
                "transport": self.transport.save(),
            }

    def restore(self, state: Mapping[str, object]) -> None:
        with self.lock:
            self.reset_device()
            super().restore(state)
            restore_fields(self, _FIELDS, saved_dict(state.get("virtio"), "virtio"))
            config = state.get("device_config")
            if isinstance(config, bytes) and len(config) == len(self.device_config):
                self.device_config[:] = config
            self.transport.restore(saved_dict(state.get("transport"), "transport"))
            saved = saved_list(state, "queues", len(self.queues))
            for queue, its in zip(self.queues, saved, strict=True):
                fields = saved_dict(its, "queue")
                restore_fields(queue, _QUEUE_FIELDS, fields)
                if "ring" in fields:
                    self.enable(queue)
                    if queue.ring is not None:
                        queue.ring.restore(saved_dict(fields["ring"], "ring"))
            self.notify_all()

    def close(self) -> None:
        with self.lock:
            if self._closed:
                return
            self._retire(self.queues)
            self._drain()
            self._closed = True
            self.transport.close()
        for queue in self.queues:
            self.environment.loop.remove_reader(queue.bell)
            os.close(queue.bell)


_FIELDS = ("config_vector", "driver_features", "generation", "isr", "status")
