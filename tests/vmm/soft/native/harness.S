# What stands around every case, the same bytes in the native process and in the guest (ring 3): load the whole state
# from the case's record, jump to its code, and when that comes to `done` store the whole state to its other record.
# Everything is reached by absolute addresses, which fit 32 bits: the case owns all registers.

        .text
start:
        movl    $0, CURSOR
next:
        movl    CURSOR, %eax
        cmpl    COUNT, %eax
        jae     finish
        shll    $RECORD_BITS, %eax
        leaq    IN(%rax), %rbx
        movq    I_CODE(%rbx), %rax
        movq    %rax, TARGET
.if HAVE_FSGSBASE
        movq    I_FSBASE(%rbx), %rax
        wrfsbase %rax
        movq    I_GSBASE(%rbx), %rax
        wrgsbase %rax
.endif
        movl    $XSTATE_MASK, %eax
        xorl    %edx, %edx
        xrstor64 XSTATE(%rbx)
        movl    $STACK, %esp
        pushq   FLAGS(%rbx)
        popfq
        movb    $1, PHASE
        movq    0(%rbx), %rax
        movq    8(%rbx), %rcx
        movq    16(%rbx), %rdx
        movq    32(%rbx), %rsp
        movq    40(%rbx), %rbp
        movq    48(%rbx), %rsi
        movq    56(%rbx), %rdi
        movq    64(%rbx), %r8
        movq    72(%rbx), %r9
        movq    80(%rbx), %r10
        movq    88(%rbx), %r11
        movq    96(%rbx), %r12
        movq    104(%rbx), %r13
        movq    112(%rbx), %r14
        movq    120(%rbx), %r15
        movq    24(%rbx), %rbx
        jmp     *TARGET

        .org    0x200
done:
        movb    $0, PHASE
        movq    %rsp, SAVED_RSP
        movl    $STACK, %esp
        pushfq
        pushq   %rbx
        movl    CURSOR, %ebx
        shll    $RECORD_BITS, %ebx
        leaq    OUT(%rbx), %rbx
        movq    %rax, 0(%rbx)
        movq    %rcx, 8(%rbx)
        movq    %rdx, 16(%rbx)
        popq    24(%rbx)
        popq    FLAGS(%rbx)
        movq    SAVED_RSP, %rax
        movq    %rax, 32(%rbx)
        movq    %rbp, 40(%rbx)
        movq    %rsi, 48(%rbx)
        movq    %rdi, 56(%rbx)
        movq    %r8, 64(%rbx)
        movq    %r9, 72(%rbx)
        movq    %r10, 80(%rbx)
        movq    %r11, 88(%rbx)
        movq    %r12, 96(%rbx)
        movq    %r13, 104(%rbx)
        movq    %r14, 112(%rbx)
        movq    %r15, 120(%rbx)
        pushq   $2
        popfq
.if HAVE_FSGSBASE
        rdfsbase %rax
        movq    %rax, O_FSBASE(%rbx)
        rdgsbase %rax
        movq    %rax, O_GSBASE(%rbx)
.endif
        movl    $XSTATE_MASK, %eax
        xorl    %edx, %edx
        xsave64 XSTATE(%rbx)
        # Where the last x87 instruction was is not the same here and there; the header tells what the processor
        # has in use, which is its own business.
        xorl    %eax, %eax
        movw    %ax, XSTATE+6(%rbx)
        movq    %rax, XSTATE+8(%rbx)
        movq    %rax, XSTATE+16(%rbx)
        movq    %rax, XSTATE+512(%rbx)
        incl    CURSOR
        jmp     next
finish:
        jmp     *FINISH

        # The guest's FINISH: its kernel tells the engine's process, then it all begins again.
        .org    0x400
guest_finish:
        int     $0x40
        jmp     start
