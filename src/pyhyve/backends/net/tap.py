"""An interface of the host: ``tapN``, bridged or routed by the host as it likes.

Document: Linux, Documentation/networking/tuntap.rst, and ``<linux/if_tun.h>``. ``/dev/net/tun`` gives a descriptor that
reads and writes one packet a call, with a virtio-net header in front (``IFF_VNET_HDR``): the kernel itself finishes
what a guest has left undone, and hands over what the guest is said to finish (``TUNSETOFFLOAD``). An interface that is
not there is made for as long as the machine runs, if we may; one made for us (``ip tuntap add tap0 mode tap user
ME``) needs no right at all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from pyhyve.backends.net import Buffer, Offload, OnReceive
from pyhyve.backends.net.frames import HEADER_SIZE, MAX_FRAME
from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNGETFEATURES, TUNSETOFFLOAD = 0x400454CA, 0x800454CF, 0x400454D0
TUNSETVNETHDRSZ, TUNSETVNETLE, TUNSETQUEUE = 0x400454D8, 0x400454DC, 0x400454D9
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
IFF_UP = 1
NAME_SIZE: Final = 15
BATCH: Final = 64
"""Packets read in one go, before others get their turn."""

_TUN_F = {Offload.CSUM: 0x01, Offload.TSO4: 0x02, Offload.TSO6: 0x04, Offload.ECN: 0x08}


class Tap:
    """The host's interface ``name``, with ``queues`` pairs. Raises ``DeviceError`` if it cannot be had."""

    offload = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN

    def __init__(self, name: str, queues: int, loop: EventLoop) -> None:
        if len(name) > NAME_SIZE or not name.isalnum():
            raise DeviceError(f"'{name}' is no name of an interface: it has at most {NAME_SIZE} letters and digits")
        self.name = name
        self.queues = queues
        self.link = True
        self._loop = loop
        self._fds: list[int] = []
        self._attached = queues
        self._paused = True
        self._on_receive: OnReceive | None = None
        self._on_writable: Callable[[], None] | None = None
        self._on_link: Callable[[bool], None] | None = None
        self._blocked: set[int] = set()
        try:
            for _ in range(queues):
                self._fds.append(self._open())
            self.set_offload(Offload(0))
            _bring_up(name)
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        try:
            fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(
                f"network backend {self.name}: cannot open {DEVICE}: {error.strerror}{self._remedy(error)}"
            ) from None
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if self.queues > 1 else 0)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", self.name.encode(), flags))
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
            fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))
        except OSError as error:
            os.close(fd)
            raise DeviceError(f"network backend {self.name}: {self._explain(error)}") from None
        return fd

    @property
    def _command(self) -> str:
        """What makes the interface for us."""
        multi = " multi_queue" if self.queues > 1 else ""
        user = os.getuid()
        return f"ip tuntap add {self.name} mode tap{multi} user {user} && ip link set {self.name} up"

    def _remedy(self, error: OSError) -> str:
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"; as root: chmod 0666 {DEVICE} && {self._command}"
        return "; as root: modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV) else ""

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.EPERM:
            return f"no permission to use it; as root: {self._command}"
        if error.errno == errno.EBUSY:
            return "another program uses it"
        if error.errno == errno.EINVAL:
            return f"it is there with other queues than asked for; as root: ip link delete {self.name}"
        return str(error.strerror)

    def start(self, on_receive: OnReceive, on_writable: Callable[[], None], on_link: Callable[[bool], None]) -> None:
        """Read from the interface."""
        self._on_receive, self._on_writable, self._on_link = on_receive, on_writable, on_link
        self.resume()

    def send(self, header: bytes, frame: Sequence[Buffer], queue: int = 0) -> bool:
        """Write a packet, straight from where it lies."""
        if queue >= self._attached:
            return True
        try:
            os.writev(self._fds[queue], [header, *frame])
        except BlockingIOError:
            if queue not in self._blocked:
                self._blocked.add(queue)
                self._loop.add_writer(self._fds[queue], lambda: self._writable(queue))
            return False
        except OSError:
            pass  # a frame that the kernel finds nonsense in, or an interface that is down: gone, as on a wire
        return True

    def set_offload(self, offload: Offload) -> None:
        """Let the kernel leave undone what the guest finishes; without the checksum there is nothing to leave."""
        flags = sum(bit for kind, bit in _TUN_F.items() if offload & kind) if offload & Offload.CSUM else 0
        fcntl.ioctl(self._fds[0], TUNSETOFFLOAD, flags)

    def set_queues(self, pairs: int) -> None:
        """Attach the queues that the guest serves."""
        if self.queues == 1:
            return
        for index in range(1, self.queues):
            if (index < pairs) != (index < self._attached):
                flag = IFF_ATTACH_QUEUE if index < pairs else IFF_DETACH_QUEUE
                fcntl.ioctl(self._fds[index], TUNSETQUEUE, struct.pack("16sH22x", b"", flag))
        self._attached = pairs

    def pause(self) -> None:
        """Leave packets in the kernel's queue, which drops what it cannot hold."""
        if not self._paused:
            self._paused = True
            for fd in self._fds:
                self._loop.remove_reader(fd)

    def resume(self) -> None:
        """Read on."""
        if self._paused and self.link and self._on_receive is not None:
            self._paused = False
            for queue, fd in enumerate(self._fds):
                self._loop.add_reader(fd, lambda queue=queue: self._readable(queue))  # type: ignore[misc]

    def close(self) -> None:
        """Let the interface go; one that was made here disappears."""
        fds, self._fds = self._fds, []
        for fd in fds:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self._loop.call_in_loop(os.close, fd)
        self._attached = 0

    def _readable(self, queue: int) -> None:
        if not self._fds or self._on_receive is None:
            return
        fd = self._fds[queue]
        packets: list[bytes] = []
        try:
            while len(packets) < BATCH and not self._paused:
                packets.append(os.read(fd, HEADER_SIZE + MAX_FRAME))
        except BlockingIOError:
            pass
        except OSError:
            self._lost()
        if packets:
            self._on_receive(queue, packets)

    def _lost(self) -> None:
        """Somebody deleted the interface."""
        self.pause()
        if self.link:
            self.link = False
            if self._on_link is not None:
                self._on_link(False)

    def _writable(self, queue: int) -> None:
        if self._fds and queue in self._blocked:
            self._blocked.discard(queue)
            self._loop.remove_writer(self._fds[queue])
            if self._on_writable is not None:
                self._on_writable()


def _bring_up(name: str) -> None:
    """Set the interface up, as bhyve does where it may; without the right that is the user's affair."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
            (flags,) = struct.unpack_from("16xH", request)
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | IFF_UP))
        except OSError:
            pass
