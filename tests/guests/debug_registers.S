# The debug registers, one after another: each #DB is noted as DR6, offset of RIP from `start`, RFLAGS, DR7.
.include "guest.inc"
.equ DEBUGCTL, 0x1D9
.equ RF, 0x10000
.macro set_dr number, value
    mov $\value, %eax
    mov %rax, %dr\number
.endm
.macro set_flags value
    push $\value
    popfq
.endm
    gate64 1, debug
    gate64 6, undefined
    gate64 13, protection
    mov $DATA, %ebx
    xor %r12d, %r12d
    mov $DATA + 0x1000, %esi
    jmp start

debug:
    push %rax
    mov %dr6, %rax
    mov %rax, (%rbx)
    mov 8(%rsp), %rax
    lea start(%rip), %rcx
    sub %rcx, %rax
    mov %rax, 8(%rbx)
    mov 24(%rsp), %rax
    mov %rax, 16(%rbx)
    mov %dr7, %rax
    mov %rax, 24(%rbx)
    add $32, %ebx
    set_dr 6, 0xFFFF0FF0
    or %r12, 24(%rsp)               # RF, against the breakpoint that is at RIP
    pop %rax
    iretq
undefined:
    movq $6, (%rbx)
    jmp behind
protection:
    movq $13, (%rbx)
    add $8, %rsp
behind:
    add $32, %ebx
    addq $3, (%rsp)
    iretq

    .balign 16
start:
    # an instruction breakpoint, three times
    lea at_execute(%rip), %rax
    mov %rax, %dr0
    mov $RF, %r12d
    set_dr 7, 0x401
    .org start + 0x40, 0x90
at_execute:
    nop
    cmpl $DATA + 96, %ebx
    jne at_execute
    xor %r12d, %r12d
    # writes: 4 bytes by DR1, 8 by DR2
    lea 0x804(%rsi), %rax
    mov %rax, %dr1
    lea 0x810(%rsi), %rax
    mov %rax, %dr2
    set_dr 7, 0x9D00418             # DR1: global, 4 bytes; DR2: local, 8 bytes
    .org start + 0x80, 0x90
    movb $1, 0x803(%rsi)
    movb $1, 0x808(%rsi)
    mov 0x804(%rsi), %eax
    .org start + 0xA0, 0x90
    movw $1, 0x807(%rsi)
    .org start + 0xB0, 0x90
    mov %rax, 0x800(%rsi)
    .org start + 0xC0, 0x90
    incb 0x817(%rsi)
    # reads and writes, with a single step: one exception
    set_dr 7, 0xF00408
    .org start + 0xE0, 0x90
    mov 0x805(%rsi), %eax
    .org start + 0xF0, 0x90
    set_flags 0x102
    mov %eax, 0x804(%rsi)
    set_flags 2
    # the shadow of MOV SS
    movl $0x10, 0x804(%rsi)
    .org start + 0x120, 0x90
    mov 0x804(%rsi), %ss
    inc %eax
    .org start + 0x130, 0x90
    # string instructions
    lea 0x800(%rsi), %rdi
    mov $4, %ecx
    .org start + 0x140, 0x90
    rep stosl
    .org start + 0x150, 0x90
    # ports, with and without CR4.DE
    mov $0x80, %eax
    mov %rax, %dr3
    set_dr 7, 0x20000480
    out %al, $0x80
    mov %cr4, %rax
    or $8, %rax
    mov %rax, %cr4
    .org start + 0x180, 0x90
    out %al, $0x80
    .org start + 0x190, 0x90
    in $0x80, %al
    .org start + 0x1A0, 0x90
    out %al, $0x81
    # DR4 is nobody with CR4.DE, and DR6 without
    mov %dr4, %rax
    mov %cr4, %rax
    and $~8, %rax
    mov %rax, %cr4
    mov %dr4, %rax
    mov %rax, (%rbx)
    mov $0xFFFFFFFF, %eax
    mov %rax, %dr6
    mov %dr6, %rax
    mov %rax, 8(%rbx)
    mov $0xFFFFD7FF, %eax
    mov %rax, %dr7
    mov %dr7, %rax
    mov %rax, 16(%rbx)
    set_dr 7, 0x400
    set_dr 6, 0
    mov %dr6, %rax
    mov %rax, 24(%rbx)
    add $32, %ebx
    mov $1, %eax
    shl $32, %rax
    mov %rax, %dr7                  # #GP
    # general detect
    set_dr 7, 0x2400
    .org start + 0x240, 0x90
    mov %dr0, %rax
    # branch stepping
    mov $DEBUGCTL, %ecx
    mov $2, %eax
    xor %edx, %edx
    wrmsr
    .org start + 0x260, 0x90
    set_flags 0x102
    inc %eax
    cmp %eax, %eax
    jne start
    je 1f
    .org start + 0x280, 0x90
1:  set_flags 2
    mov $DEBUGCTL, %ecx
    rdmsr
    mov %rax, (%rbx)
    finish
