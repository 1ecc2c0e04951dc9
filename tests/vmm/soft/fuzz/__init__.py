"""A fuzzer of the CPU engine: whatever a guest executes, the worst outcome is a fault in the guest.

``cases`` makes a machine's whole state, memory and code from a seed; ``worker`` runs cases in a process of its own and
looks afterwards whether anything but guest memory changed; ``hunt`` feeds workers, notices the ones that died or came
to no end, and makes the case that did it smaller. ``python -m tests.vmm.soft.fuzz`` hunts for as long as it is told.
"""
