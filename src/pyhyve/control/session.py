"""One run of a named machine: its folder taken, its guest found, its control socket served, and the folder given back.

A machine that boots a kernel of its own (``boot.kernel``, a boot ROM) needs no folder beforehand: it gets one for as
long as it runs. One that ``bhyveload`` or ``bhyvectl --create`` made stays until it is destroyed, and has to be loaded
again after each run, as with bhyve.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pyhyve.config import Config, parse_memsize
from pyhyve.control.folder import Folder, NoSuchVm, VmError
from pyhyve.control.server import ControlServer, Requests
from pyhyve.errors import Status, UsageError

if TYPE_CHECKING:
    from pyhyve.loader import LoadedGuest
    from pyhyve.machine import Machine

BOOTS_ITSELF = ("boot.kernel", "lpc.bootrom")
"""Variables that name what the guest starts from."""


class Session:
    """Holds the machine that ``config`` names, from the start of the ``with`` block to its end.

    Raises ``VmError`` on entry if it cannot be had, or has nothing to run.
    """

    guest: LoadedGuest | None
    """What ``bhyveload`` left; None if the machine loads its guest itself."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._boots_itself = any(name in config for name in BOOTS_ITSELF)
        self._folder = Folder(config.require("name"))
        self._remove = False
        self._closing = ExitStack()
        self.guest = None

    def __enter__(self) -> Self:
        folder = self._folder
        try:
            folder.claim(create=self._boots_itself)
        except NoSuchVm:
            raise VmError(
                f"vm_open: no virtual machine '{folder.name}': load a guest first (bhyveload KERNEL {folder.name}), "
                f"or name one with -o boot.kernel=FILE"
            ) from None
        self._closing.callback(self._give_back)
        try:
            # without settings it was not there before
            self._remove = bool(folder.settings().get("transient", True))
            folder.set(transient=self._remove)
            if not self._boots_itself:
                self._find_guest()
            folder.set(pid=os.getpid(), ended=None)
            self._server = ControlServer(folder.socket_path)
            self._closing.callback(self._server.close)
        except BaseException:
            self._closing.close()
            raise
        return self

    def _find_guest(self) -> None:
        """The loaded guest, and its memory size in the configuration. Raises ``VmError`` or ``UsageError``."""
        folder, config = self._folder, self._config
        registers = folder.read_registers()
        if registers is None:
            ended = folder.settings().get("ended")
            why = f"has run since it was loaded ({ended})" if ended else "has no guest"
            raise VmError(f"vm_open: '{folder.name}' {why}: load one with bhyveload KERNEL {folder.name}")
        if "memory.size" in config:
            text = config.require("memory.size")
            try:
                wanted = parse_memsize(text)
            except ValueError:
                raise UsageError(f"invalid memsize '{text}'") from None
            if wanted != folder.memory_size:
                raise VmError(
                    f"-m {text} contradicts '{folder.name}', which was loaded with {folder.memory_size >> 20} MB "
                    f"(bhyveload -m)"
                )
        config.set("memory.size", str(folder.memory_size))
        if folder.settings().get("wired"):
            config.set("memory.wired", "true")
        from pyhyve.control.state import to_entry
        from pyhyve.loader import LoadedGuest
        from pyhyve.memory import GuestMemory

        memory = GuestMemory(folder.memory_size, fd=folder.open_memory())
        pointer = folder.settings().get("rsdp_pointer", 0)
        self.guest = LoadedGuest(memory, to_entry(registers, pointer))
        self._closing.callback(memory.close)

    def start(self, machine: Machine) -> None:
        """The machine is built and about to run: answer on its socket; the loaded guest is used up."""
        self._server.serve(machine.loop, Requests(machine, self._destroy))
        if self.guest is not None:
            self._folder.forget_guest()
            self._folder.set(ended="it did not end in order")

    def stop(self, status: int) -> None:
        """The machine has ended with ``status``; the event loop no longer runs."""
        self._server.close()
        if status == Status.POWER_OFF and self._config.get_bool("destroy_on_poweroff", False):
            self._remove = True
        if self.guest is not None:
            self._note(ended=_ENDS.get(status, f"it ended with status {status}"))

    def _destroy(self) -> None:
        self._remove = True

    def _give_back(self) -> None:
        if self._remove:
            self._folder.remove()
        else:
            self._note(pid=None)
            self._folder.release()

    def _note(self, **values: str | None) -> None:
        """Something good to know, which must not become an error at the machine's end, on a full disk say."""
        with suppress(VmError):
            self._folder.set(**values)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()


_ENDS: dict[int, str] = {
    Status.RESET: "the guest reset it",
    Status.POWER_OFF: "it was powered off",
    Status.HALTED: "the guest halted",
    Status.TRIPLE_FAULT: "it ended in a triple fault",
    Status.ERROR: "it ended with an error",
}
