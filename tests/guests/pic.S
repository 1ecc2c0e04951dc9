# The PIC pair at vectors 0x20 and 0x28, delivered through LINT0 as ExtINT: HLT until line 4 interrupts.
.include "guest.inc"
.macro outb port, value
    mov $\value, %al
    out %al, $\port
.endm
    gate64 0x24, handler
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_LVT_LINT0, 0x700
    outb 0x20, 0x11
    outb 0xA0, 0x11
    outb 0x21, 0x20
    outb 0xA1, 0x28
    outb 0x21, 0x04
    outb 0xA1, 0x02
    outb 0x21, 0x01
    outb 0xA1, 0x01
    outb 0x21, 0xEF
    outb 0xA1, 0xFF
    out %al, $READY
    sti
    hlt
    cli
    finish
handler:
    movq $0x24, DATA
    outb 0x20, 0x20
    iretq
