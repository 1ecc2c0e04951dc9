"""The 8042 keyboard controller, with a keyboard and, at its auxiliary port, a mouse.

Document: IBM PS/2 technical reference, keyboard and auxiliary device controller. Besides, guests reset the machine by
pulsing its output line 0. What the controller and both devices send waits in one queue; each byte that comes to its
head is an edge of the interrupt of the device that it is from. A device that is sent a byte forgets what it still had
to say.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag

from pyhyve.bus.handler import Callbacks
from pyhyve.bus.irq import IrqLine
from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.ps2 import Keyboard, Mouse
from pyhyve.lifecycle import State, check_version, restore_fields, save_fields, saved_dict, saved_int, saved_list
from pyhyve.vmm.exits import SuspendReason

DATA_PORT = 0x60
COMMAND_PORT = 0x64
QUEUE = 16
RAM_SIZE = 32


class Status(IntFlag):
    OUTPUT_FULL = 0x01
    INPUT_FULL = 0x02
    SYSTEM = 0x04
    COMMAND = 0x08
    UNLOCKED = 0x10
    AUX_DATA = 0x20
    TIMEOUT = 0x40
    PARITY = 0x80


class Source(IntFlag):
    """Who a byte is from: bit 0 is the port that it comes by, bit 1 set where a device sent it."""

    CONTROLLER = 0x00
    AUX = 0x01
    KEYBOARD = 0x02
    MOUSE = 0x03


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
OUTPUT_RESET = 0x01
OUTPUT_A20 = 0x02
_OUTPUT_IDLE = 0xCF
_RESET_CONFIG = int(Config.SYSTEM | Config.AUX_DISABLED | Config.KEYBOARD_INTERRUPT | Config.TRANSLATE)


class I8042:
    """The controller. ``power`` is told ``SuspendReason.RESET``; the lines are ISA interrupts 1 and 12."""

    _ram: list[int]
    _status: int
    _expects: int
    _last: int

    def __init__(self, power: Callable[[SuspendReason], None], keyboard_irq: IrqLine, mouse_irq: IrqLine) -> None:
        self.lock = threading.RLock()
        self._power = power
        self._lines = keyboard_irq, mouse_irq
        self._keyboard, self._mouse = Keyboard(), Mouse()
        self._queue: deque[tuple[int, int]] = deque()  # data, who it is from
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
            value |= Status.OUTPUT_FULL | (Status.AUX_DATA if self._queue[0][1] & Source.AUX else 0)
        return int(value)

    def _read_data(self, offset: int, size: int) -> int:
        if self._queue:
            self._last = self._queue.popleft()[0]
            self._next()
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
            self._update()
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
        elif command == Command.WRITE_KEYBOARD_BUFFER:
            self._answer(value)
        elif command == Command.WRITE_AUX_BUFFER:
            self._answer(value, Source.AUX)
        elif command == Command.WRITE_AUX:
            self._forget(Source.MOUSE)
            for byte in self._mouse.answer(value):
                self._answer(byte, Source.MOUSE)
        else:
            self._ram[0] &= ~Config.KEYBOARD_DISABLED  # sending to the keyboard enables its interface
            self._forget(Source.KEYBOARD)
            for byte in self._keyboard.answer(value):
                answer = _TRANSLATED.get(byte, byte) if self._ram[0] & Config.TRANSLATE else byte
                self._answer(answer, Source.KEYBOARD)

    def _answer(self, value: int, source: int = Source.CONTROLLER) -> None:
        if len(self._queue) < QUEUE:
            self._queue.append((value, int(source)))
            self._update()

    def _forget(self, source: int) -> None:
        """Take what ``source`` has sent off the queue."""
        head = self._queue[0] if self._queue else None
        self._queue = deque(item for item in self._queue if item[1] != source)
        if head is not None and head[1] == source:
            self._next()

    def _next(self) -> None:
        """Another byte is at the head of the queue: an edge of its own."""
        for line in self._lines:
            line.lower()
        self._update()

    def _update(self) -> None:
        mouse = bool(self._queue and self._queue[0][1] & Source.AUX)
        wanted = Config.AUX_INTERRUPT if mouse else Config.KEYBOARD_INTERRUPT
        active = bool(self._queue and self._ram[0] & wanted)
        for line, own in zip(self._lines, (not mouse, mouse), strict=True):
            line.set(active and own)

    def reset(self) -> None:
        """As after power-on and firmware's self-test."""
        with self.lock:
            self._ram = [0] * RAM_SIZE
            self._ram[0] = _RESET_CONFIG
            self._status = int(Status.SYSTEM)
            self._expects = 0
            self._last = 0
            self._queue.clear()
            self._keyboard.reset()
            self._mouse.reset()
            self._update()

    def save(self) -> State:
        """Registers, RAM and the bytes that wait."""
        with self.lock:
            devices = {"keyboard": self._keyboard.save(), "mouse": self._mouse.save()}
            return save_fields(self, _FIELDS) | devices | {"queue": [list(item) for item in self._queue]}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over everything. Raises ``DeviceError`` before it changes anything."""
        check_version(self, state)
        _bytes(saved_list(state, "_ram", RAM_SIZE), "_ram")
        _bytes([saved_int(state, name) for name in ("_status", "_expects", "_last")], "register")
        queue: deque[tuple[int, int]] = deque()
        for item in saved_list(state, "queue")[:QUEUE]:
            pair = _bytes(item, "queue") if isinstance(item, list) else []
            if len(pair) != 2:
                raise DeviceError("saved state of I8042 has no valid queue")
            queue.append((pair[0], pair[1]))
        keyboard, mouse = Keyboard(), Mouse()
        keyboard.restore(saved_dict(state.get("keyboard"), "keyboard"))
        mouse.restore(saved_dict(state.get("mouse"), "mouse"))
        with self.lock:
            restore_fields(self, _FIELDS, state)
            self._keyboard, self._mouse, self._queue = keyboard, mouse, queue
            self._update()


def _bytes(values: list[object] | list[int], what: str) -> list[int]:
    """``values``, if each of them is a byte."""
    found = [value for value in values if isinstance(value, int) and 0 <= value <= 0xFF]
    if len(found) != len(values):
        raise DeviceError(f"saved state of I8042 has no valid {what}")
    return found


_FIELDS = ("_ram", "_status", "_expects", "_last")

# What translation of scan codes makes of an answer: the second byte of the keyboard's identity, and its scan code set.
_TRANSLATED = {0x83: 0x41, 0x01: 0x43, 0x02: 0x41, 0x03: 0x3F}

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
    Command.TEST_AUX: 0x00,
    Command.TEST_KEYBOARD: 0x00,
    Command.READ_INPUT: 0x80,
    Command.READ_OUTPUT: _OUTPUT_IDLE,
}
