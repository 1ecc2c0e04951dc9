# PAUSE three times, then HLT with an interrupt on the way.
.include "guest.inc"
    mov $3, %ecx
again:
    pause
    loop again
    finish
