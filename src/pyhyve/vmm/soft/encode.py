"""The assembler: every function is inline, in encode.pxd."""
