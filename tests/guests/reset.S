# What a CPU executes first: 16 bytes below 4 GiB, in real mode with a CS that real mode cannot load.
.code16
    mov %cs, %ax
    out %ax, $0xF5
    out %al, $0xF4
