# The boot CPU starts another by INIT and start-up messages; that one begins in real mode at 0x8000.
.include "guest.inc"
    mov $0x8000, %edi
    lea other(%rip), %rsi
    mov $other_end - other, %ecx
    rep movsb
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_ICR_HIGH, 0x01000000
    write_reg LAPIC_ICR, 0x00004500
    write_reg LAPIC_ICR, 0x00004608
    write_reg LAPIC_ICR, 0x00004608
    finish
.code16
other:
    mov %cs, %ax
    out %ax, $0xF5
    hlt
other_end:
