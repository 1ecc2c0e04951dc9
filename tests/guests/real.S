# Real mode: segment arithmetic, a far call, INT through the vector table, 32-bit operands, port I/O.
.code16
.equ DATA, 0x9000
    mov $0x1234, %ax
    mov %ax, %ds
    movb $0x42, 0x10
    xor %ax, %ax
    mov %ax, %ds
    movw $handler, 4 * 0x21
    movw $0, 4 * 0x21 + 2
    movb $7, %ah
    int $0x21
    mov %ax, DATA
    lcall $0x0800, $(far - 0x8000)
    mov %bx, DATA + 2
    mov $0x12345678, %eax
    add $0x11111111, %eax
    mov %eax, DATA + 4
    mov $0x3F8, %dx
    in (%dx), %al
    mov %al, DATA + 8
    std
    mov $DATA + 0x13, %di
    mov $4, %cx
    mov $0x77, %al
    rep stosb
    cld
    out %al, $0xF4
handler:
    inc %ax
    iret
far:
    mov %cs, %bx
    lret
