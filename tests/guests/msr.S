# RDMSR and WRMSR of a register that nobody knows, then RDMSR again with a #GP handler.
.include "guest.inc"
    gate64 13, fault
    mov $0x474F4F00, %ecx
    mov $-1, %rax
    mov $-1, %rdx
    rdmsr
    mov %rax, DATA
    mov %rdx, DATA + 8
    mov $0x55667788, %eax
    mov $0x11223344, %edx
    wrmsr
    out %al, $READY
    mov $0x77, %ebx
bad_read:
    rdmsr
    finish
fault:
    pop %rax
    mov %rax, DATA + 16
    pop %rax
    lea bad_read(%rip), %rdx
    sub %rdx, %rax
    mov %rax, DATA + 24
    mov %rbx, DATA + 32
    finish
