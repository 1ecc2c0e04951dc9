# Nothing but a loop, or a sleep that nothing ends.
.include "guest.inc"
.if HALT
    cli
    hlt
    finish
.else
again:
    inc %rbx
    jmp again
.endif
