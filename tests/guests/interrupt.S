# Say READY, then HLT until an interrupt of vector 0x51 or an NMI, twice. Notes the vectors.
.include "guest.inc"
    gate64 0x51, message
    gate64 2, nonmaskable
    write_reg LAPIC_SVR, 0x1FF
    mov $DATA, %ebx
    mov $2, %ebp
again:
    out %al, $READY
    sti
    hlt
    cli
    dec %ebp
    jnz again
    finish
message:
    movq $0x51, (%rbx)
    add $8, %ebx
    write_reg LAPIC_EOI, 0
    iretq
nonmaskable:
    movq $2, (%rbx)
    add $8, %ebx
    iretq
