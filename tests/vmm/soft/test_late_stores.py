"""A store by a look-up of some time ago, and another vCPU that translates from that page meanwhile.

One vCPU writes the operand of a MOV in a page that it has looked up well before, by a span or in an earlier round of a
loop; in between its TLB entry goes, or it waits for the code lock. The other runs that code all the time, and again
behind a CPUID when it has been told: then it has to find the new operand.
"""

from __future__ import annotations

import threading

import pytest

from pyhyve.vmm.registers import Reg
from tests.guests import DATA, Mode, assemble, boot_guest, enter_guest, find_backend, is_end

ROUNDS = 1500
GO, TOLD, SEEN = 0x700000, 0x700040, 0x700080
CODE, BESIDE = 0x600000, 0x610000
STORE = "mov %edi, 1(%rbx)"
BETWEEN = {
    # a page with the same index in the TLB, then a device, which takes its time
    "the entry goes": "mov (%rcx), %eax\n" + "mov (%rsi, %r8), %eax\n" * 36 + STORE,
    # stores to a page that has code
    "the code lock is waited for": "mov %eax, (%r9, %r8)\n" * 30 + STORE,
    # the last round of the loop is the store
    "a loop": "mov $3993, %r12d\n jmp 7f\n.balign 64\n7: mov %edi, (%rbx, %r12)\n sub $8, %r12d\n jns 7b",
    "a loop that waits": """
        mov $505, %r12d
        jmp 7f
        .balign 64
    7:  mov %edi, (%rbx, %r12)
        mov %eax, (%r9, %r8)
        mov (%rsi, %r8), %eax
        sub $8, %r12d
        jns 7b
    """,
}

WRITER = """
    .include "guest.inc"
    user_mode
    mov $0x600000, %ebx
    mov $0xA00000, %ecx
    mov $0xFEE00020, %esi
    mov $0x610800, %r9d
    xor %r8d, %r8d
    mov $1, %edi
again:
    lea -1(%rdi), %eax
1:  pause
    cmp %eax, SEEN
    jne 1b
    movl $0, 0x600001(, %r8)
    jmp 2f
2:  movl $0, 0x600001(, %r8)    # no code is left in the page now
    jmp 2f
2:  mov %edi, GO
    jmp 2f
    .balign 64
2:  movl $0, 0x100(%rbx)
    BETWEEN
    jmp 3f
3:  mov %edi, TOLD
    inc %edi
    cmp $ROUNDS + 1, %edi
    jne again
    lea -1(%rdi), %eax
1:  pause
    cmp %eax, SEEN
    jne 1b
    out %al, $0xF4
"""
READER = """
    mov $0x600000, %esi
    mov $0x610000, %r13d
    mov $1, %ebp
    xor %r12d, %r12d
again:
    cmp %ebp, GO
    jne again
    rdtsc
    push %rax
    call *%r13
    pop %rax
    and $0xFFF, %eax
    inc %eax
2:  dec %eax
    jnz 2b
    call *%rsi
3:  pause
    cmp %ebp, TOLD
    jne 3b
    xor %eax, %eax
    cpuid
    call *%rsi
    cmp %ebp, %eax
    je 4f
    inc %r12d
    mov %r12d, DATA
4:  mov %ebp, SEEN
    inc %ebp
    jmp again
"""


def source(text: str, between: str = "") -> str:
    numbers = {"ROUNDS": ROUNDS, "SEEN": SEEN, "TOLD": TOLD, "GO": GO, "DATA": DATA}
    text = text.replace("BETWEEN", between)
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    return text


@pytest.mark.parametrize("between", BETWEEN)
def test_code_is_not_older_than_what_was_stored(between: str) -> None:
    guest = boot_guest(find_backend("soft"), assemble(source(WRITER, BETWEEN[between]), 0x10000), cpus=2)
    other = guest.vm.create_vcpu(1)
    guest.memory.write(0x40000, assemble(source(READER), 0x40000))
    guest.memory.write(CODE, b"\xb8\0\0\0\0\xc3")  # mov $0, %eax; ret
    guest.memory.write(BESIDE, b"\xc3")
    guest.vm.memory_written(0, guest.memory.low_size)
    other.start(0x40)
    enter_guest(other, guest.memory, Mode.LONG, 0x40000)
    other.set_registers({Reg.RSP: 0x90000})
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            other.run()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while not is_end(guest.vcpu.run()):
            pass
        assert guest.memory.read_uint(SEEN, 4) == ROUNDS
        assert guest.memory.read_uint(DATA, 4) == 0
    finally:
        over.set()
        other.kick()
        reader.join(10)
        guest.close()
