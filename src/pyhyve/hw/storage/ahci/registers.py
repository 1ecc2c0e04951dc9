"""The AHCI controller's registers, as names and bits.

Document: Serial ATA AHCI 1.3 specification, §3.1 (generic host control), §3.3 (ports), §4.2 (structures in memory).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

SLOTS = 32
VERSION = 0x00010300
PORT_BASE = 0x100
PORT_SIZE = 0x80

HEADER_SIZE = 32
"""Bytes of a command header; a list has 32 of them."""
TABLE_FIS_SIZE = 64
TABLE_ATAPI = 0x40
TABLE_PRDT = 0x80
PRD_SIZE = 16
PRD_BYTES = 0x3FFFFF
PRD_INTERRUPT = 1 << 31


class Hba(IntEnum):
    """Generic host control."""

    CAP = 0x00
    GHC = 0x04
    IS = 0x08
    PI = 0x0C
    VS = 0x10
    CCC_CTL = 0x14
    CCC_PORTS = 0x18
    EM_LOC = 0x1C
    EM_CTL = 0x20
    CAP2 = 0x24
    BOHC = 0x28


class Cap(IntFlag):
    PARTIAL = 1 << 13
    SLUMBER = 1 << 14
    PIO_BLOCKS = 1 << 15
    AHCI_ONLY = 1 << 18
    GEN3 = 3 << 20
    COMMAND_LIST_OVERRIDE = 1 << 24
    ACTIVITY_LED = 1 << 25
    NCQ = 1 << 30
    ADDRESS_64 = 1 << 31


CAP_SLOTS_SHIFT = 8


class Ghc(IntFlag):
    RESET = 1 << 0
    INTERRUPTS = 1 << 1
    AHCI_ENABLE = 1 << 31


class Px(IntEnum):
    """Registers of a port."""

    CLB = 0x00
    CLBU = 0x04
    FB = 0x08
    FBU = 0x0C
    IS = 0x10
    IE = 0x14
    CMD = 0x18
    TFD = 0x20
    SIG = 0x24
    SSTS = 0x28
    SCTL = 0x2C
    SERR = 0x30
    SACT = 0x34
    CI = 0x38
    SNTF = 0x3C
    FBS = 0x40


class Irq(IntFlag):
    """PxIS and PxIE."""

    D2H = 1 << 0
    PIO_SETUP = 1 << 1
    DMA_SETUP = 1 << 2
    DEVICE_BITS = 1 << 3
    UNKNOWN_FIS = 1 << 4
    DESCRIPTOR = 1 << 5
    CONNECT = 1 << 6
    PHY_READY = 1 << 22
    OVERFLOW = 1 << 24
    INTERFACE_FATAL = 1 << 27
    HOST_BUS_DATA = 1 << 28
    HOST_BUS_FATAL = 1 << 29
    TASK_FILE = 1 << 30


IRQ_MASK = 0xFDC000FF
"""The bits of PxIE that can be written."""
IRQ_FROM_SERR = Irq.UNKNOWN_FIS | Irq.CONNECT | Irq.PHY_READY
"""Bits of PxIS that go away with their cause in PxSERR."""


class Cmd(IntFlag):
    """PxCMD."""

    START = 1 << 0
    SPIN_UP = 1 << 1
    POWER_ON = 1 << 2
    LIST_OVERRIDE = 1 << 3
    FIS_ENABLE = 1 << 4
    CURRENT_SLOT = 0x1F << 8
    FIS_RUNNING = 1 << 14
    LIST_RUNNING = 1 << 15
    ATAPI = 1 << 24
    LED_ATAPI = 1 << 25


CMD_WRITABLE = Cmd.START | Cmd.FIS_ENABLE | Cmd.ATAPI | Cmd.LED_ATAPI
CMD_FIXED = Cmd.SPIN_UP | Cmd.POWER_ON
CURRENT_SLOT_SHIFT = 8


class Serr(IntFlag):
    """PxSERR, what this controller reports of it."""

    PROTOCOL = 1 << 10
    INTERNAL = 1 << 11
    EXCHANGED = 1 << 26


SSTS_PRESENT = 0x103
"""Device present, link active; the speed is in bits 4-7."""
SSTS_OFFLINE = 0x004
DET_MASK, DET_RESET, DET_OFFLINE = 0xF, 1, 4
SPEED_SHIFT, FASTEST = 4, 3

NO_DEVICE_TFD = 0x7F
SIGNATURE_NONE = 0xFFFFFFFF


class Ata(IntFlag):
    """The status register of the task file."""

    ERROR = 0x01
    REQUEST = 0x08
    SEEK_DONE = 0x10
    FAULT = 0x20
    READY = 0x40
    BUSY = 0x80


class AtaError(IntFlag):
    """The error register."""

    ABORTED = 0x04
    NOT_FOUND = 0x10
    UNCORRECTABLE = 0x40


OK = int(Ata.READY | Ata.SEEK_DONE)
"""Status of a command that ended well."""
FAILED = int(Ata.READY | Ata.SEEK_DONE | Ata.ERROR)


class Header(IntFlag):
    """The first dword of a command header."""

    FIS_LENGTH = 0x1F
    ATAPI = 1 << 5
    WRITE = 1 << 6
    RESET = 1 << 8
    CLEAR_BUSY = 1 << 10
