"""The gdb remote server of ``-G``: a debugger on the guest, from outside of it.

Source: "Debugging with GDB", appendix E, "GDB Remote Serial Protocol". vCPU N is thread N+1, and the server is
all-stop: when one vCPU hits something every one rests until the debugger lets them go.

A packet's way: ``server`` reads the socket in the event loop → ``framing`` takes packets out of the bytes →
``session`` looks the packet up and answers it, from ``registers``, ``space`` (memory), ``control`` (who runs, and
where it stops) and ``monitor``. A stop's way: the vCPU's thread tells ``control`` of the exit and goes to rest → when
the last vCPU rests the event loop reports the stop.
"""
