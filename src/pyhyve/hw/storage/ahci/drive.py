"""What a port asks of the device at its other end, and the other way round; what disks and CD drives have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from pyhyve.backends.block import BlockBackend
from pyhyve.backends.pool import Done
from pyhyve.hw.storage.ahci.identify import Identity
from pyhyve.hw.storage.ahci.request import Request
from pyhyve.lifecycle import State, restore_fields, save_fields

Step = Callable[[Done], None]
"""Something that a backend does, which tells its errno when it is done."""


class Link(Protocol):
    """The port, as its device uses it. All with the function's lock held."""

    def finish(
        self,
        request: Request,
        status: int,
        error: int = 0,
        *,
        lba: int | None = None,
        count: int | None = None,
        device: int | None = None,
    ) -> None:
        """The command has ended, its task file is this; the last three are the command's own if not given."""

    def send_pio(self, request: Request, data: bytes) -> None:
        """The command ends well with data, by a PIO transfer."""

    def pio_setup(self, request: Request, length: int, *, to_host: bool, end_status: int) -> None:
        """A PIO transfer takes place."""

    def run(self, request: Request, steps: Iterator[Step], then: Callable[[int], None]) -> None:
        """Do one step after the other away from the caller's thread, up to the first that fails; then ``then(errno)``.

        ``then`` is not called for a command that a reset has ended in the meantime.
        """


class Drive(ABC):
    """A disk or a CD drive, on a block backend."""

    signature: int
    ready_status: int
    """What the status register says after a reset."""
    _FIELDS: tuple[str, ...]
    """What of it is saved beside the backend's data."""
    _link: Link

    def __init__(self, backend: BlockBackend, identity: Identity) -> None:
        self._backend = backend
        self._identity = identity

    def connect(self, link: Link) -> None:
        """The port that it hangs on."""
        self._link = link

    @abstractmethod
    def execute(self, request: Request) -> None:
        """Begin a command; it ends by ``Link.finish`` or ``Link.send_pio``, now or later."""

    @abstractmethod
    def is_queued(self, request: Request) -> bool:
        """Whether the command is one that others may overtake."""

    @abstractmethod
    def queue_failed(self, request: Request, status: int, error: int) -> None:
        """A queued command ended with an error: keep it for whoever asks for the log."""

    @abstractmethod
    def reset(self) -> None:
        """A reset by the link or the control register."""

    def drain(self) -> None:
        """Wait for the backend."""
        self._backend.drain()

    def save(self) -> State:
        """State beside the backend's data."""
        return save_fields(self, self._FIELDS)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take it over."""
        restore_fields(self, self._FIELDS, state)

    def close(self) -> None:
        """Give the backend back."""
        self._backend.close()
