# HLT until the local APIC's one-shot timer interrupts (xAPIC).
.include "guest.inc"
    gate64 0x40, tick
    write_reg LAPIC_SVR, 0x1FF
    write_reg LAPIC_TIMER_DIVIDE, 0xB
    write_reg LAPIC_LVT_TIMER, 0x40
    write_reg LAPIC_TIMER_INITIAL, 0x20000
    mov $0x1234, %ebx
    sti
    hlt
    mov %rbx, DATA
    mov $LAPIC_TIMER_CURRENT, %ecx
    mov (%rcx), %eax
    mov %rax, DATA + 8
    finish
tick:
    inc %ebx
    write_reg LAPIC_EOI, 0
    iretq
