# Handlers for exceptions that the machine raises, after each OUT to READY.
.include "guest.inc"
    gate64 6, undefined
    gate64 13, protection
    mov $0x99, %ebx
    out %al, $READY
after:
    mov $0x11, %ebx
    finish
undefined:
    movq $6, DATA
    pop %rax
    jmp note
protection:
    movq $13, DATA
    pop %rcx
    mov %rcx, DATA + 8
    pop %rax
note:
    lea after(%rip), %rcx
    sub %rcx, %rax
    mov %rax, DATA + 16
    mov %rbx, DATA + 24
    finish
