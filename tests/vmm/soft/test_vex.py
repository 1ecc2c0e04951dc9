"""What VEX and EVEX say of registers: which encodings are undefined, and what 32-bit code does not look at.

Intel SDM Vol. 2, 2.3.5 and 2.7, and what processors do where the manual is silent: where VEX.vvvv names no register
all of its bits must be set, in 32-bit code too. That each row of the table knows whether vvvv does is asked of the
host's CPU.
"""

from __future__ import annotations

import pytest

from pyhyve.vmm.exits import Suspended
from pyhyve.vmm.registers import Reg
from tests.guests import DATA, DEVICE, Guest, Mode, assemble, boot_guest, find_backend, is_end
from tests.vmm.soft.native import layout
from tests.vmm.soft.native.compare import Comparison

needs_avx512 = pytest.mark.skipif(not layout.HAS_AVX512, reason="this host's CPU has no AVX-512")
CR4_OSXSAVE = 1 << 18

FILL = """
.include "guest.inc"
    mov $DATA + 0x100, %ebx
    vmovdqu (%ebx), %ymm0
    vmovdqu 32(%ebx), %ymm1
    vmovdqu 64(%ebx), %ymm2
    vmovdqu 96(%ebx), %ymm3
    mov $0xF0F0F0F0, %ecx
    mov $0x0FF51234, %edx
"""
FILL_MASKS = "mov $0x1E, %esi\nkmovw %esi, %k2\nmov $0x73, %esi\nkmovw %esi, %k3\n"
KEEP_MASK = "kmovw %k1, %esi\n"
KEEP = """
    mov %eax, DATA
    mov %ecx, DATA + 4
    mov %esi, DATA + 8
    vmovdqu %ymm0, DATA + 32
    finish
"""


def run(code: str, mode: Mode = Mode.PROTECTED) -> bytes | None:
    """What the instruction leaves behind, None for #UD."""
    opmasks = (FILL_MASKS, KEEP_MASK) if layout.HAS_AVX512 else ("", "")
    encoded = ".byte " + ", ".join(f"0x{byte}" for byte in code.split())
    text = FILL + opmasks[0] + encoded + "\n" + opmasks[1] + KEEP
    guest: Guest = boot_guest(find_backend("soft"), assemble(text, 0x10000, mode), mode)
    try:
        guest.memory.write(DATA + 0x100, bytes((n * n + 7 * n) & 0xFF for n in range(256)))
        state = {Reg.CR4: guest.register(Reg.CR4) | CR4_OSXSAVE | 0x600, Reg.XCR0: 0xE7 if layout.HAS_AVX512 else 7}
        guest.vcpu.set_registers(state)
        result = guest.next()
        if isinstance(result, Suspended):
            return None
        assert is_end(result), result
        return guest.memory.read(DATA, 64)
    finally:
        guest.close()


def test_the_table_knows_where_vvvv_names_a_register() -> None:
    with Comparison() as comparison:
        found = {form: {one.free for one in known} for form, known in comparison.encodings.items()}
    assert len(found) > 400
    assert {str(form) for form, free in found.items() if free != {form.vvvv}} == set()


SAME = {
    "vvvv of vaddps": ("c4 e1 70 58 c2", "c4 e1 30 58 c2"),
    "B of vaddps": ("c4 e1 70 58 c2", "c4 c1 70 58 c2"),
    "vvvv of vpsrld": ("c4 e1 71 72 d0 03", "c4 e1 31 72 d0 03"),
    "vvvv of andn": ("c4 e2 70 f2 c2", "c4 e2 30 f2 c2"),
    "vvvv of blsr": ("c4 e2 70 f3 ca", "c4 e2 30 f3 ca"),
    "register of vblendvps": ("c4 e3 71 4a c2 30", "c4 e3 71 4a c2 b0"),
    "register of vpblendvb, memory": ("c4 e3 71 4c 03 20", "c4 e3 71 4c 03 af"),
}
SAME_AVX512 = {
    "vvvv of kandw": ("c4 e1 6c 41 cb", "c4 e1 2c 41 cb"),
    "vvvv, V', B, R' of vaddps": ("62 f1 74 28 58 c2", "62 c1 34 20 58 c2"),
    "R' of vpcmpeqd": ("62 f1 75 28 76 ca", "62 e1 75 28 76 ca"),
    "V' of vmovaps": ("62 f1 7c 28 28 c1", "62 f1 7c 20 28 c1"),
}
UNDEFINED = {
    "vmovaps": "c4 e1 38 28 c1",
    "rorx": "c4 e3 3b f0 c2 04",
    "vzeroupper": "c4 e1 38 77",
    "vmovss, from memory": "c4 e1 3a 10 03",
}
UNDEFINED_AVX512 = {"kmovw": "c4 e1 38 90 cb", "vmovaps": "62 f1 3c 28 28 c1"}
AVX512_TOO = [pytest.param(value, id=name, marks=needs_avx512) for name, value in SAME_AVX512.items()]
UNDEFINED_TOO = [pytest.param(value, id=f"evex {name}", marks=needs_avx512) for name, value in UNDEFINED_AVX512.items()]


@pytest.mark.parametrize("pair", [pytest.param(value, id=name) for name, value in SAME.items()] + AVX512_TOO)
def test_32_bit_code_has_eight_registers(pair: tuple[str, str]) -> None:
    usual, unusual = map(run, pair)
    assert usual is not None
    assert unusual == usual


@pytest.mark.parametrize("code", [pytest.param(value, id=name) for name, value in UNDEFINED.items()] + UNDEFINED_TOO)
def test_vvvv_without_a_register_must_be_all_ones_in_32_bit_code_too(code: str) -> None:
    assert run(code) is None


@pytest.mark.parametrize("mode", [Mode.PROTECTED, Mode.LONG])
def test_undefined_vvvv_comes_before_the_operand(mode: Mode) -> None:
    address = DEVICE.to_bytes(4, "little").hex(" ")
    assert run(f"bb {address} c4 e1 70 28 03", mode) is None  # the load would leave to the machine
