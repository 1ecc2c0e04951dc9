"""A network card with nothing in its socket: no link, and what is sent is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyhyve.backends.net import Buffer, Offload, OnReceive


class Unconnected:
    """The backend of a card without one."""

    offload = Offload(0)
    queues = 1
    link = False

    def start(self, on_receive: OnReceive, on_writable: Callable[[], None], on_link: Callable[[bool], None]) -> None:
        """Nothing ever comes."""

    def send(self, header: bytes, frame: Sequence[Buffer], queue: int = 0) -> bool:
        """Drop the packet."""
        return True

    def set_offload(self, offload: Offload) -> None:
        """Nothing to be done."""

    def set_queues(self, pairs: int) -> None:
        """Nothing to be done."""

    def pause(self) -> None:
        """Nothing to be done."""

    def resume(self) -> None:
        """Nothing to be done."""

    def close(self) -> None:
        """Nothing to be done."""
