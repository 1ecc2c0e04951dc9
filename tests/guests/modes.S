# From real mode to protected mode to long mode to compatibility mode, with tables that the guest brings itself.
.code16
.equ DATA, 0x9000
.equ PML4, 0x40000
.equ PDPT, 0x41000
    cli
    lgdtl pointer
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x08, $protected
.code32
protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x7000, %esp
    movl $0x32, DATA
    movl $PDPT + 3, PML4
    movl $0, PML4 + 4
    movl $0x42003, PDPT
    movl $0, PDPT + 4
    movl $0x83, 0x42000
    movl $0, 0x42004
    mov $PML4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $0xC0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    rdmsr
    mov %eax, DATA + 4
    ljmp $0x18, $long
.code64
long:
    mov $0x1122334455667788, %rax
    mov %rax, DATA + 8
    push $0x08
    lea compatible(%rip), %rax
    push %rax
    lretq
.code32
compatible:
    mov %esp, %eax
    inc %eax
    mov %eax, DATA + 16
    out %al, $0xF4
.balign 8
gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00AF9B000000FFFF
pointer:
    .word pointer - gdt - 1
    .long gdt
