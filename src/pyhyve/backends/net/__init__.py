"""Network backends: the host's side of a network card.

``open_net(options, loop)`` understands what bhyve(8) calls a network backend, the variable ``backend`` below the card's
slot: ``user`` (a network of its own behind NAT, no root needed; ``slirp`` as bhyve spells it), ``tapN`` and ``vmnetN``
(an interface of the host), ``socket=PATH`` (a wire to another machine) and ``none``.

What travels is a *packet*: a virtio-net header of 12 bytes (``frames.Header``) and an Ethernet frame without its
checksum. The header says which work was left undone (a checksum, cutting up a long TCP segment), so that a frame which
never leaves the host is neither summed nor cut up. Packets come in lists, one list for all that was there to read, so
that a card can put them in its queue with one interrupt.

Everything is called in the event loop's thread, except for ``send``, which may come from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag
from typing import Protocol

from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

OnReceive = Callable[[int, list[bytes]], None]
"""Takes the queue pair and the packets that came for it."""

Buffer = bytes | bytearray | memoryview

MIN_MTU, MAX_MTU = 68, 65535
"""RFC 791 §3.1: what every link carries, and the longest datagram."""


class Offload(IntFlag):
    """Work on a frame that its sender may leave to the receiver."""

    CSUM = 1
    TSO4 = 2
    TSO6 = 4
    ECN = 8


class NetBackend(Protocol):
    """A network on the host."""

    offload: Offload
    """What may be left undone in packets that are sent."""

    queues: int
    """Pairs of queues, 1 or more."""

    def start(self, on_receive: OnReceive, on_writable: Callable[[], None], on_link: Callable[[bool], None]) -> None:
        """Begin to deliver. ``on_writable`` follows a refused ``send``, ``on_link`` every change of ``link``."""

    @property
    def link(self) -> bool:
        """Whether somebody is at the other end."""

    def send(self, header: bytes, frame: Sequence[Buffer], queue: int = 0) -> bool:
        """Send a packet; its pieces may be views of guest memory, and are done with on return.

        False if it does not fit now: ``on_writable`` is called when it may. A frame that makes no sense is dropped.
        """

    def set_offload(self, offload: Offload) -> None:
        """What may be left undone in packets that are received."""

    def set_queues(self, pairs: int) -> None:
        """How many queue pairs are in use."""

    def pause(self) -> None:
        """Deliver nothing until ``resume``. What was read already may still come."""

    def resume(self) -> None:
        """Deliver again."""

    def close(self) -> None:
        """Give everything back. Idempotent."""


def open_net(options: Mapping[str, str], loop: EventLoop) -> NetBackend:
    """The backend that ``options["backend"]`` names, with the options of its kind beside it.

    ``type`` (bhyve_config(5)) says the kind where the name does not: an interface of any name with ``type=tap``.
    Without a backend the card is not connected. Raises ``DeviceError`` with one line.
    """
    spec = options.get("backend", "none")
    kind, _, rest = spec.partition("=")
    named = options.get("type")
    if named in ("user", "slirp"):
        spec = named
    elif named not in (None, "tap"):
        raise DeviceError(f"unknown type of network backend '{named}': use tap, user or slirp")
    if spec == "none":
        from pyhyve.backends.net.unconnected import Unconnected

        return Unconnected()
    if spec in ("user", "slirp"):
        from pyhyve.backends.net.user import open_user

        return open_user(spec, options, loop)
    if kind == "socket" and rest:
        from pyhyve.backends.net.wire import Wire

        return Wire(rest, loop)
    if named == "tap" or spec.startswith(("tap", "vmnet")):
        from pyhyve.backends.net.tap import Tap

        return Tap(spec, read_queues(options), loop)
    if spec == "netgraph":
        raise DeviceError("netgraph exists on FreeBSD only; use user, tapN or socket=PATH")
    raise DeviceError(f"unknown network backend '{spec}': use user, tapN, vmnetN, socket=PATH or none")


def read_mac(text: str) -> bytes:
    """``xx:xx:xx:xx:xx:xx`` as ethers(5) has it. Raises ``DeviceError``, for a group address and all zeros too."""
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) for part in parts)
    except ValueError:
        mac = b""
    if len(mac) != 6 or any(not 1 <= len(part) <= 2 for part in parts):
        raise DeviceError(f"invalid MAC address '{text}': it must be xx:xx:xx:xx:xx:xx")
    if mac[0] & 1 or not any(mac):
        raise DeviceError(f"MAC address {text} is not one of a single card")
    return mac


def read_mtu(options: Mapping[str, str]) -> int | None:
    """The option ``mtu``. Raises ``DeviceError`` unless it is 68 to 65535."""
    text = options.get("mtu")
    if text is None:
        return None
    if not text.isdecimal() or not MIN_MTU <= int(text) <= MAX_MTU:
        raise DeviceError(f"invalid mtu '{text}': it must be {MIN_MTU} to {MAX_MTU}")
    return int(text)


def read_queues(options: Mapping[str, str]) -> int:
    """The option ``queues``, 1 without it. Raises ``DeviceError`` unless it is 1 to 8."""
    text = options.get("queues", "1")
    if not text.isdecimal() or not 1 <= int(text) <= 8:
        raise DeviceError(f"invalid number of queues '{text}': it must be 1 to 8")
    return int(text)
