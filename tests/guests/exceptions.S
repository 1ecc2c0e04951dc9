# Exceptions, each noted as vector, error code (or -1), offset of RIP from the faulting instruction, CR2.
.include "guest.inc"
.macro stub vector, code
stub_\vector:
    .ifeq \code
    push $-1
    .endif
    push $\vector
    jmp note
.endm
.macro trap label
    lea \label(%rip), %r12
    lea \label\()_end(%rip), %r13
\label:
.endm
    gate64 0, stub_0
    gate64 6, stub_6
    gate64 12, stub_12
    gate64 13, stub_13
    gate64 14, stub_14
    mov $DATA, %ebx
    xor %eax, %eax
    mov %rax, %cr2
    trap divide
    div %eax
divide_end:
    trap undefined
    ud2
undefined_end:
    mov $0x48, %eax
    trap selector
    mov %eax, %ds
selector_end:
    mov $0x8000000000000000, %rbp
    trap stack
    mov (%rbp), %cl
stack_end:
    mov %rbp, %rsi
    trap canonical
    mov (%rsi), %cl
canonical_end:
    mov $NOT_MAPPED + 0x123, %rbp
    trap absent_read
    mov (%rbp), %ecx
absent_read_end:
    trap absent_write
    mov %ecx, (%rbp)
absent_write_end:
    mov $READ_ONLY + 0xFF8, %rbp
    trap read_only
    mov %rax, (%rbp)
read_only_end:
    mov $NO_EXECUTE, %rbp
    trap no_execute
    jmp *%rbp
no_execute_end:
    mov %ebx, DATA + 0x800
    finish
    stub 0, 0
    stub 6, 0
    stub 12, 1
    stub 13, 1
    stub 14, 1
note:
    popq (%rbx)
    popq 8(%rbx)
    mov (%rsp), %rax
    sub %r12, %rax
    mov %rax, 16(%rbx)
    mov %cr2, %rax
    mov %rax, 24(%rbx)
    add $32, %ebx
    mov %r13, (%rsp)
    iretq
