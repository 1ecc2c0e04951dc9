# OUTS and INS: single, REP of each size, backwards, and with a count of zero.
.include "guest.inc"
    mov $0x1F0, %edx
    lea text(%rip), %rsi
    mov $DATA, %edi
    outsb
    mov $3, %ecx
    rep outsb
    mov $2, %ecx
    rep outsw
    mov $2, %ecx
    rep outsl
    insb
    mov $3, %ecx
    rep insb
    mov $2, %ecx
    rep insw
    mov $2, %ecx
    rep insl
    xor %ecx, %ecx
    rep insl
    std
    mov $DATA + 0x43, %edi
    mov $3, %ecx
    rep insb
    cld
    mov %rdi, DATA + 0x80
    mov %rsi, DATA + 0x88
    lea text(%rip), %rax
    sub %rax, DATA + 0x88
    mov %rcx, DATA + 0x90
    finish
text: .ascii "ABCDefghIJKLMNOP"
