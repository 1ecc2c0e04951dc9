# Code that changes itself: an instruction ahead in the same block, one behind in a loop, and one the machine changes.
.include "guest.inc"
    movl $0x22222222, ahead + 1(%rip)
ahead:
    mov $0x11111111, %eax
    mov %rax, DATA
    xor %ebx, %ebx
    mov $5, %ecx
again:
behind:
    add $1, %ebx
    incb behind + 2(%rip)
    loop again
    mov %rbx, DATA + 8
    call routine
    mov %rax, DATA + 16
    lea routine(%rip), %rbx
    out %al, $READY
    call routine
    mov %rax, DATA + 24
    finish
.balign 64
routine:
    mov $0x33, %eax
    ret
