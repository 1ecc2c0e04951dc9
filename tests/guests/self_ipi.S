# An interrupt that the CPU sends itself through the ICR.
.include "guest.inc"
    gate64 0x71, handler
    write_reg LAPIC_SVR, 0x1FF
    xor %ebx, %ebx
    sti
    write_reg LAPIC_ICR, 0x00044071
    mov $2000, %eax
1:  dec %eax
    jnz 1b
    cli
    mov %rbx, DATA
    finish
handler:
    inc %ebx
    write_reg LAPIC_EOI, 0
    iretq
