# Several processors at work on one thing. The boot CPU brings the others to long mode, then all of them run the part that
# TEST names, each with its number (0 is the boot CPU's) in %ebp; when all have come back, the boot CPU ends the guest.
.include "guest.inc"
.equ COUNT, 0x30000             # processors that have come up
.equ DONE, 0x30008              # processors that have come back
.equ FLAG, 0x30040
.equ ACK, 0x30080
.equ TRAMPOLINE, 0x8000
.equ PLAYGROUND, 0x600000       # memory for code and data of the tests; its 2 MiB are mapped by 4 KiB pages
.equ TABLE, 0x60000             # the page table of the playground

    mov $TRAMPOLINE, %edi
    lea trampoline(%rip), %rsi
    mov $trampoline_end - trampoline, %ecx
    rep movsb
    # Split the playground's large page.
    mov $TABLE, %edi
    mov $PLAYGROUND + 7, %eax
    mov $512, %ecx
1:  stosq
    add $0x1000, %eax
    loop 1b
    movq $TABLE + 7, 0x6000 + 8 * (PLAYGROUND >> 21)
    mov %cr3, %rax
    mov %rax, %cr3
    gate64 0x71, on_ipi
    write_reg LAPIC_SVR, 0x1FF
    # INIT and start-up to all but this one
    write_reg LAPIC_ICR, 0x000C4500
    write_reg LAPIC_ICR, 0x000C4608
1:  pause
    cmpl $CPUS - 1, COUNT
    jne 1b
    xor %ebp, %ebp
    call test
1:  pause
    cmpl $CPUS - 1, DONE
    jne 1b
    finish

up:                             # another processor, in long mode
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $LAPIC + 0x20, %ecx
    mov (%rcx), %ebp
    shr $24, %ebp
    lock incl COUNT
    mov %ebp, %eax
    shl $12, %eax
    lea 0x70000(%rax), %rsp
    lidt idt_pointer(%rip)
    write_reg LAPIC_SVR, 0x1FF
    call test
    lock incl DONE
1:  cli
    hlt
    jmp 1b

idt_pointer:
    .word 0xFFF
    .quad IDT

on_ipi:
    push %rax
    push %rcx
.if TEST == 3
    invlpg PLAYGROUND
.endif
    lock incl ACK
    write_reg LAPIC_EOI, 0
    pop %rcx
    pop %rax
    iretq

test:
.if TEST == 1                   # LOCK, also across a cache line and a page
    mov $ROUNDS, %ecx
1:  lock incq DATA
    mov $1, %eax
    lock xadd %rax, DATA + 8
    mov DATA + 16, %rax
2:  lea 3(%rax), %rdx
    lock cmpxchg %rdx, DATA + 16
    jne 2b
    lock addq $1, DATA + 0x7C
    lock addq $1, PLAYGROUND + 0xFFD
    lock btsq $3, DATA + 24
    xor %eax, %eax
    dec %ecx
    jnz 1b
    ret
.elseif TEST == 2               # interrupts to and fro
    sti
    test %ebp, %ebp
    jnz 3f
    mov $ROUNDS, %ebx
1:  mov ACK, %esi
    write_reg LAPIC_ICR, 0x000C4071
2:  pause
    mov ACK, %eax
    sub %esi, %eax
    cmp $CPUS - 1, %eax
    jne 2b
    dec %ebx
    jnz 1b
    movl $1, FLAG
    cli
    ret
3:  pause
    cmpl $0, FLAG
    je 3b
    cli
    ret
.elseif TEST == 3               # a page goes elsewhere: nobody may read the old one behind its answer
    test %ebp, %ebp
    jnz 5f
    movl $1, PLAYGROUND + 0x1000
    movl $2, PLAYGROUND + 0x2000
    mov $ROUNDS, %ebx
1:  mov %ebx, %eax              # the page at PLAYGROUND + 0x1000 or 0x2000, in turn
    and $1, %eax
    inc %eax
    mov %eax, %edx
    shl $12, %eax
    add $PLAYGROUND + 7, %eax
    mov %rax, TABLE
    invlpg PLAYGROUND
    mov ACK, %esi
    write_reg LAPIC_ICR, 0x000C4071
2:  pause
    mov ACK, %eax
    sub %esi, %eax
    cmp $CPUS - 1, %eax
    jne 2b
    mov %edx, DATA + 8          # what all must read from now on
    mov %ebx, FLAG
3:  pause
    mov DATA, %eax              # until each has looked once more
    cmp $CPUS - 1, %eax
    jne 3b
    movl $0, DATA
    dec %ebx
    jnz 1b
    movl $-1, FLAG
    ret
5:  sti
    xor %ebx, %ebx
6:  mov PLAYGROUND, %eax        # keep it in the TLB
    mov FLAG, %edx
    pause
    cmp %ebx, %edx
    je 6b
    mov %edx, %ebx
    cmp $-1, %edx
    je 8f
    mov PLAYGROUND, %eax
    cmp DATA + 8, %eax
    je 7f
    lock incl DATA + 12
7:  lock incl DATA
    jmp 6b
8:  cli
    ret
.elseif TEST == 4               # code written by one, run by the others
    test %ebp, %ebp
    jnz 5f
    mov $ROUNDS, %ebx
1:  mov $PLAYGROUND, %edi
    movb $0xB8, (%rdi)          # mov $ROUND, %eax; ret
    mov %ebx, 1(%rdi)
    movb $0xC3, 5(%rdi)
    mov %ebx, FLAG
3:  pause
    mov DATA, %eax
    cmp $CPUS - 1, %eax
    jne 3b
    movl $0, DATA
    dec %ebx
    jnz 1b
    movl $-1, FLAG
    ret
5:  xor %esi, %esi
6:  pause
    mov FLAG, %edx
    cmp %esi, %edx
    je 6b
    mov %edx, %esi
    cmp $-1, %edx
    je 8f
    xor %eax, %eax
    cpuid                       # serialize (SDM Vol. 3A 9.1.3)
    mov $PLAYGROUND, %eax
    call *%rax
    cmp %esi, %eax
    je 7f
    lock incl DATA + 12
7:  lock incl DATA
    jmp 6b
8:  ret
.elseif TEST == 5               # code changed under running processors: they take the old or the new, never a mixture
    test %ebp, %ebp
    jnz 5f
    mov $code_start, %esi
    mov $PLAYGROUND, %edi
    mov $code_end - code_start, %ecx
    rep movsb
    movl $1, FLAG
    mov $ROUNDS, %ebx
1:  mov $1, %eax                # the loop's immediate: 1 or 0x01010101
    test $1, %bl
    jz 2f
    mov $0x01010101, %eax
2:  mov %eax, PLAYGROUND + 8 + (code_imm - code_start) - 8
    mov $50, %ecx
3:  dec %ecx
    jnz 3b
    dec %ebx
    jnz 1b
    movb $0xC3, PLAYGROUND + (code_jump - code_start)
    ret
5:  pause
    cmpl $0, FLAG
    je 5b
    mov $PLAYGROUND, %eax
    call *%rax
    ret
code_start:
    .byte 0x90, 0x90, 0x90, 0xB8    # mov $imm, %eax, aligned so that it is stored at once
code_imm:
    .long 1
    cmp $1, %eax
    je code_jump
    cmp $0x01010101, %eax
    je code_jump
    lock incl DATA + 12
code_jump:
    jmp code_start
code_end:
.elseif TEST == 6               # fresh pages of code, one after the other, written here and called there
    test %ebp, %ebp
    jnz 5f
    mov $1, %ebx
1:  mov %ebx, %edi
    shl $12, %edi
    add $PLAYGROUND, %edi
    mov $0x80, %ecx
2:  movb $0xB8, (%rdi)
    mov %ebx, 1(%rdi)
    movb $0xC3, 5(%rdi)
    add $16, %rdi
    dec %ecx
    jnz 2b
    mov %ebx, FLAG
3:  pause
    mov DATA, %eax
    cmp $CPUS - 1, %eax
    jne 3b
    movl $0, DATA
    inc %ebx
    cmp $ROUNDS, %ebx
    jne 1b
    movl $-1, FLAG
    ret
5:  xor %esi, %esi
6:  pause
    mov FLAG, %edx
    cmp %esi, %edx
    je 6b
    mov %edx, %esi
    cmp $-1, %edx
    je 8f
    mov %esi, %edi
    shl $12, %edi
    add $PLAYGROUND, %edi
    mov $0x80, %r8d
9:  call *%rdi
    cmp %esi, %eax
    je 7f
    lock incl DATA + 12
7:  add $16, %rdi
    dec %r8d
    jnz 9b
    lock incl DATA
    jmp 6b
8:  ret
.elseif TEST == 7               # stopped by INIT while it works, and started anew
    test %ebp, %ebp
    jnz 5f
    mov $ROUNDS, %ebx
1:  mov DATA, %eax
    write_reg LAPIC_ICR, 0x000C4500
    write_reg LAPIC_ICR, 0x000C4608
2:  pause
    cmpl %eax, DATA
    je 2b
    dec %ebx
    jnz 1b
    movl $1, FLAG
    ret
5:  lock incl DATA
6:  pause
    cmpl $0, FLAG
    je 6b
    ret
.elseif TEST == 8               # stores and loads: what is published last is seen last
    test %ebp, %ebp
    jnz 5f
    mov $ROUNDS, %ebx
1:  mov %ebx, DATA + 0x40
    mov %ebx, FLAG
    dec %ebx
    jnz 1b
    movl $-1, FLAG
    ret
5:  mov FLAG, %eax
    mov DATA + 0x40, %edx
    cmp $-1, %eax
    je 8f
    test %eax, %eax
    jz 5b
    cmp %eax, %edx              # counted down: never older than the flag
    jbe 5b
    lock incl DATA + 12
    jmp 5b
8:  ret
.elseif TEST == 9               # fresh pages of code, written here while others begin to run it; each store finds another
    test %ebp, %ebp             # page where the last one was in the TLB
    jnz 5f
    mov $1, %ebx
1:  mov %ebx, %edi
    shl $12, %edi
    add $PLAYGROUND, %edi
    mov $0x80, %ecx
2:  movb $0xB8, (%rdi)          # mov $0, %eax; ret
    movl $0, 1(%rdi)
    movb $0xC3, 5(%rdi)
    add $16, %rdi
    dec %ecx
    jnz 2b
    sub $0x800, %rdi
    mov %ebx, FLAG
    mov $0x80, %ecx
3:  mov %ecx, 0x400800(%rdi)
    mov %ebx, 1(%rdi)
    add $16, %rdi
    dec %ecx
    jnz 3b
    mov %ebx, ACK
4:  pause
    mov DATA, %eax
    cmp $CPUS - 1, %eax
    jne 4b
    movl $0, DATA
    inc %ebx
    cmp $ROUNDS, %ebx
    jne 1b
    movl $-1, FLAG
    ret
5:  xor %esi, %esi
6:  pause
    mov FLAG, %edx
    cmp %esi, %edx
    je 6b
    mov %edx, %esi
    cmp $-1, %edx
    je 8f
    mov %esi, %edi
    shl $12, %edi
    add $PLAYGROUND, %edi
7:  call *%rdi                  # some of it, while it changes
    lea 0x300(%rdi), %rax
    call *%rax
    cmp ACK, %esi
    jne 7b
    xor %eax, %eax
    cpuid                       # serialize (SDM Vol. 3A 9.1.3)
    mov $0x80, %r8d
9:  call *%rdi
    cmp %esi, %eax
    je 1f
    lock incl DATA + 12
1:  add $16, %rdi
    dec %r8d
    jnz 9b
    lock incl DATA
    jmp 6b
8:  ret
.endif

.code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl TRAMPOLINE + (gdt_pointer - trampoline)
    mov $0x620, %eax
    mov %eax, %cr4
    mov $0x4000, %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx
    mov $0x900, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80010031, %eax
    mov %eax, %cr0
    ljmpl $0x08, $up
gdt_pointer:
    .word 0x37
    .long 0x1000
trampoline_end:
