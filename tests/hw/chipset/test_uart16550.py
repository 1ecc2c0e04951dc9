from __future__ import annotations

import pytest

from pyhyve.bus.pio import PioBus
from pyhyve.hw.chipset.uart16550 import BACKLOG_HIGH, Ier, Iir, Lsr, Mcr, Msr, Register, Uart16550
from tests.hw.fakes import FakeChar, Lines

PORT = 0x3F8
IRQ = 4
FIFO = 0xC0


class Rig:
    def __init__(self, connected: bool = True) -> None:
        self.lines = Lines()
        self.char = FakeChar()
        self.uart = Uart16550(self.lines.router.line(IRQ, "com1"), self.char if connected else None)
        self.pio = PioBus()
        self.uart.attach(self.pio, PORT)
        self.uart.start()

    def get(self, register: Register) -> int:
        value = self.pio.read(PORT + register, 1)
        assert value is not None
        return value

    def put(self, register: Register, value: int) -> None:
        assert self.pio.write(PORT + register, 1, value)

    @property
    def irq(self) -> bool:
        return self.lines.level(IRQ)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (Register.IER, 0),
        (Register.IIR, Iir.NONE),
        (Register.LCR, 0),
        (Register.MCR, 0),
        (Register.LSR, Lsr.THRE | Lsr.TEMT),
        (Register.MSR, Msr.CTS | Msr.DSR | Msr.DCD),
        (Register.SCR, 0),
    ],
)
def test_registers_after_reset(rig: Rig, register: Register, value: int) -> None:
    assert rig.get(register) == value


def test_written_bytes_reach_the_backend_in_order(rig: Rig) -> None:
    for byte in b"hello":
        rig.put(Register.DATA, byte)
    assert rig.char.sent == b"hello"
    assert rig.get(Register.LSR) & Lsr.THRE


def test_divisor_latch_hides_data_and_ier(rig: Rig) -> None:
    rig.put(Register.LCR, 0x83)
    rig.put(Register.DATA, 0x0C)
    rig.put(Register.IER, 0x00)
    assert (rig.get(Register.DATA), rig.get(Register.IER)) == (0x0C, 0)
    rig.put(Register.LCR, 0x03)
    assert rig.uart.baud == 9600
    assert rig.char.sent == b""
    assert rig.get(Register.IER) == 0


def test_enabling_the_thre_interrupt_raises_it_at_once(rig: Rig) -> None:
    rig.put(Register.IER, Ier.ETBEI)
    assert rig.irq
    assert rig.get(Register.IIR) == Iir.THR_EMPTY


def test_reading_iir_clears_thre(rig: Rig) -> None:
    rig.put(Register.IER, Ier.ETBEI)
    rig.get(Register.IIR)
    assert not rig.irq
    assert rig.get(Register.IIR) == Iir.NONE


def test_writing_a_byte_raises_thre_again(rig: Rig) -> None:
    rig.put(Register.IER, Ier.ETBEI)
    rig.get(Register.IIR)
    rig.put(Register.DATA, 0x41)
    assert rig.irq
    assert rig.lines.edges(IRQ) == 2


def test_received_byte_interrupts_and_reading_it_clears(rig: Rig) -> None:
    rig.put(Register.IER, Ier.ERBFI)
    rig.uart.receive(b"x")
    assert rig.irq
    assert rig.get(Register.IIR) == Iir.RECEIVED
    assert rig.get(Register.LSR) & Lsr.DR
    assert rig.get(Register.DATA) == ord("x")
    assert not rig.irq
    assert not rig.get(Register.LSR) & Lsr.DR


@pytest.mark.parametrize(("trigger", "count"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_fifo_trigger_level(rig: Rig, trigger: int, count: int) -> None:
    rig.put(Register.IIR, 0x01 | trigger)
    rig.put(Register.IER, Ier.ERBFI)
    if count > 1:
        rig.uart.receive(bytes(count - 1))
        assert rig.get(Register.IIR) == Iir.TIMEOUT | FIFO
        rig.uart.receive(b"\0")
    else:
        rig.uart.receive(b"\0")
    assert rig.get(Register.IIR) == Iir.RECEIVED | FIFO


def test_thre_yields_to_received_data_and_that_to_line_status(rig: Rig) -> None:
    rig.put(Register.IIR, 0x01)
    rig.put(Register.MCR, Mcr.LOOP)
    rig.put(Register.IER, Ier.ERBFI | Ier.ETBEI | Ier.ELSI | Ier.EDSSI)
    rig.get(Register.MSR)
    for _ in range(17):
        rig.put(Register.DATA, 0x55)
    assert rig.get(Register.IIR) == Iir.LINE_STATUS | FIFO
    assert rig.get(Register.LSR) & (Lsr.OE | Lsr.DR) == Lsr.OE | Lsr.DR
    assert not rig.get(Register.LSR) & Lsr.OE
    assert rig.get(Register.IIR) == Iir.RECEIVED | FIFO
    for _ in range(16):
        assert rig.get(Register.DATA) == 0x55
    assert rig.get(Register.IIR) == Iir.THR_EMPTY | FIFO
    assert rig.get(Register.IIR) == Iir.NONE | FIFO


def test_no_input_is_lost_behind_a_full_fifo(rig: Rig) -> None:
    rig.put(Register.IIR, 0x01)
    rig.put(Register.IER, Ier.ERBFI)
    text = bytes(range(100))
    rig.uart.receive(text)
    got = bytearray()
    while rig.get(Register.LSR) & Lsr.DR:
        got.append(rig.get(Register.DATA))
    assert got == text
    assert not rig.irq


def test_long_backlog_pauses_the_backend_until_it_is_read(rig: Rig) -> None:
    rig.put(Register.MCR, Mcr.RTS)
    rig.uart.receive(bytes(BACKLOG_HIGH + 10))
    assert rig.char.paused
    while rig.get(Register.LSR) & Lsr.DR:
        rig.get(Register.DATA)
    assert not rig.char.paused


def test_a_driver_that_polls_with_rts_off_gets_its_input(rig: Rig) -> None:
    rig.put(Register.MCR, Mcr.OUT2)
    rig.uart.receive(b"x")
    assert not rig.get(Register.LSR) & Lsr.DR, "one look is not enough: it may be about the transmitter"
    for _ in range(20):
        rig.get(Register.LSR)
    assert rig.get(Register.LSR) & Lsr.DR
    assert rig.get(Register.DATA) == ord("x")


def test_input_before_the_driver_is_ready_survives_its_fifo_reset(rig: Rig) -> None:
    rig.uart.receive(b"typed ahead")
    rig.put(Register.MCR, Mcr.DTR)
    rig.put(Register.IIR, 0x07)
    rig.get(Register.LSR)
    rig.get(Register.DATA)
    rig.put(Register.IER, Ier.ERBFI)
    got = bytearray()
    while rig.get(Register.LSR) & Lsr.DR:
        got.append(rig.get(Register.DATA))
    assert got == b"typed ahead"


def test_polling_guest_that_programs_nothing_gets_input(rig: Rig) -> None:
    rig.uart.receive(b"ab")
    assert rig.get(Register.LSR) & Lsr.DR
    assert rig.get(Register.DATA) == ord("a")
    assert rig.get(Register.LSR) & Lsr.DR
    assert rig.get(Register.DATA) == ord("b")
    assert not rig.get(Register.LSR) & Lsr.DR


def test_fifo_reset_clears_received_bytes(rig: Rig) -> None:
    rig.put(Register.IIR, 0x01)
    rig.put(Register.IER, Ier.ERBFI)
    rig.uart.receive(b"abc")
    rig.put(Register.IIR, 0x03)
    assert not rig.get(Register.LSR) & Lsr.DR
    assert not rig.irq


@pytest.mark.parametrize(
    ("mcr", "msr"),
    [(Mcr.DTR, Msr.DSR), (Mcr.RTS, Msr.CTS), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD), (0x0F, 0xF0)],
)
def test_loopback_connects_modem_outputs_to_inputs(rig: Rig, mcr: int, msr: int) -> None:
    rig.put(Register.MCR, Mcr.LOOP | mcr)
    assert rig.get(Register.MSR) & 0xF0 == msr
    assert rig.get(Register.MSR) & 0x0F == 0


def test_modem_status_change_interrupts_until_msr_is_read(rig: Rig) -> None:
    rig.put(Register.MCR, Mcr.LOOP | Mcr.OUT1)
    rig.get(Register.MSR)
    rig.put(Register.IER, Ier.EDSSI)
    rig.put(Register.MCR, Mcr.LOOP | Mcr.RTS)
    assert rig.irq
    assert rig.get(Register.IIR) == Iir.MODEM_STATUS
    assert rig.get(Register.MSR) & 0x0F == Msr.DCTS | Msr.TERI
    assert not rig.irq


def test_loopback_sends_nothing_out(rig: Rig) -> None:
    rig.put(Register.MCR, Mcr.LOOP)
    rig.put(Register.DATA, 0xAE)
    assert rig.get(Register.DATA) == 0xAE
    assert rig.char.sent == b""


def test_unconnected_port_has_no_carrier_and_swallows_output() -> None:
    rig = Rig(connected=False)
    rig.put(Register.DATA, 0x41)
    assert rig.get(Register.MSR) == 0
    assert rig.get(Register.LSR) == Lsr.THRE | Lsr.TEMT


def test_scratch_register_and_reserved_bits(rig: Rig) -> None:
    rig.put(Register.SCR, 0xA5)
    rig.put(Register.IER, 0xFF)
    rig.put(Register.MCR, 0xFF)
    assert (rig.get(Register.SCR), rig.get(Register.IER), rig.get(Register.MCR)) == (0xA5, 0x0F, 0x1F)


def test_save_and_restore(rig: Rig) -> None:
    rig.put(Register.LCR, 0x83)
    rig.put(Register.DATA, 1)
    rig.put(Register.LCR, 0x03)
    rig.put(Register.IIR, 0x01)
    rig.put(Register.IER, Ier.ERBFI)
    rig.uart.receive(b"0123456789abcdefghij")
    other = Rig()
    other.uart.restore(rig.uart.save())
    assert other.irq
    assert other.uart.baud == 115200
    got = bytearray()
    while other.get(Register.LSR) & Lsr.DR:
        got.append(other.get(Register.DATA))
    assert got == b"0123456789abcdefghij"
    rig.uart.reset()
    assert not rig.irq
