# PIT channel 0 as a one-shot, through I/O APIC pin 2: HLT until it interrupts.
.include "guest.inc"
.equ IOAPIC, 0xFEC00000
    gate64 0x52, handler
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_LVT_LINT0, 0x10000
    write_reg IOAPIC, 0x15
    write_reg IOAPIC + 0x10, 0
    write_reg IOAPIC, 0x14
    write_reg IOAPIC + 0x10, 0x52
    mov $0x30, %al
    out %al, $0x43
    mov $0x00, %al
    out %al, $0x40
    mov $0x10, %al
    out %al, $0x40
    sti
    hlt
    cli
    finish
handler:
    movq $0x52, DATA
    write_reg LAPIC_EOI, 0
    iretq
