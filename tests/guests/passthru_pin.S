# A passed-through device's pin, level triggered at I/O APIC pin PIN: served at its second interrupt only.
.include "guest.inc"
.equ IOAPIC, 0xFEC00000
.macro ioapic index, value
    write_reg IOAPIC, \index
    write_reg IOAPIC + 0x10, \value
.endm
    gate64 0x55, handler
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_LVT_LINT0, 0x10000
    ioapic 0x11+2*PIN, 0
    ioapic 0x10+2*PIN, 0x8055
    xor %ebp, %ebp
    mov $REGISTERS, %ebx
    movl $0, RAISE(%rbx)
again:
    sti
    hlt
    cli
    cmp $2, %ebp
    jb again
    mov %rbp, DATA
    finish
handler:
    inc %ebp
    cmp $2, %ebp
    jb unserved
    movl $0, ACK(%rbx)
unserved:
    write_reg LAPIC_EOI, 0
    iretq
