# Reads of ports that are nothing but clocks: the PM timer as 4 bytes, PIT counter 2 as low and high byte.
.include "guest.inc"
    mov $DATA, %ebx
    mov $0x408, %edx
    in (%dx), %eax
    mov %rax, (%rbx)
    mov $1000, %ecx
wait:
    in (%dx), %eax
    loop wait
    mov %rax, 8(%rbx)
    in $0x42, %al
    movzbl %al, %esi
    in $0x42, %al
    movzbl %al, %eax
    shl $8, %eax
    or %esi, %eax
    mov %rax, 16(%rbx)
    in $0x42, %al
    finish
