# Straight code for single-stepping.
.include "guest.inc"
    mov $1, %eax
    add $2, %eax
    push %rax
    pop %rbx
    jmp next
    nop
next:
    nop
    finish
