"""The two functions by which QEMU's firmware knows its machine ``q35``: host bridge and LPC bridge.

Documents: Intel 3 Series Express Chipset Family data sheet (319966), chapter 5; Intel I/O Controller Hub 9 data sheet
(316972), chapters 13.1 (LPC bridge) and 13.8.3 (power management I/O). The subsystem numbers are those that QEMU gives
to its functions, for SeaBIOS looks there for QEMU.

SeaBIOS and OVMF ask them where memory-mapped configuration space and the power management timer are, open the area of
the BIOS for writing and route interrupts. Memory from 0xC0000 to 1 MiB is RAM here in any case, so the PAM registers
that open it keep what is written and do nothing; SeaBIOS, which finds them closed, copies itself there. Configuration
space and the power management registers answer where bhyve has them and, once PCIEXBAR and PMBASE are set, there too.
There is no system management mode: SMI_EN says that it is set up already, and firmware then leaves it alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from pyhyve.bus.handler import Callbacks, Handler, Lock
from pyhyve.hw.chipset.pm import CONTROL_PORT, EVENT_PORT, S5_TYPE, Control
from pyhyve.hw.chipset.pmtmr import PORT as TIMER_PORT
from pyhyve.hw.environment import Environment
from pyhyve.hw.pci.bus import ECAM_BASE, PciAddress, PciBus
from pyhyve.hw.pci.config_space import Identity
from pyhyve.hw.pci.function import PciFunction
from pyhyve.hw.pci.intx import IntxPin
from pyhyve.hw.pci.lpc import Lpc

_QEMU = 0x1AF4
_QEMU_MACHINE = 0x1100

PCIEXBAR = 0x60
_ECAM_ENABLE = 1
_ECAM_BASES = 0xF0000000  # 256 MiB, anywhere below 4 GiB
PAM = 0x90
PAM_COUNT = 7
_PAM_BITS = 0x33  # two halves, each with a bit for reads and one for writes
SMRAM = 0x9D
_SMRAM_LOCKED = 0x12  # closed for good: D_LCK and the compatible space

PMBASE = 0x40
ACPI_CNTL = 0x44
RCBA = 0xF0
_ACPI_ENABLE = 0x80
_IO_SPACE = 1

# Offsets from PMBASE
_GPE0, _GPE0_SIZE = 0x20, 16
_SMI_ENABLE, _SMI_SIZE = 0x30, 8
_APMC_ENABLE = 0x20
_BLOCK = 0x80


class Q35(PciFunction):
    """The memory controller hub."""

    identity = Identity(0x8086, 0x29C0, 0x06, 0x00, 0, 0, _QEMU, _QEMU_MACHINE)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        super().__init__(environment, options)
        self._bus: PciBus | None = None
        self.config.set(PCIEXBAR, 8, ECAM_BASE | _ECAM_ENABLE)
        self.config.allow(PCIEXBAR, 8, _ECAM_BASES | _ECAM_ENABLE)
        for number in range(PAM_COUNT):
            self.config.allow(PAM + number, 1, _PAM_BITS)
        self.config.set(SMRAM, 1, _SMRAM_LOCKED)

    def connect(self, bus: PciBus, address: PciAddress, pin: IntxPin | None) -> None:
        """Remember whose configuration space PCIEXBAR places."""
        self._bus = bus
        super().connect(bus, address, pin)

    def config_written(self, offset: int, size: int) -> None:
        """Show the memory-mapped configuration space where the guest wants it."""
        if self._bus is not None and offset < PCIEXBAR + 8 and offset + size > PCIEXBAR:
            value = self.config.get(PCIEXBAR, 8)
            self._bus.show_ecam(value & _ECAM_BASES if value & _ECAM_ENABLE else 0)

    def reset(self) -> None:
        """As the bus has placed it; configuration space at its usual place only."""
        super().reset()
        self.config_written(PCIEXBAR, 8)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the configuration, and place the window."""
        super().restore(state)
        self.config_written(PCIEXBAR, 8)


class Ich9(Lpc):
    """The LPC bridge, with the base of the power management registers."""

    identity = Identity(0x8086, 0x2918, 0x06, 0x01, 0, 2, _QEMU, _QEMU_MACHINE)

    def __init__(self, environment: Environment, options: Mapping[str, str]) -> None:
        super().__init__(environment, options)
        self._base = 0
        self._ports: list[int] = []
        """Where something answers because of ``_base``: between them others may."""
        self.config.set(PMBASE, 4, _IO_SPACE)
        self.config.allow(PMBASE, 4, 0xFF80)
        self.config.allow(ACPI_CNTL, 1, _ACPI_ENABLE)
        self.config.allow(RCBA, 4, 0xFFFFC001)

    def config_written(self, offset: int, size: int) -> None:
        """Route again what the guest routed; move the power management registers."""
        super().config_written(offset, size)
        self._place(self.config.get(PMBASE, 2) & 0xFF80 if self.config.get(ACPI_CNTL, 1) & _ACPI_ENABLE else 0)

    def _place(self, base: int) -> None:
        """Let the power management registers answer at ``base`` too; 0 for nowhere else."""
        pio = self.environment.pio
        if base == self._base:
            return
        while self._ports:
            pio.unregister(self._ports.pop())
        self._base = 0
        if not base or not pio.is_free(base, _BLOCK):
            return  # bhyve's own place among them
        self._base = base
        for port in (EVENT_PORT, CONTROL_PORT, TIMER_PORT):
            found = pio.find(port)
            if found is not None:
                handler = _SoftOff(found.handler) if port == CONTROL_PORT else found.handler
                self._answer(base + port - EVENT_PORT, found.count, handler, f"{found.name} (ich9)", found.lock)
        self._answer(base + _GPE0, _GPE0_SIZE, Callbacks(_nothing, _ignore), "gpe0 (ich9)", self.lock)
        self._answer(base + _SMI_ENABLE, _SMI_SIZE, Callbacks(_smi, _ignore), "smi control (ich9)", self.lock)

    def _answer(self, port: int, count: int, handler: Handler, name: str, lock: Lock) -> None:
        with contextlib.suppress(ValueError):  # another vCPU has moved a BAR there meanwhile
            self.environment.pio.register(port, count, handler, name, lock)
            self._ports.append(port)

    def reset(self) -> None:
        """As the bus has placed it; the power management registers at their own ports only."""
        super().reset()
        self._place(0)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the configuration, and place the registers."""
        super().restore(state)
        self.config_written(PMBASE, 4)


class _SoftOff:
    """The PM1 control register as firmware sees it: QEMU's sleep type of soft-off is 0, bhyve's another one."""

    def __init__(self, register: Handler) -> None:
        self._register = register

    def read(self, offset: int, size: int) -> int:
        """The register's own value."""
        return self._register.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """What the register is to get."""
        if offset == 0 and size == 2 and value & (Control.SLEEP_ENABLE | Control.SLEEP_TYPE) == Control.SLEEP_ENABLE:
            value |= S5_TYPE << 10
        self._register.write(offset, size, value)


def _nothing(offset: int, size: int) -> int:
    return 0


def _smi(offset: int, size: int) -> int:
    """SMI_EN and SMI_STS."""
    return _APMC_ENABLE >> (8 * offset) & ((1 << 8 * size) - 1) if offset < 4 else 0


def _ignore(offset: int, size: int, value: int) -> None:
    """No general-purpose event and no SMI exists here."""
