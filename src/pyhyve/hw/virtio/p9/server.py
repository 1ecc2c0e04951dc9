"""What each request of 9P2000.L does, in the shared folder of a ``Share``.

A request names fids; what it does to the host is one system call on the descriptors behind them, or a few. What the
host refuses is Linux's errno in the answer. Requests run side by side, in threads of the device's pool.

Which of the guest's users may do what is decided by the guest's kernel, by the owners and modes that it sees; the host
decides by the user that this program runs as. With root, what is made belongs to the guest's user that made it.
A guest makes no device files and no programs that run as somebody else (set-user-ID) on the host.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping, Sequence

from pyhyve.hw.virtio.p9 import wire
from pyhyve.hw.virtio.p9.attributes import Attributes
from pyhyve.hw.virtio.p9.content import Content
from pyhyve.hw.virtio.p9.files import Share
from pyhyve.hw.virtio.p9.names import Names
from pyhyve.hw.virtio.p9.wire import LARGEST_MESSAGE, SMALLEST_MESSAGE, Kind, ProtocolError, Request
from pyhyve.lifecycle import State, check_version, saved_dict, saved_int

Buffers = Sequence[memoryview]


class Session(Content, Attributes, Names):
    """Everything that a client can ask for."""


_METHODS: dict[int, Callable[..., bytes]] = {
    kind: getattr(Session, kind.name.lower())
    for kind in Kind
    if kind not in (Kind.VERSION, Kind.FLUSH, Kind.READ, Kind.WRITE)
}


class Server:
    """The server of one share and one client."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.session: Session | None = None

    def reset(self) -> None:
        """The client is gone."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def answer(self, request: Request, data: Buffers, room: Buffers) -> tuple[bytes, int]:
        """Do what is asked: the answer, and how many bytes of a read have been put into ``room`` to stand behind it.

        ``data`` is what stands behind the fixed part of a write.
        """
        try:
            form = wire.FORMS.get(request.kind)
            if form is None:
                raise OSError(errno.EOPNOTSUPP, "no such request")
            fields = wire.decode(form, request.body)
            if request.kind == Kind.VERSION:
                return wire.message(Kind.VERSION + 1, request.tag, self._version(*fields)), 0
            session = self.session
            if session is None:
                raise OSError(errno.EPROTO, "no version was agreed on")
            if request.kind == Kind.READ:
                number, offset, wanted = fields
                count = session.read(number, offset, wanted, room)
                header = wire.HEADER.pack(wire.READ_HEADER + count, Kind.READ + 1, request.tag)
                return header + wire.encode("d", count), count
            if request.kind == Kind.WRITE:
                number, offset, wanted = fields
                body = session.write(number, offset, wanted, data)
            else:
                body = _METHODS[request.kind](session, *fields)
            return wire.message(request.kind + 1, request.tag, body), 0
        except ProtocolError:
            return wire.error(request.tag, errno.EINVAL), 0
        except OSError as error:
            return wire.error(request.tag, error.errno or errno.EIO), 0

    def _version(self, size: int, version: bytes) -> bytes:
        """A new session, for the only protocol that is spoken here."""
        self.reset()
        if version != wire.VERSION:
            return wire.encode("ds", size, b"unknown")
        if size < SMALLEST_MESSAGE:
            raise OSError(errno.EINVAL, "messages too small")
        self.session = Session(self.share, min(size, LARGEST_MESSAGE))
        return wire.encode("ds", self.session.largest, version)

    def save(self) -> State:
        """Fids by their names, with locks, and with attributes on their way."""
        session = self.session
        if session is None:
            return {"version": 1, "largest": 0, "fids": []}
        return {"version": 1, "largest": session.largest, "fids": session.save_fids()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Walk to what a saved session had; what is not there any more is a fid that is not there.

        Raises ``DeviceError`` for a lock that cannot be had again.
        """
        check_version(self, state)
        self.reset()
        largest = saved_int(state, "largest")
        if largest:
            self.session = Session(self.share, min(max(largest, SMALLEST_MESSAGE), LARGEST_MESSAGE))
            saved = state.get("fids")
            for its in saved if isinstance(saved, list) else []:
                with contextlib.suppress(OSError):
                    self.session.restore_fid(dict(saved_dict(its, "fid")))
