# Registers of a passed-through device: a page that may be mapped, then one that makes it interrupt with vector 0x51.
.include "guest.inc"
    gate64 0x51, message
    write_reg LAPIC_SVR, 0x1FF
    mov $REGISTERS, %ebx
    movl $0x12345678, MORE + 0x20(%rbx)
    mov MORE + 0x20(%rbx), %eax
    mov %rax, DATA
    movl $0, RAISE(%rbx)
    sti
    hlt
    cli
    finish
message:
    movq $0x51, DATA + 8
    write_reg LAPIC_EOI, 0
    iretq
