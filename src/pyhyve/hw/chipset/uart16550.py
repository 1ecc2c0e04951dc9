"""A 16550A UART: a serial port.

Document: National Semiconductor PC16550D data sheet (registers in §8).

A byte the guest writes goes straight to the character backend, in the vCPU's thread: the transmitter is always empty.
Bytes from the backend arrive in the loop's thread, wait in ``_input`` and move to the receive FIFO as the guest reads
it, so none is lost to an overrun; a backlog that grows stops the backend from reading. As with a cable that has flow
control, a byte comes only once the guest raises RTS or enables the receive interrupt, so that what a user types ahead
of the guest's driver is not thrown away when the driver clears the FIFO. A guest that just polls, without ever having
touched the modem control register, gets its bytes too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Protocol

from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields, saved_list

COM_PORTS: dict[str, tuple[int, int]] = {
    "com1": (0x3F8, 4),
    "com2": (0x2F8, 3),
    "com3": (0x3E8, 4),
    "com4": (0x2E8, 3),
}
"""Port and ISA interrupt of each serial port of a PC."""

PORTS = 8
FIFO_SIZE = 16
CLOCK = 1_843_200
"""Frequency of the crystal, Hz: divisor 1 is 115200 baud."""

BACKLOG_HIGH = 4096
BACKLOG_LOW = 1024


class Register(IntEnum):
    """Offsets of the registers."""

    DATA = 0  # RBR, THR; DLL with DLAB
    IER = 1  # DLM with DLAB
    IIR = 2  # FCR when written
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class Ier(IntFlag):
    ERBFI = 0x01
    ETBEI = 0x02
    ELSI = 0x04
    EDSSI = 0x08


class Iir(IntEnum):
    """Interrupt identification, by falling priority after ``NONE``."""

    NONE = 0x01
    LINE_STATUS = 0x06
    RECEIVED = 0x04
    TIMEOUT = 0x0C
    THR_EMPTY = 0x02
    MODEM_STATUS = 0x00


class Fcr(IntFlag):
    ENABLE = 0x01
    RESET_RX = 0x02
    RESET_TX = 0x04
    DMA_MODE = 0x08
    TRIGGER = 0xC0


class Lcr(IntFlag):
    BREAK = 0x40
    DLAB = 0x80


class Mcr(IntFlag):
    DTR = 0x01
    RTS = 0x02
    OUT1 = 0x04
    OUT2 = 0x08
    LOOP = 0x10


class Lsr(IntFlag):
    DR = 0x01
    OE = 0x02
    PE = 0x04
    FE = 0x08
    BI = 0x10
    THRE = 0x20
    TEMT = 0x40


class Msr(IntFlag):
    DCTS = 0x01
    DDSR = 0x02
    TERI = 0x04
    DDCD = 0x08
    CTS = 0x10
    DSR = 0x20
    RI = 0x40
    DCD = 0x80


# Plain numbers for the paths that every byte takes: an IntFlag operation costs more than the rest of them.
_DLAB = int(Lcr.DLAB)
_LOOP = int(Mcr.LOOP)
_RTS = int(Mcr.RTS)
_ERBFI, _ETBEI, _ELSI, _EDSSI = (int(bit) for bit in Ier)
_LSR_IDLE = int(Lsr.THRE | Lsr.TEMT)
_LSR_ERRORS = int(Lsr.OE | Lsr.PE | Lsr.FE | Lsr.BI)
_DELTAS = int(Msr.DCTS | Msr.DDSR | Msr.TERI | Msr.DDCD)
_FIFO_ON = 0xC0
_TRIGGERS = (1, 4, 8, 14)
_BYTES = tuple(bytes((i,)) for i in range(256))


class CharDevice(Protocol):
    """The host's side of a serial port (``backends.char``)."""

    def start(self, on_input: Callback) -> None: ...

    def write(self, data: bytes) -> None: ...

    def pause(self) -> None:
        """Deliver no input until ``resume``; some that is on its way may still come."""

    def resume(self) -> None: ...


class Interrupt(Protocol):
    """Where the chip's interrupt output leads: an ``IrqLine``, or a PCI function's pin."""

    def set(self, level: bool) -> None: ...

    def lower(self) -> None: ...


class Callback(Protocol):
    def __call__(self, data: bytes, /) -> None: ...

_POLLS = 16
"""After so many reads of LSR without a write in between a guest surely looks for input."""


class Uart16550:
    """One serial port. ``chardev`` None is a port with nothing connected: no carrier, output vanishes."""

    _divisor: int
    _ier: int
    _fcr: int
    _lcr: int
    _mcr: int
    _mcr_programmed: bool
    _scr: int
    _errors: int
    _msr: int
    _thre_pending: bool
    _polls: int

    def __init__(self, irq_line: Interrupt, chardev: CharDevice | None, name: str = "uart") -> None:
        self.lock = threading.RLock()
        self.name = name
        self._irq = irq_line
        self._chardev = chardev
        self._send = _discard if chardev is None else chardev.write
        self._input: deque[int] = deque()
        self._rx: deque[int] = deque()
        self._paused = False
        self._readers = (
            self._read_data, self._read_ier, self._read_iir, self._read_lcr,
            self._read_mcr, self._read_lsr, self._read_msr, self._read_scr,
        )  # fmt: skip
        self._writers = (
            self._write_data, self._write_ier, self._write_fcr, self._write_lcr,
            self._write_mcr, _ignore, _ignore, self._write_scr,
        )  # fmt: skip
        self.reset()

    def attach(self, pio: PioBus, port: int) -> None:
        """Answer at eight ports from ``port``."""
        pio.register(port, PORTS, self, self.name, width=1)

    def start(self) -> None:
        """Begin to take input from the backend."""
        if self._chardev is not None:
            self._chardev.start(self.receive)

    def receive(self, data: bytes) -> None:
        """Input from the backend, from any thread."""
        with self.lock:
            self._input.extend(data)
            if len(self._input) > BACKLOG_HIGH and not self._paused and self._chardev is not None:
                self._paused = True
                self._chardev.pause()
            self._fill()
            self._update()

    @property
    def baud(self) -> int:
        """The line speed that the guest has set; 0 while the divisor is 0."""
        return CLOCK // (16 * self._divisor) if self._divisor else 0

    def read(self, offset: int, size: int) -> int:
        """Read one register (``size`` is 1)."""
        return self._readers[offset]()

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one register (``size`` is 1)."""
        self._polls = 0
        self._writers[offset](value)

    # -- registers --

    def _read_data(self) -> int:
        if self._lcr & _DLAB:
            return self._divisor & 0xFF
        if not self._rx:
            self._fill(polled=True)
            if not self._rx:
                return 0
        value = self._rx.popleft()
        self._fill()
        self._update()
        return value

    def _write_data(self, value: int) -> None:
        if self._lcr & _DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._mcr & _LOOP:
            self._loop_back(value)
        else:
            self._send(_BYTES[value])
        self._thre_pending = True
        if self._ier & _ETBEI:
            self._update()

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & _DLAB else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & _DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        if value & _ETBEI and not self._ier & _ETBEI:
            self._thre_pending = True  # enabling it with the transmitter empty interrupts at once
        self._ier = value & 0x0F
        self._fill()
        self._update()

    def _read_iir(self) -> int:
        reason = self._reason()
        if reason == Iir.THR_EMPTY:
            self._thre_pending = False
            self._update()
        return reason | (_FIFO_ON if self._fcr & 1 else 0)

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & Fcr.ENABLE:
            self._rx.clear()
        if not value & Fcr.ENABLE:
            value = 0  # the other bits count only together with this one
        elif value & Fcr.RESET_RX:
            self._rx.clear()
        self._fcr = int(value & (Fcr.ENABLE | Fcr.DMA_MODE | Fcr.TRIGGER))
        self._fill()
        self._update()

    def _read_lcr(self) -> int:
        return self._lcr

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _read_mcr(self) -> int:
        return self._mcr

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & 0x1F
        self._mcr_programmed = True
        self._set_modem_lines()
        self._fill()
        self._update()

    def _read_lsr(self) -> int:
        self._polls += 1
        if not self._rx:
            self._fill(polled=True)
        value = _LSR_IDLE | self._errors | (1 if self._rx else 0)
        if self._errors:
            self._errors = 0
            self._update()
        return value

    def _read_msr(self) -> int:
        value = self._msr
        if value & _DELTAS:
            self._msr = value & ~_DELTAS
            self._update()
        return value

    def _read_scr(self) -> int:
        return self._scr

    def _write_scr(self, value: int) -> None:
        self._scr = value

    # -- inside --

    def _capacity(self) -> int:
        return FIFO_SIZE if self._fcr & 1 else 1

    def _fill(self, *, polled: bool = False) -> None:
        """Move waiting input to the receive FIFO, if the guest is ready for it or looks for it without more ado."""
        if not self._input or self._mcr & _LOOP:
            return
        # UEFI's driver polls, with RTS off.
        polls = polled and (not self._mcr_programmed or self._polls >= _POLLS)
        if not (self._ier & _ERBFI or self._mcr & _RTS or polls):
            return
        rx, waiting, capacity = self._rx, self._input, self._capacity()
        while waiting and len(rx) < capacity:
            rx.append(waiting.popleft())
        if self._paused and len(waiting) < BACKLOG_LOW and self._chardev is not None:
            self._paused = False
            self._chardev.resume()

    def _loop_back(self, value: int) -> None:
        if len(self._rx) >= self._capacity():
            self._errors |= int(Lsr.OE)
            if not self._fcr & 1:
                self._rx[0] = value  # without the FIFO the new character destroys the old one
        else:
            self._rx.append(value)
        self._update()

    def _set_modem_lines(self) -> None:
        """Modem status follows the outputs in loopback, else the cable: a connected backend is always ready."""
        mcr = self._mcr
        if mcr & _LOOP:
            lines = (
                (Msr.CTS if mcr & Mcr.RTS else 0)
                | (Msr.DSR if mcr & Mcr.DTR else 0)
                | (Msr.RI if mcr & Mcr.OUT1 else 0)
                | (Msr.DCD if mcr & Mcr.OUT2 else 0)
            )
        else:
            lines = self._cable()
        changed = lines ^ self._msr
        deltas = (changed & (Msr.CTS | Msr.DSR | Msr.DCD)) >> 4
        if changed & Msr.RI and not lines & Msr.RI:
            deltas |= Msr.TERI  # only the trailing edge of RI counts
        self._msr = int(lines | self._msr & _DELTAS | deltas)

    def _cable(self) -> int:
        return 0 if self._chardev is None else int(Msr.CTS | Msr.DSR | Msr.DCD)

    def _reason(self) -> int:
        """The pending interrupt of the highest priority (data sheet, table IV)."""
        ier = self._ier
        if ier & _ELSI and self._errors:
            return Iir.LINE_STATUS
        if ier & _ERBFI and self._rx:
            if not self._fcr & 1 or len(self._rx) >= _TRIGGERS[self._fcr >> 6]:
                return Iir.RECEIVED
            return Iir.TIMEOUT  # the four character times since the last one are over at once
        if ier & _ETBEI and self._thre_pending:
            return Iir.THR_EMPTY
        if ier & _EDSSI and self._msr & _DELTAS:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _update(self) -> None:
        if self._ier:
            self._irq.set(self._reason() != 1)
        else:
            self._irq.lower()

    # -- lifecycle --

    def reset(self) -> None:
        """Master reset. Input that waits outside the chip stays."""
        with self.lock:
            self._divisor = 0
            self._ier = 0
            self._fcr = 0
            self._lcr = 0
            self._mcr = 0
            self._mcr_programmed = False
            self._scr = 0
            self._polls = 0
            self._errors = 0
            self._thre_pending = False
            self._msr = self._cable()
            self._rx.clear()
            self._irq.lower()

    def save(self) -> State:
        """The registers, the FIFO and the input that waits."""
        with self.lock:
            return save_fields(self, _FIELDS) | {"rx": list(self._rx), "input": bytes(self._input)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over registers, FIFO and waiting input."""
        check_version(self, state)
        rx = saved_list(state, "rx")
        waiting = state.get("input")
        with self.lock:
            restore_fields(self, _FIELDS, state)
            self._rx = deque(value for value in rx[:FIFO_SIZE] if isinstance(value, int))
            self._input = deque(waiting if isinstance(waiting, bytes) else b"")
            self._update()


_FIELDS = (
    "_divisor", "_ier", "_fcr", "_lcr", "_mcr", "_mcr_programmed", "_scr", "_errors", "_thre_pending", "_msr",
)  # fmt: skip


def _discard(data: bytes) -> None:
    """Where output goes that nobody listens to."""


def _ignore(value: int) -> None:
    """LSR and MSR are read-only (writes are for the factory's test)."""
