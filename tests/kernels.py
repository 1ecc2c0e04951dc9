"""Tiny multiboot kernels, for tests that boot a whole machine by its command line.

Each is a few lines of 32-bit assembly that run in flat protected mode without paging. ``say`` writes a string to com1,
``power_off`` and ``reset`` end the machine.
"""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

_PRELUDE = """
.macro out8 port, value
    mov $\\port, %dx
    mov $\\value, %al
    out %al, %dx
.endm
.macro out16 port, value
    mov $\\port, %dx
    mov $\\value, %ax
    out %ax, %dx
.endm
.macro say text
    mov $8f, %esi
7:  lodsb
    test %al, %al
    jz 9f
    mov $0x3f8, %dx
    out %al, %dx
    jmp 7b
8:  .asciz "\\text"
9:
.endm
.macro power_off
    out16 0x404, 0x3400
.endm
.macro reset
    out8 0xcf9, 0x06
.endm
.code32
.text
.align 4
.long 0x1BADB002, 0, -0x1BADB002
.globl _start
_start:
    mov $0x80000, %esp
"""
_CODA = """
1:  hlt
    jmp 1b
"""

POWER_OFF = """
    say "hello\\n"
    power_off
"""
RESET = """
    reset
"""
RESET_BY_KEYBOARD = """
    out8 0x64, 0xfe
"""
TRIPLE_FAULT = """
    lidt none
    ud2
none: .word 0, 0, 0
"""
SPIN = """
    say "spinning\\n"
0:  jmp 0b
"""
# Waits for interrupts, all of which the PIC keeps away.
SLEEP = """
    out8 0x21, 0xff
    out8 0xa1, 0xff
    say "sleeping\\n"
0:  sti
    hlt
    jmp 0b
"""
# Nothing can wake it but an NMI.
HALT = """
    cli
"""
# Gives back what comes in on com1, with a dot before each character, until q.
ECHO = """
    say "ready\\n"
0:  mov $0x3fd, %dx
    in %dx, %al
    test $1, %al
    jz 0b
    mov $0x3f8, %dx
    in %dx, %al
    mov %al, %bl
    mov $'.', %al
    out %al, %dx
    mov %bl, %al
    out %al, %dx
    cmp $'q', %al
    jne 0b
    power_off
"""
# Turns ACPI mode on, listens to the power button and powers off when it is pressed.
POWER_BUTTON = """
    out8 0xb2, 0xa0
    out16 0x402, 0x0100
    say "listening\\n"
0:  mov $0x400, %dx
    in %dx, %ax
    test $0x100, %ax
    jz 0b
    say "pressed\\n"
    power_off
"""
# As above, but only says so.
STUBBORN = """
    out8 0xb2, 0xa0
    out16 0x402, 0x0100
    say "listening\\n"
0:  mov $0x400, %dx
    in %dx, %ax
    test $0x100, %ax
    jz 0b
    out16 0x400, 0x0100
    say "no\\n"
    jmp 0b
"""
READ_NOBODYS_PORT = """
    mov $0x1234, %dx
    in %dx, %ax
    cmp $0xffff, %ax
    jne 1f
    power_off
"""
READ_UNKNOWN_MSR = """
    mov $0x12345, %ecx
    rdmsr
    or %edx, %eax
    jnz 1f
    power_off
"""
READ_NOBODYS_MEMORY = """
    mov 0x90000000, %eax
    power_off
"""
READ_PCI_HOLE = """
    mov 0xc8000000, %eax
    cmp $0xffffffff, %eax
    jne 1f
    power_off
"""
# More output than a pipe holds.
CHATTER = """
    mov $0x3f8, %dx
    mov $80 * 1024, %ecx
    mov $'x', %al
0:  out %al, %dx
    loop 0b
    power_off
"""


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="pyhyve-kernels-")


@cache
def build(body: str) -> str:
    """Assemble a kernel; the path of its ELF file."""
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"no `{tool}` on this host (binutils)")
    place = Path(_folder().name)
    number = len(list(place.glob("*.elf")))
    obj, elf = place / f"{number}.o", place / f"{number}.elf"
    for command, text in (
        (["as", "--32", "-o", str(obj), "-"], _PRELUDE + body + _CODA),
        (["ld", "-m", "elf_i386", "-Ttext=0x100000", "-o", str(elf), str(obj)], None),
    ):
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return str(elf)
