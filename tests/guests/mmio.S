# Reads and writes of device memory of 1, 2, 4 and 8 bytes by many instructions.
.include "guest.inc"
    mov $DEVICE, %ebx
    mov $DATA, %ebp
    mov $0x1122334455667788, %rax
    mov %al, (%rbx)
    mov %ax, 2(%rbx)
    mov %eax, 4(%rbx)
    mov %rax, 8(%rbx)
    movb $0x5A, 0x10(%rbx)
    movl $0x12345678, 0x14(%rbx)
    movq $-2, 0x18(%rbx)
    mov $-1, %rax
    mov 0x20(%rbx), %al
    mov %rax, (%rbp)
    mov $-1, %rax
    mov 0x22(%rbx), %ax
    mov %rax, 8(%rbp)
    mov $-1, %rax
    mov 0x24(%rbx), %eax
    mov %rax, 16(%rbp)
    mov 0x28(%rbx), %rax
    mov %rax, 24(%rbp)
    movzbl 0x30(%rbx), %eax
    mov %rax, 32(%rbp)
    movsbq 0x31(%rbx), %rax
    mov %rax, 40(%rbp)
    movzwl 0x32(%rbx), %eax
    mov %rax, 48(%rbp)
    movslq 0x34(%rbx), %rax
    mov %rax, 56(%rbp)
    finish
