# The guest's kernel: what the signal handler is for the native process, and the gate by which a batch ends.

        .text
        # Of these vectors 8, 10 to 14 and 17 come with an error code
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        .balign 16
        .if     !(0x27D00 >> \n & 1)
        pushq   $0
        .endif
        pushq   $\n
        jmp     fault
        .endr

        .balign 16
        outb    %al, $0xF4                      # gate 0x40, at 32 * 16
        iretq

        .balign 16
fault:  pushq   %rax
        pushq   %rcx
        cmpb    $0, PHASE
        je      astray
        movl    CURSOR, %eax
        shll    $RECORD_BITS, %eax
        leaq    OUT(%rax), %rax
        movq    16(%rsp), %rcx
        movq    %rcx, VECTOR(%rax)
        cmpl    $14, %ecx
        jne     1f
        movq    %cr2, %rcx
        movq    %rcx, CR2(%rax)
1:      movq    24(%rsp), %rcx
        andl    $~1, %ecx
        movq    %rcx, ERROR(%rax)
        movq    32(%rsp), %rcx
        movq    %rcx, FAULT_RIP(%rax)
        movq    $DONE, 32(%rsp)
        popq    %rcx
        popq    %rax
        addq    $16, %rsp
        iretq
astray: movl    16(%rsp), %eax                  # a fault in the harness itself
        movq    32(%rsp), %rcx
        outb    %al, $0xF5
        hlt
