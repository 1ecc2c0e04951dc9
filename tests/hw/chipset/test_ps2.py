"""The keyboard and the mouse, as a driver meets them at the 8042's ports."""

from __future__ import annotations

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.i8042 import I8042
from tests.hw.fakes import Lines

DATA, COMMAND = 0x60, 0x64
FULL, AUX = 0x01, 0x20
KEYBOARD_IRQ, MOUSE_IRQ = 1, 12
BOTH_INTERRUPTS, TRANSLATE = 0x03, 0x40


class Rig:
    """The controller behind its ports, both interrupts on and no translation."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.pio = PioBus()
        router = self.lines.router
        self.i8042 = I8042(lambda reason: None, router.line(KEYBOARD_IRQ, "kbd"), router.line(MOUSE_IRQ, "mouse"))
        self.i8042.attach(self.pio)
        self.configure(BOTH_INTERRUPTS)

    def configure(self, value: int) -> None:
        self.pio.write(COMMAND, 1, 0x60)
        self.pio.write(DATA, 1, value)

    def answers(self) -> list[int]:
        """All bytes that wait."""
        found: list[int] = []
        while self.status() & FULL:
            found.append(self.read())
        return found

    def status(self) -> int:
        value = self.pio.read(COMMAND, 1)
        assert value is not None
        return value

    def read(self) -> int:
        value = self.pio.read(DATA, 1)
        assert value is not None
        return value

    def keyboard(self, *sent: int) -> list[int]:
        """What it answers to all of that; each answer is read before the next byte is sent."""
        found = []
        for value in sent:
            self.pio.write(DATA, 1, value)
            found += self.answers()
        return found

    def mouse(self, *sent: int) -> list[int]:
        """The same of the mouse."""
        found = []
        for value in sent:
            self.send_to_mouse(value)
            found += self.answers()
        return found

    def send_to_mouse(self, value: int) -> None:
        self.pio.write(COMMAND, 1, 0xD4)
        self.pio.write(DATA, 1, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ((0xFF,), [0xFA, 0xAA]),
        ((0xF2,), [0xFA, 0xAB, 0x83]),
        ((0xEE,), [0xEE]),
        ((0xED, 0x07), [0xFA, 0xFA]),
        ((0xF3, 0x00), [0xFA, 0xFA]),
        ((0xF0, 0x00), [0xFA, 0xFA, 0x02]),
        ((0xF0, 0x03, 0xF0, 0x00), [0xFA, 0xFA, 0xFA, 0xFA, 0x03]),
        ((0xF0, 0x03, 0xF6, 0xF0, 0x00), [0xFA] * 5 + [0x02]),
        ((0xF0, 0x04), [0xFA, 0xFE]),
        ((0xF4, 0xF5, 0xF6, 0xF8), [0xFA] * 4),
        ((0xED, 0xF4, 0x07), [0xFA, 0xFA, 0xFE]),  # a command in place of the parameter
        ((0xF2, 0xFE), [0xFA, 0xAB, 0x83] * 2),
        ((0xE0,), [0xFE]),
    ],
)
def test_the_keyboard_answers(rig: Rig, sent: tuple[int, ...], answer: list[int]) -> None:
    assert rig.keyboard(*sent) == answer


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ((0xFF,), [0xFA, 0xAA, 0x00]),
        ((0xF2,), [0xFA, 0x00]),
        ((0xE9,), [0xFA, 0x00, 2, 100]),
        ((0xF4, 0xE7, 0xF0, 0xE8, 3, 0xF3, 200, 0xE9), [0xFA] * 8 + [0x70, 3, 200]),
        ((0xF4, 0xE7, 0xF0, 0xEA, 0xE6, 0xF5, 0xE9), [0xFA] * 7 + [0x00, 2, 100]),
        ((0xF4, 0xF3, 10, 0xF6, 0xE9), [0xFA] * 5 + [0x00, 2, 100]),
        ((0xEB,), [0xFA, 0x08, 0, 0]),
        ((0xE9, 0xFE), [0xFA, 0x00, 2, 100] * 2),
        ((0xEE, 0xF2, 0xFE, 0xEC, 0xF2), [0xFA, 0xF2, 0xFE, 0xFA, 0xFA, 0x00]),  # wrap mode
        ((0xEE, 0xFF, 0xF2), [0xFA, 0xFA, 0xAA, 0x00, 0xFA, 0x00]),
        ((0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2), [0xFA] * 7 + [0x00]),  # no wheel
        ((0x55,), [0xFE]),
    ],
)
def test_the_mouse_answers(rig: Rig, sent: tuple[int, ...], answer: list[int]) -> None:
    assert rig.mouse(*sent) == answer


def test_each_byte_is_an_interrupt_of_the_device_it_is_from(rig: Rig) -> None:
    rig.pio.write(DATA, 1, 0xF2)
    rig.send_to_mouse(0xF2)
    seen = []
    while rig.status() & FULL:
        seen.append((rig.lines.level(KEYBOARD_IRQ), rig.lines.level(MOUSE_IRQ), bool(rig.status() & AUX)))
        rig.read()
    assert seen == [(True, False, False)] * 3 + [(False, True, True)] * 2
    assert (rig.lines.edges(KEYBOARD_IRQ), rig.lines.edges(MOUSE_IRQ)) == (3, 2)
    assert not rig.lines.level(KEYBOARD_IRQ)
    assert not rig.lines.level(MOUSE_IRQ)


def test_a_device_that_is_sent_a_byte_forgets_what_it_had_to_say(rig: Rig) -> None:
    rig.send_to_mouse(0xE9)
    rig.pio.write(DATA, 1, 0xFF)
    rig.pio.write(DATA, 1, 0xEE)
    assert rig.read() == 0xFA
    rig.send_to_mouse(0xF2)
    assert rig.lines.level(KEYBOARD_IRQ)
    assert not rig.lines.level(MOUSE_IRQ)
    edges = rig.lines.edges(KEYBOARD_IRQ)
    rig.pio.write(COMMAND, 1, 0xD3)
    rig.pio.write(DATA, 1, 0x5A)
    rig.pio.write(DATA, 1, 0xF4)
    assert rig.lines.edges(KEYBOARD_IRQ) == edges, "the mouse's answer is at the head now"
    assert rig.lines.level(MOUSE_IRQ)
    assert rig.answers() == [0xFA, 0x00, 0x5A, 0xFA]
    assert rig.lines.edges(KEYBOARD_IRQ) == edges + 1


def test_drivers_that_read_nothing_lose_the_oldest_answers_only(rig: Rig) -> None:
    for _ in range(100):
        rig.send_to_mouse(0xE9)
        rig.pio.write(DATA, 1, 0xF2)
    assert rig.answers() == [0xFA, 0x00, 2, 100, 0xFA, 0xAB, 0x83]


def test_a_self_test_of_the_controller_switches_the_mouses_interrupt_off(rig: Rig) -> None:
    rig.pio.write(COMMAND, 1, 0xD3)
    rig.pio.write(DATA, 1, 0x5A)
    assert rig.lines.level(MOUSE_IRQ)
    rig.pio.write(COMMAND, 1, 0xAA)
    assert not rig.lines.level(MOUSE_IRQ)


def test_interrupts_come_when_they_are_switched_on(rig: Rig) -> None:
    rig.configure(0)
    rig.pio.write(COMMAND, 1, 0xD3)
    rig.pio.write(DATA, 1, 0x5A)
    assert not rig.lines.level(MOUSE_IRQ)
    rig.configure(BOTH_INTERRUPTS)
    assert rig.lines.edges(MOUSE_IRQ) == 1
    assert rig.status() & AUX
    assert rig.read() == 0x5A
    assert rig.lines.edges(KEYBOARD_IRQ) == 0


def test_the_auxiliary_port_passes_its_test(rig: Rig) -> None:
    rig.pio.write(COMMAND, 1, 0xA9)
    assert rig.answers() == [0x00]


def test_the_keyboards_bytes_are_translated_and_nobody_elses(rig: Rig) -> None:
    rig.configure(BOTH_INTERRUPTS | TRANSLATE)
    assert rig.keyboard(0xF2) == [0xFA, 0xAB, 0x41]
    assert rig.keyboard(0xF0, 0) == [0xFA, 0xFA, 0x41]
    assert rig.mouse(0xE9) == [0xFA, 0x00, 2, 100]
    assert rig.mouse(0xE8, 3, 0xE9) == [0xFA, 0xFA, 0xFA, 0x00, 3, 100]


def test_sending_to_the_keyboard_switches_its_interface_on(rig: Rig) -> None:
    rig.pio.write(COMMAND, 1, 0xAD)
    rig.keyboard(0xF4)
    rig.pio.write(COMMAND, 1, 0x20)
    assert rig.read() & 0x10 == 0


def test_state_goes_round_in_the_middle_of_a_command(rig: Rig) -> None:
    rig.mouse(0xF4, 0xE8)
    rig.keyboard(0xF0)
    other = Rig()
    other.i8042.restore(rig.i8042.save())
    assert other.i8042.save() == rig.i8042.save()
    assert other.mouse(1, 0xE9) == [0xFA, 0xFA, 0x20, 1, 100]
    assert other.keyboard(3, 0xF0, 0) == [0xFA, 0xFA, 0xFA, 3]
    other.i8042.reset()
    other.configure(BOTH_INTERRUPTS)
    assert other.mouse(0xE9) == [0xFA, 0x00, 2, 100]


BAD_STATES: dict[str, list[object]] = {
    "_ram": [[], ["a"] * 32, [256] * 32, None],
    "_status": ["x", -1],
    "queue": [[[1]], [["a", "b"]], [[999, 0]], [7], None],
    "keyboard": [None, {}, {"_scan_set": 999}, {"_last": bytes(5)}, {"_expects": "x"}],
    "mouse": [None, {"version": 2}, {"_rate": -1}, {"_resolution": 256}, {"_wrap": 1}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_STATES.items() for value in values])
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(rig: Rig, name: str, value: object) -> None:
    rig.mouse(0xF3, 10)
    rig.keyboard(0xF0, 1)
    before = rig.i8042.save()
    state = Rig().i8042.save()
    whole = state[name]
    state[name] = {**whole, **value} if isinstance(whole, dict) and value else value
    with pytest.raises(DeviceError):
        rig.i8042.restore(state)
    assert rig.i8042.save() == before
