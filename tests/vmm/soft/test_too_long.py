"""Instructions of 15 bytes, and of more: the latter are #GP(0), whatever follows the opcode (SDM Vol. 3A 6.15)."""

from __future__ import annotations

import pytest

from pyhyve.vmm.registers import Reg
from tests.guests import DATA, Mode, assemble, boot_guest, find_backend, is_end

GUEST = """
.include "guest.inc"
    gate64 13, fault
    mov $DATA, %ebx
    lea 0x800(%rbx), %rsp
    xor %ecx, %ecx
    .byte CODE
    finish
fault:
    pop %rax                # the error code
    pop %rcx
    finish
"""

WITH_LAST_BYTE = {
    "pcmpistri xmm1, [rbx], 8": "66 0f 3a 63 0b 08",
    "add dword [rbx], imm32": "81 03 01 00 00 00",
    "imul eax, [rbx], imm32": "69 03 01 00 00 00",
    "test dword [rbx], imm32": "f7 03 01 00 00 00",
    "mov eax, [moffs64]": "a1 {moffs}",
    "mov rax, imm64": "48 b8 01 02 03 04 05 06 07 08",
    "lea eax, [rbx + disp32]": "8d 83 00 00 00 00",
    "shld [rbx], eax, 4": "0f a4 03 04",
    "enter 16, 0": "c8 10 00 00",
    "vpalignr xmm0, xmm0, [rbx], 4": "c4 e3 79 0f 03 04",
    "nop": "90",
}


@pytest.mark.parametrize("name", WITH_LAST_BYTE)
@pytest.mark.parametrize("length", [15, 16, 17])
def test_more_than_15_bytes_are_a_general_protection_fault(name: str, length: int) -> None:
    encoded = bytes.fromhex(WITH_LAST_BYTE[name].format(moffs=DATA.to_bytes(8, "little").hex(" ")))
    encoded = b"\x2e" * (length - len(encoded)) + encoded
    text = GUEST.replace("CODE", ", ".join(map(hex, encoded)))
    guest = boot_guest(find_backend("soft"), assemble(text, 0x10000, Mode.LONG), Mode.LONG)
    try:
        guest.vcpu.set_registers({Reg.CR4: guest.register(Reg.CR4) | 1 << 18 | 0x600, Reg.XCR0: 7})
        result = guest.next()
        assert is_end(result), result
        rip = guest.register(Reg.RCX)
        start = guest.memory.read(0x10000, 4096).index(encoded) + 0x10000
        assert (rip == start) == (length > 15)
        if length > 15:
            assert guest.register(Reg.RAX) == 0, "the error code"
    finally:
        guest.close()
