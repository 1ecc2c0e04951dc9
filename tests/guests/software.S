# INT n and INT3: gates taken by instruction, with RIP behind it.
.include "guest.inc"
    gate64 3, handler
    gate64 0x71, handler
    mov $DATA, %ebx
first:
    int $0x71
    int3
    finish
handler:
    mov (%rsp), %rax
    lea first(%rip), %rcx
    sub %rcx, %rax
    mov %rax, (%rbx)
    add $8, %ebx
    iretq
