# CPUID of the leaves that tell who and where.
.include "guest.inc"
.macro ask leaf, subleaf
    mov $\leaf, %eax
    mov $\subleaf, %ecx
    cpuid
    mov %eax, (%rdi)
    mov %ebx, 4(%rdi)
    mov %ecx, 8(%rdi)
    mov %edx, 12(%rdi)
    add $16, %edi
.endm
    mov $DATA, %edi
    ask 0x40000000, 0
    ask 1, 0
    ask 0xB, 1
    finish
