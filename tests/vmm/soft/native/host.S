# The native process: a static program that has nothing in its address space but itself, the region that is shared with
# the test on descriptor 2, and what the kernel puts there. It runs the region's cases once for every byte that comes in
# and answers with a byte. A signal is recorded in the case's record and the case ends there with its state as it is.

        .set    PROT_R, 1
        .set    PROT_W, 2
        .set    PROT_X, 4
        .set    MAP_FLAGS, 0x108001             # MAP_SHARED, MAP_POPULATE, MAP_FIXED_NOREPLACE
        .set    UC_GREGS, 40                    # of ucontext_t
        .set    GREG_RIP, UC_GREGS + 16*8
        .set    GREG_ERR, UC_GREGS + 19*8
        .set    GREG_TRAPNO, UC_GREGS + 20*8
        .set    GREG_CR2, UC_GREGS + 22*8

        .text
        .globl  _start
_start:
        movl    $9, %eax                        # mmap
        movl    $BASE, %edi
        movl    $REGION, %esi
        movl    $(PROT_R|PROT_W|PROT_X), %edx
        movl    $MAP_FLAGS, %r10d
        movl    $2, %r8d
        xorl    %r9d, %r9d
        syscall
        cmpq    $BASE, %rax
        jne     fail
        # Only the harness and the cases are code
        movl    $IN, %edi
        movl    $(BASE + REGION - IN), %esi
        movl    $(PROT_R|PROT_W), %edx
        call    protect
        # Every slot: no access, two pages of memory, read-only
        movl    $SLOTS, %r12d
1:      movl    %r12d, %edi
        movl    $4096, %esi
        xorl    %edx, %edx
        call    protect
        leal    0x3000(%r12), %edi
        movl    $4096, %esi
        movl    $PROT_R, %edx
        call    protect
        addl    $0x4000, %r12d
        cmpl    $(BASE + REGION), %r12d
        jb      1b

        movl    $131, %eax                      # sigaltstack
        movl    $altstack, %edi
        xorl    %esi, %esi
        syscall
        testq   %rax, %rax
        jnz     fail
        movl    $signals, %r12d
2:      movzbl  (%r12), %edi
        testl   %edi, %edi
        jz      3f
        movl    $13, %eax                       # rt_sigaction
        movl    $action, %esi
        xorl    %edx, %edx
        movl    $8, %r10d
        syscall
        testq   %rax, %rax
        jnz     fail
        incl    %r12d
        jmp     2b
3:      movl    $157, %eax                      # prctl(PR_SET_PDEATHSIG, SIGKILL): a case may have no end
        movl    $1, %edi
        movl    $9, %esi
        xorl    %edx, %edx
        xorl    %r10d, %r10d
        xorl    %r8d, %r8d
        syscall
        movl    $157, %eax                      # prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT): a case that goes astray
        movl    $22, %edi                       # does no harm; where it is not allowed we trust the generator
        movl    $1, %esi
        xorl    %edx, %edx
        xorl    %r10d, %r10d
        xorl    %r8d, %r8d
        syscall

main:   xorl    %eax, %eax                      # read
        xorl    %edi, %edi
        movl    $byte, %esi
        movl    $1, %edx
        syscall
        cmpq    $1, %rax
        jne     fail
        movl    $finished, FINISH
        jmp     START
finished:
        movl    $1, %eax                        # write
        movl    $1, %edi
        movl    $byte, %esi
        movl    $1, %edx
        syscall
        jmp     main

protect:
        movl    $10, %eax                       # mprotect
        syscall
        testq   %rax, %rax
        jnz     fail
        ret

fail:   movl    $60, %eax                       # exit
        movl    $1, %edi
        syscall

handler:
        cmpb    $0, PHASE
        je      fail                            # not a case's doing
        movl    CURSOR, %eax
        shll    $RECORD_BITS, %eax
        leaq    OUT(%rax), %rax
        movq    GREG_TRAPNO(%rdx), %rcx
        movq    %rcx, VECTOR(%rax)
        movq    GREG_ERR(%rdx), %rsi
        andl    $~1, %esi                       # the kernel shows "not present" as it likes
        movq    %rsi, ERROR(%rax)
        movq    GREG_RIP(%rdx), %rsi
        movq    %rsi, FAULT_RIP(%rax)
        cmpl    $14, %ecx
        jne     1f
        movq    GREG_CR2(%rdx), %rsi
        movq    %rsi, CR2(%rax)
1:      movq    $DONE, GREG_RIP(%rdx)
        ret
restorer:
        movl    $15, %eax                       # rt_sigreturn
        syscall

        .data
        .balign 8
altstack:
        .quad   stack, 0, 0x10000
action:
        .quad   handler, 0x4C000004, restorer, 0        # SIGINFO, RESTORER, ONSTACK, NODEFER
signals:
        .byte   4, 5, 7, 8, 11, 0
byte:   .byte   0
        .bss
        .balign 64
stack:  .skip   0x10000
