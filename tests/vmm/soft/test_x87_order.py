"""An x87 exception that waits comes before whatever is wrong with a waiting instruction's operand."""

from __future__ import annotations

import pytest

from pyhyve.vmm.registers import Reg
from tests.guests import Mode, assemble, boot_guest, find_backend, is_end

# A division by zero, unmasked; then an instruction whose operand is nowhere.
GUEST = """
.include "guest.inc"
    gate64 13, general_protection
    gate64 14, page_fault
    gate64 16, x87
    mov %cr0, %rax
    or $0x22, %eax          # NE, MP
    and $~4, %eax
    mov %rax, %cr0
    lea DATA + 0x800, %rsp
    fninit
    movw $0x37B, DATA
    fldcw DATA
    fld1
    fldz
    fdivrp
    mov $ADDRESS, %rbx
    INSTRUCTION
general_protection:
    mov $13, %ecx
    finish
page_fault:
    mov $14, %ecx
    finish
x87:
    mov $16, %ecx
    finish
"""
NOT_CANONICAL = "0x8000000000000000"


@pytest.mark.parametrize(
    "instruction", ["faddl (%rbx)", "fidivs (%rbx)", "fstpt (%rbx)", "fldenv (%rbx)", "paddb (%rbx), %mm0"]
)
@pytest.mark.parametrize("address", [NOT_CANONICAL, "NOT_MAPPED"])
def test_an_exception_that_waits_is_told_first(instruction: str, address: str) -> None:
    assert vector_of(instruction, address) == 16


@pytest.mark.parametrize(
    "instruction", ["fnstcw (%rbx)", "fnstenv (%rbx)", "fnstsw (%rbx)", "addps (%rbx), %xmm0", "cvtpi2ps (%rbx), %xmm0"]
)
def test_instructions_that_do_not_wait_tell_of_their_operand(instruction: str) -> None:
    assert vector_of(instruction, NOT_CANONICAL) == 13
    assert vector_of(instruction, "NOT_MAPPED") == 14


def vector_of(instruction: str, address: str) -> int:
    text = GUEST.replace("ADDRESS", address).replace("INSTRUCTION", instruction)
    guest = boot_guest(find_backend("soft"), assemble(text, 0x10000, Mode.LONG), Mode.LONG)
    try:
        guest.vcpu.set_registers({Reg.CR4: guest.register(Reg.CR4) | 0x600})
        result = guest.next()
        assert is_end(result), result
        return guest.register(Reg.RCX)
    finally:
        guest.close()
