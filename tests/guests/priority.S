# Two messages arrive while interrupts are off: the higher vector is served first, and a raised TPR holds both back.
.include "guest.inc"
.macro wait
    mov $2000, %ecx
1:  dec %ecx
    jnz 1b
.endm
    gate64 0x61, lower
    gate64 0x81, higher
    write_reg LAPIC_SVR, 0x1FF
    mov $DATA, %ebx
    mov $15, %eax
    mov %rax, %cr8
    out %al, $READY
    sti
    wait
    movq $1, (%rbx)
    add $8, %ebx
    xor %eax, %eax
    mov %rax, %cr8
    wait
    cli
    finish
lower:
    movq $0x61, (%rbx)
    jmp done
higher:
    movq $0x81, (%rbx)
done:
    add $8, %ebx
    mov $LAPIC_EOI, %ebp
    movl $0, (%rbp)
    iretq
