"""The asking side of a machine's control socket (``server`` has the protocol).

with Connection("vm0") as vm:
    print(vm.call("info")["cpus"], vm.call("stats"))
"""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any, Self

from pyhyve.control.folder import Folder, NoSuchVm, VmError

PATIENCE = 10.0
"""Seconds that an answer may take."""


class NotRunning(VmError):
    """The machine exists, but no process runs it."""


class Refused(VmError):
    """The machine understood, and says why it will not."""


class Connection:
    """A line to the running machine ``name``.

    Raises ``NoSuchVm`` if there is none of that name, ``NotRunning`` if it does not run, ``VmError`` for anything else.
    """

    def __init__(self, name: str, *, timeout: float = PATIENCE) -> None:
        folder = Folder(name)
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._received = b""
        try:
            self._socket.connect(str(folder.socket_path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            self._socket.close()
            if folder.exists:
                raise NotRunning(f"the virtual machine '{name}' is not running") from None
            raise NoSuchVm(f"there is no virtual machine '{name}'") from None
        except OSError as error:
            self._socket.close()
            raise VmError(f"cannot reach the virtual machine '{name}': {error.strerror or error}") from None

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask for one thing; its result. Raises ``Refused`` or ``VmError``."""
        try:
            self._socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = self._line()
        except TimeoutError:
            raise VmError(f"the virtual machine '{self.name}' does not answer") from None
        except OSError as error:
            raise VmError(f"the virtual machine '{self.name}' went away: {error.strerror}") from None
        try:
            answer = json.loads(line)
            if answer["ok"]:
                result: dict[str, Any] = answer["result"]
                return result
            raise Refused(f"{self.name}: {answer['error']}")
        except (ValueError, KeyError, TypeError):
            raise VmError(f"the virtual machine '{self.name}' gave an answer that makes no sense") from None

    def wait_closed(self) -> None:
        """Wait until the machine's process has hung up. Raises ``VmError`` if it does not in time."""
        try:
            while self._socket.recv(4096):
                pass
        except TimeoutError:
            raise VmError(f"the virtual machine '{self.name}' does not end") from None
        except OSError:
            pass  # reset: gone as well

    def _line(self) -> bytes:
        while b"\n" not in self._received:
            data = self._socket.recv(1 << 16)
            if not data:
                raise VmError(f"the virtual machine '{self.name}' ended before it answered")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
