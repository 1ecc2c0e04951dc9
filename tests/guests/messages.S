# Counts the messages of two vectors until the host has had enough.
.include "guest.inc"
    gate64 0x61, lower
    gate64 0x81, higher
    write_reg LAPIC_SVR, 0x1FF
    mov $DATA, %ebx
    mov $LAPIC_EOI, %ebp
    out %al, $READY
    sti
0:  cmpl $0, 16(%rbx)
    je 0b
    cli
    finish
lower:
    incq (%rbx)
    movl $0, (%rbp)
    iretq
higher:
    incq 8(%rbx)
    movl $0, (%rbp)
    iretq
