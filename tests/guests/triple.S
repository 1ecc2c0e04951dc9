# An exception with an IDT of no entries: #UD, #GP, #DF, shutdown.
.include "guest.inc"
    lidt nothing(%rip)
    ud2
nothing:
    .word 0
    .quad 0
