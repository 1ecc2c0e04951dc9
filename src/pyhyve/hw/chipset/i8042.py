"""The 8042 keyboard controller, with nothing plugged in.

Document: IBM PS/2 technical reference, keyboard and auxiliary device controller. Guests use it for its side jobs, above
all to reset the machine by pulsing output line 0. Commands are answered; what is sent to the keyboard comes back as the
controller's time-out (0xFE with the time-out bit), so that a driver sees at once that nobody is there. There is no
auxiliary port.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.irq import IrqLine
from pyhyve.bus.pio import PioBus
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields, saved_list
from pyhyve.vmm.exits import SuspendReason

DATA_PORT = 0x60
COMMAND_PORT = 0x64
QUEUE = 16


class Status(IntFlag):
    OUTPUT_FULL = 0x01
    INPUT_FULL = 0x02
    SYSTEM = 0x04
    COMMAND = 0x08
    UNLOCKED = 0x10
    AUX_DATA = 0x20
    TIMEOUT = 0x40
    PARITY = 0x80


class Config(IntFlag):
    """The command byte, RAM address 0."""

    KEYBOARD_INTERRUPT = 0x01
    AUX_INTERRUPT = 0x02
    SYSTEM = 0x04
    KEYBOARD_DISABLED = 0x10
    AUX_DISABLED = 0x20
    TRANSLATE = 0x40


class Command(IntEnum):
    READ_RAM = 0x20  # to 0x3F
    WRITE_RAM = 0x60  # to 0x7F
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT = 0xC0
    READ_OUTPUT = 0xD0
    WRITE_OUTPUT = 0xD1
    WRITE_KEYBOARD_BUFFER = 0xD2
    WRITE_AUX_BUFFER = 0xD3
    WRITE_AUX = 0xD4
    PULSE = 0xF0  # to 0xFF: low bits zero are pulsed


SELF_TEST_OK = 0x55
AUX_CLOCK_HIGH = 0x02
"""Result of the auxiliary interface test: the line does not move, nothing is there."""

NO_ANSWER = 0xFE
OUTPUT_RESET = 0x01
OUTPUT_A20 = 0x02
_OUTPUT_IDLE = 0xCF
_RESET_CONFIG = int(Config.SYSTEM | Config.AUX_DISABLED | Config.KEYBOARD_INTERRUPT | Config.TRANSLATE)


class I8042:
    """The controller. ``power`` is told ``SuspendReason.RESET``; ``keyboard_irq`` is ISA interrupt 1, if wired."""

    _ram: list[int]
    _status: int
    _expects: int
    _last: int

    def __init__(self, power: Callable[[SuspendReason], None], keyboard_irq: IrqLine | None = None) -> None:
        self.lock = threading.RLock()
        self._power = power
        self._irq = keyboard_irq
        self._queue: deque[tuple[int, int]] = deque()  # data, status bits that come with it
        self.reset()

    def attach(self, pio: PioBus) -> None:
        """Answer at 0x60 and 0x64."""
        pio.register(DATA_PORT, 1, Callbacks(self._read_data, self._write_data), "i8042 data", self.lock, width=1)
        pio.register(
            COMMAND_PORT, 1, Callbacks(self._read_status, self._write_command), "i8042 command", self.lock, width=1
        )

    def _read_status(self, offset: int, size: int) -> int:
        value = self._status | Status.UNLOCKED
        if self._queue:
            value |= Status.OUTPUT_FULL | self._queue[0][1]
        return int(value)

    def _read_data(self, offset: int, size: int) -> int:
        if self._queue:
            self._last = self._queue.popleft()[0]
            self._update()
        return self._last

    def _write_command(self, offset: int, size: int, value: int) -> None:
        self._status |= Status.COMMAND
        self._expects = 0
        if value >= Command.PULSE:
            if not value & OUTPUT_RESET:
                self._power(SuspendReason.RESET)
        elif Command.READ_RAM <= value < Command.READ_RAM + 0x20:
            self._answer(self._ram[value & 0x1F])
        elif Command.WRITE_RAM <= value < Command.WRITE_RAM + 0x20 or value in _TAKES_DATA:
            self._expects = value
        elif value in _SIMPLE:
            clear, set_ = _SIMPLE[value]
            self._ram[0] = self._ram[0] & ~clear | set_
            self._update()
        elif value == Command.SELF_TEST:
            self._status |= Status.SYSTEM
            self._ram[0] = _RESET_CONFIG
            self._answer(SELF_TEST_OK)
        elif value in _ANSWERS:
            self._answer(_ANSWERS[value])

    def _write_data(self, offset: int, size: int, value: int) -> None:
        self._status &= ~Status.COMMAND
        command, self._expects = self._expects, 0
        if Command.WRITE_RAM <= command < Command.WRITE_RAM + 0x20:
            self._ram[command & 0x1F] = value
            if command == Command.WRITE_RAM:
                self._status = self._status & ~Status.SYSTEM | value & Status.SYSTEM
                self._update()
        elif command == Command.WRITE_OUTPUT:
            if not value & OUTPUT_RESET:
                self._power(SuspendReason.RESET)
        elif command in (Command.WRITE_KEYBOARD_BUFFER, Command.WRITE_AUX_BUFFER):
            self._answer(value)  # without the auxiliary bit in either case: there is no such port
        elif command == 0:
            self._ram[0] &= ~Config.KEYBOARD_DISABLED  # sending to the keyboard enables its interface
            self._answer(NO_ANSWER, Status.TIMEOUT)
        else:
            self._answer(NO_ANSWER, Status.TIMEOUT | Status.AUX_DATA)

    def _answer(self, value: int, status: int = 0) -> None:
        if len(self._queue) < QUEUE:
            self._queue.append((value, int(status)))
            if self._irq is not None and self._ram[0] & Config.KEYBOARD_INTERRUPT and not status & Status.AUX_DATA:
                self._irq.lower()  # each byte is an edge of its own
            self._update()

    def _update(self) -> None:
        if self._irq is not None:
            wanted = self._queue and not self._queue[0][1] & Status.AUX_DATA
            self._irq.set(bool(wanted and self._ram[0] & Config.KEYBOARD_INTERRUPT))

    def reset(self) -> None:
        """As after power-on and firmware's self-test."""
        with self.lock:
            self._ram = [0] * 32
            self._ram[0] = _RESET_CONFIG
            self._status = int(Status.SYSTEM)
            self._expects = 0
            self._last = 0
            self._queue.clear()
            self._update()

    def save(self) -> State:
        """Registers, RAM and the bytes that wait."""
        with self.lock:
            return save_fields(self, _FIELDS) | {"queue": [list(item) for item in self._queue]}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over everything."""
        check_version(self, state)
        items = saved_list(state, "queue")
        with self.lock:
            restore_fields(self, _FIELDS, state)
            self._queue = deque((item[0], item[1]) for item in items[:QUEUE] if isinstance(item, list))
            self._update()


_FIELDS = ("_ram", "_status", "_expects", "_last")

_TAKES_DATA = frozenset(
    {Command.WRITE_OUTPUT, Command.WRITE_KEYBOARD_BUFFER, Command.WRITE_AUX_BUFFER, Command.WRITE_AUX}
)

# command -> (bits of the command byte to clear, to set)
_SIMPLE: dict[int, tuple[int, int]] = {
    Command.DISABLE_AUX: (0, Config.AUX_DISABLED),
    Command.ENABLE_AUX: (Config.AUX_DISABLED, 0),
    Command.DISABLE_KEYBOARD: (0, Config.KEYBOARD_DISABLED),
    Command.ENABLE_KEYBOARD: (Config.KEYBOARD_DISABLED, 0),
}

_ANSWERS: dict[int, int] = {
    Command.TEST_AUX: AUX_CLOCK_HIGH,
    Command.TEST_KEYBOARD: 0x00,
    Command.READ_INPUT: 0x80,
    Command.READ_OUTPUT: _OUTPUT_IDLE,
}
