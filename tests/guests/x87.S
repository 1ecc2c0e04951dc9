# The x87 stack for the machine to read, and a result from it.
.include "guest.inc"
    fninit
    fld1
    fldpi
    out %al, $READY
    fstpl DATA
    fstpl DATA + 8
    finish
