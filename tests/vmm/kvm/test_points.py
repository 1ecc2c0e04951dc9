"""A debugger's points on KVM: how they fill the debug registers, and where the guest stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyhyve.errors import BackendError
from pyhyve.vmm.api import Capability, Point, PointKind
from pyhyve.vmm.exits import Bogus, Debug, InOut, Mtrap
from pyhyve.vmm.kvm.points import DebugRegisters
from pyhyve.vmm.registers import Reg
from tests.guests import DATA, Guest, Mode, assemble, boot_guest, find_backend

CODE = 0x10000
Boot = Callable[[str], Guest]


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Boots assembly text."""
    guests: list[Guest] = []

    def start(text: str) -> Guest:
        guests.append(boot_guest(find_backend("kvm"), assemble('.include "guest.inc"\n' + text, CODE), Mode.LONG))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


def execute(*offsets: int) -> list[Point]:
    return [Point(PointKind.EXECUTE, CODE + offset) for offset in offsets]


def points_or_skip(guest: Guest) -> None:
    if guest.software_kvm:
        pytest.skip("this host's software KVM does not watch data")


# The registers (SDM Vol. 3B §17.2.4).


def test_each_kind_of_point_has_its_code_in_dr7() -> None:
    registers = DebugRegisters(
        [
            Point(PointKind.EXECUTE, 0x1000),
            Point(PointKind.WRITE, 0x2004, 4),
            Point(PointKind.ACCESS, 0x3008, 8),
            Point(PointKind.WRITE, 0x4002, 2),
        ]
    )
    assert registers.addresses == [0x1000, 0x2004, 0x3008, 0x4002]
    assert registers.control(breakpoints=True) == 0x5BD0_00AA
    assert registers.control(breakpoints=False) == 0x5BD0_00A8


@pytest.mark.parametrize(
    ("gva", "length", "pieces"),
    [(0x1000, 16, [(0x1000, 8), (0x1008, 8)]), (0x1001, 4, [(0x1001, 1), (0x1002, 2), (0x1004, 1)]), (0x1004, 3, None)],
)
def test_a_watchpoint_takes_aligned_pieces(gva: int, length: int, pieces: list[tuple[int, int]] | None) -> None:
    point = Point(PointKind.WRITE, gva, length)
    registers = DebugRegisters([point])
    pieces = pieces or [(0x1004, 2), (0x1006, 1)]
    assert registers.addresses[: len(pieces)] == [at for at, _ in pieces]
    assert all(registers.watched(1 << number) == point for number in range(len(pieces)))
    assert registers.watched(1 << len(pieces)) is None


@pytest.mark.parametrize("points", [execute(0, 1, 2, 3, 4), [Point(PointKind.ACCESS, 0x1001, 31)]])
def test_more_than_four_do_not_fit(points: list[Point]) -> None:
    with pytest.raises(BackendError, match="4 debug registers"):
        DebugRegisters(points)


# The guest.

LOOP = """
    mov $3, %ecx
again:
    inc %eax
    dec %ecx
    jnz again
    nop
    finish
"""
AGAIN, BEHIND = 5, 11


def test_a_breakpoint_stops_before_its_instruction_each_time(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(AGAIN))
    for turn in range(3):
        assert guest.next() == Debug(CODE + AGAIN)
        assert guest.register(Reg.RAX) == turn
    assert guest.until_end() == []


def test_several_breakpoints_and_their_end(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(AGAIN, AGAIN + 2, BEHIND))
    guest.expect(Debug(CODE + AGAIN), Debug(CODE + AGAIN + 2), Debug(CODE + AGAIN))
    guest.vcpu.set_points(execute(BEHIND))
    guest.expect(Debug(CODE + BEHIND))
    guest.vcpu.set_points([])
    assert guest.until_end() == []


def test_a_breakpoint_where_rip_was_set_is_passed_once(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(AGAIN))
    guest.vcpu.set_registers({Reg.RIP: CODE + AGAIN, Reg.RCX: 2})
    guest.expect(Debug(CODE + AGAIN))
    assert guest.register(Reg.RCX) == 1


def test_steps_pass_breakpoints(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(AGAIN))
    guest.expect(Debug(CODE + AGAIN))
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, True)
    guest.expect(Mtrap(), Mtrap(), Mtrap())
    assert guest.register(Reg.RIP) == CODE + AGAIN
    guest.vcpu.set_capability(Capability.MTRAP_EXIT, False)
    guest.expect(Debug(CODE + AGAIN))
    assert guest.register(Reg.RAX) == 2, "the step had come to it, and it was passed"


def test_an_instruction_that_exits_stops_once(boot: Boot) -> None:
    guest = boot(
        """
        mov $2, %ecx
    again:
        in $0x80, %al
        dec %ecx
        jnz again
        finish
        """
    )
    guest.vcpu.set_points(execute(AGAIN))
    for _ in range(2):
        guest.expect(Debug(CODE + AGAIN), InOut(0x80, 1, True))
        guest.vcpu.answer(7)
    assert guest.until_end() == []
    assert guest.register(Reg.RAX) & 0xFF == 7


def test_a_kick_at_a_breakpoint_does_not_lose_it(boot: Boot) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_points(execute(AGAIN))
    guest.expect(Debug(CODE + AGAIN))
    guest.vcpu.kick()
    assert guest.run() == Bogus()
    assert guest.register(Reg.RIP) == CODE + AGAIN
    guest.expect(Debug(CODE + AGAIN))
    assert guest.register(Reg.RAX) == 1


def test_a_watchpoint_stops_behind_the_instruction(boot: Boot) -> None:
    guest = boot(
        """
        mov $DATA, %edi
        movb $1, 3(%rdi)
        movb $2, 4(%rdi)
        mov 8(%rdi), %eax
        finish
        """
    )
    points_or_skip(guest)
    guest.vcpu.set_points([Point(PointKind.WRITE, DATA + 4, 4), Point(PointKind.ACCESS, DATA + 8, 4)])
    guest.expect(Debug(CODE + 13, DATA + 4), Debug(CODE + 16, DATA + 8))
    assert guest.until_end() == []


def test_the_guests_own_debug_registers_stay_as_they_are(boot: Boot) -> None:
    guest = boot(LOOP)
    before = guest.vcpu.get_registers((Reg.DR0, Reg.DR7))
    guest.vcpu.set_points(execute(AGAIN))
    guest.expect(Debug(CODE + AGAIN))
    assert guest.vcpu.get_registers((Reg.DR0, Reg.DR7)) == before
