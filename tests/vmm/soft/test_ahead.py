"""Flags that are not kept because of code that was only read ahead: when that changes, they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyhyve.vmm.api import Point, PointKind
from pyhyve.vmm.exits import Debug, InOut
from pyhyve.vmm.registers import Reg
from tests.guests import Guest, assemble, boot_guest, find_backend, is_end

ORG = 0x10000
BEHIND = ORG + 0x300
# What is behind overwrites the flags of the comparison. It is called where RCX is at most 15, not before.
SOURCE = """
    mov $20, %ecx
    mov $15, %ebp
    xor %eax, %eax
1:  cmp %ecx, %ebp
    jc 2f
    mov 0x20000 + 64, %rbx      # finds its page by a compare, if it may
    {go}
2:  {between}
    dec %ecx
    jnz 1b
    mov %rax, 0x20000
    out %al, $0xF4
    .org 0x300, 0x90
behind:
    xor %esi, %esi
    nop
    {back}
"""
WAYS = {"call": ("call behind", "ret"), "jump": ("jmp behind", "jmp 2b")}
# ADC $1, EAX in its place: carry is clear
CHANGE = """
    cmp $17, %ecx
    jne 3f
    movw $0xD083, behind
    movb $1, behind + 2
3:
"""

Boot = Callable[[str], Guest]


@pytest.fixture(params=WAYS)
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    go, back = WAYS[request.param]
    made: list[Guest] = []

    def make(between: str) -> Guest:
        image = assemble(SOURCE.format(go=go, back=back, between=between.format(go=go)), ORG)
        made.append(boot_guest(find_backend("soft"), image))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


def test_the_guest_changes_what_was_read_ahead(boot: Boot) -> None:
    guest = boot(CHANGE)
    guest.until_end()
    assert guest.word(0) == 15


def test_a_device_changes_what_was_read_ahead(boot: Boot) -> None:
    guest = boot("cmp $17, %ecx\njne 3f\nout %al, $0x80\n3:")
    assert guest.next() == InOut(0x80, 1, False, 0)
    guest.memory.write(BEHIND, b"\x83\xd0\x01")
    guest.vm.memory_written(BEHIND, 3)
    guest.until_end()
    assert guest.word(0) == 15


def test_a_breakpoint_there_sees_the_flags(boot: Boot) -> None:
    guest = boot("cmp $17, %ecx\njne 3f\nout %al, $0x80\n3:")
    assert guest.next() == InOut(0x80, 1, False, 0)
    guest.vcpu.set_points([Point(PointKind.EXECUTE, BEHIND)])
    carries = []
    while not is_end(found := guest.next()):
        assert isinstance(found, Debug)
        carries.append(guest.register(Reg.RFLAGS) & 1)
    assert carries == [0] * 15


def test_data_beside_what_was_read_ahead_does_not_drop_code_for_ever(boot: Boot) -> None:
    guest = boot("""
        cmp $15, %ecx
        jbe 6f
        mov $1000, %edx
    4:  incl behind + 32
        cmp %ecx, %ebp
        jc 5f
        {go}
    5:  dec %edx
        jnz 4b
    6:
    """)
    guest.until_end()
    assert guest.vcpu.stats()["blocks"] < 1000
