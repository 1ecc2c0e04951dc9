# XMM0 for the machine to read, XMM1 from the machine.
.include "guest.inc"
    movdqu value(%rip), %xmm0
    out %al, $READY
    movdqu %xmm1, DATA
    finish
value: .quad 0x0123456789ABCDEF, 0xFEDCBA9876543210
