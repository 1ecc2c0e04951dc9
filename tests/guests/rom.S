# Read a word of ROM, try to write it, read it again.
.include "guest.inc"
    mov $ROM, %ebx
    mov (%rbx), %rax
    mov %rax, DATA
    movq $0, (%rbx)
    mov (%rbx), %rax
    mov %rax, DATA + 8
    finish
