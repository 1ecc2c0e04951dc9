# Protected mode: a divide error through a 32-bit gate, an interrupt flag that the gate clears, a far return.
.include "guest.inc"
    gate32 0, divide
    gate32 6, undefined
    sti
    ud2
after:
    cli
    xor %ecx, %ecx
    mov $1, %eax
    cltd
    idiv %ecx
resume:
    push $0x08
    push $there
    lret
    nop
there:
    mov %cs, %eax
    mov %eax, DATA + 16
    mov $0x1000, %eax
    mov $0x80000000, %ebx
    mull %ebx
    mov %edx, DATA + 20
    finish
divide:
    mov (%esp), %eax
    mov %eax, DATA
    movl $resume, (%esp)
    iret
undefined:
    pushf
    pop %eax
    and $0x200, %eax
    mov %eax, DATA + 4
    mov 8(%esp), %eax
    and $0x200, %eax
    mov %eax, DATA + 8
    movl $after, (%esp)
    iret
