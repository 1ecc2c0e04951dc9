"""``virtio-net``: a network card.

Document: Virtual I/O Device (VIRTIO) 1.2, §5.1.

Queues come in pairs, one to receive and one to transmit, and behind them stands the control queue. What the driver
queues to transmit goes to the backend (``backends.net``) from where it lies in guest memory, and is done with at once;
a backend that is full leaves it in the queue. What the backend receives comes in lists, is copied into the driver's
buffers, and the driver is told once a list. Without buffers the packets wait here and the backend pauses.

Checksums and the cutting of long segments are left to whoever needs them done: the features offered are those of the
backend, and the backend is told what the driver finishes itself.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING, Final

from pyhyve.backends.net import MIN_MTU, Offload, open_net, read_mac, read_mtu
from pyhyve.backends.net.frames import ETHERNET, HEADER_SIZE, MAX_FRAME
from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.intx import IntxPin
from pyhyve.hw.virtio.device import Feature as CommonFeature
from pyhyve.hw.virtio.device import Status, VirtioDevice
from pyhyve.hw.virtio.queue import Chain, Queue, RingError
from pyhyve.lifecycle import State, restore_fields, save_fields, saved_dict, saved_list

if TYPE_CHECKING:
    from pyhyve.hw.pci.bus import PciAddress, PciBus

QUEUE_SIZE: Final = 256
CONTROL_SIZE: Final = 64
WAITING: Final = 1024
"""Packets that wait for buffers; more are dropped, as a switch would."""

OUI: Final = bytes.fromhex("589cfc")
"""The FreeBSD Foundation's, which bhyve gives its cards."""

OPTIONS: Final = ("backend", "hostfwd", "legacy", "mac", "mtu", "open", "queues", "type")


class Feature(IntFlag):
    """§5.1.3."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23


_ALWAYS = (
    Feature.MAC | Feature.MRG_RXBUF | Feature.STATUS | Feature.CTRL_VQ | Feature.CTRL_RX | Feature.CTRL_VLAN
    | Feature.CTRL_RX_EXTRA | Feature.GUEST_ANNOUNCE | Feature.CTRL_MAC_ADDR
)  # fmt: skip
_OFFLOADS = (
    (Offload.CSUM, Feature.CSUM, Feature.GUEST_CSUM),
    (Offload.TSO4, Feature.HOST_TSO4, Feature.GUEST_TSO4),
    (Offload.TSO6, Feature.HOST_TSO6, Feature.GUEST_TSO6),
    (Offload.ECN, Feature.HOST_ECN, Feature.GUEST_ECN),
)

LINK_UP, ANNOUNCE = 1, 2
_CONFIG = struct.Struct("<6sHHH")  # MAC, status, pairs, MTU


class Class(IntEnum):
    """Of control commands (§5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


class Put(Enum):
    """What became of a packet for the driver."""

    DONE = "done"
    LATER = "wait for buffers"
    AGAIN = "buffers came at this moment"


_AFTER = {False: Put.LATER, True: Put.AGAIN}
_RX_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
_BROADCAST = b"\xff" * 6
OK, ERROR = b"\0", b"\1"
LONGEST_COMMAND: Final = 65536


def _addresses(table: bytes) -> set[bytes]:
    return {table[at : at + 6] for at in range(0, len(table), 6)}


def _leave(ring: Queue, chains: list[Chain]) -> None:
    for chain in reversed(chains):
        ring.unpop(chain)


def features_of(offload: Offload) -> int:
    """The features of a backend's offloads."""
    host = sum(feature for kind, feature, _ in _OFFLOADS if offload & kind)
    guest = sum(feature for kind, _, feature in _OFFLOADS if offload & kind)
    return host | guest | (Feature.CTRL_GUEST_OFFLOADS if guest else 0)


class VirtioNet(VirtioDevice):
    """The network device. Options: ``backend`` and those of its kind, ``mac``, ``mtu``."""

    device_id, transitional_id, pci_class = 1, 0x1000, (0x02, 0x00)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        for name in options:
            if name not in OPTIONS and not name.startswith("pcireg.") and options.get("backend") != "netgraph":
                raise DeviceError(f"virtio-net has no option '{name}'; there are {', '.join(OPTIONS)}")
        mac = options.get("mac")
        self._mac = bytes(6) if mac is None else read_mac(mac)
        mtu = read_mtu(options)
        self.backend = open_net(options, environment.loop)
        pairs = self.backend.queues
        features = _ALWAYS | features_of(self.backend.offload)
        features |= (Feature.MTU if mtu else 0) | (Feature.MQ if pairs > 1 else 0)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._blocked = False
        self._header = HEADER_SIZE
        self._mtu = mtu or MIN_MTU
        self.link_status = LINK_UP if self.backend.link else 0
        self._clear()
        try:
            super().__init__(
                environment,
                options,
                queues=[QUEUE_SIZE] * (2 * pairs) + [CONTROL_SIZE],
                features=int(features),
                config=self._config(),
            )
        except BaseException:
            self.backend.close()
            raise
        self.backend.start(self._receive, self._writable, self._link_changed)

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """``BACKEND[,key=value...]``; ``hostfwd`` may come several times, or once with semicolons."""
        first, _, rest = conf.partition(",")
        if "=" in first and not first.startswith("socket="):
            first, rest = "", conf
        options = {"backend": first} if first else {}
        for part in filter(None, rest.split(",")):
            name, separator, value = part.partition("=")
            if name == "hostfwd" and name in options:
                value = f"{options[name]};{value}"
            options[name] = value if separator else "true"
        return options

    def connect(self, bus: PciBus, address: PciAddress, pin: IntxPin | None) -> None:
        """Make a MAC address of slot and machine if none was given: the same at every start."""
        if not any(self._mac):
            import hashlib

            text = f"{address.device}-{address.function}-{self.environment.name}"
            self._mac = OUI + hashlib.md5(text.encode(), usedforsecurity=False).digest()[:3]
            self._set_mac(self._mac)
        super().connect(bus, address, pin)

    def _config(self) -> bytes:
        return _CONFIG.pack(self.mac, self.link_status, self.backend.queues, self._mtu)

    def _set_mac(self, mac: bytes) -> None:
        self.mac = mac
        self.device_config[:] = self._config()

    # -- the driver's side --

    def handle(self, index: int, ring: Queue) -> None:
        """A queue has something new."""
        if index == self._control_index:
            self._control(ring)
        elif index & 1:
            self._transmit(index >> 1, ring)
        elif self._waiting:
            self._deliver()

    def wants(self, index: int) -> bool:
        """New packets matter only to a backend with room; new buffers were asked for where they ran out."""
        return index == self._control_index or (index & 1 == 1 and not self._blocked)

    @property
    def _control_index(self) -> int:
        return len(self.queues) - 1 if self.negotiated(Feature.MQ) else 2

    def _transmit(self, pair: int, ring: Queue) -> None:
        send, size = self.backend.send, self._header
        self._blocked = False
        while (chain := ring.pop()) is not None:
            pieces = chain.readable
            if not pieces or len(pieces[0]) < size:
                pieces = [memoryview(chain.read())]
            header, pieces = bytes(pieces[0][:size]), [pieces[0][size:], *pieces[1:]]
            sound = len(header) == size and ETHERNET <= sum(map(len, pieces)) <= MAX_FRAME
            if sound and not send(header.ljust(HEADER_SIZE, b"\0"), pieces, pair):
                ring.unpop(chain)
                self._blocked = True
                return
            ring.push(chain, 0)

    def _writable(self) -> None:
        """The backend takes packets again."""
        with self.lock:
            if not self._closed:
                for queue in self.queues[1::2]:
                    if queue.ring is not None:
                        queue.notify()

    # -- the backend's side --

    def _receive(self, pair: int, packets: list[bytes]) -> None:
        """Packets have come, in the loop's thread."""
        with self.lock:
            if not self.status & Status.DRIVER_OK or self.status & Status.NEEDS_RESET or self._closed:
                return
            passes, index = self._passes, 2 * min(pair, self._pairs - 1)
            self._waiting.extend((index, packet) for packet in packets if passes(packet))
            while len(self._waiting) > WAITING:
                self._waiting.pop()
            try:
                self._deliver()
            except RingError:
                self.fail()

    def _deliver(self) -> None:
        """Put what waits into the driver's buffers, and tell the driver."""
        waiting, touched = self._waiting, dict[int, Queue]()
        while waiting:
            index, packet = waiting[0]
            ring = self.queues[index].ring
            if ring is not None and self._may_reach_memory():
                touched[index] = ring
                put = self._put(ring, packet)
                if put is Put.AGAIN:
                    continue
                if put is Put.LATER:
                    self.backend.pause()
                    break
            waiting.popleft()
        else:
            self.backend.resume()
        for index, ring in touched.items():
            self.interrupt(index, ring)

    def _put(self, ring: Queue, packet: bytes) -> Put:
        """Copy one packet, or drop it if it can never fit."""
        chain = ring.pop()
        if chain is None:
            return _AFTER[ring.want_notifications()]
        size = len(packet)
        buffers = chain.writable
        if self._header == HEADER_SIZE and buffers and len(buffers[0]) >= size:
            first = buffers[0]
            first[:size] = packet
            first[10:12] = b"\1\0"
            ring.push(chain, size)
            return Put.DONE
        if self._header != HEADER_SIZE:
            packet = packet[:10] + packet[HEADER_SIZE:]
        return self._scatter(ring, chain, packet)

    def _scatter(self, ring: Queue, chain: Chain, packet: bytes) -> Put:
        """Copy one packet to as many chains as it takes."""
        size, room, chains = len(packet), chain.writable_size, [chain]
        merges = self.negotiated(Feature.MRG_RXBUF)
        result = Put.DONE
        try:
            while room < size and merges and len(chains) < ring.size:
                more = ring.pop()
                if more is None:
                    # asked here, it is the buffer after all these that the driver is to tell of
                    result = _AFTER[ring.want_notifications()]
                    break
                chains.append(more)
                room += more.writable_size
        except RingError:
            _leave(ring, chains)
            raise
        if room < size:
            _leave(ring, chains)
            return result
        if self._header == HEADER_SIZE:
            packet = packet[:10] + len(chains).to_bytes(2, "little") + packet[HEADER_SIZE:]
        rest, used = memoryview(packet), list[tuple[Chain, int]]()
        for each in chains:
            written = each.write(rest)
            used.append((each, written))
            rest = rest[written:]
        ring.push_together(used)  # virtio 1.2 §5.1.6.4.1: a driver that found some of them only would drop the packet
        return Put.DONE

    def _passes(self, packet: bytes) -> bool:
        """Whether the driver wants a frame."""
        if self.vlan_filter and packet[24:26] == b"\x81\0":
            vlan = (packet[26] & 15) << 8 | packet[27]
            if not self.vlans[vlan >> 3] >> (vlan & 7) & 1:
                return False
        if self.promiscuous:
            return True
        to = packet[HEADER_SIZE : HEADER_SIZE + 6]
        if to == _BROADCAST:
            return not self.no_broadcast
        if to[0] & 1:
            return not self.no_multicast and (self.all_multicast or to in self._multicast)
        return not self.no_unicast and (self.all_unicast or to == self.mac or to in self._unicast)

    def _link_changed(self, up: bool) -> None:
        with self.lock:
            self._set_link_status(LINK_UP if up else 0)

    def _set_link_status(self, status: int) -> None:
        if status != self.link_status:
            self.link_status = status
            self.device_config[:] = self._config()
            self.announce_config()

    # -- control commands --

    def _control(self, ring: Queue) -> None:
        while (chain := ring.pop()) is not None:
            done = False
            if 2 <= chain.readable_size <= LONGEST_COMMAND:
                command = chain.read()
                done = self._command(command[0], command[1], command[2:])
            ring.push(chain, chain.write(OK if done else ERROR))

    def _command(self, kind: int, number: int, data: bytes) -> bool:
        """Carry out a command; False if it is none or makes no sense."""
        if kind == Class.RX and number < len(_RX_MODES) and len(data) >= 1:
            setattr(self, _RX_MODES[number], bool(data[0]))
        elif kind == Class.MAC and number == 0:
            return self._set_tables(data)
        elif kind == Class.MAC and number == 1 and len(data) >= 6 and not data[0] & 1:
            self._set_mac(data[:6])
        elif kind == Class.VLAN and number < 2 and len(data) >= 2:
            vlan = int.from_bytes(data[:2], "little")
            if vlan > 4095:
                return False
            bit = 1 << (vlan & 7)
            self.vlans[vlan >> 3] = self.vlans[vlan >> 3] & ~bit | (0 if number else bit)
        elif kind == Class.ANNOUNCE and number == 0:
            self.link_status &= ~ANNOUNCE
            self.device_config[:] = self._config()
        elif kind == Class.MQ and number == 0 and len(data) >= 2 and self.negotiated(Feature.MQ):
            pairs = int.from_bytes(data[:2], "little")
            if not 1 <= pairs <= self.backend.queues:
                return False
            self._pairs = pairs
            self.backend.set_queues(pairs)
        elif kind == Class.GUEST_OFFLOADS and number == 0 and len(data) >= 8:
            wanted = int.from_bytes(data[:8], "little")
            if wanted & ~self.driver_features:
                return False
            self._set_offloads(wanted)
        else:
            return False
        return True

    def _set_tables(self, data: bytes) -> bool:
        tables: list[set[bytes]] = []
        for _ in range(2):
            if len(data) < 4:
                return False
            count = int.from_bytes(data[:4], "little")
            data = data[4:]
            if 6 * count > len(data):
                return False
            tables.append(_addresses(data[: 6 * count]))
            data = data[6 * count :]
        self._unicast, self._multicast = tables
        return True

    # -- lifecycle --

    def set_status(self, value: int) -> None:
        """When the driver is ready, its features say how packets are to look."""
        before = self.status
        super().set_status(value)
        if self.status & ~before & Status.DRIVER_OK:
            self._begin()

    def _begin(self) -> None:
        modern = self.negotiated(CommonFeature.VERSION_1 | Feature.MRG_RXBUF)
        self._header = HEADER_SIZE if modern else HEADER_SIZE - 2
        self.vlan_filter = self.negotiated(Feature.CTRL_VLAN)
        self._set_offloads(self.driver_features)
        if self.negotiated(Feature.MQ):
            self.backend.set_queues(self._pairs)

    def _set_offloads(self, features: int) -> None:
        accepted = Offload(0)
        for kind, _, feature in _OFFLOADS:
            if features & feature:
                accepted |= kind
        self._guest_offloads = features
        self.backend.set_offload(accepted)

    def config_changed(self) -> None:
        """A legacy driver may set its address here; nothing else can be written."""
        self._set_mac(self.mac if self.negotiated(CommonFeature.VERSION_1) else bytes(self.device_config[:6]))

    def _clear(self) -> None:
        """The card after a reset: every frame comes in."""
        self.mac = self._mac
        self.promiscuous = True
        self.all_multicast = self.all_unicast = False
        self.no_multicast = self.no_unicast = self.no_broadcast = False
        self.vlan_filter = False
        self.vlans = bytearray(4096 // 8)
        self._unicast, self._multicast = set[bytes](), set[bytes]()
        self._pairs = 1
        self._guest_offloads = 0

    def device_reset(self) -> None:
        """No driver: what waits is dropped."""
        self._waiting.clear()
        self._blocked = False
        self._clear()
        self.link_status &= ~ANNOUNCE
        self.device_config[:] = self._config()
        self._set_offloads(0)
        self.environment.loop.call_in_loop(self.backend.resume)

    def save(self) -> State:
        """Filters and modes; packets that wait are lost, as on a wire."""
        with self.lock:
            state = super().save()
            tables: list[object] = [b"".join(sorted(table)) for table in (self._unicast, self._multicast)]
            return {**state, "net": {**save_fields(self, _FIELDS), "vlans": bytes(self.vlans), "tables": tables}}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over filters and modes; the driver is asked to announce itself where the network may have changed."""
        with self.lock:
            super().restore(state)
            net = saved_dict(state.get("net"), "net")
            restore_fields(self, _FIELDS, net)
            vlans = net.get("vlans")
            if isinstance(vlans, bytes) and len(vlans) == len(self.vlans):
                self.vlans[:] = vlans
            tables = [t if isinstance(t, bytes) else b"" for t in saved_list(net, "tables", 2)]
            self._unicast, self._multicast = (_addresses(table) for table in tables)
            self._pairs = min(max(self._pairs, 1), self.backend.queues)
            status = LINK_UP if self.backend.link else 0
            if self.status & Status.DRIVER_OK:
                offloads = self._guest_offloads
                self._begin()
                self._set_offloads(offloads & self.driver_features)
                status |= ANNOUNCE if self.negotiated(Feature.GUEST_ANNOUNCE) else 0
            self.link_status = -1
            self._set_link_status(status)

    def close(self) -> None:
        super().close()
        self.backend.close()


_FIELDS = (*_RX_MODES, "mac", "_pairs", "_guest_offloads")
