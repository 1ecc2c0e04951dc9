# Instructions that read device memory, change it and write it back.
.include "guest.inc"
    mov $DEVICE, %ebx
    mov $DATA, %ebp
    mov $5, %eax
    add %eax, 0x40(%rbx)
    orb $0x80, 0x44(%rbx)
    notl 0x48(%rbx)
    incw 0x4C(%rbx)
    mov $0xCAFE, %eax
    xchg %eax, 0x50(%rbx)
    mov %rax, (%rbp)
    cmpl $7, 0x54(%rbx)
    setz 8(%rbp)
    testb $1, 0x58(%rbx)
    setnz 9(%rbp)
    addl 0x5C(%rbx), %eax
    mov %rax, 16(%rbp)
    finish
