"""The bvm console and the debug port, as a guest's driver uses them."""

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.errors import DeviceError
from pyhyve.hw.chipset.bvmcons import BvmConsole
from pyhyve.hw.chipset.dbgport import KEPT, DebugPort
from pyhyve.hw.chipset.uart16550 import BACKLOG_HIGH
from tests.hw.fakes import FakeChar

NOTHING = 0xFFFFFFFF


class FakeConnection(FakeChar):
    connected = False


class Console:
    def __init__(self):
        self.char = FakeChar()
        self.port = 0x220
        self.device = BvmConsole(self.char)
        self.pio = PioBus()
        self.device.attach(self.pio)
        self.device.start()

    def get(self):
        return self.pio.read(self.port, 4)

    def put(self, text):
        for byte in text:
            assert self.pio.write(self.port, 4, byte)


class Debugger(Console):
    def __init__(self):
        self.char = FakeConnection()
        self.port = 0x224
        self.waits = 0
        self.device = DebugPort(self.char, self._wait)
        self.pio = PioBus()
        self.device.attach(self.pio)
        self.device.start()

    def _wait(self):
        self.waits += 1


@pytest.fixture(params=[Console, Debugger])
def any_port(request):
    port = request.param()
    port.char.connected = True
    return port


def test_a_word_read_is_the_consoles_signature():
    assert Console().pio.read(0x220, 2) == int.from_bytes(b"vb", "little")


def test_a_word_read_is_the_debug_ports_signature():
    assert Debugger().pio.read(0x224, 2) == int.from_bytes(b"VB", "little")


def test_a_byte_read_finds_no_isa_device(any_port):
    any_port.char.on_input(b"x")
    assert any_port.pio.read(any_port.port, 1) == 0xFF
    assert any_port.get() == ord("x")


def test_characters_go_out_in_order(any_port):
    any_port.put(b"hello\xff\0")
    assert any_port.char.sent == b"hello\xff\0"


def test_only_the_low_byte_goes_out(any_port):
    any_port.pio.write(any_port.port, 4, 0x11223344)
    assert any_port.char.sent == b"\x44"


@pytest.mark.parametrize("size", [1, 2])
def test_narrow_writes_send_nothing(any_port, size):
    assert any_port.pio.write(any_port.port, size, 0x41)
    assert any_port.char.sent == b""


def test_characters_come_in_in_order_and_then_there_are_none(any_port):
    any_port.char.on_input(b"ab\xff")
    assert [any_port.get() for _ in range(4)] == [ord("a"), ord("b"), 0xFF, NOTHING]


def test_a_backlog_stops_the_backend_until_the_guest_has_read(any_port):
    any_port.char.on_input(bytes(BACKLOG_HIGH))
    assert any_port.char.paused
    for _ in range(BACKLOG_HIGH):
        any_port.get()
    assert not any_port.char.paused
    assert any_port.get() == NOTHING


def test_input_survives_reset_save_and_restore(any_port):
    any_port.char.on_input(b"xy")
    any_port.device.reset()
    state = any_port.device.save()
    other = Console()
    other.char.on_input(b"z")
    other.device.restore(state)
    assert [other.get() for _ in range(4)] == [*b"xyz", NOTHING]


def test_a_state_of_something_else_is_refused():
    with pytest.raises(DeviceError):
        Console().device.restore({"version": 2})


def test_without_a_debugger_the_guest_runs_on_and_its_output_is_kept():
    port = Debugger()
    assert port.get() == NOTHING
    port.put(b"$T05#b9")
    assert (port.waits, port.char.sent) == (1, b"")
    port.char.connected = True
    port.put(b"!")
    assert port.char.sent == b"$T05#b9!"


def test_what_was_kept_goes_out_when_the_guest_polls():
    port = Debugger()
    port.put(b"first")
    port.char.connected = True
    assert port.get() == NOTHING
    assert port.char.sent == b"first"


def test_what_is_kept_has_an_end():
    port = Debugger()
    port.put(bytes(KEPT + 5))
    port.char.connected = True
    port.get()
    assert len(port.char.sent) == KEPT


def test_looking_for_the_signature_does_not_wait():
    port = Debugger()
    port.pio.read(0x224, 2)
    assert port.waits == 0
