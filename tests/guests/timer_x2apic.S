# HLT until the local APIC's periodic timer has interrupted three times (x2APIC).
.include "guest.inc"
.macro write_apic index, value
    mov $0x800 + \index, %ecx
    mov $\value, %eax
    xor %edx, %edx
    wrmsr
.endm
    gate64 0x41, tick
    write_apic 0x0F, 0x1FF
    write_apic 0x3E, 0xB
    write_apic 0x32, 0x20041
    write_apic 0x38, 0x40000
    xor %ebx, %ebx
again:
    sti
    hlt
    cli
    cmp $3, %ebx
    jb again
    write_apic 0x32, 0x10041
    mov %rbx, DATA
    mov $0x802, %ecx
    rdmsr
    mov %rax, DATA + 8
    mov $0x1B, %ecx
    rdmsr
    mov %rax, DATA + 16
    finish
tick:
    inc %ebx
    write_apic 0x0B, 0
    iretq
