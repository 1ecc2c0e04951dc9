# STOS, LODS and MOVS on device memory.
.include "guest.inc"
    mov $DEVICE, %edi
    mov $0x44332211, %eax
    stosb
    stosl
    mov $2, %ecx
    rep stosw
    lea words(%rip), %rsi
    movsl
    mov $2, %ecx
    rep movsq
    mov $DEVICE + 0x80, %esi
    mov $DATA, %edi
    movsb
    mov $2, %ecx
    rep movsl
    lodsw
    movzwl %ax, %eax
    mov %rax, DATA + 0x10
    finish
words: .long 0xA0A1A2A3
    .quad 0xB0B1B2B3B4B5B6B7, 0xC0C1C2C3C4C5C6C7
