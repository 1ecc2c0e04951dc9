# IN and OUT of 1, 2 and 4 bytes, with the port in DX and as an immediate.
.include "guest.inc"
    mov $0x3F0, %edx
    mov $0x11223344, %eax
    out %al, (%dx)
    out %ax, (%dx)
    out %eax, (%dx)
    out %eax, $0x80
    mov $DATA, %ebx
    mov $-1, %rax
    in (%dx), %al
    mov %rax, (%rbx)
    mov $-1, %rax
    in (%dx), %ax
    mov %rax, 8(%rbx)
    mov $-1, %rax
    in (%dx), %eax
    mov %rax, 16(%rbx)
    mov $-1, %rax
    in $0x71, %al
    mov %rax, 24(%rbx)
    finish
