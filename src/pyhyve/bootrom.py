"""The boot ROM (``-l bootrom,ROM[,VARS]``), right below 4 GiB, and under it the flash memory of its variables.

Both are mapped read-only from the machine's memfd, so that the guest reads and runs them without exits. The ROM is
there for good; the flash memory only while it reads as memory: what is mapped is a copy of the file.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyhyve.bus.mmio import MmioBus
from pyhyve.config import Config
from pyhyve.errors import ConfigError
from pyhyve.loader import bios
from pyhyve.loader.files import ROM_LIMIT, map_variables, read_rom
from pyhyve.memory import HIGH_BASE, GuestMemory
from pyhyve.vmm.api import VirtualMachine

if TYPE_CHECKING:
    import mmap

    from pyhyve.hw.chipset.flash import Flash


class BootRom:
    """What ``config`` says of it; nothing if there is no boot ROM.

    ``closing`` is given what must be closed. Raises a ``PyhyveError`` for files that will not do.
    """

    def __init__(self, config: Config, closing: ExitStack) -> None:
        path, variables = config.get("lpc.bootrom"), config.get("lpc.bootvars")
        self._rom = b""
        self._variables: mmap.mmap | None = None
        if path:
            if "boot" in config:
                raise ConfigError("a boot ROM (lpc.bootrom) finds its guest itself: it goes with no boot.* variable")
            self._rom = read_rom(Path(path))
        if variables:
            if not path:
                raise ConfigError("boot variables (lpc.bootvars) need a boot ROM: -l bootrom,ROM,VARS")
            self._variables = map_variables(Path(variables), ROM_LIMIT - len(self._rom))
            closing.callback(self._variables.close)

    def __bool__(self) -> bool:
        return bool(self._rom)

    @property
    def size(self) -> int:
        """How much of the memfd both take, in bytes."""
        return len(self._rom) + len(self._variables or b"")

    def map(self, vm: VirtualMachine, memory: GuestMemory) -> None:
        """Put the ROM where it belongs."""
        if self._rom:
            memory.write_rom(self._rom)
            vm.map_memory(HIGH_BASE - len(self._rom), len(self._rom), memory.rom_offset, readonly=True)

    def shadow(self, memory: GuestMemory) -> None:
        """Copy a PC's BIOS below 1 MiB, over whatever is there."""
        if bios.is_bios(self._rom):
            bios.shadow(memory, self._rom)

    def make_flash(self, vm: VirtualMachine, memory: GuestMemory, mmio: MmioBus) -> Flash | None:
        """The flash memory, if there is a file for it. Raises ``ValueError`` if some of its addresses are taken."""
        if self._variables is None:
            return None
        from pyhyve.hw.chipset.flash import Flash

        gpa = HIGH_BASE - self.size
        flash = Flash(self._variables, _Copy(vm, memory, gpa, len(self._rom)))
        flash.attach(mmio, gpa)
        return flash


class _Copy:
    """A copy of the flash memory's contents that the guest reads without exits: ``at`` bytes into the ROM's memory."""

    def __init__(self, vm: VirtualMachine, memory: GuestMemory, gpa: int, at: int) -> None:
        self._vm, self._memory, self._gpa, self._at = vm, memory, gpa, at

    def show(self, contents: bytes) -> None:
        self._memory.write_rom(contents, self._at)
        self._vm.map_memory(self._gpa, len(contents), self._memory.rom_offset + self._at, readonly=True)

    def hide(self) -> None:
        self._vm.unmap_memory(self._gpa)
