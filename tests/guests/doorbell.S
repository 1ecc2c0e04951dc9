# Writes to doorbells in device memory and at a port, some of which do not match.
.include "guest.inc"
    mov $DEVICE, %ebx
    movl $1, (%rbx)
    movl $2, (%rbx)
    movl $7, 8(%rbx)
    movl $8, 8(%rbx)
    mov $3, %ax
    mov $0x2000, %dx
    out %ax, (%dx)
    finish
