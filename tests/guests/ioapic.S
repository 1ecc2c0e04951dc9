# I/O APIC pin 5 as a level-triggered vector 0x55: it comes again after EOI until the line falls.
.include "guest.inc"
.equ IOAPIC, 0xFEC00000
.macro ioapic index, value
    write_reg IOAPIC, \index
    write_reg IOAPIC + 0x10, \value
.endm
    gate64 0x55, handler
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_LVT_LINT0, 0x10000
    ioapic 0x1B, 0
    ioapic 0x1A, 0x8055
    xor %ebx, %ebx
    out %al, $READY
    sti
again:
    cmp $3, %ebx
    jb again
    nop
    nop
    cli
    mov %rbx, DATA
    finish
handler:
    inc %ebx
    mov %bl, %al
    out %al, $0x50
    write_reg LAPIC_EOI, 0
    iretq
