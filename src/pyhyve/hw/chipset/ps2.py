"""The PS/2 keyboard and mouse behind the 8042: their commands, and what they answer.

Documents: IBM PS/2 technical reference, 101/102-key keyboards and mouse. A byte from the driver is a command or the
parameter of the one before it; both are acknowledged. There is no display, so nobody presses keys or moves the mouse: a
driver finds both devices, sets them up and hears no more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyhyve.errors import DeviceError
from pyhyve.lifecycle import State, restore_fields, save_fields, saved_bytes

ACK = b"\xfa"
RESEND = b"\xfe"
SELF_TEST_PASSED = b"\xaa"
KEYBOARD_ID = b"\xab\x83"
MOUSE_ID = b"\x00"
LONGEST_ANSWER = 4

SET_LEDS, ECHO, SCAN_SET = 0xED, 0xEE, 0xF0
SCALE_1, SCALE_2, SET_RESOLUTION, READ_STATUS, STREAM = 0xE6, 0xE7, 0xE8, 0xE9, 0xEA
READ_DATA, END_WRAP, WRAP, REMOTE = 0xEB, 0xEC, 0xEE, 0xF0
READ_ID, SET_RATE, ENABLE, DISABLE, DEFAULTS, REPEAT, RESET = 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFE, 0xFF
SCAN_SET_OF_PCS = 2
KEY_TYPES = range(0xF7, 0xFE)
"""The keyboard's F7 to FD, for scan code set 3: all keys, or those that follow, make codes only and so on."""


class Ps2Device:
    """What both do alike. ``answer`` is all that the controller needs."""

    _fields: ClassVar[tuple[str, ...]] = ("_expects", "_last")
    _expects: int
    _last: bytes

    def __init__(self) -> None:
        self.reset()

    def answer(self, value: int) -> bytes:
        """What comes back for a byte from the driver, 0 to 255: at most ``LONGEST_ANSWER`` bytes."""
        command, self._expects = self._expects, 0
        found = self._take(command, value) if command else self._obey(value)
        if found != RESEND:
            self._last = found
        return found

    def _take(self, command: int, value: int) -> bytes:
        """The parameter of ``command``."""
        raise NotImplementedError

    def _obey(self, command: int) -> bytes:
        raise NotImplementedError

    def _wait(self, command: int) -> bytes:
        self._expects = command
        return ACK

    def reset(self) -> None:
        """As after power-on."""
        self._expects = 0
        self._last = SELF_TEST_PASSED

    def save(self) -> State:
        """The settings."""
        return save_fields(self, self._fields)

    def restore(self, state: Mapping[str, object]) -> None:
        """Take the settings over. Raises ``DeviceError`` before it changes any."""
        for name in self._fields:
            value = state.get(name)
            if isinstance(value, int) and not 0 <= value <= 0xFF:
                raise DeviceError(f"saved state of {type(self).__name__} has no valid {name}")
        if len(saved_bytes(state, "_last")) > LONGEST_ANSWER:
            raise DeviceError(f"saved state of {type(self).__name__} has no valid _last")
        restore_fields(self, self._fields, state)


class Keyboard(Ps2Device):
    """A keyboard with scan code sets 1 to 3."""

    _fields = (*Ps2Device._fields, "_scan_set")
    _scan_set: int

    def _take(self, command: int, value: int) -> bytes:
        if value >= SET_LEDS:  # no parameter: the command is given up for another
            return self._obey(value)
        if command == SCAN_SET:
            if value == 0:
                return ACK + bytes([self._scan_set])
            if value > 3:
                return RESEND
            self._scan_set = value
        return ACK

    def _obey(self, command: int) -> bytes:
        if command == ECHO:
            return bytes([ECHO])
        if command == REPEAT:
            return self._last
        if command in (SET_LEDS, SCAN_SET, SET_RATE):
            return self._wait(command)
        if command == READ_ID:
            return ACK + KEYBOARD_ID
        if command == RESET:
            self.reset()
            return ACK + SELF_TEST_PASSED
        if command in (DISABLE, DEFAULTS):
            self._scan_set = SCAN_SET_OF_PCS
            return ACK
        if command == ENABLE or command in KEY_TYPES:
            return ACK
        return RESEND

    def reset(self) -> None:
        super().reset()
        self._scan_set = SCAN_SET_OF_PCS


class Mouse(Ps2Device):
    """A mouse with two buttons and no wheel."""

    _fields = (*Ps2Device._fields, "_enabled", "_remote", "_double", "_resolution", "_rate", "_wrap")
    _enabled: bool
    _remote: bool
    _double: bool
    _resolution: int
    _rate: int
    _wrap: bool

    def _take(self, command: int, value: int) -> bytes:
        if command == SET_RESOLUTION:
            self._resolution = value & 3
        else:
            self._rate = value
        return ACK

    def _obey(self, command: int) -> bytes:
        if self._wrap and command not in (END_WRAP, RESET):
            return bytes([command])
        if command == REPEAT:
            return self._last
        if command in (SET_RESOLUTION, SET_RATE):
            return self._wait(command)
        if command == READ_STATUS:
            status = self._remote << 6 | self._enabled << 5 | self._double << 4
            return ACK + bytes([status, self._resolution, self._rate])
        if command == READ_DATA:
            return ACK + b"\x08\x00\x00"  # no button, no movement; bit 3 is always set
        if command == READ_ID:
            return ACK + MOUSE_ID
        if command == RESET:
            self.reset()
            return ACK + SELF_TEST_PASSED + MOUSE_ID
        if command == DEFAULTS:
            self._defaults()
        elif command in (SCALE_1, SCALE_2):
            self._double = command == SCALE_2
        elif command in (STREAM, REMOTE):
            self._remote = command == REMOTE
        elif command in (ENABLE, DISABLE):
            self._enabled = command == ENABLE
        elif command in (WRAP, END_WRAP):
            self._wrap = command == WRAP
        else:
            return RESEND
        return ACK

    def _defaults(self) -> None:
        self._enabled = self._remote = self._double = self._wrap = False
        self._resolution = 2
        self._rate = 100

    def reset(self) -> None:
        super().reset()
        self._defaults()
