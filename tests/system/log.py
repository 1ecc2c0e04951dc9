"""Looks through a kernel's log for signs that something went wrong."""

from __future__ import annotations

import re

# lib/bug.c, kernel/panic.c, arch/x86/mm/fault.c, arch/x86/mm/extable.c, kernel/watchdog.c, kernel/rcu/tree_stall.h
TROUBLE = re.compile(r"\bBUG\b|WARNING|Oops|Call Trace|general protection|unchecked MSR|lockup|detected stall")
WARNING_OR_WORSE = re.compile(r"<[0-4]>")
"""How a line begins in what ``dmesg -r`` prints, from level KERN_EMERG to KERN_WARNING."""
ALLOWED = re.compile(
    # What the kernel thinks of the host's processor, which the guest sees as it is: arch/x86/kernel/cpu/bugs.c
    r"(Spectre V\d|RETBleed|MDS|TAA|MMIO Stale Data|L1TF|SRBDS|GDS|SRSO|ITS|TSA|VMSCAPE)\b.*"
    r"(vulnerab|microcode|mitigat|leak)"
    # A busy host took the CPU away while the guest counted the PIT's ticks; it goes by the HPET then. Not seen on an
    # idle host, nor where the processor tells its frequency: arch/x86/kernel/tsc.c
    r"|tsc: Unable to calibrate against PIT"
    # The same, while an interrupt of its timer was served: kernel/time/hrtimer.c
    r"|hrtimer: interrupt took"
    # The numbers of the processors that are being started, in one line with the first: kernel/smp.c
    r"|\]\s+#\d+$",
    re.IGNORECASE,
)


def complaints(log: str) -> list[str]:
    """The lines of ``log`` (as ``dmesg -r`` prints it) that should not be there."""
    return [
        line
        for line in log.splitlines()
        if (TROUBLE.search(line) or WARNING_OR_WORSE.match(line)) and not ALLOWED.search(line)
    ]
