"""``virtio-console``: named serial ports of the guest's, each a Unix socket on the host.

Document: Virtual I/O Device (VIRTIO) 1.2, §5.3.

Every port has a queue in each direction; two more queues carry control messages, by which the driver learns the ports,
their names, and whether a program is connected. ``-s slot,virtio-console,NAME=PATH[,NAME=PATH...]`` makes up to 16
ports, which Linux shows as ``/dev/virtio-ports/NAME``. A driver without multi-port support sees the first one.

Nothing is kept in between: what the socket does not take waits in the guest's buffers, and what the guest has no
buffers for, or nobody there to read, waits in the socket. What a guest sends while no program is connected is lost, as
with bhyve.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import partial

from pyhyve.backends.port import SocketPort
from pyhyve.errors import DeviceError
from pyhyve.hw.environment import Environment
from pyhyve.hw.virtio.device import VirtioDevice
from pyhyve.hw.virtio.queue import Chain, Queue

MAX_PORTS = 16
QUEUE_SIZE = 64
CONTROL_RX, CONTROL_TX = 2, 3
LONGEST_MESSAGE = 1024

_message = struct.Struct("<IHH")


class Feature(IntFlag):
    MULTIPORT = 1 << 1


class Event(IntEnum):
    """Control messages (§5.3.6.2)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_READY = 3
    PORT_OPEN = 6
    PORT_NAME = 7


def queue_of(port: int) -> int:
    """The queue in which a port receives; the next one is that in which it sends."""
    return 0 if port == 0 else 2 + 2 * port


class Port:
    """One port: its socket, and what waits on the guest's side."""

    def __init__(self, owner: VirtioConsole, number: int, name: str, path: str) -> None:
        self.number = number
        self.name = name
        self.sending: deque[tuple[Chain, list[memoryview]]] = deque()
        """Chains of the guest's that the socket has not taken."""
        self.received = b""
        """Bytes from the socket that the guest has no buffer for."""
        self.guest_open = False
        self.socket = SocketPort(path, owner.environment.loop)
        self.socket.on_open = partial(owner.opened, self)
        self.socket.on_data = partial(owner.arrived, self)
        self.socket.on_room = partial(owner.room, self)


class VirtioConsole(VirtioDevice):
    """The console device."""

    device_id, transitional_id, pci_class = 3, 0x1003, (0x07, 0x80)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        wanted = _wanted_ports(options)
        config = struct.pack("<HHII", 80, 25, MAX_PORTS, 0)
        queues = [QUEUE_SIZE] * (2 + 2 * MAX_PORTS)
        super().__init__(environment, options, queues=queues, features=Feature.MULTIPORT, config=config)
        self._messages: deque[bytes] = deque(maxlen=LONGEST_MESSAGE)
        self.ports: list[Port] = []
        try:
            for number, (name, path) in enumerate(wanted):
                self.ports.append(Port(self, number, name, path))
        except BaseException:
            self.close()
            raise

    @classmethod
    def parse_options(cls, conf: str) -> dict[str, str]:
        """``NAME=PATH``, separated by commas; the variables of port N are ``port.N.name`` and ``port.N.path``."""
        options = {}
        for number, part in enumerate(part for part in conf.split(",") if part):
            name, equals, path = part.partition("=")
            if not name or not equals or not path:
                raise DeviceError(f"virtio-console: '{part}' is no port: it must be NAME=/path/of/socket")
            options[f"port.{number}.name"] = name
            options[f"port.{number}.path"] = path
        return options

    # -- the guest's side --

    def handle(self, index: int, ring: Queue) -> None:
        """A queue has something: data to send, buffers to fill, or control messages."""
        if index == CONTROL_TX:
            while (chain := ring.pop()) is not None:
                message = chain.read(_message.size)
                ring.push(chain, 0)
                if len(message) == _message.size:
                    self._control(*_message.unpack(message))
        elif index == CONTROL_RX:
            self._deliver_messages(ring)
        else:
            number = 0 if index < 2 else index // 2 - 1
            port = self.ports[number] if number < len(self.ports) else None
            if index % 2 == 0:
                if port is not None:
                    self._fill(port, ring)
                return
            while (chain := ring.pop()) is not None:
                if port is None:
                    ring.push(chain, 0)
                else:
                    port.sending.append((chain, list(chain.readable)))
            if port is not None:
                self._send(port)

    def wants(self, index: int) -> bool:
        """Buffers to receive in are of interest only while there is something to put there."""
        if index == CONTROL_RX:
            return bool(self._messages)
        if index % 2 == 0:
            number = 0 if index < 2 else index // 2 - 1
            return number < len(self.ports) and self._can_fill(self.ports[number])
        return True

    def _control(self, ident: int, event: int, value: int) -> None:
        if event == Event.DEVICE_READY:
            if value == 1:
                for port in self.ports:
                    self._tell(port, Event.PORT_ADD, 1)
        elif ident < len(self.ports):
            port = self.ports[ident]
            if event == Event.PORT_READY and value == 1:
                self._tell(port, Event.PORT_NAME, 1, port.name.encode())
                if port.socket.is_open:
                    self._tell(port, Event.PORT_OPEN, 1)
            elif event == Event.PORT_OPEN:
                port.guest_open = value == 1
                self.queues[queue_of(port.number)].notify()

    def _tell(self, port: Port, event: Event, value: int, more: bytes = b"") -> None:
        """Send a control message as soon as the driver has a buffer for it."""
        if self.negotiated(Feature.MULTIPORT):
            self._messages.append(_message.pack(port.number, event, value) + more)
            self.queues[CONTROL_RX].notify()

    def _deliver_messages(self, ring: Queue) -> None:
        while self._messages and (chain := ring.pop()) is not None:
            ring.push(chain, chain.write(self._messages.popleft()))

    def _can_fill(self, port: Port) -> bool:
        """Something has arrived, and somebody in the guest has the port open: else the driver would throw it away."""
        return bool(port.received) and (port.guest_open or not self.negotiated(Feature.MULTIPORT))

    def _fill(self, port: Port, ring: Queue) -> None:
        """Put what has arrived into the guest's buffers, then read on."""
        while self._can_fill(port) and (chain := ring.pop()) is not None:
            size = chain.write(port.received)
            port.received = port.received[size:]
            ring.push(chain, size)
        if not port.received:
            port.socket.resume()

    def _send(self, port: Port) -> None:
        """Give the socket what waits, until it takes no more."""
        while port.sending:
            chain, left = port.sending[0]
            sent = port.socket.send(left) if left else 0
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
                return
            port.sending.popleft()
            chain.queue.push(chain, 0)

    # -- the host's side, in the loop's thread --

    def opened(self, port: Port, is_open: bool) -> None:
        """A program has connected, or gone."""
        with self.lock:
            self._tell(port, Event.PORT_OPEN, int(is_open))

    def arrived(self, port: Port, data: bytes) -> None:
        """Bytes from the program: into the guest's buffers, and no more until they are there."""
        with self.lock:
            port.received += data
            port.socket.pause()
            self.queues[queue_of(port.number)].notify()

    def room(self, port: Port) -> None:
        """The socket takes more."""
        with self.lock:
            if port.sending:
                self._send(port)
                index = queue_of(port.number) + 1
                ring = self.queues[index].ring
                if ring is not None:
                    self.interrupt(index, ring)

    # -- lifecycle --

    def cancel(self, rings: Sequence[Queue]) -> None:
        """Forget what was not sent."""
        for port in getattr(self, "ports", ()):
            for chain, left in list(port.sending):
                if chain.queue in rings:
                    chain.queue.forget(chain)
                    port.sending.remove((chain, left))

    def device_reset(self) -> None:
        self._messages.clear()
        for port in self.ports:
            port.guest_open = False
            port.received = b""
            port.socket.resume()

    def close(self) -> None:
        super().close()
        for port in self.ports:
            port.socket.close()


def _wanted_ports(options: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and path of every port, in the order of their numbers."""
    numbers = set()
    for option in options:
        family, _, rest = option.partition(".")
        digits, _, variable = rest.partition(".")
        if family == "port" and digits.isascii() and digits.isdigit() and variable in ("name", "path"):
            numbers.add(int(digits))
        elif option != "legacy":
            raise DeviceError(f"virtio-console: unknown option '{option}'")
    if not numbers:
        raise DeviceError("virtio-console needs a port: -s slot,virtio-console,NAME=/path/of/socket")
    if len(numbers) > MAX_PORTS:
        raise DeviceError(f"virtio-console has at most {MAX_PORTS} ports, not {len(numbers)}")
    ports = []
    for number in sorted(numbers):
        name, path = options.get(f"port.{number}.name"), options.get(f"port.{number}.path")
        if not name or not path:
            raise DeviceError(f"virtio-console: port {number} needs a name and a path")
        ports.append((name, path))
    if len({name for name, _ in ports}) < len(ports):
        raise DeviceError("virtio-console: two ports have one name")
    return ports
