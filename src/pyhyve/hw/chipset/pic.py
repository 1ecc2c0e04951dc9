"""The two cascaded 8259A interrupt controllers of a PC.

Document: Intel 8259A data sheet (order 231468); ELCR: Intel 82371SB data sheet §4.1.

Lines come in by ``set_irq`` (0-7 the master, 8-15 the slave, which hangs on the master's input 2). The INTR output
goes out through ``on_intr``, called on changes only; the CPU then fetches the vector with ``acknowledge``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields, saved_dict

MASTER_PORT = 0x20
SLAVE_PORT = 0xA0
CASCADE = 2
SPURIOUS = 7


class Icw1(IntFlag):
    IC4 = 0x01  # ICW4 follows
    SNGL = 0x02  # no cascade: ICW3 is left out
    LTIM = 0x08  # all inputs level triggered
    INIT = 0x10


class Icw4(IntFlag):
    MICRO = 0x01
    AEOI = 0x02
    SFNM = 0x10


class Ocw3(IntFlag):
    READ_ISR = 0x01
    READ = 0x02
    POLL = 0x04
    SELECT = 0x08
    SMM = 0x20
    ESMM = 0x40


# The same as plain numbers, for what every interrupt passes: an operation of an IntFlag costs a microsecond.
_LTIM, _INIT, _AEOI, _SFNM = int(Icw1.LTIM), int(Icw1.INIT), int(Icw4.AEOI), int(Icw4.SFNM)
_SELECT = int(Ocw3.SELECT)


@dataclass(slots=True)
class Chip8259:
    """One 8259A. All masks have a bit for each input."""

    irr: int = 0
    isr: int = 0
    imr: int = 0
    inputs: int = 0
    level: int = 0
    """Inputs that are level triggered (ELCR)."""
    base: int = 0
    lowest: int = 7
    """The input of lowest priority; the one after it is the highest."""
    icw: int = 0
    """The initialization word expected next at the odd port: 2, 3, 4, or 0."""
    icw1: int = 0
    icw4: int = 0
    rotate_on_aeoi: bool = False
    special_mask: bool = False
    poll: bool = False
    read_isr: bool = False
    is_master: bool = False

    def set_input(self, irq: int, level: bool) -> None:
        """Drive input ``irq``. An edge is remembered in the IRR, a level shows through it."""
        bit = 1 << irq
        if level:
            if not self.inputs & bit or self._is_level(bit):
                self.irr |= bit
            self.inputs |= bit
        else:
            self.inputs &= ~bit
            if self._is_level(bit):
                self.irr &= ~bit

    def pending(self) -> int | None:
        """The input to serve now: unmasked, requested, of a higher priority than all in service."""
        requests = self.irr & ~self.imr
        if not requests:
            return None
        in_service = self.isr
        if self.special_mask:
            in_service &= ~self.imr
        if self.is_master and self.icw4 & _SFNM:
            in_service &= ~(1 << CASCADE)  # the slave may interrupt itself
        for step in range(1, 9):
            irq = (self.lowest + step) & 7
            bit = 1 << irq
            if in_service & bit and not (self.special_mask and requests & bit):
                return None
            if requests & bit:
                return irq
        return None

    def acknowledge(self, irq: int) -> None:
        """INTA for ``irq``: in service from now on (unless the EOI is automatic), the edge is used up."""
        bit = 1 << irq
        if self.icw4 & _AEOI:
            if self.rotate_on_aeoi:
                self.lowest = irq
        else:
            self.isr |= bit
        if not self._is_level(bit):
            self.irr &= ~bit

    def read(self, offset: int) -> int:
        """Read IMR at the odd port; IRR, ISR or the poll word at the even one."""
        if self.poll:
            self.poll = False
            irq = self.pending()
            if irq is None:
                return 0
            self.acknowledge(irq)
            return 0x80 | irq
        if offset:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def write(self, offset: int, value: int) -> None:
        """Write a command word."""
        if offset:
            self._write_odd(value)
        elif value & _INIT:
            self._initialize(value)
        elif value & _SELECT:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)

    def set_level(self, mask: int) -> None:
        """Set which inputs are level triggered."""
        self.level = mask
        levels = 0xFF if self.icw1 & _LTIM else mask
        self.irr = self.irr & ~levels | self.inputs & levels

    def _is_level(self, bit: int) -> bool:
        return bool((self.level & bit) or (self.icw1 & _LTIM))

    def _initialize(self, value: int) -> None:
        self.icw1 = value
        self.icw = 2
        self.icw4 = 0
        self.imr = 0
        self.isr = 0
        self.lowest = 7
        self.special_mask = self.read_isr = self.poll = self.rotate_on_aeoi = False
        self.irr = 0
        self.set_level(self.level)

    def _write_odd(self, value: int) -> None:
        if self.icw == 2:
            self.base = value & 0xF8
            self.icw = 4 if self.icw1 & Icw1.SNGL else 3
            if self.icw == 4 and not self.icw1 & Icw1.IC4:
                self.icw = 0
        elif self.icw == 3:
            self.icw = 4 if self.icw1 & Icw1.IC4 else 0  # the wiring is fixed, whatever ICW3 says
        elif self.icw == 4:
            self.icw4 = value
            self.icw = 0
        else:
            self.imr = value

    def _write_ocw2(self, value: int) -> None:
        command, irq = value >> 5, value & 7
        if command in (0, 4):
            self.rotate_on_aeoi = command == 4
        elif command in (1, 5):  # non-specific EOI, and with rotation
            done = self._highest_in_service()
            if done is not None:
                self.isr &= ~(1 << done)
                if command == 5:
                    self.lowest = done
        elif command in (3, 7):  # specific EOI, and with rotation
            self.isr &= ~(1 << irq)
            if command == 7:
                self.lowest = irq
        elif command == 6:
            self.lowest = irq

    def _write_ocw3(self, value: int) -> None:
        if value & Ocw3.POLL:
            self.poll = True
        if value & Ocw3.READ:
            self.read_isr = bool(value & Ocw3.READ_ISR)
        if value & Ocw3.ESMM:
            self.special_mask = bool(value & Ocw3.SMM)

    def _highest_in_service(self) -> int | None:
        candidates = self.isr & ~self.imr if self.special_mask else self.isr
        for step in range(1, 9):
            irq = (self.lowest + step) & 7
            if candidates >> irq & 1:
                return irq
        return None


_CHIP_FIELDS = tuple(name for name in Chip8259.__slots__ if name != "is_master")


class Pic:
    """Master and slave. ``on_intr(level)`` drives the CPU's INTR (LINT0)."""

    def __init__(self, on_intr: Callable[[bool], None]) -> None:
        self.lock = threading.RLock()
        self._on_intr = on_intr
        self.on_end: Callable[[int], None] | None = None
        """Called with the ISA interrupt that the guest has ended by a command; with the lock held."""
        self._intr = False
        self._master = Chip8259(is_master=True)
        self._slave = Chip8259()

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x20-0x21 and 0xA0-0xA1."""
        for port, chip, name in ((MASTER_PORT, self._master, "pic master"), (SLAVE_PORT, self._slave, "pic slave")):
            pio.register(port, 2, self._handler(chip), name, self.lock, width=1)

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive ISA interrupt ``irq`` (0-15). Input 2 is the cascade: it takes no interrupt from outside."""
        if irq == CASCADE:
            return
        with self.lock:
            (self._slave if irq & 8 else self._master).set_input(irq & 7, level)
            self._update()

    def set_elcr(self, mask: int) -> None:
        """Choose level (1) or edge (0) triggering for each of the 16 inputs."""
        with self.lock:
            self._master.set_level(mask & 0xFF)
            self._slave.set_level(mask >> 8)
            self._update()

    def acknowledge(self) -> int:
        """The CPU's INTA cycle: the vector to take. A request that has gone away gives the spurious vector."""
        with self.lock:
            irq = self._master.pending()
            if irq is None:
                vector = self._master.base + SPURIOUS
            else:
                self._master.acknowledge(irq)
                vector = self._master.base + irq
                if irq == CASCADE:
                    slave_irq = self._slave.pending()
                    if slave_irq is not None:
                        self._slave.acknowledge(slave_irq)
                    vector = self._slave.base + (SPURIOUS if slave_irq is None else slave_irq)
            self._update()
            return vector

    @property
    def intr(self) -> bool:
        """The level of the INTR output."""
        return self._intr

    def _handler(self, chip: Chip8259) -> Callbacks:
        def read(offset: int, size: int) -> int:
            value = chip.read(offset)
            self._update()
            return value

        def write(offset: int, size: int, value: int) -> None:
            before = chip.isr
            chip.write(offset, value)
            ended = before & ~chip.isr
            if ended and self.on_end is not None:
                first = 0 if chip.is_master else 8
                for irq in range(8):
                    if ended >> irq & 1:
                        self.on_end(first + irq)
            self._update()

        return Callbacks(read, write)

    def _update(self) -> None:
        cascaded = self._slave.pending() is not None
        self._master.set_input(CASCADE, cascaded)
        if not cascaded:
            self._master.irr &= ~(1 << CASCADE)
        intr = self._master.pending() is not None
        if intr != self._intr:
            self._intr = intr
            self._on_intr(intr)

    def reset(self) -> None:
        """Forget everything but the levels of the inputs and the ELCR."""
        with self.lock:
            for chip in (self._master, self._slave):
                fresh = Chip8259(inputs=chip.inputs, level=chip.level, is_master=chip.is_master)
                for name in _CHIP_FIELDS:
                    setattr(chip, name, getattr(fresh, name))
                chip.imr = 0xFF  # nothing gets through before the guest has initialized the chip
            self._update()

    def save(self) -> State:
        """Both chips."""
        with self.lock:
            return {
                "version": 1,
                "master": save_fields(self._master, _CHIP_FIELDS),
                "slave": save_fields(self._slave, _CHIP_FIELDS),
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over both chips."""
        check_version(self, state)
        with self.lock:
            restore_fields(self._master, _CHIP_FIELDS, saved_dict(state.get("master"), "master"))
            restore_fields(self._slave, _CHIP_FIELDS, saved_dict(state.get("slave"), "slave"))
            self._update()
