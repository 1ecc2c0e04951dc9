"""Which exception it is, and what counts as an interrupt."""

from __future__ import annotations

import pytest

from pyhyve.vmm.registers import Reg
from tests.guests import DATA, Guest, Mode, assemble, boot_guest, find_backend

OSFXSR, OSXMMEXCPT = 1 << 9, 1 << 10


def run(guests: list[Guest], text: str, cr4: int = 0) -> Guest:
    image = assemble('.include "guest.inc"\n' + text, 0x10000, Mode.LONG)
    guest = boot_guest(find_backend("soft"), image, Mode.LONG)
    guests.append(guest)
    guest.vcpu.set_registers({Reg.CR4: guest.register(Reg.CR4) & ~(OSFXSR | OSXMMEXCPT) | cr4})
    assert guest.until_end() == []
    return guest


@pytest.mark.parametrize(("cr4", "vector"), [(OSFXSR, 6), (OSFXSR | OSXMMEXCPT, 19)])
def test_an_unmasked_sse_exception_that_the_system_does_not_know_is_an_invalid_opcode(guests, cr4, vector) -> None:
    """SDM Vol. 3A 2.5: without CR4.OSXMMEXCPT it is #UD, with it #XM."""
    guest = run(
        guests,
        f"""
        gate64 6, invalid
        gate64 19, numeric
        movl $0x1F00, {DATA:#x}
        ldmxcsr {DATA:#x}
        xorps %xmm0, %xmm0
        divps %xmm0, %xmm0
        ud2
    invalid:
        movq $6, {DATA:#x}
        finish
    numeric:
        movq $19, {DATA:#x}
        finish
        """,
        cr4,
    )
    assert guest.words(1) == [vector]


def test_an_interrupt_is_counted_once_and_an_instruction_that_asks_for_one_is_none(guests) -> None:
    guest = run(
        guests,
        """
        gate64 0x41, handler
        gate64 0x42, handler
        xor %ebx, %ebx
        write_reg LAPIC_SVR, 0x1FF
        .rept 3
        write_reg LAPIC_ICR, 0x40041            # to itself
        sti
        hlt
        cli
        .endr
        int $0x42
        mov %rbx, DATA
        finish
    handler:
        inc %ebx
        write_reg LAPIC_EOI, 0
        iretq
        """,
    )
    assert guest.words(1) == [4]
    assert guest.vcpu.stats()["interrupts"] == 3
