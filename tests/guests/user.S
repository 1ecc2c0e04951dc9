# Ring 3: it may not read the kernel's pages, its port access faults, and #UD brings it back.
.include "guest.inc"
    gate64 13, protection
    gate64 14, page
    gate64 6, back
    mov $DATA, %ebx
    # The user page maps physical 4 MiB: put the program there.
    lea program(%rip), %rsi
    mov $0x400000, %edi
    mov $program_end - program, %ecx
    rep movsb
    push $0x1B
    mov $USER + 0x8000, %rax
    push %rax
    push $0x02
    push $0x23
    mov $USER, %rax
    push %rax
    iretq
program:
    mov DATA, %eax
    in $0x60, %al
    mov $USER + 0x1000, %r15
    movl $0x600D, (%r15)
    ud2
program_end:
    nop
protection:
    movq $13, (%rbx)
    popq 8(%rbx)
    add $16, %ebx
    addq $2, (%rsp)
    iretq
page:
    movq $14, (%rbx)
    popq 8(%rbx)
    add $16, %ebx
    addq $7, (%rsp)
    iretq
back:
    movq $6, (%rbx)
    mov 8(%rsp), %rax
    mov %rax, 8(%rbx)
    mov %cs, %eax
    mov %rax, 16(%rbx)
    mov %rsp, 24(%rbx)
    finish
