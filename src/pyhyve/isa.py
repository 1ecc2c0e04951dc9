"""The devices on the LPC bridge that a machine has only if its configuration says so, serial ports apart.

bvm console (``bvmcons``), debug port (``dbgport``), PC test device and debug-exit port (``lpc.pc-testdev``,
``lpc.debug-exit``) and the firmware interface (``lpc.fwcfg``, with the items of ``fwcfg``). ``IsaDevices`` reads those
variables, opens the backends and puts the devices on the buses; ``start`` lets input in. A device's module is imported
only where the device is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyhyve.backends.char import CharBackend, TcpBackend, open_char
from pyhyve.bus.irq import IrqRouter
from pyhyve.bus.mmio import MmioBus
from pyhyve.bus.pio import PORTS, PioBus
from pyhyve.config import Config
from pyhyve.errors import ConfigError, DeviceError
from pyhyve.lifecycle import Stateful
from pyhyve.loop import EventLoop
from pyhyve.memory import GuestMemory
from pyhyve.messages import complain

if TYPE_CHECKING:
    from pyhyve.hw.chipset.charport import CharPort
    from pyhyve.hw.chipset.fwcfg import FwCfg

FIRMWARE_INTERFACES = ("bhyve", "qemu")
MAX_ITEM = 256 << 20
"""Largest item of the firmware configuration, in bytes."""


class IsaDevices:
    """The devices that ``config`` asks for. ``parts`` has those with state, by name.

    ``closing`` is given what must be closed. Raises a ``PyhyveError`` for what cannot be built.
    """

    def __init__(self, config: Config, pio: PioBus, mmio: MmioBus, closing: ExitStack) -> None:
        self.parts: dict[str, Stateful] = {}
        self.chars: dict[str, CharBackend] = {}
        """The backends of the character ports, whose traffic is counted."""
        self.fwcfg_ports: tuple[int, int] | None = None
        """Where QEMU's firmware configuration device is, for the firmware tables."""
        self.fwcfg: FwCfg | None = None
        self._config = config
        self._pio = pio
        self._mmio = mmio
        self._closing = closing
        self._ports: list[CharPort] = []

    def make_character_ports(self, loop: EventLoop, on_quit: Callable[[], None]) -> None:
        """The bvm console and the debug port."""
        if self._config.get_bool("bvmcons", False):
            from pyhyve.hw.chipset.bvmcons import BvmConsole

            console = open_char("stdio", loop, on_quit=on_quit)
            self._closing.callback(console.close)
            self.chars[BvmConsole.NAME] = console
            self._add_port("bvmcons", BvmConsole(console))
        where = self._config.get("dbgport")
        if where is not None:
            from pyhyve.hw.chipset.dbgport import DebugPort

            debugger = TcpBackend(where if ":" in where else f":{where}", loop)
            self._closing.callback(debugger.close)
            text = f"debug port: waiting for a debugger on TCP port {debugger.port}"
            self.chars[DebugPort.NAME] = debugger
            self._add_port("dbgport", DebugPort(debugger, lambda: complain(text)))

    def make_test_devices(self, router: IrqRouter, end: Callable[[int], None]) -> None:
        """The PC test device and the debug-exit port; ``end`` is told the status that a guest ends with."""
        config = self._config
        if config.get_bool("lpc.pc-testdev", False):
            from pyhyve.hw.chipset.pctestdev import PcTestDevice

            tester = PcTestDevice(router, end)
            with taken("the PC test device (-l pc-testdev)"):
                tester.attach(self._pio, self._mmio)
            self.parts["pc-testdev"] = tester
        if "lpc.debug-exit" in config:
            from pyhyve.hw.chipset.debugexit import PORT, SIZE, DebugExit

            size = config.get_int("lpc.debug-exit.size", SIZE)
            if size not in (1, 2, 4):
                raise ConfigError(f"lpc.debug-exit.size: {size} is not 1, 2 or 4")
            port = config.get_int("lpc.debug-exit.port", PORT, minimum=0, maximum=PORTS - size)
            leave = DebugExit(end, port, size)
            with taken("the debug-exit port (-l debug-exit)"):
                leave.attach(self._pio)
            self.parts["debug-exit"] = leave

    def make_firmware_interface(self, memory: GuestMemory, cpus: int) -> None:
        """QEMU's fw_cfg where it is asked for; bhyve's own where there is a boot ROM to use it."""
        kind = self._config.require("lpc.fwcfg")
        if kind not in FIRMWARE_INTERFACES:
            raise ConfigError(f"lpc.fwcfg: '{kind}' is neither bhyve nor qemu")
        if kind == "qemu":
            from pyhyve.hw.chipset.fwcfg import PORTS as FWCFG_PORTS
            from pyhyve.hw.chipset.fwcfg import FwCfg

            device = FwCfg(memory, cpus, read_items(self._config))
            device.attach(self._pio)
            self.parts["fwcfg"] = self.fwcfg = device
            self.fwcfg_ports = FWCFG_PORTS
        elif "fwcfg" in self._config:
            raise ConfigError("firmware configuration items (-f) need QEMU's interface: add -l fwcfg,qemu")
        elif "lpc.bootrom" in self._config:
            from pyhyve.hw.chipset.fwctl import FwCtl

            control = FwCtl(cpus)
            control.attach(self._pio)
            self.parts["fwctl"] = control

    def start(self) -> None:
        """Take input."""
        for port in self._ports:
            port.start()

    def _add_port(self, name: str, port: CharPort) -> None:
        port.attach(self._pio)
        self._ports.append(port)
        self.parts[name] = port


def read_items(config: Config) -> dict[str, bytes]:
    """The items of the firmware configuration (``-f``) by name; a string ends in a zero, as bhyve's do."""
    items: dict[str, bytes] = {}
    for number in config.children("fwcfg"):
        node = f"fwcfg.{number}"
        name, text, path = config.require(f"{node}.name"), config.get(f"{node}.string"), config.get(f"{node}.file")
        if (text is None) == (path is None):
            raise ConfigError(f"{node}: an item has either a string or a file")
        if name in items:
            raise ConfigError(f"the firmware configuration item '{name}' is given twice")
        if path is None:
            items[name] = (text or "").encode("utf-8", "surrogateescape") + b"\0"
            continue
        try:
            with Path(path).open("rb") as file:
                items[name] = file.read(MAX_ITEM + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {path} for the item '{name}': {error.strerror}") from None
        if len(items[name]) > MAX_ITEM:
            raise ConfigError(f"{path} is too large for a firmware configuration item: {MAX_ITEM >> 20} MB at most")
    return items


@contextmanager
def taken(what: str) -> Iterator[None]:
    """Ports and addresses that are somebody else's are the user's mistake."""
    try:
        yield
    except ValueError as error:
        raise DeviceError(f"no place for {what}: {error}") from None
